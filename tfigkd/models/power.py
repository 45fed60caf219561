"""Powerpropagation: layers trained by θ whose kernel is θ·|θ|^(α-1), so that small weights learn slowly.

See Schwarz et al. 2021 (arXiv 2110.00296). The gradient for θ is that for the kernel times α·|θ|^(α-1): weights near
zero stay there, and can be pruned. Biases and normalization are as usual.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.models.graph import flatten_layers
from tfigkd.models.kernels import Reparameterized, trains_kernel, with_reparameterized_kernels
from tfigkd.runtime.errors import UserError

MOST_ZEROS = 0.01
"""Largest share of zeros that an initializer may draw by chance; with more, they were set on purpose."""


def powered(theta: Any, alpha: float) -> Any:
    """Return θ·|θ|^(α-1).

    It is computed as sign(θ)·|θ|^α, whose derivative at zero is zero for every α above 1; that of the product is NaN
    for α below 2.
    """
    return theta if alpha == 1.0 else ops.sign(theta) * ops.power(ops.abs(theta), alpha)


def root(kernel: np.ndarray, alpha: float) -> np.ndarray:
    """Return the θ whose `powered` is a kernel."""
    return kernel if alpha == 1.0 else np.sign(kernel) * np.abs(kernel) ** (1.0 / alpha)


class _Power(Reparameterized):
    """A mixin that gives a layer powerpropagation; it comes before the layer among the base classes."""

    own = ("alpha",)

    def __init__(self, *arguments: Any, alpha: float = 2.0, **options: Any):
        super().__init__(*arguments, **options)
        if not alpha >= 1:
            raise ValueError(f"alpha must be at least 1, got {alpha}")
        self.alpha = float(alpha)

    def build(self, input_shape: Any) -> None:
        """Create θ so that the kernel is what the initializer draws."""
        super().build(input_shape)
        self.set_kernel(ops.convert_to_numpy(self.theta))

    @property
    def theta(self) -> Any:
        """The variable that is trained, of the kernel's shape."""
        return self._kernel

    def kernel_value(self) -> Any:
        """Return θ·|θ|^(α-1)."""
        return powered(self._kernel, self.alpha)

    def set_kernel(self, kernel: np.ndarray) -> None:
        """Set θ so that the kernel is this one."""
        self._kernel.assign(root(kernel, self.alpha))

    @property
    def kernel(self) -> Any:
        """The kernel, a tensor."""
        return self.kernel_value()

    @kernel.setter
    def kernel(self, variable: Any) -> None:
        # depthwise convolutions assign their variable to it, the others have a property of it too
        self._kernel = variable


@keras.saving.register_keras_serializable("tfigkd")
class PowerConv2D(_Power, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with powerpropagation; `alpha` is the exponent, 1 the plain layer."""

    plain = keras.layers.Conv2D


@keras.saving.register_keras_serializable("tfigkd")
class PowerDepthwiseConv2D(_Power, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with powerpropagation; `alpha` is the exponent, 1 the plain layer."""

    plain = keras.layers.DepthwiseConv2D


@keras.saving.register_keras_serializable("tfigkd")
class PowerDense(_Power, keras.layers.Dense):
    """`keras.layers.Dense` with powerpropagation; `alpha` is the exponent, 1 the plain layer."""

    plain = keras.layers.Dense


POWERED: dict[type[keras.Layer], type[keras.Layer]] = {
    kind.plain: kind for kind in (PowerConv2D, PowerDepthwiseConv2D, PowerDense)
}
"""Plain layer to the one with powerpropagation."""


def with_power(model: keras.Model, alpha: float) -> keras.Model:
    """Return a copy of a model whose trainable convolutions and dense layers have powerpropagation.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        alpha: The exponent, at least 1; with 1 the model itself is returned.

    Returns:
        A Functional model with the same layer names and the same function, not compiled.

    Raises:
        UserError: A kernel has zeros, which would never learn, or the copy is not the same function.
    """
    if alpha == 1.0:
        return model
    for layer in flatten_layers(model):
        if trains_kernel(layer, POWERED):
            zeros = float(np.mean(ops.convert_to_numpy(layer.kernel) == 0))
            if zeros > MOST_ZEROS:
                raise UserError(
                    f"powerpropagation: {zeros:.0%} of the kernel of {layer.name} are zero and would never learn; "
                    "choose a student that starts without zeros, or training.power = 1"
                )

    return with_reparameterized_kernels(model, POWERED, alpha=alpha)
