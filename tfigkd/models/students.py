"""Students cut from a teacher."""

import re

import keras

from tfigkd.models import layers, parts
from tfigkd.models.same import check_same


def truncate(
    model: keras.Model,
    drop_blocks: int,
    num_classes: int,
    *,
    copy_weights: bool = False,
    keep_normalization: bool = False,
) -> keras.Model:
    """A new student: the model's first blocks, global average pooling and a dense layer (arXiv 2503.13008).

    Args:
        model: Functional, its blocks ending in layers `block_00`, `block_01`, ...; it is not altered.
        drop_blocks: Blocks left out from the end; at least one stays.
        num_classes: Number of logits.
        copy_weights: Start from the model's own weights in the kept blocks, not from random ones.
        keep_normalization: Keep the layer "normalization"; the papers' students see the raw [0,1] image.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes], trainable but for its normalization.

    Raises:
        ValueError: The model has no block layers, or `drop_blocks` leaves none.
    """
    blocks = [layer.name for layer in model.layers if re.fullmatch(r"block_\d+", layer.name)]
    blocks.sort(key=lambda name: int(name.removeprefix("block_")))
    if not blocks:
        raise ValueError(f'Expected layers named "block_00", "block_01", ... in {model.name}, found none.')
    if not 0 <= drop_blocks < len(blocks):
        raise ValueError(f"drop_blocks must be in 0..{len(blocks) - 1} for {model.name}, got {drop_blocks}.")

    def fresh(layer: keras.Layer) -> keras.Layer:
        layer = layers.copy_layer(layer)
        layer.trainable = layer.name != "normalization"  # a teacher frozen for distillation has a student that learns
        return layer

    trunk = keras.Model(model.inputs[0], model.get_layer(blocks[-1 - drop_blocks]).output, name=model.name)
    skip = () if keep_normalization else ("normalization",)
    student = layers.rebuild(trunk, fresh, skip=skip)
    if copy_weights:
        layers.copy_state(model, student)
        if not skip:
            check_same(student, trunk)
    elif any(layer.name == "normalization" for layer in student.layers):
        student.get_layer("normalization").set_weights(model.get_layer("normalization").get_weights())
    logits = parts.classifier(student.output, num_classes, keras.initializers.RandomNormal(stddev=0.01))
    return keras.Model(student.input, logits, name=f"{model.name}_drop_{drop_blocks}")
