"""The graph of a functional model: its layers with their sources and readers, used to rebuild it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfigkd.models.fold import layer_sources
from tfigkd.runtime.errors import UserError


@dataclass(frozen=True)
class Node:
    """A layer of a model, the names of the layers that it reads, and the names of those that read it."""

    layer: keras.Layer
    sources: tuple[str, ...]
    readers: tuple[str, ...]


def nodes(model: keras.Model) -> dict[str, Node]:
    """Return the layers of a model by name, each after its sources.

    Args:
        model: Functional or Sequential, with one input and one output; each layer is called once.

    Raises:
        UserError: the model contains other models, operations that are not layers, or layers that are called twice.
    """
    try:
        flat = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"cannot compress {model.name}: expected a Functional or Sequential model") from error
    sources, _ = layer_sources(flat)
    found = {layer.name: layer for layer in flat.layers}
    for name in sources:
        if name not in found or isinstance(found[name], keras.Model):
            raise UserError(f"cannot compress {model.name}: {name!r} is a model or an operation; use only layers")
    readers: dict[str, list[str]] = {name: [] for name in found}
    for name, read in sources.items():
        for source in read:
            readers[source].append(name)
    for layer in flat.layers:
        # only a layer that merges reads from two sources; any other layer with two sources is called twice
        merges = isinstance(layer, keras.layers.Add | keras.layers.Concatenate)
        if len(sources[layer.name]) > 1 and not merges:
            raise UserError(f"cannot compress {model.name}: layer {layer.name!r} is called more than once")
    return {name: Node(layer, tuple(sources[name]), tuple(readers[name])) for name, layer in found.items()}


def trace(graph: dict[str, Node], image: Any, apply: Callable[[Node, list[Any]], Any]) -> Any:
    """Return the last layer's output, computed from the image by calling `apply` for each layer in order.

    Args:
        graph: From `nodes`.
        image: The tensor to use as the model's input.
        apply: Maps a node and the output tensors of its sources to the node's output tensor.
    """
    tensors: dict[str, Any] = {}
    result = image
    for name, node in graph.items():
        result = apply(node, [tensors[source] for source in node.sources]) if node.sources else image
        tensors[name] = result
    return result


def one_or_all(inputs: Sequence[Any]) -> Any:
    """Return the argument to call a layer with: one tensor, or a list if there are several."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def is_linear(layer: keras.Layer) -> bool:
    """Return whether a layer's activation is linear, that is, none."""
    return getattr(layer, "activation", None) is keras.activations.linear


def is_linear_activation(layer: keras.Layer) -> bool:
    """Return whether a layer changes no value, like the one that replaces a folded batch normalization."""
    return type(layer) is keras.layers.Activation and is_linear(layer)


def is_relu(layer: keras.Layer) -> bool:
    """Return whether a layer is, or ends in, ReLU or ReLU6."""
    activation = getattr(layer, "activation", None)
    return isinstance(layer, keras.layers.ReLU) or activation in (keras.activations.relu, keras.activations.relu6)
