"""Representative teacher keys: attention weights the teacher's maps for each map of the student."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.losses.attention import squared_attention_differences
from tfigkd.losses.base import Tensor
from tfigkd.losses.taps import TapsLoss

LEFT_OUT = -1e9
"""Score of a key that is left out."""


def attention_difference(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the squared difference of attention maps of length 1, summed over the positions.

    Unlike `attention_transfer`, which has the mean, it does not depend on the number of positions, so that differences
    of maps of several sizes can be compared.

    Args:
        teacher_features: [B,H,W,D].
        student_features: [B,H',W',D'].

    Returns:
        Difference of each example, [B], in [0, 2].
    """
    return ops.sum(squared_attention_differences(teacher_features, student_features), axis=-1)


class KeyAttention(keras.layers.Layer):
    """Attention of the student's taps, the queries, over the teacher's taps, the keys.

    Queries and keys are linear in the mean of the features over the positions; each pair has a score of its own beside
    their product.

    Args:
        queries: Channels of the student's taps.
        keys: Channels of the teacher's taps.
        width: Length of a query and of a key.
    """

    def __init__(self, queries: Sequence[int], keys: Sequence[int], width: int, **options: Any):
        super().__init__(dtype="float32", **options)
        self.width = width
        self.channels = tuple(queries), tuple(keys)

        def linear(kind: str, channels: Sequence[int]) -> list[keras.layers.Dense]:
            layers = []
            for index, given in enumerate(channels):
                layer = keras.layers.Dense(width, dtype="float32", name=f"{self.name}_{kind}_{index}")
                layer.build((None, given))
                layers.append(layer)
            return layers

        self.queries, self.keys = linear("query", queries), linear("key", keys)
        self.pairs = self.add_weight(shape=(len(queries), len(keys)), initializer="zeros", name="pairs")
        self.built = True

    def call(self, student: Sequence[Tensor], *, teacher: Sequence[Tensor], kept: int) -> Tensor:
        """Return how much each key counts for each query, [B,S,T]; rows sum to 1.

        All keys whose score is that of the last one kept are kept too.

        Args:
            student: Features [B,H,W,D] of the S taps.
            teacher: Features of the T taps.
            kept: Keys of each query that are kept, those of the highest scores.
        """

        def project(layers: Sequence[keras.layers.Dense], features: Sequence[Tensor]) -> Tensor:
            pooled = [ops.mean(ops.cast(one, "float32"), axis=(1, 2)) for one in features]
            return ops.stack([layer(one) for layer, one in zip(layers, pooled, strict=True)], axis=1)

        queries, keys = project(self.queries, student), project(self.keys, teacher)
        scores = (ops.matmul(queries, ops.transpose(keys, (0, 2, 1))) + self.pairs) / math.sqrt(self.width)
        least = ops.top_k(scores, kept)[0][..., -1:]
        return ops.softmax(ops.where(scores >= least, scores, LEFT_OUT), axis=-1)


@keras.saving.register_keras_serializable("tfigkd")
class RTK(TapsLoss):
    """Representative teacher keys of Yang, Kao and Huang 2022 (arXiv 2206.12788), for `tfigkd.Distiller` only.

    The loss is the mean over the student's taps s of Σ_t α_st · `attention_difference`, with α of `KeyAttention` over
    the teacher's taps t; only the `keys` of the highest scores count for each tap. The attention is trained with the
    student and is no part of it. The rule of selection, and the form of the attention, that of Ji et al. 2021 (AFD),
    are our reading, since only the abstract was available to us. α may learn to prefer pairs that are easy to match,
    so a control has uniform weights.

    Suggested start: weight 10.

    Args:
        student_layer: Names of the student's taps, features [B,H,W,D].
        teacher_layer: Names of the teacher's taps.
        keys: Keys that count for each tap of the student. Defaults to `2`.
        width: Length of queries and keys. Defaults to `32`.
        uniform: A control: all keys count alike for each tap. Defaults to `False`.
    """

    def __init__(
        self,
        student_layer: Sequence[str],
        teacher_layer: Sequence[str],
        keys: int = 2,
        width: int = 32,
        uniform: bool = False,
    ):
        if isinstance(student_layer, str) or isinstance(teacher_layer, str):
            raise ValueError(f"RTK needs lists of taps, got {student_layer!r} and {teacher_layer!r}")
        if not (student_layer and 0 < keys <= len(teacher_layer) and width > 0):
            raise ValueError(
                f"RTK needs a tap of the student, keys in 1..{len(teacher_layer)}, the teacher's taps, and a positive "
                f"width; got {student_layer!r}, {keys} and {width}"
            )
        self.student_layer = tuple(student_layer)
        self.teacher_layer = tuple(teacher_layer)
        self.keys = keys
        self.width = width
        self.uniform = uniform

    def channels(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> tuple:
        """Return the channels of the student's taps, and those of the teacher's.

        Raises:
            ValueError: Features have a single position.
        """
        for shape in (*teacher_shapes, *student_shapes):
            if shape[1] * shape[2] == 1:  # all such maps are alike, and attention would prefer them
                raise ValueError(f"rtk needs maps of several positions, got {tuple(shape)}; tap earlier layers")
        return tuple(shape[-1] for shape in student_shapes), tuple(shape[-1] for shape in teacher_shapes)

    def make_layer(self, channels: tuple) -> KeyAttention | None:
        """Return the attention, where not all keys count alike."""
        queries, keys = channels
        return None if self.uniform else KeyAttention(queries, keys, self.width, name="rtk_attention")

    def per_example(self, teacher_outputs: Sequence[Tensor], student_outputs: Sequence[Tensor]) -> Tensor:
        """Return the loss of each example, [B]; the outputs are features, one for each tap.

        Raises:
            ValueError: The attention is not built.
        """
        differences = ops.stack(
            [ops.stack([attention_difference(t, s) for t in teacher_outputs], axis=-1) for s in student_outputs], axis=1
        )
        if self.uniform:
            return ops.mean(differences, axis=(1, 2))
        if self.extra_layer is None:
            raise ValueError("the attention is not built; call RTK.build(teacher_shapes, student_shapes) first")
        shares = self.extra_layer(student_outputs, teacher=teacher_outputs, kept=self.keys)
        return ops.mean(ops.sum(shares * differences, axis=-1), axis=-1)
