"""Preparation of a student for quantization-aware training: folded batch norm and fake-quantized layers."""

from typing import Any

import keras

from tfigkd.compress.graph import Node, is_linear, is_linear_activation, is_relu, nodes, one_or_all, trace
from tfigkd.models.fake_quant import FakeQuantConv2D, FakeQuantDense, FakeQuantDepthwiseConv2D, FakeQuantize
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.layers import copy_layer
from tfigkd.runtime.errors import UserError

FAKE_QUANT: dict[type[keras.Layer], type[keras.Layer]] = {
    keras.layers.Conv2D: FakeQuantConv2D,
    keras.layers.DepthwiseConv2D: FakeQuantDepthwiseConv2D,
    keras.layers.Dense: FakeQuantDense,
}
CHANGES_NO_VALUE = (
    keras.layers.ZeroPadding2D,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.Dropout,
    keras.layers.InputLayer,
)
"""Layers whose output values are input values, so that they are rounded already."""
ROUNDED_AFTER = (
    keras.layers.Add,
    keras.layers.Concatenate,
    keras.layers.ReLU,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
)


def fake_quantized(model: keras.Model) -> keras.Model:
    """Return a copy for quantization-aware training, with the model's weights and ranges that training will set.

    Batch normalization is folded first, because an int8 file has none. Every tensor that the int8 file stores is
    rounded: the image with the fixed range [0,1], and each layer's output after the ReLU that the file fuses with it.

    Args:
        model: Functional or Sequential image classifier; it is not changed.

    Returns:
        A Functional model with the same layer names, images [B,H,W,C] in [0,1] to logits [B,K]; not compiled.

    Raises:
        UserError: a layer has no fake-quantized version, or the graph cannot be read.
    """
    folded = fold_batch_norm(model)
    graph = nodes(folded)
    for node in graph.values():
        _check(node, model.name)
    image = keras.Input(folded.input_shape[1:], name=folded.inputs[0]._keras_history.operation.name)
    rounded = FakeQuantize(limits=(0.0, 1.0), name="image_range")(image)

    def apply(node: Node, inputs: list[Any]) -> Any:
        outputs = _replacement(node.layer)(one_or_all(inputs))
        needed = not _changes_no_value(node.layer) and not _is_fused(node, graph)
        return FakeQuantize(name=f"{node.layer.name}_range")(outputs) if needed else outputs

    result = keras.Model(image, trace(graph, rounded, apply), name=model.name)
    for layer in result.layers:
        if layer.name in graph and layer.weights:
            layer.set_weights(graph[layer.name].layer.get_weights())
    return result


def _replacement(layer: keras.Layer) -> keras.Layer:
    kind = FAKE_QUANT.get(type(layer))
    return kind.from_config(layer.get_config()) if kind else copy_layer(layer)


def _check(node: Node, model: str) -> None:
    layer = node.layer
    reason = ""
    if getattr(layer, "data_format", "channels_last") != "channels_last" and type(layer) in FAKE_QUANT:
        reason = "it is channels-first"
    elif getattr(layer, "depth_multiplier", 1) != 1 or getattr(layer, "groups", 1) != 1:
        reason = "it has groups or a depth multiplier"
    elif getattr(layer, "activation", None) is not None and not (is_linear(layer) or is_relu(layer)):
        reason = f"its activation is {layer.activation.__name__}; supported are linear, relu and relu6"
    elif isinstance(layer, keras.layers.BatchNormalization):
        reason = "it does not follow a convolution, so it cannot be folded"
    elif not isinstance(layer, (*FAKE_QUANT, *CHANGES_NO_VALUE, *ROUNDED_AFTER, keras.layers.Activation)):
        reason = f"{type(layer).__name__} is not a supported layer type"
    if reason:
        raise UserError(f"cannot quantize {model}: layer {layer.name!r}: {reason}; use compress.method = 'none'")


def _changes_no_value(layer: keras.Layer) -> bool:
    # average pooling over one pixel only selects pixels
    picks = isinstance(layer, keras.layers.AveragePooling2D) and layer.pool_size == (1, 1)
    return picks or isinstance(layer, CHANGES_NO_VALUE) or is_linear_activation(layer)


def _is_fused(node: Node, graph: dict[str, Node]) -> bool:
    """Return whether the file fuses this layer with the ReLU after it, so that no tensor between them is stored."""
    while len(node.readers) == 1:
        reader = graph[node.readers[0]]
        if is_linear_activation(reader.layer):
            node = reader  # replaces a folded batch normalization
            continue
        fusible = isinstance(node.layer, (*FAKE_QUANT, keras.layers.Add, keras.layers.Activation))
        return fusible and is_relu(reader.layer) and not isinstance(reader.layer, tuple(FAKE_QUANT))
    return False
