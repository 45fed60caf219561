"""The operations of a student in order, from which compression methods rebuild it, and tests of what a layer does."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfigkd.models.flat import flattened
from tfigkd.models.graph import Node, graph_nodes
from tfigkd.runtime.errors import UserError


def compressible_nodes(model: keras.Model) -> dict[str, Node]:
    """Return the operations of a model by name, each after its sources; models inside it are flattened.

    Args:
        model: Functional or Sequential, with one input and one output; each layer is called once.

    Raises:
        UserError: the graph cannot be read, or a layer is called more than once.
    """
    try:
        return graph_nodes(flattened(model))
    except ValueError as error:
        raise UserError(f"cannot compress {model.name}: {str(error).rstrip('.')}") from error


def trace(graph: dict[str, Node], image: Any, apply: Callable[[Node, list[Any]], Any]) -> Any:
    """Return the last operation's output, computed from the image by calling `apply` for each operation in order.

    Args:
        graph: From `compressible_nodes`.
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
