"""Self-acquired soft labels: the classes among the nearest neighbors of an example, in the network's own outputs."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, flat_labels
from tfigkd.losses.logits import cross_entropy

FAR = 1e30
"""Squared distance of what is no neighbor."""
POSTERIORS = "teacher_posteriors"
"""Target of a batch: `neighbor_posteriors` in the teacher's space, [B,C]."""
EXAMPLE = "example"
"""Target of a batch: integers [B] that tell which examples these are."""
UNKNOWN = -1
"""Number of an example whose index is not given."""
EPSILON = 1e-12
"""Smallest probability of which the logarithm is taken."""


def neighbor_posteriors(
    logits: Tensor, candidates: Tensor, labels: Tensor, excluded: Tensor, *, neighbors: int
) -> Tensor:
    """Return the share of each class among the nearest candidates, an estimate of its posterior probability.

    With k_c of the k nearest of class c, p(x|c) is estimated by k_c / (N_c · V) and p(c) by N_c / N, so that p(c|x) is
    k_c / k.

    Args:
        logits: [B,C].
        candidates: Logits [N,C].
        labels: Their classes, integers [N].
        excluded: bool [B,N], true where a candidate is no neighbor, such as the example itself.
        neighbors: k, the most neighbors; fewer are counted where fewer candidates are left.

    Returns:
        float32 [B,C]; rows sum to 1, or are zeros without any candidate.
    """
    logits, candidates = ops.cast(logits, "float32"), ops.cast(candidates, "float32")
    lengths = ops.sum(ops.square(logits), axis=1)[:, None] + ops.sum(ops.square(candidates), axis=1)[None]
    distances = ops.where(excluded, FAR, lengths - 2.0 * ops.matmul(logits, ops.transpose(candidates)))
    nearest, indices = ops.top_k(-distances, neighbors)
    counted = ops.cast(nearest > -FAR, "float32")
    classes = ops.one_hot(ops.take(labels, indices), logits.shape[-1], dtype="float32")
    counts = ops.sum(classes * counted[..., None], axis=1)
    return counts / ops.maximum(ops.sum(counted, axis=1, keepdims=True), 1.0)


class Queue(keras.layers.Layer):
    """The logits, labels and numbers of the last training examples.

    Args:
        size: Examples.
        classes: Number of classes.
    """

    def __init__(self, size: int, classes: int, **options: Any):
        super().__init__(dtype="float32", **options)
        self.size = size
        fixed = {"initializer": "zeros", "trainable": False, "autocast": False}
        self.logits = self.add_weight(shape=(size, classes), name="logits", **fixed)
        self.labels = self.add_weight(shape=(size,), dtype="int32", name="labels", **fixed)
        self.examples = self.add_weight(shape=(size,), dtype="int32", name="examples", **fixed)
        self.count = self.add_weight(shape=(), dtype="int32", name="count", **fixed)
        self.built = True

    def load_own_variables(self, store: Any) -> None:
        """Load the variables; a file of an earlier version has no numbers of the examples."""
        if len(store) == len(self.variables):
            super().load_own_variables(store)
            return
        for variable, key in zip((self.logits, self.labels, self.count), sorted(store, key=int), strict=True):
            variable.assign(store[key])
        self.examples.assign(ops.full_like(self.examples, UNKNOWN))

    def filled(self) -> Tensor:
        """Return which places hold an example, bool [size]."""
        return ops.arange(self.size, dtype="int32") < self.count

    def put(self, logits: Tensor, labels: Tensor, examples: Tensor) -> None:
        """Put the examples of a batch in the place of the oldest ones; of more than `size` the last ones."""
        logits, labels, examples = (values[-self.size :] for values in (logits, labels, examples))
        batch = ops.shape(logits)[0]
        places = ops.mod(self.count + ops.arange(batch, dtype="int32"), self.size)[:, None]
        self.logits.assign(ops.scatter_update(self.logits, places, logits))
        self.labels.assign(ops.scatter_update(self.labels, places, labels))
        self.examples.assign(ops.scatter_update(self.examples, places, examples))
        # kept small: only whether the queue is full and the next place matter
        count = self.count + batch
        self.count.assign(ops.where(count >= 2 * self.size, count - self.size, count))


@keras.saving.register_keras_serializable("tfigkd")
class OSAKD(PerExampleLoss):
    """Online self-acquired distillation of Tzelepi and Tefas 2021 (arXiv 2108.11798), for `tfigkd.Distiller` only.

    In the student's space there is no teacher: the soft label of an example is `neighbor_posteriors` among the other
    examples of its batch and the last `queue` training examples, whose logits are those of the step in which they were
    seen. An example is no neighbor of itself, also where the queue still has it from the epoch before, if the targets
    give its index as `"example"`, integers [B]. The loss is KL(soft label ‖ student); no gradient passes through the
    soft label. The number of neighbors, the distance and the queue are our reading, since only the abstract was
    available to us.

    In the teacher's space the neighbors are those among all training examples in the teacher's logits, as computed
    before the training and given by the targets as `"teacher_posteriors"`.

    Args:
        neighbors: k, neighbors of an example. Defaults to `16`.
        queue: Examples that are kept, in the student's space; of a larger batch its last ones. Defaults to `1024`.
        space: "student" or "teacher". Defaults to `"student"`.
    """

    refuses_mixed_labels = True  # in the teacher's space too, where the soft labels are those of single images

    def __init__(self, neighbors: int = 16, queue: int = 1024, space: Literal["student", "teacher"] = "student"):
        if not 0 < neighbors <= queue:
            raise ValueError(f"neighbors must be positive and at most the queue, got {neighbors} and {queue}")
        if space not in ("student", "teacher"):
            raise ValueError(f"space must be 'student' or 'teacher', got {space!r}")
        self.neighbors = neighbors
        self.queue = queue
        self.space = space
        self.compares = "posteriors" if space == "teacher" else "labels"

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the value depends on which examples share a batch: in the student's space they are its neighbors."""
        return self.space == "student"

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create the queue, in the student's space; a second call changes nothing.

        Args:
            teacher_shapes: Not used.
            student_shapes: The shape of the student's logits, [(None, C)].
        """
        if self.extra_layer is None and self.space == "student":
            ((_, classes),) = student_shapes
            self.extra_layer = Queue(self.queue, classes, name="osakd_queue")

    def soft_labels(self, logits: Tensor, labels: Tensor, examples: Tensor | None = None, *, training: bool) -> Tensor:
        """Return the soft labels of a batch, [B,C], and in training put it into the queue.

        Args:
            logits: The student's, [B,C].
            labels: Integers [B] or [B,1].
            examples: Which examples these are, integers [B] from 0; None if that is not known.
            training: Whether the batch is put into the queue.

        Raises:
            ValueError: Labels are not one integer per example; with mixup they are not.
        """
        if self.extra_layer is None:
            raise ValueError("the queue is not built; call OSAKD.build([], [(None, classes)]) first")
        labels = flat_labels(labels)
        if len(labels.shape) != 1:
            raise ValueError(f"osakd needs one label per example, integers [B]; got shape {tuple(labels.shape)}")
        logits = ops.stop_gradient(ops.cast(logits, "float32"))
        labels = ops.cast(labels, "int32")
        batch, queue = ops.shape(logits)[0], self.extra_layer
        examples = ops.full_like(labels, UNKNOWN) if examples is None else ops.cast(examples, "int32")
        itself = ops.cast(ops.eye(batch), "bool")
        earlier = ops.logical_and(examples[:, None] == queue.examples[None], examples[:, None] != UNKNOWN)
        unfit = ops.logical_or(earlier, ops.logical_not(queue.filled())[None])
        posteriors = neighbor_posteriors(
            logits,
            ops.concatenate([logits, ops.convert_to_tensor(queue.logits)], axis=0),
            ops.concatenate([labels, ops.convert_to_tensor(queue.labels)], axis=0),
            ops.concatenate([itself, unfit], axis=1),
            neighbors=self.neighbors,
        )
        if training:
            queue.put(logits, labels, examples)
        return ops.stop_gradient(posteriors)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; in the teacher's place are the soft labels."""
        entropy = -ops.sum(teacher_outputs * ops.log(ops.maximum(teacher_outputs, EPSILON)), axis=-1)
        return cross_entropy(teacher_outputs, student_outputs) - entropy
