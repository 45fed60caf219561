"""Distillation for classes of unequal size: the teacher's soft targets, weighted by effective numbers of examples."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, check_positive
from tfigkd.losses.logits import kl_divergence

SMALLEST_WEIGHT = 1e-30
"""Its logarithm is finite, and takes a class without examples out of every softmax."""


def effective_weights(counts: Sequence[int], beta: float) -> np.ndarray:
    """Return the weight of each class by its effective number of examples (Cui et al. 2019, arXiv 1901.05555).

    It is proportional to (1 - beta) / (1 - beta^n) for n examples, with the mean 1: about 1/n for n far below
    1 / (1 - beta), and constant far above.

    Args:
        counts: Examples of each class.
        beta: In [0, 1); with 0 all classes weigh the same.

    Returns:
        float64 [C]; 0 for a class without examples, of which the mean takes no account.

    Raises:
        ValueError: beta is out of range, a count is negative or no number, or no class has examples.
    """
    examples = np.asarray(counts, np.float64)
    if not (np.isfinite(examples) & (examples >= 0)).all():
        raise ValueError(f"counts must be finite and not negative, got {counts}")
    present = examples > 0
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    if not present.any():
        raise ValueError(f"expected examples of at least one class, got counts {counts}")
    # 1 - beta^n by expm1: the difference itself is inexact for a beta near 1
    effective = -np.expm1(np.where(present, examples, 1.0) * np.log(beta)) if beta else np.ones_like(examples)
    weights = np.where(present, 1.0 / effective, 0.0)
    return weights * present.sum() / weights.sum()


def balanced_kl(teacher_logits: Tensor, student_logits: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
    """Return the loss of balanced distillation, T² · KL(q ‖ student), where q is proportional to weights · teacher.

    See FOSTER (Wang et al. 2022, arXiv 2204.04662): a teacher that saw few examples of a class gives it too little
    probability. The authors have the cross-entropy without T²; its gradient is this one's divided by T².

    Args:
        teacher_logits: [B,C].
        student_logits: [B,C].
        weights: Positive, of each class, [C]; with equal ones this is `kl_divergence`.
        temperature: T > 0, for both.

    Returns:
        Loss of each example, [B], in nats.
    """
    # weights times the softmax, normalized, is the softmax of logits to which T times their logarithms are added
    shifted = ops.cast(teacher_logits, "float32") + temperature * ops.log(ops.cast(weights, "float32"))
    return kl_divergence(shifted, student_logits, temperature=temperature)


@keras.saving.register_keras_serializable("tfigkd")
class BalancedKL(PerExampleLoss):
    """`balanced_kl` with `effective_weights`, for Keras's own Distiller and for `tfigkd.Distiller`.

    Args:
        temperature: T > 0. Defaults to `2.0`.
        beta: Of the effective numbers, in [0, 1). Defaults to `0.97`, the authors' value for memories of 20 examples.
        counts: Examples of each class in training. Without them all classes weigh the same, as in `KLDivergence`.
    """

    def __init__(self, temperature: float = 2.0, beta: float = 0.97, counts: Sequence[int] | None = None):
        check_positive(temperature=temperature)
        self.temperature, self.beta = temperature, beta
        self.counts = None if counts is None else [int(count) for count in counts]
        self._weights = effective_weights([1] if self.counts is None else self.counts, beta)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B].

        Raises:
            ValueError: The counts are of another number of classes.
        """
        classes = student_outputs.shape[-1]
        if self.counts is not None and len(self.counts) != classes:
            raise ValueError(f"counts must have one number for each of {classes} classes, got {len(self.counts)}")
        weights = np.maximum(self._weights, SMALLEST_WEIGHT).astype(np.float32)
        return balanced_kl(teacher_outputs, student_outputs, weights, temperature=self.temperature)
