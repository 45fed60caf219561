"""Knowledge review: deep levels of the student are fused into shallow ones, and each is compared with the teacher."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.losses.base import Tensor
from tfigkd.losses.features import hint_distance, map_size
from tfigkd.losses.taps import TapsLoss, paired_taps

LARGEST_MIDDLE = 512
"""Most channels of the fused features."""
CONTEXTS = (4, 2, 1)
"""Heights and widths to which maps are averaged for the hierarchical context loss."""


def adaptive_average_pool(features: Tensor, size: int) -> Tensor:
    """Return the means of size x size windows that cover a map; where the size does not divide it, they overlap.

    `keras.ops.adaptive_average_pool` does the same, but fails in a graph of TensorFlow for windows as large as the map
    (Keras 3.15).

    Args:
        features: [B,H,W,D].
        size: Windows along each side.

    Returns:
        float32 [B,size,size,D].
    """

    def windows(length: int) -> np.ndarray:
        matrix = np.zeros((size, length), np.float32)
        for index in range(size):
            start, end = index * length // size, math.ceil((index + 1) * length / size)
            matrix[index, start:end] = 1 / (end - start)
        return matrix

    height, width = map_size(features)
    return ops.einsum("ih,bhwd,jw->bijd", windows(height), ops.cast(features, "float32"), windows(width))


def context_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the hierarchical context loss: squared differences of maps and of their adaptive average pools.

    The maps count 1; their means over 4x4, 2x2 and 1x1 windows, as far as they are smaller than the map, ½, ¼ and ⅛;
    the sum is divided by the sum of these weights.

    Args:
        teacher_features: [B,H,W,D].
        student_features: [B,H,W,D].

    Returns:
        Loss of each example, [B].
    """
    loss, weight, total = hint_distance(teacher_features, student_features), 1.0, 1.0
    for size in CONTEXTS:
        if size >= map_size(student_features)[0]:
            continue
        weight /= 2
        pair = (adaptive_average_pool(one, size) for one in (teacher_features, student_features))
        loss = loss + weight * hint_distance(*pair)
        total += weight
    return loss / total


class Fusion(keras.layers.Layer):
    """One level of the review: fuses the student's features with those of the deeper level, for the teacher's shape.

    Args:
        given: Channels of the student's features.
        middle: Channels of the fused features.
        wanted: Channels of the teacher's features.
        fuses: Whether there is a deeper level.
    """

    def __init__(self, given: int, middle: int, wanted: int, *, fuses: bool, **options: Any):
        super().__init__(dtype="float32", **options)

        def convolution(filters: int, kernel_size: int, name: str, inputs: int, *, bias: bool) -> keras.layers.Conv2D:
            # uniform within √(3 / fan in), as the authors draw it
            initializer = "glorot_uniform" if bias else keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
            layer = keras.layers.Conv2D(
                filters,
                kernel_size,
                padding="same",
                use_bias=bias,
                kernel_initializer=initializer,
                data_format="channels_last",
                dtype="float32",
                name=f"{self.name}_{name}",
            )
            layer.build((None, None, None, inputs))
            return layer

        def normalization(channels: int, name: str) -> keras.layers.BatchNormalization:
            layer = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, dtype="float32", name=f"{self.name}_{name}"
            )
            layer.build((None, None, None, channels))
            return layer

        self.first = convolution(middle, 1, "first", given, bias=False)
        self.first_norm = normalization(middle, "first_norm")
        self.attention = convolution(2, 1, "attention", 2 * middle, bias=True) if fuses else None
        self.last = convolution(wanted, 3, "last", middle, bias=False)
        self.last_norm = normalization(wanted, "last_norm")
        self.built = True

    def call(
        self, features: Tensor, *, deeper: Tensor | None, size: tuple[int, int], training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return what is compared with the teacher, [B,*size,wanted], and the fused features, [B,*size,middle].

        Args:
            features: The student's, [B,H,W,given].
            deeper: The fused features of the deeper level, or None.
            size: Height and width of the teacher's features.
            training: Whether normalization takes the batch's moments.
        """
        fused = self.first_norm(self.first(ops.cast(features, "float32")), training=training)
        if self.attention is not None:
            deeper = _resized(deeper, map_size(fused))
            shares = ops.sigmoid(self.attention(ops.concatenate([fused, deeper], axis=-1)))
            fused = fused * shares[..., :1] + deeper * shares[..., 1:]
        fused = _resized(fused, size)
        return self.last_norm(self.last(fused), training=training), fused


class Review(keras.layers.Layer):
    """The levels of a review, from deep to shallow.

    Args:
        channels: Channels of the student's and of the teacher's features, one pair for each level, shallow to deep.
        fuse: Whether deeper levels are fused into shallower ones.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], *, fuse: bool = True, **options: Any):
        super().__init__(dtype="float32", **options)
        self.channels = [tuple(pair) for pair in channels]
        middle = min(LARGEST_MIDDLE, self.channels[-1][0])
        self.levels = [
            Fusion(given, middle, wanted, fuses=fuse and level < len(self.channels) - 1, name=f"{self.name}_{level}")
            for level, (given, wanted) in enumerate(self.channels)
        ]
        self.built = True

    def call(
        self, features: Sequence[Tensor], *, sizes: Sequence[tuple[int, int]], training: bool = False
    ) -> list[Tensor]:
        """Return what is compared with the teacher at each level, shallow to deep.

        Args:
            features: The student's, one for each level.
            sizes: Height and width of the teacher's features.
            training: Whether normalization takes the batch's moments.
        """
        results: list[Tensor] = []
        fused = None
        for level, one, size in reversed([*zip(self.levels, features, sizes, strict=True)]):
            compared, fused = level(one, deeper=fused, size=size, training=training)
            results.insert(0, compared)
        return results


@keras.saving.register_keras_serializable("tfigkd")
class ReviewKD(TapsLoss):
    """Distillation by knowledge review of Chen et al. 2021 (arXiv 2104.09044), for `tfigkd.Distiller` only.

    From the deepest level to the shallowest, the student's features are fused with those of the deeper level by two
    attention maps, brought to the teacher's shape, and compared by `context_distance`; the loss is the sum over the
    levels. The deepest tap's mean over its positions is one more level, the deepest. The fusing layers are trained with
    the student and are no part of it; they may have more parameters than a small student.

    Suggested start: weight 1 (the authors' for most pairs is between 0.6 and 8), with the teacher's taps before the
    activation, such as `block_03_bn2`. The authors raise the weight from zero over 20 of 240 epochs, here it is
    constant.

    Args:
        student_layer: Names of the student's taps, from shallow to deep, features [B,H,W,D].
        teacher_layer: Names of as many taps of the teacher.
        fuse: Whether deeper levels are fused into shallower ones; `False` is a control that compares each level by
            itself. Defaults to `True`.
    """

    def __init__(self, student_layer: Sequence[str], teacher_layer: Sequence[str], fuse: bool = True):
        self.student_layer, self.teacher_layer = paired_taps("ReviewKD", student_layer, teacher_layer)
        self.fuse = fuse
        self._sizes: list[tuple[int, int]] = []

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create the fusing layers, as `TapsLoss.build` does."""
        super().build(teacher_shapes, student_shapes)
        self._sizes = [*((shape[1], shape[2]) for shape in teacher_shapes), (1, 1)]

    def channels(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> list[tuple[int, int]]:
        """Return the channels of each tap, and those of the deepest one again for the level of its mean."""
        pairs = super().channels(teacher_shapes, student_shapes)
        return [*pairs, pairs[-1]]

    def make_layer(self, channels: list[tuple[int, int]]) -> Review:
        """Return the fusing layers."""
        return Review(channels, fuse=self.fuse, name="review")

    def project(self, student_outputs: Sequence[Tensor], *, training: bool) -> list[Tensor]:
        """Return what is compared with the teacher's features, one for each level, shallow to deep.

        Args:
            student_outputs: Features of each tap, [B,H,W,D].
            training: Whether batch normalization takes the statistics of the batch.

        Raises:
            ValueError: The fusing layers are not built.
        """
        if self.extra_layer is None:
            raise ValueError("the review is not built; call ReviewKD.build(teacher_shapes, student_shapes) first")
        return self.extra_layer(_with_pooled(student_outputs), sizes=self._sizes, training=training)

    def per_example(self, teacher_outputs: Sequence[Tensor], student_outputs: Sequence[Tensor]) -> Tensor:
        """Return the loss of each example, [B]; the teacher's outputs are features, the student's of `project`."""
        levels = zip(_with_pooled(teacher_outputs), student_outputs, strict=True)
        return sum(context_distance(teacher, student) for teacher, student in levels)


def _with_pooled(features: Sequence[Tensor]) -> list[Tensor]:
    return [*features, ops.mean(ops.cast(features[-1], "float32"), axis=(1, 2), keepdims=True)]


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps by the nearest value."""
    if map_size(features) == tuple(size):
        return features
    return ops.image.resize(features, size, interpolation="nearest", data_format="channels_last")
