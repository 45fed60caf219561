"""Attention transfer: the student learns the spatial attention of the teacher."""

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, l2_normalize
from tfigkd.losses.features import match_resolution


def spatial_attention(features: Tensor) -> Tensor:
    """Sum the squared activations over the channels; the result can be cropped and flipped like a picture.

    Args:
        features: [B,H,W,D].

    Returns:
        float32 [B,H,W], non-negative, not normalized.
    """
    return ops.sum(ops.square(ops.cast(features, "float32")), axis=-1)


def attention_map(features: Tensor) -> Tensor:
    """Return spatial attention as a unit vector (Zagoruyko, Komodakis 2017, arXiv 1612.03928, section 3.1).

    Args:
        features: [B,H,W,D], or stored spatial attention [B,H,W].

    Returns:
        float32 [B,H·W]; zeros for an example whose activations are all zero.
    """
    attention = _spatial(features)
    return l2_normalize(ops.reshape(attention, (-1, attention.shape[1] * attention.shape[2])))


def unit_attention(features: Tensor) -> Tensor:
    """Return spatial attention scaled to L2 norm 1, the form for stores: float16 has no values above 65,504.

    Args:
        features: [B,H,W,D].

    Returns:
        float32 [B,H,W].
    """
    return ops.reshape(attention_map(features), (-1, features.shape[1], features.shape[2]))


def squared_attention_differences(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the squared difference of attention maps at each position.

    If the resolutions differ, the larger spatial attention is resized to the smaller one before normalization, so live
    features and stored spatial attention give the same values.

    Args:
        teacher_features: [B,H,W,D], or stored spatial attention [B,H,W].
        student_features: [B,H',W',D']; the number of channels may differ from the teacher's.

    Returns:
        float32 [B,P] for the P positions of the smaller map; a row sums to at most 2.
    """
    maps = match_resolution(_spatial(teacher_features)[..., None], _spatial(student_features)[..., None])
    teacher, student = (attention_map(attention[..., 0]) for attention in maps)
    return ops.square(teacher - student)


def attention_transfer(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the squared difference of attention maps, averaged over positions.

    Args:
        teacher_features: [B,H,W,D], or stored spatial attention [B,H,W].
        student_features: [B,H',W',D'].

    Returns:
        Loss of each example, [B], at most 2 divided by the number of positions.
    """
    return ops.mean(squared_attention_differences(teacher_features, student_features), axis=-1)


@keras.saving.register_keras_serializable("tfigkd")
class AttentionTransfer(PerExampleLoss):
    """`attention_transfer` between two taps, for Keras's own Distiller and for `tfigkd.Distiller`.

    Suggested start: weight 1000, the usual one. The loss of 8x8 maps is at most 2/64, and about 0.002 between trained
    networks, so the papers' weight of 0.8 (arXiv 2503.13008) has no effect. The loss may harm a student whose
    architecture is of another family than the teacher's.

    Args:
        student_layer: Name of the student's tap, features [B,H,W,D].
        teacher_layer: Name of the teacher's tap.
    """

    def __init__(self, student_layer: str, teacher_layer: str):
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; the teacher's output may be stored spatial attention [B,H,W]."""
        return attention_transfer(teacher_outputs, student_outputs)


def _spatial(features: Tensor) -> Tensor:
    return spatial_attention(features) if len(features.shape) == 4 else ops.cast(features, "float32")
