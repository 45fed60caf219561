"""Losses of `keras.distillation`, and user-provided ones of its base class, as `tfigkd.Distiller` takes them."""

from typing import Any

from keras.distillation import DistillationLoss

from tfigkd.losses.base import LOGITS, Loss, Tensor


class AdaptedLoss(Loss):
    """A wrapper of a loss that has no `compares`: it compares logits, or the layers that the loss names.

    These names are those of Keras's own losses. It gives one number for the batch, so sample weights do not reach it.

    Args:
        loss: Has `compute_loss(teacher_outputs, student_outputs)` to a scalar; optionally `teacher_layer_name` and
            `student_layer_name`.
    """

    def __init__(self, loss: DistillationLoss):
        self.loss = loss
        names = [getattr(loss, f"{role}_layer_name", None) for role in ("teacher", "student")]
        self.teacher_layer, self.student_layer = [name or LOGITS for name in names] if any(names) else (None, None)

    def check_taps(self, student: Any, teacher: Any = None) -> None:
        """Check before training that the models have the layers to tap.

        Raises:
            ValueError: a model has no layer of that name, or the loss refuses the models.
        """
        if teacher is not None:
            self.loss.validate_model_compatibility(teacher, student)
        super().check_taps(student, teacher)

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the batch, a scalar.

        Raises:
            ValueError: the loss gives no scalar, or refuses the outputs.
        """
        self.loss.validate_outputs(teacher_outputs, student_outputs)
        value = self.loss.compute_loss(teacher_outputs, student_outputs)
        if len(getattr(value, "shape", ())) > 0:
            raise ValueError(f"{type(self.loss).__name__}.compute_loss must give a scalar, got shape {value.shape}")
        return value


def adapted(loss: DistillationLoss) -> Loss:
    """Return a loss as a Distiller takes it.

    Raises:
        ValueError: it is no `keras.distillation.DistillationLoss`.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, DistillationLoss):
        raise ValueError(f"a loss must be a keras.distillation.DistillationLoss, got {loss!r}")
    return AdaptedLoss(loss)
