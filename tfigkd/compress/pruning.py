"""Magnitude pruning during training (Zhu, Gupta 2017, arXiv 1710.01878), as a Keras callback."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.models.cost import count_parameters
from tfigkd.models.pruned import magnitude_mask, prunable_kernels


def polynomial_sparsity(step: int, final: float, *, end: int) -> float:
    """Return the sparsity after some steps: it rises from 0, fast at first (equation 1, exponent 3).

    Args:
        step: Number of steps.
        final: Share of zeros at the end.
        end: Number of steps at which `final` is reached, at least 1.
    """
    return final * (1 - (1 - min(step / end, 1.0)) ** 3)


class MagnitudePruning(keras.callbacks.Callback):
    """A callback that prunes the kernels of a model during training; with a Distiller, those of the student.

    Each kernel's smallest weights are set to zero, more of them as training continues, and stay zero, in the averages
    that an optimizer with `use_ema` keeps as well. The masks depend only on the weights and the optimizer's step. Where
    several steps are one execution (`steps_per_execution` of `compile`), a selection is made at its end. A step is an
    update of the weights: one that is skipped, as float16 does where a gradient is not finite, or is only accumulated,
    does not count.

    Args:
        sparsity: Share of zeros in each kernel at the end, in (0, 1).
        end: The step, counted from `begin`, at which it is reached; later steps train the remaining weights. With 0,
            existing zeros are kept and no others are added.
        frequency: Steps between two selections of weights.
        begin: The optimizer's step at which pruning begins; None is that of the first training with this callback. A
            run that is resumed from a checkpoint in a new process gives the result of an uninterrupted one only
            with the number: 0 where the optimizer was new. Selections due before the optimizer's current step are
            skipped.

    Example:
        model.fit(images, labels, callbacks=[MagnitudePruning(0.5, end=400)])
    """

    def __init__(self, sparsity: float, *, end: int, frequency: int = 10, begin: int | None = None):
        super().__init__()
        if not 0 < sparsity < 1 or end < 0 or frequency < 1:
            raise ValueError(f"Expected 0 < sparsity < 1, end >= 0, frequency >= 1; got {sparsity}, {end}, {frequency}")
        if begin is not None and begin < 0:
            raise ValueError(f"begin must be a step of the optimizer, counted from 0, or None; got {begin}")
        self.sparsity, self.end, self.frequency, self.begin = sparsity, end, frequency, begin
        self._first: tuple[Any, int] | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Read the masks from the zeros of the weights, and the step from the optimizer.

        Raises:
            ValueError: No Conv2D or Dense layer of the model trains.
        """
        self._kernels = list(prunable_kernels(getattr(self.model, "student", self.model)))
        if not self._kernels:
            raise ValueError("the model has nothing to prune: no Conv2D or Dense layer that trains")
        if self._first is None or self._first[0] is not self.model.optimizer:
            self._first = self.model.optimizer, self._iterations() if self.begin is None else self.begin
        self._step = self._steps()
        self._masks = [ops.cast(ops.not_equal(kernel, 0), kernel.dtype) for kernel in self._kernels]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Update the masks if a selection is due, and set the masked weights to zero again."""
        # within an epoch Keras's JAX trainer holds the values and the variables are empty; this copies them into the
        # variables, and the trainer reads back what is assigned below
        getattr(self.model, "jax_state_sync", lambda: None)()
        before, self._step = self._step, self._steps()
        due = before // self.frequency != self._step // self.frequency or self._step >= self.end
        if before < self.end and due:
            wanted = polynomial_sparsity(self._step, self.sparsity, end=self.end)
            # a pruned weight stays pruned, also where more weights are zero than are wanted
            self._masks = [
                mask * ops.convert_to_tensor(magnitude_mask(ops.convert_to_numpy(kernel * mask), wanted))
                for kernel, mask in zip(self._kernels, self._masks, strict=True)
            ]
        self._apply_masks()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Set the masked weights to zero again: where the optimizer keeps averages, Keras has put them in place."""
        self._apply_masks()

    def _iterations(self) -> int:
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def _steps(self) -> int:
        """Return the steps since pruning began."""
        assert self._first is not None
        return max(self._iterations() - self._first[1], 0)

    def _apply_masks(self) -> None:
        averages = averages_of(self.model.optimizer, self._kernels)
        for kernel, average, mask in zip(self._kernels, averages, self._masks, strict=True):
            kernel.assign(kernel * mask)
            if average is not None:
                average.assign(average * mask)


def averages_of(optimizer: Any, variables: Sequence[Any]) -> list[Any]:
    """Return the average that an optimizer keeps of each variable; None where it keeps none, or has not begun to."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return [None] * len(variables)
    pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
    averages = {id(variable): average for variable, average in pairs}
    return [averages.get(id(variable)) for variable in variables]


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
