"""Preparation of a student for quantization-aware training: folded batch norm and fake-quantized layers."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfigkd.compress.layers import compressible_nodes, is_linear, is_linear_activation, is_relu, trace
from tfigkd.models.copies import copy_layer, copy_layer_state
from tfigkd.models.equivalence import check_same
from tfigkd.models.fake_quant import (
    FakeQuantConv2D,
    FakeQuantDense,
    FakeQuantDepthwiseConv2D,
    FakeQuantize,
    without_rounding,
)
from tfigkd.models.flat import flattened
from tfigkd.models.fold import fold_batch_norm, inference_values
from tfigkd.models.graph import ARITHMETIC, Node, maker_of
from tfigkd.models.input_range import require_unit_range
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
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianNoise,
    keras.layers.GaussianDropout,
    keras.layers.Identity,
    keras.layers.InputLayer,
)
"""Layers whose output values are input values, so that they are rounded already."""
ROUNDED_AFTER = (
    keras.layers.Add,
    keras.layers.Multiply,
    keras.layers.Concatenate,
    keras.layers.ReLU,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Rescaling,
    keras.layers.Resizing,
)
SUPPORTED = (*FAKE_QUANT, *CHANGES_NO_VALUE, *ROUNDED_AFTER, keras.layers.Activation)
OPERATIONS = ("Add", "Multiply", "Resize")
"""Functions of keras.ops, such as `x + 3.0`, that an int8 file has."""
RESIZES = (keras.layers.AveragePooling2D, keras.layers.Resizing)
"""What may resize an image before anything scales it."""
PREPARES = (keras.layers.Rescaling, keras.layers.Normalization)
"""Layers that scale an image before the first convolution, as `ARITHMETIC` does; together they are one factor and one
offset for each channel."""

SIGMOID, TANH = (0.0, 255 / 256), (-1.0, 127 / 128)
"""The ranges that an int8 file gives these functions, whatever their inputs."""
Composite = Callable[[Any, str], Any]
"""Applies an activation, as rounded layers named after the given name, to a tensor."""


def _sigmoid(x: Any, name: str) -> Any:
    return FakeQuantize(SIGMOID, name=f"{name}_range")(keras.layers.Activation("sigmoid", name=name)(x))


def _tanh(x: Any, name: str) -> Any:
    return FakeQuantize(TANH, name=f"{name}_range")(keras.layers.Activation("tanh", name=name)(x))


def _hard_sigmoid(x: Any, name: str) -> Any:
    clipped = keras.layers.ReLU(6.0, name=f"{name}_relu")(x + 3.0)
    return FakeQuantize((0.0, 1.0), name=f"{name}_range")(
        FakeQuantize((0.0, 6.0), name=f"{name}_relu_range")(clipped) * (1 / 6)
    )


def _times(gate: Composite) -> Composite:
    """Return the activation x · gate(x); an int8 file stores the values of the gate as well."""

    def product(x: Any, name: str) -> Any:
        gated = keras.layers.Multiply(name=name)([x, gate(x, f"{name}_gate")])
        return FakeQuantize(name=f"{name}_range")(gated)

    return product


COMPOSITE_ACTIVATIONS: dict[str, Composite] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "hard_sigmoid": _hard_sigmoid,
    "silu": _times(_sigmoid),
    "hard_silu": _times(_hard_sigmoid),
}
"""Activations that an int8 file computes in several steps, each rounded, by their function's name."""


def fake_quantized(model: keras.Model) -> keras.Model:
    """Return a copy for quantization-aware training, with the model's weights and ranges that training will set.

    Batch normalization is folded first, because an int8 file has none, and models inside are flattened. What cannot be
    folded, as in DenseNet, becomes a 1x1 depthwise convolution. Every tensor that the int8 file stores is rounded: the
    image with the fixed range [0,1], and each layer's output after the ReLU that the file fuses with it. Layers that
    scale the image, such as `Rescaling` and `Normalization`, become one frozen 1x1 depthwise convolution. A layer whose
    activation an int8 file computes in several steps, such as swish, gets it as layers of its own.

    Args:
        model: Functional or Sequential image classifier; it is not changed.

    Returns:
        A Functional model with the same layer names, images [B,H,W,C] in [0,1] to logits [B,K]; not compiled. Apart
        from the rounding it is the same function.

    Raises:
        UserError: a layer has no fake-quantized version, the graph cannot be read, or the model takes other images.
    """
    require_unit_range(model)
    folded = fold_batch_norm(flattened(model))
    graph = compressible_nodes(folded)
    prepares = _preparation(graph)
    for name, node in graph.items():
        if name not in prepares:
            _check(node, model.name)
    factor, offset = _factor_and_offset(folded, graph, prepares, model.name) if prepares else (None, None)
    image = keras.Input(folded.input_shape[1:], name=maker_of(folded.inputs[0]).name)
    rounded = FakeQuantize(limits=(0.0, 1.0), name="image_range")(image)

    def apply(node: Node, inputs: list[Any]) -> Any:
        name = node.layer.name
        if name in prepares:
            if name != prepares[-1]:
                return inputs[0]
            scaled = FakeQuantDepthwiseConv2D(1, trainable=False, name=name)(inputs[0])
            return FakeQuantize(name=f"{name}_range")(scaled)
        composite = _composite_activation(node.layer)
        if type(node.layer) is keras.layers.Activation and composite:
            return COMPOSITE_ACTIVATIONS[composite](inputs[0], name)
        if isinstance(node.layer, keras.layers.Rescaling):
            return _rescaled(node.layer, inputs[0])
        outputs = node.call(_replacement(node.layer), inputs)
        if composite:
            outputs = FakeQuantize(name=f"{name}_linear_range")(outputs)
            return COMPOSITE_ACTIVATIONS[composite](outputs, f"{name}_{composite}")
        needed = not _changes_no_value(node.layer) and not _is_fused(node, graph)
        return FakeQuantize(name=f"{name}_range")(outputs) if needed else outputs

    result = keras.Model(image, trace(graph, rounded, apply), name=model.name)
    for layer in result.layers:
        if layer.name in graph and layer.weights:
            source = graph[layer.name].layer
            if layer.name in prepares:
                layer.set_weights([factor, offset])
            elif isinstance(source, keras.layers.BatchNormalization):
                mean, scale, shift = inference_values(source)
                layer.set_weights([scale.reshape(1, 1, -1, 1), shift - mean * scale])
            else:
                copy_layer_state(source, layer)
    with without_rounding():
        check_same(result, folded, what="the quantization-aware copy")
    return result


def _replacement(layer: Any) -> Any:
    if not isinstance(layer, keras.Layer):
        return layer
    if isinstance(layer, keras.layers.BatchNormalization):
        return FakeQuantDepthwiseConv2D(1, trainable=layer.trainable, name=layer.name)
    kind = FAKE_QUANT.get(type(layer))
    if kind is None:
        return copy_layer(layer)
    config = layer.get_config()
    return kind.from_config({**config, "activation": "linear"} if _composite_activation(layer) else config)


def _rescaled(layer: keras.layers.Rescaling, inputs: Any) -> Any:
    outputs = FakeQuantize(name=f"{layer.name}_range")(inputs * layer.scale)
    if not np.any(layer.offset):
        return outputs
    return FakeQuantize(name=f"{layer.name}_offset_range")(outputs + layer.offset)


def _composite_activation(layer: Any) -> str | None:
    """Return the name of a layer's activation, where it is one of `COMPOSITE_ACTIVATIONS`."""
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return name if name in COMPOSITE_ACTIVATIONS else None


def _is_operation(layer: Any, names: tuple[str, ...]) -> bool:
    return not isinstance(layer, keras.Layer) and type(layer).__name__ in names


def _preparation(graph: dict[str, Node]) -> list[str]:
    """Return the operations that only scale the image, one after the other, before anything else reads it."""
    found: list[str] = []
    node = next(iter(graph.values()))
    while len(node.readers) == 1:
        node = graph[node.readers[0]]
        if not found and (isinstance(node.layer, RESIZES) or _is_operation(node.layer, ("Resize",))):
            continue  # pixels are scaled alike before and after
        simple = _is_operation(node.layer, ARITHMETIC) and len(node.sources) == 1
        if not (simple or isinstance(node.layer, PREPARES) or _is_frozen_scaling(node.layer)):
            break
        found.append(node.layer.name)
    # where it is nothing but a fixed convolution, that is rounded as it stands, and keeps its exact weights
    return found if any(not _is_frozen_scaling(graph[name].layer) for name in found) else []


def _is_frozen_scaling(layer: Any) -> bool:
    """Return whether a layer is a frozen 1x1 depthwise convolution, as for an input range or a normalization."""
    plain = isinstance(layer, keras.layers.DepthwiseConv2D) and not layer.trainable and is_linear(layer)
    return plain and set(layer.kernel_size) | set(layer.strides) == {1} and layer.depth_multiplier == 1


def _factor_and_offset(
    model: keras.Model, graph: dict[str, Node], prepares: list[str], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel and bias of the 1x1 depthwise convolution that scales the image as these operations do."""
    images = np.stack([np.full(model.input_shape[1:], value, "float32") for value in (0.0, 1.0, 0.5)])
    reader = graph[graph[prepares[-1]].readers[0]]
    taken = reader.arguments.keras_tensors
    tensor = next(one for one in taken if maker_of(one).name == prepares[-1])
    black, white, gray = np.asarray(keras.Model(model.inputs[0], tensor)(images), "float64")
    offset, factor = black[0, 0], (white - black)[0, 0]
    alike = np.allclose(black, offset, atol=1e-5) and np.allclose(white - black, factor, rtol=1e-4, atol=1e-5)
    if not alike or not np.allclose(gray, offset + factor / 2, rtol=1e-4, atol=1e-4):
        raise UserError(
            f"cannot quantize {name}: {prepares[-1]!r} does not scale every pixel alike; scale by channel, or use "
            "compress.method = 'none'"
        )
    return factor.reshape(1, 1, -1, 1), offset


def _check(node: Node, model: str) -> None:
    layer, reason = node.layer, ""
    activation = getattr(layer, "activation", None)
    if not isinstance(layer, keras.Layer):
        if not _is_operation(layer, OPERATIONS):
            reason = f"the function {type(layer).__name__} of keras.ops is not supported"
    elif getattr(layer, "data_format", "channels_last") != "channels_last" and type(layer) in FAKE_QUANT:
        reason = "it is channels-first"
    elif getattr(layer, "depth_multiplier", 1) != 1 or getattr(layer, "groups", 1) != 1:
        reason = "it has groups or a depth multiplier"
    elif isinstance(layer, keras.layers.ReLU) and not _is_plain(layer):
        reason = "its ReLU has a slope, a threshold or a bound other than 6"
    elif isinstance(layer, keras.layers.BatchNormalization):
        if layer.axis not in (-1, 3) or layer.renorm or len(layer.output.shape) != 4:
            reason = "it cannot be folded; put it between a layer and its activation"
    elif not (_augments(layer) or isinstance(layer, SUPPORTED)):
        reason = f"{type(layer).__name__} is not a supported layer type"
    elif activation is not None and not (is_linear(layer) or is_relu(layer) or _composite_activation(layer)):
        supported = ", ".join(["linear", "relu", "relu6", *COMPOSITE_ACTIVATIONS])
        reason = f"its activation is {activation.__name__}; supported are {supported}"
        if not node.readers and activation is keras.activations.softmax:
            reason = "it gives probabilities, not logits; give tfigkd.models.as_classifier(model)"
            raise UserError(f"cannot quantize {model}: layer {layer.name!r}: {reason}")
    if reason:
        raise UserError(f"cannot quantize {model}: layer {layer.name!r}: {reason}; use compress.method = 'none'")


def _is_plain(layer: keras.layers.ReLU) -> bool:
    return not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6)


def _changes_no_value(layer: Any) -> bool:
    # average pooling over one pixel only selects pixels
    picks = isinstance(layer, keras.layers.AveragePooling2D) and layer.pool_size == (1, 1)
    return picks or isinstance(layer, CHANGES_NO_VALUE) or is_linear_activation(layer) or _augments(layer)


def _augments(layer: Any) -> bool:
    """Return whether a layer is one of Keras, such as `RandomFlip`, that changes images only in training."""
    return type(layer).__module__.startswith("keras.") and type(layer).__name__.startswith("Random")


def _is_fused(node: Node, graph: dict[str, Node]) -> bool:
    """Return whether the file fuses this layer with the ReLU after it, so that no tensor between them is stored."""
    while len(node.readers) == 1:
        reader = graph[node.readers[0]]
        if is_linear_activation(reader.layer):
            node = reader  # replaces a folded batch normalization
            continue
        kinds = (*FAKE_QUANT, keras.layers.BatchNormalization, keras.layers.Add, keras.layers.Activation)
        fusible = isinstance(node.layer, kinds) or _is_operation(node.layer, ("Add",))
        return fusible and is_relu(reader.layer) and not isinstance(reader.layer, tuple(FAKE_QUANT))
    return False
