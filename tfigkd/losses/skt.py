"""Structured knowledge transfer: directions of features at each position, and relations of all pairs of layers."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from tfigkd.losses.base import Tensor, cosine_distance
from tfigkd.losses.features import map_size, match_resolution, pool_to
from tfigkd.losses.relation import flow_matrix
from tfigkd.losses.taps import TapsLoss, paired_taps

EPSILON = 1e-5
"""Added to the variance of a channel; that of the authors' instance normalization."""

Pairs = Literal["all", "adjacent"]


def direction_distance(teacher_features: Tensor, projected: Tensor) -> Tensor:
    """Return one minus the cosine of the channels at each position, averaged over the positions.

    Args:
        teacher_features: [B,H,W,D].
        projected: [B,H',W',D]; the larger map is resized to the smaller one.

    Returns:
        Distance of each example, [B], in [0, 2].
    """
    teacher, student = match_resolution(ops.cast(teacher_features, "float32"), ops.cast(projected, "float32"))
    return ops.mean(cosine_distance(teacher, student), axis=(1, 2))


def normalize_channels(features: Tensor) -> Tensor:
    """Return features of which each channel of each example has mean 0 and variance 1 over its positions.

    Args:
        features: [B,H,W,D].

    Returns:
        float32 [B,H,W,D]; zeros for a channel that is constant.
    """
    features = ops.cast(features, "float32")
    centered = features - ops.mean(features, axis=(1, 2), keepdims=True)
    return centered * ops.rsqrt(ops.mean(ops.square(centered), axis=(1, 2), keepdims=True) + EPSILON)


def pairs_of(count: int, pairs: Pairs) -> list[tuple[int, int]]:
    """Return the pairs of `count` layers that are related: each with each later one, or with the next one."""
    return list(itertools.combinations(range(count), 2)) if pairs == "all" else list(itertools.pairwise(range(count)))


def dense_flow_distance(
    teacher_features: Sequence[Tensor], student_features: Sequence[Tensor], *, pairs: Pairs = "all"
) -> Tensor:
    """Return the mean squared difference of the flow matrices of pairs of layers, of normalized channels.

    All maps of a network are first resized to its smallest one. As the channels are normalized, the entries of a flow
    matrix are correlations in [-1, 1], and one weight suits all layers.

    Args:
        teacher_features: Maps [B,H,W,D], one for each layer.
        student_features: Maps of as many layers with the same channels; resolutions may differ.
        pairs: "all", or "adjacent" for each layer with the next one.

    Returns:
        Loss of each example, [B], in [0, 4].
    """

    def flows(maps: Sequence[Tensor]) -> list[Tensor]:
        height, width = (min(sizes) for sizes in zip(*map(map_size, maps), strict=True))
        normalized = [normalize_channels(pool_to(one, height, width)) for one in maps]
        return [flow_matrix(normalized[i], normalized[j]) for i, j in pairs_of(len(maps), pairs)]

    both = zip(flows(teacher_features), flows(student_features), strict=True)
    differences = [ops.mean(ops.square(teacher - student), axis=(1, 2)) for teacher, student in both]
    return sum(differences) / len(differences)


class Projectors(keras.layers.Layer):
    """A 1x1 convolution with bias for each tap, computed in float32.

    Args:
        channels: Channels of the student's and of the teacher's features, one pair for each tap.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], **options: Any):
        super().__init__(dtype="float32", **options)
        self.channels = [tuple(pair) for pair in channels]
        self.convolutions = []
        for index, (given, wanted) in enumerate(self.channels):
            layer = keras.layers.Conv2D(
                wanted, 1, data_format="channels_last", dtype="float32", name=f"{self.name}_{index}"
            )
            layer.build((None, None, None, given))
            self.convolutions.append(layer)
        self.built = True

    def call(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of each tap [B,H,W,D] with the teacher's channels, float32."""
        return [layer(ops.cast(one, "float32")) for layer, one in zip(self.convolutions, features, strict=True)]


@keras.saving.register_keras_serializable("tfigkd")
class SKT(TapsLoss):
    """Structured knowledge transfer of Liu et al. 2020 (arXiv 2003.10120), for `tfigkd.Distiller` only.

    The loss is intra · mean over taps of `direction_distance` + inter · `dense_flow_distance`, both after a 1x1
    convolution at each tap of the student to the teacher's channels. These projectors are trained with the student and
    are no part of it. The authors' sums over taps, pairs, positions and entries are means here, so that the weights
    suit networks of any size; they pool by the maximum before the relations, and here maps of any sizes are averaged or
    interpolated. The losses of density maps in their crowd counting become those of `kd` and the hard label.

    Suggested start: weight 1; no values for classifiers are published.

    Args:
        student_layer: Names of the student's taps, from shallow to deep, features [B,H,W,D].
        teacher_layer: Names of as many taps of the teacher.
        intra: Weight of the directions. Defaults to `1.0`.
        inter: Weight of the relations. Defaults to `10.0`.
        pairs: Related layers: "all" pairs, or "adjacent" ones. Defaults to `"all"`.
    """

    def __init__(
        self,
        student_layer: Sequence[str],
        teacher_layer: Sequence[str],
        intra: float = 1.0,
        inter: float = 10.0,
        pairs: Pairs = "all",
    ):
        self.student_layer, self.teacher_layer = paired_taps("SKT", student_layer, teacher_layer)
        if not (min(intra, inter) >= 0 and max(intra, inter) > 0):
            raise ValueError(f"intra and inter must not be negative, nor both zero; got {intra} and {inter}")
        if pairs not in ("all", "adjacent"):
            raise ValueError(f"pairs must be 'all' or 'adjacent', got {pairs!r}")
        self.intra = intra
        self.inter = inter
        self.pairs = pairs

    def make_layer(self, channels: Sequence[tuple[int, int]]) -> Projectors:
        """Return the maps from the student's channels to the teacher's, as `TapsLoss.make_layer` does."""
        return Projectors(channels, name="skt_projectors")

    def per_example(self, teacher_outputs: Sequence[Tensor], student_outputs: Sequence[Tensor]) -> Tensor:
        """Return the loss of each example, [B]; the outputs are features, one for each tap.

        Raises:
            ValueError: The projectors are not built.
        """
        if self.extra_layer is None:
            raise ValueError("the projectors are not built; call SKT.build(teacher_shapes, student_shapes) first")
        projected = self.extra_layer(student_outputs)
        loss = 0.0
        if self.intra:
            both = zip(teacher_outputs, projected, strict=True)
            distances = [direction_distance(teacher, student) for teacher, student in both]
            loss = self.intra * sum(distances) / len(distances)
        if self.inter:
            loss = loss + self.inter * dense_flow_distance(teacher_outputs, projected, pairs=self.pairs)
        return loss
