"""A functional model as a chain of layers with their sources and readers, for those who rebuild it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfigkd.models.fold import layer_sources
from tfigkd.runtime.errors import UserError


@dataclass(frozen=True)
class Node:
    """A layer of a model, the layers it reads and the layers that read it, by name."""

    layer: keras.Layer
    sources: tuple[str, ...]
    readers: tuple[str, ...]


def nodes(model: keras.Model) -> dict[str, Node]:
    """The layers of a model by name, each after its sources.

    Args:
        model: Functional or Sequential, one input and one output, each layer called once.

    Raises:
        UserError: the model holds other models, operations that are no layers, or layers that are called twice.
    """
    try:
        flat = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"cannot compress {model.name}: it is no Functional or Sequential model; build one") from error
    sources, _ = layer_sources(flat)
    found = {layer.name: layer for layer in flat.layers}
    for name in sources:
        if name not in found or isinstance(found[name], keras.Model):
            raise UserError(f"cannot compress {model.name}: {name!r} is a model or an operation; use layers alone")
    readers: dict[str, list[str]] = {name: [] for name in found}
    for name, read in sources.items():
        for source in read:
            readers[source].append(name)
    for layer in flat.layers:
        # a layer that is called twice reads from two places, which no layer but one that merges does
        merges = isinstance(layer, keras.layers.Add | keras.layers.Concatenate)
        if len(sources[layer.name]) > 1 and not merges:
            raise UserError(f"cannot compress {model.name}: layer {layer.name!r} is called more than once")
    return {name: Node(layer, tuple(sources[name]), tuple(readers[name])) for name, layer in found.items()}


def trace(graph: dict[str, Node], image: Any, apply: Callable[[Node, list[Any]], Any]) -> Any:
    """The last layer's output, when `apply` says what each layer makes of its inputs, from the image on.

    Args:
        graph: From `nodes`.
        image: What stands in for the model's input.
        apply: Takes a node and the tensors of its sources.
    """
    tensors: dict[str, Any] = {}
    result = image
    for name, node in graph.items():
        result = apply(node, [tensors[source] for source in node.sources]) if node.sources else image
        tensors[name] = result
    return result


def one_or_all(inputs: Sequence[Any]) -> Any:
    """What a layer is called with: a tensor, or a list of them."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def is_linear(layer: keras.Layer) -> bool:
    """Whether a layer's activation is none."""
    return getattr(layer, "activation", None) is keras.activations.linear


def is_linear_activation(layer: keras.Layer) -> bool:
    """Whether a layer does nothing, like the one that stands where batch normalization was folded."""
    return type(layer) is keras.layers.Activation and is_linear(layer)


def is_relu(layer: keras.Layer) -> bool:
    """Whether a layer is, or ends in, a ReLU of either kind."""
    activation = getattr(layer, "activation", None)
    return isinstance(layer, keras.layers.ReLU) or activation in (keras.activations.relu, keras.activations.relu6)
