"""Magnitude pruning while training goes on (Zhu, Gupta 2017, arXiv 1710.01878), as a Keras callback."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from tfigkd.models.cost import count_parameters
from tfigkd.models.layers import flatten_layers


def prunable_kernels(model: keras.Model) -> Iterator[keras.Variable]:
    """The kernels that pruning thins out: those of convolutions and dense layers that are trained.

    Depthwise kernels, biases and normalization are few weights that much depends on, and stay, as in tfmot.
    """
    for layer in flatten_layers(model):
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and not depthwise and layer.trainable:
            yield layer.kernel


def polynomial_sparsity(step: int, final: float, *, end: int) -> float:
    """Sparsity after some steps: from 0, fast at first, to `final` at step `end` (equation 1, with exponent 3)."""
    return final * (1 - (1 - min(step / end, 1.0)) ** 3)


def magnitude_mask(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    """Ones for the largest weights of a kernel and zeros for its smallest `sparsity`, exactly that many."""
    zeros = round(sparsity * kernel.size)
    mask = np.ones(kernel.size, kernel.dtype)
    mask[np.argsort(np.abs(kernel), axis=None, kind="stable")[:zeros]] = 0
    return mask.reshape(kernel.shape)


class MagnitudePruning(keras.callbacks.Callback):
    """Prunes the kernels of a model in training, the student's where a Distiller trains.

    Each kernel's smallest weights are set to zero, more of them as training goes on, and stay zero after every step.
    The masks follow from the weights and the optimizer's step, so that a run resumed from a checkpoint repeats an
    uninterrupted one.

    Args:
        sparsity: Share of zeros in each kernel at the end, in (0, 1).
        end: The step that reaches it; the steps after it train what is left. 0: the zeros that are there stay, and
            no others come.
        frequency: Steps between two choices of weights.

    Example:
        model.fit(images, labels, callbacks=[MagnitudePruning(0.5, end=400)])
    """

    def __init__(self, sparsity: float, *, end: int, frequency: int = 10):
        super().__init__()
        if not 0 < sparsity < 1 or end < 0 or frequency < 1:
            raise ValueError(f"need sparsity in (0, 1), end >= 0, frequency >= 1, got {sparsity}, {end}, {frequency}")
        self.sparsity, self.end, self.frequency = sparsity, end, frequency

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Take up the zeros of the steps done before."""
        self._kernels = list(prunable_kernels(getattr(self.model, "student", self.model)))
        self._step = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        self._masks = [ops.cast(ops.not_equal(kernel, 0), kernel.dtype) for kernel in self._kernels]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Choose anew where it is time, and set to zero what the optimizer has moved."""
        # within an epoch Keras's trainer on JAX holds the values, and the variables are empty; it takes up what is set
        getattr(self.model, "jax_state_sync", lambda: None)()
        self._step += 1
        if self._step <= self.end and (self._step % self.frequency == 0 or self._step == self.end):
            wanted = polynomial_sparsity(self._step, self.sparsity, end=self.end)
            # the masked kernel, so that a weight that was cut is never among the largest again
            self._masks = [
                ops.convert_to_tensor(magnitude_mask(ops.convert_to_numpy(kernel * mask), wanted))
                for kernel, mask in zip(self._kernels, self._masks, strict=True)
            ]
        for kernel, mask in zip(self._kernels, self._masks, strict=True):
            kernel.assign(kernel * mask)


def sparsity(model: keras.Model) -> dict[str, float]:
    """Zeros of a model: `sparsity` over all its learned parameters, `prunable_sparsity` over the prunable kernels."""
    kernels = [ops.convert_to_numpy(kernel) for kernel in prunable_kernels(model)]
    zeros, prunable = (sum(counts) for counts in zip(*((np.sum(k == 0), k.size) for k in kernels), strict=True))
    total = count_parameters(model)
    return {
        "sparsity": float(zeros / total),
        "prunable_sparsity": float(zeros / prunable),
        "nonzero_parameters": int(total - zeros),
    }
