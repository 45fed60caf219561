"""Batch normalization folded into the layer before it: the same function at inference, with fewer operations."""

from collections import Counter
from typing import Any

import keras
import numpy as np

from tfigkd.models.copies import copy_layer, verified_copy
from tfigkd.models.graph import float64_of, graph_of, is_graph, maker_of, nodes_of
from tfigkd.models.kernels import has_plain_kernel

FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of a model with batch normalization folded into the convolution or dense layer before it.

    A normalization is folded if its input is linear and has no other reader; others stay. A linear activation of the
    same name replaces it, so that every name still leads to the same feature map.

    Args:
        model: Functional or Sequential; it is not altered.

    Returns:
        A Functional model whose outputs equal `model(x, training=False)`; for inference only.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
        UserError: The copy is not the same function.
    """
    folds = _find_folds(model)
    convs = set(folds.values())

    def replace(layer: keras.Layer) -> keras.Layer:
        if layer in folds:
            return keras.layers.Activation("linear", dtype=layer.dtype_policy, name=layer.name)
        if layer in convs:
            return type(layer).from_config({**layer.get_config(), "use_bias": True})
        return copy_layer(layer)

    norms = {conv: norm for norm, conv in folds.items()}

    def values(layer: keras.Layer) -> list[np.ndarray] | None:
        if layer in folds:
            return []  # a linear activation has no weights
        return _folded_weights(layer, norms[layer]) if layer in norms else None

    return verified_copy(model, replace, values=values)


def _folded_weights(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Return the kernel and bias that do what a layer and the normalization after it do."""
    kernel, (mean, scale, offset) = float64_of(layer.kernel), inference_values(norm)
    bias = float64_of(layer.bias) if layer.use_bias else 0.0
    # The output channels of a depthwise convolution are the last two axes, (input channel, multiplier).
    channels = kernel.shape[2:] if isinstance(layer, keras.layers.DepthwiseConv2D) else kernel.shape[-1:]
    return [kernel * scale.reshape(channels), (bias - mean) * scale + offset]


def inference_values(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return mean, scale and offset of a normalization in inference, `(x - mean) · scale + offset`, float64 [C]."""
    mean, variance = float64_of(norm.moving_mean), float64_of(norm.moving_variance)
    scale = (float64_of(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    return mean, scale, float64_of(norm.beta) if norm.center else 0.0


def _find_folds(model: keras.Model) -> dict[keras.Layer, keras.Layer]:
    """Return each foldable batch normalization with the layer that it is folded into, in models inside as well."""
    inputs, outputs = layer_sources(model)
    readers = Counter(outputs) + Counter(source for sources in inputs.values() for source in sources)
    folds = {}
    for layer in model.layers:
        if is_graph(layer):
            folds.update(_find_folds(layer))
        elif isinstance(layer, keras.layers.BatchNormalization) and len(inputs[layer.name]) == 1:
            source = inputs[layer.name][0]
            if readers[source] == 1 and len(inputs.get(source, ())) == 1:  # an input reads nothing
                before = model.get_layer(source)
                if _can_take_in(before, layer):
                    folds[layer] = before
    return folds


def layer_sources(model: keras.Model) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names that each layer of a Functional or Sequential model reads, and those that are its outputs.

    A layer that is called twice, or that reads another one twice, has its sources once for each time.
    """
    graph = graph_of(model)
    inputs: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for node in nodes_of(graph):
        if not node.is_input:
            inputs.setdefault(node.operation.name, []).extend(maker_of(source).name for source in node.input_tensors)
    return inputs, [maker_of(output).name for output in graph.outputs]


def _can_take_in(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> bool:
    # Exact types: a subclass may transform its kernel.
    return (
        type(layer) in FOLDABLE
        and has_plain_kernel(layer)
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and norm.axis in (-1, norm.input_spec.ndim - 1)
        and not norm.renorm
    )
