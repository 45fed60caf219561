"""Structured pruning: whole channels between two convolutions are removed, so that the graph becomes smaller.

Only one convolution reads the expansion channels of an inverted residual and the inner channels of a residual block,
so these can be removed without changing a shortcut. Linear bottlenecks are narrow already and are kept. The least
important channels are removed; importance is the scale of the batch normalization before the reader (Liu et al. 2017,
arXiv 1708.06519) times the norm of the reader's kernel for that channel.
"""

from collections.abc import Iterator

import keras
import numpy as np

from tfigkd.compress.graph import Node, is_relu, nodes
from tfigkd.models.layers import copy_layer, rebuild
from tfigkd.runtime.errors import UserError

PASSES_CHANNELS = (
    keras.layers.BatchNormalization,
    keras.layers.ReLU,
    keras.layers.Activation,
    keras.layers.ZeroPadding2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dropout,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
)
"""Layers that process each channel separately."""
MULTIPLE = 8
"""The number of kept channels is a multiple of it and at least this many; inference kernels are faster then."""

Group = list[Node]
"""A convolution, the layers that its channels pass through, and the convolution or dense layer that mixes them."""


def channel_groups(model: keras.Model) -> list[Group]:
    """Return the groups of layers whose channels can be cut: each layer has a single reader, and one is a ReLU."""
    graph = nodes(model)
    return [group for node in graph.values() if (group := _group(node, graph)) is not None]


def _group(node: Node, graph: dict[str, Node]) -> Group | None:
    if not _is_convolution(node.layer):
        return None
    group = [node]
    while len(group[-1].readers) == 1:
        reader = graph[group[-1].readers[0]]
        group.append(reader)
        if _is_convolution(reader.layer) or type(reader.layer) is keras.layers.Dense:
            return group if any(is_relu(passed.layer) for passed in group) else None
        if not isinstance(reader.layer, PASSES_CHANNELS) or getattr(reader.layer, "depth_multiplier", 1) != 1:
            return None
        if getattr(reader.layer, "data_format", "channels_last") != "channels_last":
            return None
    return None


def _is_convolution(layer: keras.Layer) -> bool:
    plain = isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, keras.layers.DepthwiseConv2D)
    return plain and layer.groups == 1 and layer.data_format == "channels_last"


def importance(group: Group) -> np.ndarray:
    """Return the importance of each channel of a group for its reader, [channels]."""
    kernel = keras.ops.convert_to_numpy(group[-1].layer.kernel)
    axes = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
    scores = np.sqrt(np.sum(kernel**2, axis=axes))
    norms = [node.layer for node in group if isinstance(node.layer, keras.layers.BatchNormalization)]
    if norms and norms[-1].scale:
        return scores * np.abs(keras.ops.convert_to_numpy(norms[-1].gamma))
    first = np.abs(keras.ops.convert_to_numpy(group[0].layer.kernel))
    return scores * first.sum(axis=(0, 1, 2))


def cut_channels(model: keras.Model, share: float) -> keras.Model:
    """Return a copy of a model without the least important channels of each group.

    Args:
        model: Functional or Sequential; it is not changed.
        share: Share of the channels of each group to remove, in (0, 1); the number of kept channels is rounded to a
            multiple of 8.

    Returns:
        A Functional model with the same layer names and fewer channels; the kept weights are copied.

    Raises:
        UserError: the model has no group of layers with channels to cut.
    """
    groups = [group for group in channel_groups(model) if _kept_count(group, share) < group[0].layer.filters]
    if not groups:
        raise UserError(f"{model.name} has no channels to cut; expected a wide convolution that a single layer reads")
    gives: dict[str, np.ndarray] = {}  # layer name to the kept output channels
    takes: dict[str, np.ndarray] = {}  # layer name to the kept input channels
    for group in groups:
        best = np.argsort(-importance(group), kind="stable")[: _kept_count(group, share)]
        kept = np.sort(best)
        gives[group[0].layer.name] = kept
        takes |= {node.layer.name: kept for node in group[1:]}

    def replace(layer: keras.Layer) -> keras.Layer:
        if layer.name not in gives:
            return copy_layer(layer)
        return type(layer).from_config({**layer.get_config(), "filters": len(gives[layer.name])})

    result = rebuild(model, replace)
    for layer in result.layers:
        if layer.weights:
            source = model.get_layer(layer.name)
            layer.set_weights(list(_sliced(source, gives.get(layer.name), takes.get(layer.name))))
    return result


def _kept_count(group: Group, share: float) -> int:
    channels = group[0].layer.filters
    return min(channels, max(MULTIPLE, round(channels * (1 - share) / MULTIPLE) * MULTIPLE))


def _sliced(layer: keras.Layer, gives: np.ndarray | None, takes: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield the weights of a layer for the kept channels."""
    for variable in layer.weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.ndim >= 2:  # a kernel: [..,inputs,outputs]; of a depthwise convolution: [..,inputs,1]
            value = value if takes is None else np.take(value, takes, axis=-2)
            value = value if gives is None else np.take(value, gives, axis=-1)
        else:
            # a bias belongs to the outputs; where channels stay separate, these are the input channels
            own = takes if isinstance(layer, PASSES_CHANNELS) else gives
            value = value if own is None else value[own]
        yield value
