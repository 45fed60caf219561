"""Base classes of the losses, on which a Distiller relies; checks of arguments; distances that accept zero vectors."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, Literal, Self

import keras
from keras import ops
from keras.distillation import DistillationLoss

Tensor = Any  # a tensor of the Keras backend in use
Taps = str | tuple[str, ...] | None
LOGITS = "logits"
"""The tap of a model's logits, whichever layer gives them."""
Compares = Literal["outputs", "explanations", "map", "weights", "labels", "posteriors", "pruned"]
"""What a loss compares, see `Loss.compares`."""

SMALLEST_SQUARED_NORM = 1e-12
"""A vector whose squared norm is not above this counts as zero: division by its norm would give huge values."""


class Loss(DistillationLoss):
    """A distillation loss that declares what it compares, so that a Distiller can check it once, at construction.

    The constructor's arguments are stored as attributes of the same names and form the config. A loss of the whole
    batch has only `compute_loss`; a `PerExampleLoss` also gives one value per example.
    """

    compares: Compares = "outputs"
    """What the loss compares.

    - outputs: those of the layers `teacher_layer` and `student_layer`, of several layers several; the logits where
      these are None. The student's go through `project`.
    - explanations: what `explain` makes of these outputs, of the layers behind them and of the teacher's decision.
    - map: the teacher's stored map, and the student's `student_map`.
    - weights: the tensors of decomposed kernels of both; an attribute `permuted` says whether each layer is paired with
      another one (a control).
    - labels: `soft_labels`, made of the student's own logits, and these logits; there is no teacher.
    - posteriors: the targets' "teacher_posteriors", computed before the training, and the student's logits.
    - pruned: a pair of logits, of the teacher and of a copy of it without the share `pruned` of its weights; and the
      student's logits.
    """
    takes_labels: bool = False
    """`per_example` takes integer labels [B] as a third argument."""
    extra_layer: keras.Layer | None = None
    """A layer of the loss's own, such as a projector, an attention or a queue; None without one, and before `build`.

    A `Distiller` tracks and saves it and trains what is trainable of it; it is no part of the student.
    """
    owned: bool = False
    """Whether a Distiller has this loss, and trains its `extra_layer`."""
    student_layer: Taps = None
    teacher_layer: Taps = None

    @property
    def student_layer_name(self) -> Taps:
        """The student's tap, under the name that Keras's own Distiller reads."""
        return self.student_layer

    @property
    def teacher_layer_name(self) -> Taps:
        """The teacher's tap, under the name that Keras's own Distiller reads."""
        return self.teacher_layer

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create `extra_layer`, in a loss that has one; a second call with such shapes changes nothing.

        A Distiller calls it where a loss overrides it; with Keras's own Distiller the user does.

        Args:
            teacher_shapes: Shape of each tap of `teacher_layer` with the batch axis, such as [(None, H, W, D)]; of the
                logits, [(None, C)], where that is None.
            student_shapes: The same for `student_layer`.

        Raises:
            ValueError: The shapes are not what the loss takes, or do not fit the layer of an earlier call.
        """

    def project(self, student_outputs: Any, *, training: bool) -> Any:
        """Return what the loss takes in the place of the student's outputs: these themselves, unless overridden."""
        return student_outputs

    @property
    def refuses_mixed_labels(self) -> bool:
        """Whether the loss needs one label for each example, which mixed images do not have."""
        return self.takes_labels

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the value depends on which examples share a batch, so that devices cannot each take a part."""
        return self.compares != "weights"

    def check_taps(self, student: keras.Model, teacher: keras.Model | None = None) -> None:
        """Check before training that the models have the layers to tap.

        Args:
            student: The model that is trained.
            teacher: The live teacher, or None if its features are cached.

        Raises:
            ValueError: A model has no layer of that name.
        """
        for role, model, taps in (("student", student, self.student_layer), ("teacher", teacher, self.teacher_layer)):
            if model is None or taps is None:
                continue
            names = _layer_names(model)
            for tap in [taps] if isinstance(taps, str) else taps:
                if tap != LOGITS and tap not in names:
                    near = difflib.get_close_matches(tap, names, n=3, cutoff=0) or names[:3]
                    raise ValueError(f"the {role} {model.name!r} has no layer {tap!r}; its nearest: {', '.join(near)}")

    def validate_model_compatibility(self, teacher: keras.Model, student: keras.Model) -> None:
        """Check that Keras's own Distiller can use the loss; that Distiller calls this method.

        It passes a loss one output of each model and nothing else.

        Raises:
            ValueError: The loss needs more than that, or a tap is unknown.
        """
        if self.takes_labels or self.compares != "outputs" or isinstance(self.student_layer, tuple):
            raise ValueError(
                f"{type(self).__name__} needs more than one output of each model, but keras.distillation.Distiller "
                "passes only one; use tfigkd.Distiller"
            )
        self.check_taps(student, teacher)

    def get_config(self) -> dict:
        """Return the constructor arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """Rebuild the loss from its constructor arguments."""
        return cls(**config)


def _layer_names(model: keras.Model) -> list[str]:
    """Return the names of a model's layers and operations; those of models inside as `backbone/block_13`."""
    names = []
    for layer in getattr(model, "operations", model.layers):
        inside = _layer_names(layer) if isinstance(layer, keras.Model) else []
        names += [layer.name, *(f"{layer.name}/{name}" for name in inside)]
    return names


class PerExampleLoss(Loss):
    """A loss with one value per example, so that sample weights can be applied."""

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the value depends on which examples share a batch: it does not."""
        return False

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]."""
        raise NotImplementedError

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the mean loss of the batch, a scalar."""
        return ops.mean(self.per_example(teacher_outputs, student_outputs))


def flat_labels(labels: Any) -> Any:
    """Return labels [B,1], an array or tensor, as [B]; classes [B] and probabilities [B,C] stay what they are."""
    return labels[:, 0] if len(labels.shape) == 2 and labels.shape[1] == 1 else labels


def l2_normalize(vectors: Tensor, axis: int = -1) -> Tensor:
    """Divide vectors by their L2 norm; a zero vector stays zero and passes no gradient.

    Args:
        vectors: Tensor of any shape.
        axis: Axis of the components of a vector.

    Returns:
        float32, of the same shape.
    """
    vectors = ops.cast(vectors, "float32")
    squared = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    has_length = squared > SMALLEST_SQUARED_NORM
    # take the root of 1 for zero vectors: a mere `where` would let the NaN of the other branch into the gradient
    return ops.where(has_length, vectors * ops.rsqrt(ops.where(has_length, squared, 1.0)), 0.0)


def cosine_distance(left: Tensor, right: Tensor, axis: int = -1) -> Tensor:
    """Return one minus the cosine of two vectors, in [0, 2]: 0 if both are zero, 1 if only one is.

    It is computed as half the squared distance of the unit vectors, which is exactly zero for equal vectors.

    Args:
        left: Tensor of any shape.
        right: Tensor of the same shape.
        axis: Axis of the components of a vector.

    Returns:
        float32, without that axis.
    """
    left, right = l2_normalize(left, axis), l2_normalize(right, axis)
    one_is_zero = ops.any(left != 0, axis=axis) != ops.any(right != 0, axis=axis)
    return 0.5 * ops.sum(ops.square(left - right), axis=axis) + 0.5 * ops.cast(one_is_zero, "float32")


def pearson_distance(left: Tensor, right: Tensor, axis: int = -1) -> Tensor:
    """Return one minus Pearson's correlation, computed as `cosine_distance` of the centered vectors.

    Args:
        left: Tensor of any shape.
        right: Tensor of the same shape.
        axis: Axis of the components of a vector.

    Returns:
        float32 in [0, 2], without that axis.
    """
    left, right = ops.cast(left, "float32"), ops.cast(right, "float32")
    return cosine_distance(
        left - ops.mean(left, axis=axis, keepdims=True), right - ops.mean(right, axis=axis, keepdims=True), axis
    )


def check_positive(**values: float) -> None:
    """Check that arguments are positive.

    Raises:
        ValueError: One is not, or no number.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_not_negative(**values: float) -> None:
    """Check that arguments are positive or zero.

    Raises:
        ValueError: One is not, or no number.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
