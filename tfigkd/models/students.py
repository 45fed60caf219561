"""Students cut from a teacher."""

import re

import keras

from tfigkd.models import blocks, copies
from tfigkd.models.adapt import RGB_TO_GRAY
from tfigkd.models.convnet import convnet_head, is_whitening
from tfigkd.models.equivalence import check_same
from tfigkd.models.flat import flattened
from tfigkd.models.graph import Node, graph_nodes
from tfigkd.models.input_range import INPUT_RANGE

HEADS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.Flatten)
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.SeparableConv2D, keras.layers.Conv2DTranspose)


def truncate(
    model: keras.Model,
    drop_blocks: int,
    num_classes: int,
    *,
    copy_weights: bool = False,
    keep_normalization: bool = False,
) -> keras.Model:
    """Return a new student: the model's first blocks, global average pooling and a dense layer (arXiv 2503.13008).

    A `convnet` keeps its own kind of head: max pooling, a scale, and logits without bias.

    Args:
        model: Functional or Sequential; it is not altered. Its blocks end in layers `block_00`, `block_01`, ...; in a
            network of others they are the places of `block_ends`, after models inside it have been flattened.
        drop_blocks: Blocks left out from the end; at least one stays.
        num_classes: Number of logits.
        copy_weights: Start from the model's own weights in the kept blocks, not from random ones.
        keep_normalization: Keep the layer "normalization"; the papers' students see the raw [0,1] image.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes], trainable but for its normalization.

    Raises:
        ValueError: The model has no blocks, or `drop_blocks` leaves none.
    """
    model = flattened(model)
    ends = [layer.name for layer in model.layers if re.fullmatch(r"block_\d+", layer.name)]
    ends.sort(key=lambda name: int(name.removeprefix("block_")))
    ends = ends or block_ends(model)
    if not ends:
        raise ValueError(
            f"{model.name} has no blocks of convolutions one after the other, so no student can be cut from it; choose "
            "another teacher"
        )
    if not 0 <= drop_blocks < len(ends):
        raise ValueError(
            f"drop_blocks must be in 0..{len(ends) - 1} for {model.name}, got {drop_blocks}; choose one of these"
        )

    def fresh(layer: keras.Layer) -> keras.Layer:
        constant = _is_constant(layer)
        layer = copies.copy_layer(layer)
        layer.trainable = not constant  # a teacher frozen for distillation has a student that learns
        return layer

    trunk = keras.Model(model.inputs[0], model.get_layer(ends[-1 - drop_blocks]).output, name=model.name)
    constants = [layer for layer in trunk.layers if _is_constant(layer)]
    ours = [layer.name for layer in constants if isinstance(layer, keras.layers.DepthwiseConv2D)]
    skip = () if keep_normalization or "normalization" not in ours else ("normalization",)
    student = copies.with_new_layers(trunk, fresh, skip=skip)
    if copy_weights:
        copies.copy_state(model, student)
        if not skip:
            check_same(student, trunk)
    else:
        for layer in constants:
            if layer.name not in skip:
                copies.copy_layer_state(layer, student.get_layer(layer.name))
    prefix = "head_" if {"pool", "logits"} & {layer.name for layer in student.layers} else ""
    if any(map(is_whitening, model.layers)):
        logits = convnet_head(student.output, num_classes, prefix=prefix)
    else:
        initializer = keras.initializers.RandomNormal(stddev=0.01)
        logits = blocks.classifier_head(student.output, num_classes, initializer, prefix=prefix)
    return keras.Model(student.input, logits, name=f"{model.name}_drop_{drop_blocks}")


def _is_constant(layer: keras.Layer) -> bool:
    """Return whether a layer prepares the image by constants that no training changes."""
    if is_whitening(layer):
        return True
    # a plain convolution where it also swaps colors, or makes them gray
    kinds = keras.layers.DepthwiseConv2D | keras.layers.Conv2D
    named = layer.name in ("normalization", INPUT_RANGE, RGB_TO_GRAY) and isinstance(layer, kinds)
    return named or isinstance(layer, keras.layers.Normalization)


def block_ends(model: keras.Model) -> list[str]:
    """Return the names of the layers whose feature map is all that the rest of a flat model reads: where it can be cut.

    Among these layers are those that end a block: a convolution reads them, or several layers, or the pooling or
    flattening before the head. So the ends of a residual network are its stem and its additions, those of a plain
    chain what stands before each convolution.

    Returns:
        In order, without the model's input and output.
    """
    nodes = graph_nodes(model)
    position = {name: number for number, name in enumerate(nodes)}
    reach, ends = -1, []
    for name, node in nodes.items():
        alone = reach <= position[name]  # nothing before it is read by anything after it
        reach = max([reach, *(position[reader] for reader in node.readers)])
        shape = getattr(node.layer.output, "shape", ()) if isinstance(node.layer, keras.Layer) else ()
        if alone and isinstance(node.layer, HEADS):
            break
        if alone and node.sources and len(shape) == 4 and _begins_anew(node, nodes) and _has_weights(name, nodes):
            ends.append(name)
    return ends


def _begins_anew(node: Node, nodes: dict[str, Node]) -> bool:
    if len(node.readers) != 1:
        return len(node.readers) > 1
    reader = nodes[node.readers[0]].layer
    while isinstance(reader, keras.layers.ZeroPadding2D):
        reader = nodes[nodes[reader.name].readers[0]].layer
    return isinstance(reader, (*CONVOLUTIONS, *HEADS))


def _has_weights(name: str, nodes: dict[str, Node]) -> bool:
    """Return whether a convolution stands before an operation, so that it is more than a prepared image."""
    waiting, seen = [name], {name}
    while waiting:
        one = waiting.pop()
        if isinstance(nodes[one].layer, CONVOLUTIONS):
            return True
        waiting += [source for source in nodes[one].sources if source not in seen]
        seen.update(nodes[one].sources)
    return False
