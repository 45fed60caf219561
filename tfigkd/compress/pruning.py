"""Magnitude pruning during training (Zhu, Gupta 2017, arXiv 1710.01878), as a Keras callback."""

import keras
import numpy as np
from keras import ops

from tfigkd.models.cost import count_parameters
from tfigkd.models.pruned import magnitude_mask, prunable_kernels


def polynomial_sparsity(step: int, final: float, *, end: int) -> float:
    """Return the sparsity after `step` steps: from 0, fast at first, to `final` at `end` (equation 1, exponent 3)."""
    return final * (1 - (1 - min(step / end, 1.0)) ** 3)


class MagnitudePruning(keras.callbacks.Callback):
    """A callback that prunes the kernels of a model during training; with a Distiller, those of the student.

    Each kernel's smallest weights are set to zero, more of them as training continues, and stay zero.
    The masks depend only on the weights and the optimizer's step, so that a run resumed from a checkpoint gives the
    same result as an uninterrupted run. Where several steps are one execution (`steps_per_execution` of `compile`), a
    selection is made at its end. A step is an update of the weights: one that is skipped, as float16 does where a
    gradient is not finite, or is only accumulated, does not count.

    Args:
        sparsity: Share of zeros in each kernel at the end, in (0, 1).
        end: The step at which it is reached; later steps train the remaining weights. With 0, existing zeros are kept
            and no others are added.
        frequency: Steps between two selections of weights.

    Example:
        model.fit(images, labels, callbacks=[MagnitudePruning(0.5, end=400)])
    """

    def __init__(self, sparsity: float, *, end: int, frequency: int = 10):
        super().__init__()
        if not 0 < sparsity < 1 or end < 0 or frequency < 1:
            raise ValueError(f"Expected 0 < sparsity < 1, end >= 0, frequency >= 1; got {sparsity}, {end}, {frequency}")
        self.sparsity, self.end, self.frequency = sparsity, end, frequency

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Read the masks from the zeros of the weights, and the step from the optimizer."""
        self._kernels = list(prunable_kernels(getattr(self.model, "student", self.model)))
        if not self._kernels:
            raise ValueError("the model has nothing to prune: no Conv2D or Dense layer that trains")
        self._step = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        self._masks = [ops.cast(ops.not_equal(kernel, 0), kernel.dtype) for kernel in self._kernels]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Update the masks if a selection is due, and set the masked weights to zero again."""
        # within an epoch Keras's JAX trainer holds the values and the variables are empty; this copies them into the
        # variables, and the trainer reads back what is assigned below
        getattr(self.model, "jax_state_sync", lambda: None)()
        before, self._step = self._step, int(ops.convert_to_numpy(self.model.optimizer.iterations))
        due = before // self.frequency != self._step // self.frequency or self._step >= self.end
        if before < self.end and due:
            wanted = polynomial_sparsity(self._step, self.sparsity, end=self.end)
            # computed from the masked kernel, so that a pruned weight stays pruned
            self._masks = [
                ops.convert_to_tensor(magnitude_mask(ops.convert_to_numpy(kernel * mask), wanted))
                for kernel, mask in zip(self._kernels, self._masks, strict=True)
            ]
        for kernel, mask in zip(self._kernels, self._masks, strict=True):
            kernel.assign(kernel * mask)


def sparsity(model: keras.Model) -> dict[str, float]:
    """Return a model's shares of zeros and its number of nonzero parameters.

    Returns:
        `sparsity` over all learned parameters, `prunable_sparsity` over the prunable kernels, and
        `nonzero_parameters`.
    """
    kernels = [ops.convert_to_numpy(kernel) for kernel in prunable_kernels(model)]
    zeros, prunable = sum(np.sum(kernel == 0) for kernel in kernels), sum(kernel.size for kernel in kernels)
    total = count_parameters(model)
    return {
        "sparsity": float(zeros / total),
        "prunable_sparsity": float(zeros / max(prunable, 1)),
        "nonzero_parameters": int(total - zeros),
    }
