"""The terms of the loss: what each loss compares in a step, their values and their sum."""

import functools
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any

import keras
from keras import ops

from tfigkd.data.spaces import Range, check_range
from tfigkd.losses import Loss, PerExampleLoss
from tfigkd.losses.base import LOGITS, Tensor
from tfigkd.losses.osakd import EXAMPLE, POSTERIORS
from tfigkd.models.logits import two_classes
from tfigkd.models.pruned import pruned_copy
from tfigkd.training.tapped import TEACHER, TappedNetwork, TappedTensors, flat, loss_taps, outputs_at
from tfigkd.training.targets import labels_of, weighted_mean

RESERVED = ("loss", "hard")
"""Names that no loss may have: the logs hold the sum and the hard-label loss under them."""
SOFT_LABELS = "kd"
"""Name of the term that takes its weight from the hard label, see `hard_label_weight`."""


def hard_label_weight(losses: Collection[str], weights: Mapping[str, float], hard_weight: float | None) -> float:
    """Return the weight of the hard label: the given one, else 1 minus that of the term "kd" where there is one.

    Args:
        losses: Names of the terms that count.
        weights: Name to weight.
        hard_weight: The weight that was asked for; None where none was.
    """
    if hard_weight is not None:
        return hard_weight
    return 1.0 - weights[SOFT_LABELS] if SOFT_LABELS in losses else 1.0


def check_terms(losses: Mapping[str, Loss], weights: Mapping[str, float], hard_weight: float | None, l1: float) -> None:
    """Check the names and weights of a `Distiller`'s terms.

    Args:
        losses: Name to loss.
        weights: Name to weight.
        hard_weight: Weight of the hard label, or None.
        l1: Weight of the sum of absolute values of the kernels.

    Raises:
        ValueError: names of losses and weights differ, a name is taken, a weight is out of range, or what a loss
            compares is none of `COMPARED_BY`.
    """
    if losses.keys() != weights.keys():
        raise ValueError(
            f"losses and loss_weights must have the same names, got {sorted(losses)} and {sorted(weights)}"
        )
    for name, loss in losses.items():
        if loss.compares not in COMPARED_BY:
            raise ValueError(f"loss {name!r} must compare one of {', '.join(COMPARED_BY)}, got {loss.compares!r}")
    for name in RESERVED:
        if name in losses:
            raise ValueError(f"a loss cannot be named {name!r}, the logs have another value under it; rename it")
    if not all(0 <= weight < float("inf") for weight in [*weights.values(), hard_weight or 0.0, l1]):  # NaN is not
        raise ValueError(
            f"weights must not be negative or NaN or infinite, got {weights}, hard_weight {hard_weight} and l1 {l1}"
        )
    if hard_label_weight(losses, weights, hard_weight) < 0:
        raise ValueError(
            f"the weight of {SOFT_LABELS!r} must be in [0, 1], got {weights[SOFT_LABELS]}: the hard label has the "
            "rest; for a larger one give hard_weight=, the weight of the hard label"
        )


def check_settings(label_smoothing: Any, finetune_from: Any, input_range: Any) -> None:
    """Check the arguments of a `Distiller` beside its terms.

    Args:
        label_smoothing: A number in [0, 1).
        finetune_from: A step from 0, or None.
        input_range: Two different numbers, or None.

    Raises:
        ValueError: One is none of that.
    """
    if not isinstance(label_smoothing, Real) or not 0 <= float(label_smoothing) < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
    if finetune_from is not None and (not isinstance(finetune_from, Integral) or finetune_from < 0):
        raise ValueError(f"finetune_from must be a whole number from 0, or None, got {finetune_from!r}")
    if input_range is not None:
        try:
            check_range(input_range)
        except ValueError as error:
            raise ValueError(f"input_range: {error}") from None


def by_class(name: str, given: Tensor, logits: Tensor) -> Tensor:
    """Return what the targets hold for each example and class, after a check of its shape.

    Args:
        name: Its name among the targets, for the message.
        given: [B,C].
        logits: The student's, [B,C].

    Raises:
        ValueError: The two have different shapes.
    """
    expected = tuple(logits.shape)
    if getattr(given.shape, "rank", 0) is None or None in given.shape[1:]:
        return ops.reshape(given, ops.shape(logits))  # in a graph that does not know it, the step itself refuses it
    shape = tuple(given.shape)
    if len(shape) != 2 or any(None not in pair and pair[0] != pair[1] for pair in zip(shape, expected, strict=True)):
        raise ValueError(
            f"{name!r} must hold one number for each example and class of the student, {expected}, got {shape}"
        )
    return given


def loss_terms(
    hard: Tensor,
    sides: Mapping[str, tuple[Any, Any]],
    labels: Tensor,
    *,
    losses: Mapping[str, Loss],
    weights: Mapping[str, Any],
    sample_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return every term of the loss and their weighted sum `"loss"`, all scalars.

    As in Keras, a sample weight multiplies its example's loss and the sum is divided by the batch size. A loss of the
    whole batch (of relations between examples) has no value for one example, and is not weighted.

    Args:
        hard: The hard-label loss, the mean over the batch.
        sides: Name of a loss to what it compares, the teacher's side first; a loss without sides is left out.
        labels: Integers [B], or probabilities [B,C].
        losses: Name to loss.
        weights: Name to weight, `"hard"` among them; a number or a scalar.
        sample_weight: [B], or None.
    """
    terms = {"hard_loss": hard}
    total = weights["hard"] * hard
    for name, (teacher_side, student_side) in sides.items():
        loss = losses[name]
        if isinstance(loss, PerExampleLoss):
            extra = (labels,) if loss.takes_labels else ()
            value = weighted_mean(loss.per_example(teacher_side, student_side, *extra), sample_weight)
        else:
            value = loss.compute_loss(teacher_side, student_side)
        terms[f"{name}_loss"] = value
        total = total + weights[name] * value
    return {"loss": total, **terms}


class LiveTeacher:
    """A live teacher, with what the losses need of it: taps, pruned copies, kernels.

    It is a plain object, as `TappedNetwork`. Pruned copies and tensors are made here once: a later change of the
    teacher's weights does not reach them until `Distiller.attach_teacher` makes a new one.

    Args:
        teacher: A Keras model, images to logits [B,C].
        student: The model that is trained.
        losses: Name to loss.
        input_range: The values of a black and of a white pixel in the batches.

    Attributes:
        network: The teacher.
        pruned: Share of pruned weights to a copy of the teacher without them.
        tensors: Name of each loss of kernels to their tensors.
        values: On JAX those of the teacher's variables that the traced steps hold.

    Raises:
        ValueError: A tap is unknown, or kernels that are compared have no shape in common.
    """

    def __init__(
        self, teacher: keras.Model, student: keras.Model, losses: Mapping[str, Loss], input_range: Range | None
    ):
        self.network = TappedNetwork(teacher, losses, TEACHER, input_range)
        self.values: list[Any] = []
        self.pruned = {
            share: TappedNetwork(pruned_copy(teacher, share), {}, TEACHER, input_range)
            for share in {loss.pruned for loss in losses.values() if loss.compares == "pruned"}
        }
        self.tensors = {
            name: TappedTensors(student, teacher, loss.permuted)
            for name, loss in losses.items()
            if loss.compares == "weights"
        }


class NotKnownError(ValueError):
    """What a loss compares with is known neither from the targets nor from a live teacher."""


class StepComparison:
    """What the losses compare in one step.

    Args:
        student: The student.
        teacher: The live teacher, if any.
        inputs: The images of the batch, [B,H,W,C].
        targets: See `Distiller`; what they hold of the teacher is taken before a live teacher runs.
        outputs: The student's outputs by tap, from `student`.
        training: In evaluation a loss whose teacher is not known is left out.
    """

    def __init__(
        self,
        student: TappedNetwork,
        teacher: LiveTeacher | None,
        inputs: Tensor,
        targets: Any,
        outputs: Mapping[str, Tensor],
        *,
        training: bool,
    ):
        self._student, self._teacher, self._inputs, self._outputs = student, teacher, inputs, outputs
        self._known = targets if isinstance(targets, Mapping) else {}
        self._labels, self._training = labels_of(targets), training
        self._ran = self._passed_over = False

    def sides(self, losses: Mapping[str, Loss]) -> dict[str, tuple[Any, Any]]:
        """Return what each loss compares, the teacher's side first; a loss whose teacher is not known is left out.

        Raises:
            NotKnownError: In training, neither the targets nor a live teacher have what a loss needs.
            ValueError: In training, there is a live teacher, and every loss takes what the targets hold instead.
        """
        found = {}
        for name, loss in losses.items():
            try:
                found[name] = COMPARED_BY[loss.compares](self, name, loss)
            except NotKnownError:
                if self._training:
                    raise
        if self._training and self._passed_over and not self._ran:
            raise ValueError(
                "the live teacher would never run, since the targets hold what the losses need of one; leave out "
                "teacher=, or the stored logits: OverlayStore.join(pictures, logits=False)"
            )
        return found

    @functools.cached_property
    def _teacher_inputs(self) -> Tensor:
        return self._known.get("teacher_inputs", self._inputs)

    def _live(self, name: str, instead: str = "") -> LiveTeacher:
        if self._teacher is None:
            raise NotKnownError(f"loss {name!r} needs a teacher: Distiller(teacher=...){instead}")
        self._ran = True
        return self._teacher

    @functools.cached_property
    def _teacher_outputs(self) -> dict[str, Tensor]:
        """The outputs of the live teacher by tap; it runs once, and not at all where no loss asks for them."""
        assert self._teacher is not None
        seen = self._teacher.network(self._teacher_inputs, training=False)
        return {tap: ops.stop_gradient(value) for tap, value in seen.items()}

    @functools.cached_property
    def _known_logits(self) -> Tensor:
        """The logits of the teacher in the targets, [B,C]; those of one output [B,1] become those of two classes."""
        given, logits = self._known["teacher_logits"], self._outputs[LOGITS]
        if getattr(given.shape, "rank", 0) is not None and tuple(given.shape[1:]) == (1,) and logits.shape[-1] == 2:
            given = two_classes(ops.cast(given, "float32"))
        return by_class("teacher_logits", given, logits)

    def _map(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the stored map, and the student's own, whose gradient is computed only in training."""
        if not self._training or "teacher_map" not in self._known:
            raise NotKnownError(f"loss {name!r} needs targets {{'label': ..., 'teacher_map': ...}}")
        student = self._student
        spaces = {"take": student.take, "to_logits": student.to_logits, "black": student.black}
        return self._known["teacher_map"], loss.student_map(student.model, self._inputs, self._labels, **spaces)

    def _posteriors(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the soft labels that were worked out of the teacher before the training, and the student's logits."""
        if POSTERIORS not in self._known:
            raise NotKnownError(f"loss {name!r} needs targets {{'label': ..., {POSTERIORS!r}: ...}}")
        logits = self._outputs[LOGITS]
        return by_class(POSTERIORS, self._known[POSTERIORS], logits), logits

    def _soft_labels(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the soft labels that the loss makes of the student's logits, and these logits."""
        logits = self._outputs[LOGITS]
        soft = loss.soft_labels(logits, self._labels, self._known.get(EXAMPLE), training=self._training)
        return soft, logits

    def _weights(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the tensors of the kernels of the live teacher and of the student."""
        return self._live(name).tensors[name]()

    def _explanations(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the maps of the live teacher and of the student that explain the teacher's decision."""
        teacher = self._live(name)
        classes = ops.argmax(self._teacher_outputs[LOGITS], axis=-1)
        teacher_tap, student_tap = loss_taps(loss)
        of_teacher = loss.explain(teacher.network.heads[name], self._teacher_outputs[teacher_tap], classes)
        of_student = loss.explain(self._student.heads[name], self._outputs[student_tap], classes)
        return ops.stop_gradient(of_teacher), of_student

    def _pruned(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the logits of the live teacher and of its pruned copy, and the student's."""
        pruned = self._live(name).pruned[loss.pruned](self._teacher_inputs, training=False)[LOGITS]
        return (self._teacher_outputs[LOGITS], ops.stop_gradient(pruned)), self._outputs[LOGITS]

    def _outputs_of_taps(self, name: str, loss: Any) -> tuple[Any, Any]:
        """Return the outputs of the teacher at the loss's taps, cached or live, and the student's."""
        teacher_taps, student_taps = loss_taps(loss)
        cached = {**self._known.get("teacher_features", {})}
        if "teacher_logits" in self._known and LOGITS in flat(teacher_taps):
            cached[LOGITS] = self._known_logits
        if not cached.keys() >= {*flat(teacher_taps)}:
            what = "teacher_features" if loss.teacher_layer else "teacher_logits"
            self._live(name, f", or targets with 'label' and {what!r} from a store")
            cached = self._teacher_outputs
        elif self._teacher is not None:
            self._passed_over = True
        of_student = loss.project(outputs_at(self._outputs, student_taps), training=self._training)
        return outputs_at(cached, teacher_taps), of_student


COMPARED_BY: dict[str, Callable[[StepComparison, str, Any], tuple[Any, Any]]] = {
    "outputs": StepComparison._outputs_of_taps,
    "explanations": StepComparison._explanations,
    "map": StepComparison._map,
    "weights": StepComparison._weights,
    "labels": StepComparison._soft_labels,
    "posteriors": StepComparison._posteriors,
    "pruned": StepComparison._pruned,
}
"""For each value of `Loss.compares`, the function from a loss's name and itself to (teacher's side, student's side)."""
