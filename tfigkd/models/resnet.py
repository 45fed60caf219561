"""Residual networks for 32x32 images (He et al. 2015, arXiv 1512.03385, section 4.2).

ResNet-8 with projection shortcuts is the image classifier of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597).

Above 64 pixels the stem halves the resolution twice before the first block, by its stride and by max pooling, as in the
paper's networks for ImageNet (section 3.3).
"""

from collections.abc import Sequence
from typing import Any

import keras

from tfigkd.models import blocks


def resnet(
    depth: int,
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    normalization: blocks.Normalization | None = None,
    projection: bool = False,
    width: float = 1.0,
    stem_stride: int | None = None,
) -> keras.Model:
    """Return a ResNet-14, -20, -32, -44, ...: 16, 32 and 64 channels, shortcuts without parameters (option A).

    The output of residual block N is the output of the layer `block_NN`; `block_00` is the stem.

    Args:
        depth: Number of layers with weights, 6n + 2.
        num_classes: Number of logits.
        input_shape: (H, W, C) of the images, float32 in [0,1].
        normalization: Mean and deviation of each channel, applied inside the model.
        projection: Shortcuts that change shape are 1x1 convolutions with bias (option B), as in MLPerf Tiny.
        width: Factor of all channels, rounded to multiples of 8 (Zagoruyko and Komodakis 2016, arXiv 1605.07146).
        stem_stride: Stride of the first convolution; by default 1, and 2 for large images.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes].

    Raises:
        ValueError: `depth` is not 6n + 2, `width` is not positive or `normalization` does not fit.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, ...), got {depth}.")
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}.")
    inputs, x = blocks.image_input(input_shape, normalization)
    large = blocks.is_large(input_shape)
    strides = stem_stride or (2 if large else 1)
    x = blocks.conv(x, blocks.scaled(16, width), 3, strides=strides, name="block_00_conv", fan="fan_in")
    x = blocks.batch_norm(x, "block_00_bn")
    x = keras.layers.ReLU(name="block_00")(x)
    if large:
        x, padding = blocks.pad(x, 3, 2, "block_00_pool")
        x = keras.layers.MaxPooling2D(3, 2, padding, name="block_00_pool")(x)
    index = 1
    for filters, first_stride in ((16, 1), (32, 2), (64, 2)):
        for repeat in range((depth - 2) // 6):
            strides = first_stride if repeat == 0 else 1
            x = _residual(x, blocks.scaled(filters, width), strides, f"block_{index:02d}", projection)
            index += 1
    logits = blocks.classifier_head(x, num_classes, blocks.he_normal("fan_in"))
    model = keras.Model(inputs, logits, name=f"resnet{depth}")
    blocks.set_normalization(model, normalization)
    return model


def _residual(x: Any, filters: int, strides: int, name: str, projection: bool) -> Any:
    shortcut = (_projection if projection else _shortcut)(x, filters, strides, name)
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1", fan="fan_in")
    x = blocks.batch_norm(x, f"{name}_bn1")
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = blocks.conv(x, filters, 3, name=f"{name}_conv2", fan="fan_in")
    x = blocks.batch_norm(x, f"{name}_bn2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=name)(x)


def _shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Return the shortcut of option A: every second pixel, and zero channels on both sides."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_shortcut_pool")(x)
    missing = filters - x.shape[-1]
    if missing:
        # "channels_first" pads the last two axes of [B,H,W,C], which are width and channels here; a stock
        # layer instead of keras.ops.pad, so that any Keras opens the file.
        x = keras.layers.ZeroPadding2D(
            ((0, 0), (missing // 2, missing - missing // 2)),
            data_format="channels_first",
            name=f"{name}_shortcut_pad",
        )(x)
    return x


def _projection(x: Any, filters: int, strides: int, name: str) -> Any:
    """Return the shortcut of option B: a 1x1 convolution where the shape changes."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    initializer = blocks.he_normal("fan_in")
    return keras.layers.Conv2D(filters, 1, strides, kernel_initializer=initializer, name=f"{name}_shortcut_conv")(x)
