"""Parts that the networks share: PyTorch's padding and initialization, and the normalization inside the model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfigkd.models.batch_norm import FusedBatchNormalization

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of values in [0,1]."""


LARGEST_SMALL = 64
"""Largest height or width of images that keep the strides for CIFAR; above it networks have those for ImageNet."""


def is_large(input_shape: Sequence[int]) -> bool:
    """Return whether images (H, W, C) are large enough for the strides of ImageNet."""
    return max(input_shape[:2]) > LARGEST_SMALL


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, to the nearest multiple of 8 that loses no more than a tenth."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


def he_normal(mode: str) -> keras.initializers.Initializer:
    """Return the initializer of He et al. (2015, arXiv 1502.01852) as PyTorch draws it: not truncated, unlike HeNormal.

    Args:
        mode: "fan_in" or "fan_out".
    """
    return keras.initializers.VarianceScaling(2.0, mode=mode, distribution="untruncated_normal")


def batch_norm(x: Any, name: str) -> Any:
    """Apply batch normalization with PyTorch's constants (its momentum 0.1 is 0.9 in Keras's sense)."""
    return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def pad(x: Any, kernel_size: int, strides: int, name: str) -> tuple[Any, str]:
    """Return a tensor, padded with zeros as PyTorch pads it, and the padding argument of the layer that follows.

    PyTorch pads all sides alike. Keras's "same" puts the odd row of a strided convolution on the other side, which
    moves every feature map by a pixel.

    Args:
        x: [B,H,W,C].
        kernel_size: Height and width of the kernel, odd.
        strides: Of the layer that follows; with 1 the tensor is returned as it is, and "same".
        name: Name of the layer that follows.
    """
    if strides == 1:
        return x, "same"
    return keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x), "valid"


def conv(x: Any, filters: int, kernel_size: int, *, name: str, fan: str, strides: int = 1) -> Any:
    """Apply a convolution without bias, padded as in PyTorch.

    Args:
        x: [B,H,W,C].
        filters: Number of output channels.
        kernel_size: Height and width of the kernel, odd.
        name: Name of the layer.
        fan: "fan_in" or "fan_out", for `he_normal`.
        strides: In both directions.
    """
    x, padding = pad(x, kernel_size, strides, name)
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding,
        use_bias=False,
        kernel_initializer=he_normal(fan),
        name=name,
    )(x)


def depthwise_conv(x: Any, *, name: str, strides: int = 1) -> Any:
    """Apply a depthwise 3x3 convolution without bias, padded as in PyTorch.

    Its initializer says fan_in, since PyTorch's fan_out of a depthwise kernel is 9C, and Keras calls that
    fan_in.

    Args:
        x: [B,H,W,C].
        name: Name of the layer.
        strides: In both directions.
    """
    x, padding = pad(x, 3, strides, name)
    return keras.layers.DepthwiseConv2D(
        3, strides, padding, use_bias=False, depthwise_initializer=he_normal("fan_in"), name=name
    )(x)


def image_input(input_shape: Sequence[int], normalization: Normalization | None) -> tuple[Any, Any]:
    """Return the input [B,H,W,C], float32 in [0,1], and the tensor that the first block reads.

    The normalization is a frozen depthwise 1x1 convolution: exact, and quantizers know it.
    `set_normalization` fills it once the model exists.

    Raises:
        ValueError: The normalization has not one value a channel, or a deviation that is not positive.
    """
    inputs = keras.Input(tuple(input_shape), name="image")
    if normalization is None:
        return inputs, inputs
    mean, std = normalization
    if len(mean) != input_shape[-1] or len(std) != input_shape[-1] or min(std) <= 0:
        raise ValueError(
            f"Expected a mean and a positive deviation for each of {input_shape[-1]} channels, got {normalization}"
        )
    layer = keras.layers.DepthwiseConv2D(1, name="normalization", trainable=False)
    return inputs, layer(inputs)


def set_normalization(model: keras.Model, normalization: Normalization | None) -> None:
    """Write 1/std and -mean/std into the layer made by `image_input`."""
    if normalization is None:
        return
    mean, std = (np.asarray(values, "float64") for values in normalization)
    model.get_layer("normalization").set_weights([(1 / std).reshape(1, 1, -1, 1), -mean / std])


def classifier_head(
    x: Any,
    num_classes: int,
    kernel_initializer: keras.initializers.Initializer,
    *,
    dropout: float = 0.0,
    prefix: str = "",
) -> Any:
    """Apply global average pooling, dropout and a dense layer; return its logits, float32 under any precision policy.

    Args:
        x: Feature maps [B,H,W,C].
        num_classes: Number of logits.
        kernel_initializer: Of the dense layer.
        dropout: Rate; with 0 there is no such layer.
        prefix: Begins the names of the layers "pool", "dropout" and "logits".

    Returns:
        Logits [B,num_classes].
    """
    x = keras.layers.GlobalAveragePooling2D(name=f"{prefix}pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{prefix}dropout")(x)
    options = {"kernel_initializer": kernel_initializer, "dtype": "float32", "name": f"{prefix}logits"}
    return keras.layers.Dense(num_classes, **options)(x)
