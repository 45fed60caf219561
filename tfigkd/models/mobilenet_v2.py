"""MobileNet-V2 for 32x32 images (Sandler et al. 2018, arXiv 1801.04381), in the variant of arXiv 2503.13008.

Stem and second stage keep the resolution of images up to 64 pixels, so a CIFAR image is seen at 32, 16, 8 and 4 pixels.
Above that they halve it, as in the paper, and an image of 224 is seen at 112, 56, 28, 14 and 7 pixels. The stem, 17
inverted residual blocks and the last 1x1 convolution are the 19 feature blocks that a student loses from the
end.
"""

from collections.abc import Sequence
from typing import Any

import keras

from tfigkd.models import blocks
from tfigkd.models.blocks import scaled

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage of inverted residuals."""

LARGE_STEM, LARGE_SECOND = 2, 2
"""Strides of the stem and of the second stage for large images, as in the paper."""

BLOCKS = 2 + sum(repeats for _, _, repeats, _ in STAGES)


def mobilenet_v2(
    num_classes: int = 10,
    drop_blocks: int = 0,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    width: float = 1.0,
    dropout: float | None = None,
    stem_stride: int | None = None,
    normalization: blocks.Normalization | None = None,
) -> keras.Model:
    """Return the network, or a student that is its first 19 - `drop_blocks` feature blocks and a classifier.

    The output of feature block N is the output of the layer `block_NN`, from `block_00`.

    Args:
        num_classes: Number of logits.
        drop_blocks: Feature blocks left out from the end, 0..18.
        input_shape: (H, W, C) of the images, float32 in [0,1].
        width: Factor of all channels, rounded to multiples of 8; the last convolution has 1280 or more.
        dropout: Rate before the classifier; by default 0.2 for the whole network and 0 for a student.
        stem_stride: Stride of the first convolution; by default 1, and 2 for large images.
        normalization: Mean and deviation of each channel, applied inside the model.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes].

    Raises:
        ValueError: `drop_blocks` is out of range, `width` is not positive or `normalization` does not fit.
    """
    if not 0 <= drop_blocks < BLOCKS:
        raise ValueError(f"drop_blocks must be in 0..{BLOCKS - 1}, got {drop_blocks}.")
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}.")
    if dropout is None:
        dropout = 0.0 if drop_blocks else 0.2
    kept = BLOCKS - drop_blocks
    inputs, x = blocks.image_input(input_shape, normalization)
    large = blocks.is_large(input_shape)
    x = _conv_block(x, scaled(32, width), 3, "block_00", strides=stem_stride or (LARGE_STEM if large else 1))
    index = 1
    for stage, (expansion, channels, repeats, first_stride) in enumerate(STAGES):
        if large and stage == 1:
            first_stride = LARGE_SECOND
        for repeat in range(repeats):
            if index < kept:
                stride = first_stride if repeat == 0 else 1
                x = _inverted_residual(x, scaled(channels, width), expansion, stride, f"block_{index:02d}")
            index += 1
    if index < kept:
        x = _conv_block(x, scaled(1280, max(1.0, width)), 1, f"block_{index:02d}")
    logits = blocks.classifier_head(x, num_classes, keras.initializers.RandomNormal(stddev=0.01), dropout=dropout)
    model = keras.Model(inputs, logits, name="mobilenet_v2")
    blocks.set_normalization(model, normalization)
    return model


def _conv_block(x: Any, filters: int, kernel_size: int, name: str, *, strides: int = 1) -> Any:
    x = blocks.conv(x, filters, kernel_size, strides=strides, name=f"{name}_conv", fan="fan_out")
    x = blocks.batch_norm(x, f"{name}_bn")
    return keras.layers.ReLU(6.0, name=name)(x)


def _inverted_residual(x: Any, filters: int, expansion: int, strides: int, name: str) -> Any:
    shortcut = x
    if expansion != 1:
        x = blocks.conv(x, x.shape[-1] * expansion, 1, name=f"{name}_expand", fan="fan_out")
        x = blocks.batch_norm(x, f"{name}_expand_bn")
        x = keras.layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = blocks.depthwise_conv(x, strides=strides, name=f"{name}_depthwise")
    x = blocks.batch_norm(x, f"{name}_depthwise_bn")
    x = keras.layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = blocks.conv(x, filters, 1, name=f"{name}_project", fan="fan_out")
    x = blocks.batch_norm(x, f"{name}_project_bn")
    if strides == 1 and shortcut.shape[-1] == filters:
        return keras.layers.Add(name=name)([shortcut, x])
    return keras.layers.Activation("linear", name=name)(x)
