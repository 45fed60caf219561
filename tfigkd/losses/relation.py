"""Relational losses: between the examples of a batch (RKD, SP, PKT), and between two layers of a network (FSP)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import SMALLEST_SQUARED_NORM, Loss, PerExampleLoss, Tensor, check_not_negative, l2_normalize
from tfigkd.losses.features import match_resolution

EPSILON = 1e-7
"""Added to probabilities before their logarithm."""


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Return the Euclidean distances of a batch's examples, divided by the mean of the positive ones.

    Args:
        embeddings: [B,D], or maps [B,H,W,D], which are averaged over their positions.

    Returns:
        float32 [B,B]; all zeros if all examples are equal.
    """
    squared = ops.sum(ops.square(_differences(embeddings)), axis=-1)
    apart = squared > SMALLEST_SQUARED_NORM
    # the gradient of the root is infinite at 0, the distance of an example to itself
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squared, 1.0)), 0.0)
    count = ops.sum(ops.cast(apart, "float32"))
    return ops.where(
        count > 0, distances / ops.where(count > 0, ops.sum(distances) / ops.maximum(count, 1.0), 1.0), 0.0
    )


def pairwise_angles(embeddings: Tensor) -> Tensor:
    """Return the cosines of the angles that every two examples form at a third example, the vertex.

    Args:
        embeddings: [B,D], or maps [B,H,W,D], which are averaged over their positions.

    Returns:
        float32 [B,B,B], with the vertex as the first axis; 0 for an example equal to the vertex.
    """
    directions = l2_normalize(_differences(embeddings))
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def relational_distance(
    teacher_embeddings: Tensor, student_embeddings: Tensor, *, distance: float, angle: float
) -> Tensor:
    """Return the loss of relational distillation: Huber differences of distances and angles.

    See Park et al. 2019 (arXiv 1904.05068). The loss is distance · mean_ij h(D_t - D_s) + angle · mean_ijk h(A_t - A_s)
    with Huber's function h, δ = 1. Distances and angles are invariant to scale, shift and rotation of the embeddings,
    and the dimensions of both may differ. The memory needed is that of [B,B,max(B,D)] values.

    Args:
        teacher_embeddings: [B,D], or maps [B,H,W,D], which are averaged over their positions.
        student_embeddings: [B,D'] or [B,H',W',D'].
        distance: Weight of the distances.
        angle: Weight of the angles.

    Returns:
        Loss of the batch, a scalar.
    """
    loss = 0.0
    for weight, relations in ((distance, pairwise_distances), (angle, pairwise_angles)):
        if weight:
            difference = keras.losses.huber(relations(teacher_embeddings), relations(student_embeddings), delta=1.0)
            loss = loss + weight * ops.mean(difference)
    return ops.convert_to_tensor(loss)


def similarity_matrix(features: Tensor) -> Tensor:
    """Return the inner products of a batch's examples, each row divided by its norm.

    Args:
        features: [B,D], or maps [B,H,W,D], whose positions count one by one.

    Returns:
        float32 [B,B]; a row of zeros for an example that is zero.
    """
    flat = ops.reshape(ops.cast(features, "float32"), (ops.shape(features)[0], -1))
    return l2_normalize(ops.matmul(flat, ops.transpose(flat)))


def similarity_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the loss of similarity-preserving distillation: the mean squared difference of similarity matrices.

    See Tung and Mori 2019 (arXiv 1907.09682). It is at most 2 / B for features that are not negative, so its weight
    suits one batch size.

    Args:
        teacher_features: [B,D] or [B,H,W,D].
        student_features: [B,D'] or [B,H',W',D'].

    Returns:
        Loss of the batch, a scalar.
    """
    return ops.mean(ops.square(similarity_matrix(teacher_features) - similarity_matrix(student_features)))


def neighbor_probabilities(embeddings: Tensor) -> Tensor:
    """Return how near each example is to each other one: cosines scaled to [0, 1], each row divided by its sum.

    Args:
        embeddings: [B,D], or maps [B,H,W,D], which are averaged over their positions.

    Returns:
        float32 [B,B]; rows sum to 1.
    """
    units = l2_normalize(_pooled(embeddings))
    kernel = (ops.matmul(units, ops.transpose(units)) + 1.0) / 2.0
    return kernel / ops.sum(kernel, axis=1, keepdims=True)


def probabilistic_distance(teacher_embeddings: Tensor, student_embeddings: Tensor) -> Tensor:
    """Return the loss of probabilistic knowledge transfer: mean_ij p_t log(p_t / p_s) of neighbor probabilities.

    See Passalis and Tefas 2018 (arXiv 1803.10837); the mean over all pairs is that of the authors' code.

    Args:
        teacher_embeddings: [B,D], or maps [B,H,W,D], which are averaged over their positions.
        student_embeddings: [B,D'] or [B,H',W',D'].

    Returns:
        Loss of the batch, a scalar.
    """
    teacher, student = neighbor_probabilities(teacher_embeddings), neighbor_probabilities(student_embeddings)
    return ops.mean(teacher * (ops.log(teacher + EPSILON) - ops.log(student + EPSILON)))


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return the flow between two layers: G[i,j] = mean over positions of first[..., i] · second[..., j].

    Args:
        first: [B,H,W,D1].
        second: [B,H',W',D2]; the larger map is resized to the smaller one.

    Returns:
        float32 [B,D1,D2].
    """
    first, second = match_resolution(ops.cast(first, "float32"), ops.cast(second, "float32"))
    positions = first.shape[1] * first.shape[2]
    first = ops.reshape(first, (-1, positions, first.shape[-1]))
    second = ops.reshape(second, (-1, positions, second.shape[-1]))
    return ops.matmul(ops.transpose(first, (0, 2, 1)), second) / positions


def flow_distance(teacher_pair: Sequence[Tensor], student_pair: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of flow matrices.

    See Yim et al. 2017, "A gift from knowledge distillation" (CVPR). The loss grows with the fourth power of the
    activations, so a weight suits only one pair of taps.

    Args:
        teacher_pair: Two maps [B,H,W,D1] and [B,H',W',D2] of the teacher.
        student_pair: Two maps of the student with the same D1 and D2; resolutions may differ.

    Returns:
        Loss of each example, [B].

    Raises:
        ValueError: Teacher and student have different numbers of channels.
    """
    teacher_channels, student_channels = ([features.shape[-1] for features in p] for p in (teacher_pair, student_pair))
    if teacher_channels != student_channels:
        raise ValueError(
            f"FSP needs taps of equal channels, got {teacher_channels} of the teacher and {student_channels} of the "
            "student; tap layers that match, or use at or rkd"
        )
    return ops.mean(ops.square(flow_matrix(*teacher_pair) - flow_matrix(*student_pair)), axis=(1, 2))


@keras.saving.register_keras_serializable("tfigkd")
class RKD(Loss):
    """`relational_distance` for Keras's own Distiller and for `tfigkd.Distiller`.

    It is a loss of the batch and ignores sample weights. Without taps it compares logits. Suggested start: distance
    25 and angle 50 on the last pooled features, weight 1, together with softened logits, which by themselves are better
    than this loss by itself. These values are for 100 classes; no values for ten classes are known.

    Args:
        student_layer: Name of the student's tap. Defaults to the output.
        teacher_layer: Name of the teacher's tap. Defaults to the output.
        distance: Weight of the distances. Defaults to `25.0`.
        angle: Weight of the angles. Defaults to `50.0`.
    """

    def __init__(
        self,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
        distance: float = 25.0,
        angle: float = 50.0,
    ):
        if (student_layer is None) != (teacher_layer is None):
            raise ValueError(f"RKD needs both taps or none, got {student_layer!r} and {teacher_layer!r}")
        check_not_negative(distance=distance, angle=angle)
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.distance = distance
        self.angle = angle

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the batch, a scalar."""
        return relational_distance(teacher_outputs, student_outputs, distance=self.distance, angle=self.angle)


class _OfOneTap(Loss):
    """A loss of the batch that compares one tap of each network."""

    def __init__(self, student_layer: str, teacher_layer: str):
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer


@keras.saving.register_keras_serializable("tfigkd")
class SP(_OfOneTap):
    """`similarity_distance` between one tap of each network.

    It is a loss of the batch and ignores sample weights. Suggested start: weight 3000, the published value for a batch
    of 64 and 100 classes; it grows with the batch size.

    Args:
        student_layer: Name of the student's tap.
        teacher_layer: Name of the teacher's tap; its channels and resolution may differ.
    """

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the batch, a scalar."""
        return similarity_distance(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable("tfigkd")
class PKT(_OfOneTap):
    """`probabilistic_distance` between one tap of each network, averaged over its positions.

    It is a loss of the batch and ignores sample weights. Suggested start: weight 30,000 at a batch of 64 on the last
    features, the value of published comparisons for 100 classes; as a mean over pairs it falls with the batch size.

    Args:
        student_layer: Name of the student's tap.
        teacher_layer: Name of the teacher's tap; its channels may differ.
    """

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the batch, a scalar."""
        return probabilistic_distance(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable("tfigkd")
class FSP(PerExampleLoss):
    """`flow_distance` between two taps of each network, for `tfigkd.Distiller` only: Keras's own taps one layer.

    Suggested start: weight 50, the published value for 100 classes; no value for ten classes is known. The authors
    train with only this loss for 30 epochs before the classification.

    Args:
        student_layer: Names of the student's two taps, features [B,H,W,D].
        teacher_layer: Names of the teacher's two taps, with the same channels as the student's.
    """

    def __init__(self, student_layer: Sequence[str], teacher_layer: Sequence[str]):
        for name, taps in (("student_layer", student_layer), ("teacher_layer", teacher_layer)):
            if isinstance(taps, str) or len(taps) != 2:
                raise ValueError(f"FSP needs the names of two layers as {name}, got {taps!r}")
        self.student_layer = (student_layer[0], student_layer[1])
        self.teacher_layer = (teacher_layer[0], teacher_layer[1])

    def per_example(self, teacher_outputs: Sequence[Tensor], student_outputs: Sequence[Tensor]) -> Tensor:
        """Return the loss of each example, [B]; the outputs are pairs of features."""
        return flow_distance(teacher_outputs, student_outputs)


def _differences(embeddings: Tensor) -> Tensor:
    """Return all differences, [B,B,D], by subtraction: Gram matrices lose small differences of similar examples."""
    embeddings = _pooled(embeddings)
    return embeddings[None, :, :] - embeddings[:, None, :]


def _pooled(embeddings: Tensor) -> Tensor:
    """Return embeddings float32 [B,D], from maps [B,H,W,D] their mean over the positions."""
    embeddings = ops.cast(embeddings, "float32")
    return ops.mean(embeddings, axis=(1, 2)) if len(embeddings.shape) == 4 else embeddings
