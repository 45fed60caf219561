"""Attention transfer: the student looks where the teacher looks."""

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, unit_vectors
from tfigkd.losses.features import match_resolution


def spatial_attention(features: Tensor) -> Tensor:
    """Sum of the squared activations over the channels, which can be cropped and flipped as a picture.

    Args:
        features: [B,H,W,D].

    Returns:
        float32 [B,H,W], not negative, of any scale.
    """
    return ops.sum(ops.square(ops.cast(features, "float32")), axis=-1)


def attention_map(features: Tensor) -> Tensor:
    """Spatial attention as a vector of length one (Zagoruyko, Komodakis 2017, arXiv 1612.03928, section 3.1).

    Args:
        features: [B,H,W,D], or spatial attention [B,H,W] that was stored.

    Returns:
        float32 [B,H·W]; zeros where there is no activation at all.
    """
    attention = _spatial(features)
    return unit_vectors(ops.reshape(attention, (-1, attention.shape[1] * attention.shape[2])))


def unit_attention(features: Tensor) -> Tensor:
    """Spatial attention of length one, [B,H,W]: what a store keeps, since float16 ends at 65,504.

    Args:
        features: [B,H,W,D].
    """
    return ops.reshape(attention_map(features), (-1, features.shape[1], features.shape[2]))


def attention_transfer(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Mean over positions of the squared difference of attention maps.

    At unequal resolution the larger spatial attention is brought to the smaller one before it is normalized; so live
    features and stored spatial attention give the same value. The loss is at most 2 / (H·W).

    Args:
        teacher_features: [B,H,W,D], or stored spatial attention [B,H,W].
        student_features: [B,H,W,D]; channels need not be the teacher's.

    Returns:
        Loss of each example, [B].
    """
    maps = match_resolution(_spatial(teacher_features)[..., None], _spatial(student_features)[..., None])
    teacher, student = (attention_map(attention[..., 0]) for attention in maps)
    return ops.mean(ops.square(teacher - student), axis=-1)


@keras.saving.register_keras_serializable("tfigkd")
class AttentionTransfer(PerExampleLoss):
    """`attention_transfer` between two taps, for Keras's own Distiller and for ours.

    Start: weight 1000, the usual one. The loss of 8x8 maps is at most 2/64, and about 0.002 between trained networks,
    so the papers' weight of 0.8 (arXiv 2503.13008) leaves it without effect. It may harm a student of another family.

    Args:
        student_layer: Name of the student's tap, features [B,H,W,D].
        teacher_layer: Name of the teacher's tap.
    """

    needs_features = True

    def __init__(self, student_layer: str, teacher_layer: str):
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Loss of each example, [B]; the teacher's may be stored spatial attention [B,H,W]."""
        return attention_transfer(teacher_outputs, student_outputs)


def _spatial(features: Tensor) -> Tensor:
    return spatial_attention(features) if len(features.shape) == 4 else ops.cast(features, "float32")
