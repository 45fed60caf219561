"""Fake-quantization layers for quantization-aware training (Jacob et al., arXiv 1712.05877).

TensorFlow's converter reads weights' and activations' ranges off the fake quantization, so such a model needs no
calibration images. On other backends the same numbers come from Keras's own arithmetic.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tfigkd.models.graph import flatten_layers

MOMENTUM = 0.99
STEPS = 127
"""Number of steps of a rounded kernel on each side of zero."""
SMALLEST_RANGE = 1e-6
"""Smallest range, so that a kernel of zeros has one that can be divided by."""


_rounding = True


@contextlib.contextmanager
def without_rounding() -> Iterator[None]:
    """Let fake-quantized layers compute in floats, to compare them with the layers that they stand for; eager only."""
    global _rounding
    before, _rounding = _rounding, False
    try:
        yield
    finally:
        _rounding = before


def fake_quantized_kernel(kernel: Any, axis: int | None = None) -> Any:
    """Return a kernel rounded to 255 symmetric steps, with the gradient of the identity.

    Args:
        kernel: Of a convolution or dense layer.
        axis: Of the channels that have a range each; None gives all of the kernel one range.
    """
    if not _rounding:
        return kernel
    others = None if axis is None else [other for other in range(len(kernel.shape)) if other != axis]
    # a range that the gradient reaches would train only the largest weight
    largest = ops.stop_gradient(ops.maximum(ops.max(ops.abs(kernel), axis=others), SMALLEST_RANGE))
    if keras.backend.backend() == "tensorflow":
        return keras.quantizers.fake_quant_with_min_max_vars(kernel, -largest, largest, narrow_range=True, axis=axis)
    # elsewhere Keras knows no axis, and the largest weights, which rounding puts out of the range, get no gradient
    shape = [1 if others is None or other in others else size for other, size in enumerate(kernel.shape)]
    step = ops.reshape(largest, shape) / STEPS
    rounded = ops.clip(ops.floor(kernel / step + 0.5), -STEPS, STEPS) * step
    return kernel + ops.stop_gradient(rounded - kernel)


@keras.saving.register_keras_serializable("tfigkd")
class FakeQuantConv2D(keras.layers.Conv2D):
    """A convolution whose kernel is rounded to int8, each output channel on its own scale."""

    def call(self, inputs: Any) -> Any:
        """Map [B,H,W,C] to [B,H',W',filters]."""
        outputs = self.convolution_op(inputs, fake_quantized_kernel(self.kernel, axis=3))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("tfigkd")
class FakeQuantDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution of multiplier 1 whose kernel is rounded to int8, each channel on its own scale."""

    def call(self, inputs: Any) -> Any:
        """Map [B,H,W,C] to [B,H',W',C]."""
        kernel = fake_quantized_kernel(self.kernel, axis=2)  # [height, width, channels, 1]
        outputs = ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("tfigkd")
class FakeQuantDense(keras.layers.Dense):
    """A dense layer whose kernel is rounded to int8 on one scale: a scale for each unit breaks the converter."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Map [B,features] to [B,units]."""
        outputs = ops.matmul(inputs, fake_quantized_kernel(self.kernel))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("tfigkd")
class FakeQuantize(keras.layers.Layer):
    """A layer that rounds activations to 256 steps of their range, which moving averages follow in training.

    The first training batch sets the range, also of a frozen layer, whose range then stays; before it the layer passes
    its input on. The range always contains zero, so that padding and ReLU stay exact.

    Args:
        limits: A range that is known and stays, such as (0, 1) for images; None learns it.
        momentum: Of the moving averages of the range.
    """

    def __init__(self, limits: tuple[float, float] | None = None, *, momentum: float = MOMENTUM, **kwargs: Any):
        super().__init__(**kwargs)
        self.limits = None if limits is None else (float(limits[0]), float(limits[1]))
        self.momentum = momentum

    def build(self, input_shape: Any) -> None:
        """Create the two ends of the range; equal ones mean that no batch has been seen."""
        low, high = self.limits or (0.0, 0.0)
        options = {"shape": (), "dtype": "float32", "trainable": False}
        self.moving_min = self.add_weight(name="moving_min", initializer=_constant(low), **options)
        self.moving_max = self.add_weight(name="moving_max", initializer=_constant(high), **options)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the inputs, rounded; in training the range moves first."""
        if training and self.limits is None:
            self._follow(ops.cast(inputs, "float32"))
        if not _rounding:
            return inputs
        low, high = ops.convert_to_tensor(self.moving_min), ops.convert_to_tensor(self.moving_max)
        rounded = keras.quantizers.fake_quant_with_min_max_vars(inputs, low, ops.maximum(high, low + SMALLEST_RANGE))
        if training or self.limits is not None:
            return rounded
        return ops.where(high > low, rounded, inputs)

    def _follow(self, inputs: Any) -> None:
        seen = ops.cast(self.moving_max > self.moving_min, "float32") * (self.momentum if self.trainable else 1.0)
        low, high = ops.minimum(ops.min(inputs), 0.0), ops.maximum(ops.max(inputs), 0.0)
        self.moving_min.assign(seen * self.moving_min + (1.0 - seen) * low)
        self.moving_max.assign(seen * self.moving_max + (1.0 - seen) * high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {**super().get_config(), "limits": self.limits, "momentum": self.momentum}


def _constant(value: float) -> keras.initializers.Initializer:
    return keras.initializers.Constant(value)


def is_fake_quantized(model: keras.Model) -> bool:
    """Return whether a model carries its own int8 ranges, and so converts without calibration images."""
    return any(isinstance(layer, FakeQuantize) for layer in flatten_layers(model))
