"""Losses on logits: the hard label, and softened logits."""

from typing import Any

import keras
from keras import ops
from keras.distillation import DistillationLoss

Tensor = Any  # of whichever backend Keras runs on


def hard_label_loss(labels: Tensor, logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the hard label.

    Args:
        labels: Integer classes [B], or class probabilities [B,C].
        logits: [B,C].
        label_smoothing: Share of the label's mass spread evenly over the classes, in [0, 1).

    Returns:
        Loss of each example, [B], in nats.
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"))
    if len(labels.shape) == 1:
        labels = ops.one_hot(ops.cast(labels, "int32"), logits.shape[-1])
    targets = ops.cast(labels, "float32")
    targets = targets * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
    return -ops.sum(targets * log_probabilities, axis=-1)


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Softened-logits distillation: T² · KL(teacher ‖ student) (Hinton et al. 2015, arXiv 1503.02531, section 2.1).

    T² keeps the size of the gradient when the temperature changes. Worked out on log-softmax, so that it stays
    finite where a probability underflows.

    Args:
        teacher_logits: [B,C].
        student_logits: [B,C].
        temperature: T > 0, for both.

    Returns:
        Loss of each example, [B], in nats.
    """
    teacher_log = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature)
    student_log = ops.log_softmax(ops.cast(student_logits, "float32") / temperature)
    return temperature**2 * ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)


@keras.saving.register_keras_serializable("tfigkd")
class KLDivergence(DistillationLoss):
    """`kl_divergence` for Keras's own Distiller and for ours.

    Args:
        temperature: T > 0. Defaults to `2.5`.
    """

    def __init__(self, temperature: float = 2.5):
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Loss of each example, [B], so that sample weights can be respected."""
        return kl_divergence(teacher_outputs, student_outputs, temperature=self.temperature)

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Mean loss of the batch, a scalar."""
        return ops.mean(self.per_example(teacher_outputs, student_outputs))

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config: dict) -> "KLDivergence":
        """Rebuild from constructor arguments."""
        return cls(**config)
