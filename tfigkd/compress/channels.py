"""Structured pruning: whole channels between two convolutions are removed, so that the graph becomes smaller.

The expansion channels of an inverted residual and the inner channels of a residual block are written by one
convolution and read within the block, so these can be removed without changing a shortcut. A gate that multiplies them,
as in squeeze-and-excitation, loses the same channels. Linear bottlenecks are narrow already and are kept. The least
important channels are removed; importance is the scale of the last batch normalization before the readers (Liu et al.
2017, arXiv 1708.06519) times the norm of the readers' kernels for that channel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfigkd.compress.layers import compressible_nodes, is_linear
from tfigkd.models.copies import copy_layer, copy_state, with_new_layers
from tfigkd.models.equivalence import check_same
from tfigkd.models.flat import flattened
from tfigkd.models.graph import ARITHMETIC, Node, calls_of
from tfigkd.models.kernels import has_plain_kernel
from tfigkd.runtime.errors import UserError

PASSES_CHANNELS = (
    keras.layers.BatchNormalization,
    keras.layers.ReLU,
    keras.layers.Activation,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.ZeroPadding2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.Rescaling,
    keras.layers.Identity,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)
"""Layers that process each channel separately."""
NONLINEAR_OPERATIONS = ("Relu", "Relu6", "Sigmoid", "Silu")
"""The activations among the functions of keras.ops."""
PASSING_OPERATIONS = (*ARITHMETIC, *NONLINEAR_OPERATIONS)
"""Functions of keras.ops that do so as well; those of two arguments only where the other one is a number."""
MULTIPLE = 8
"""The number of kept channels is a multiple of it and at least this many; inference kernels are faster then."""


@dataclass(frozen=True)
class Group:
    """Channels that can be cut, and the operations that have them.

    Attributes:
        writers: The convolution that makes the channels, and those that make the gates that multiply them.
        passed: What processes each channel separately, in order.
        readers: The convolutions and dense layers that mix the channels.
    """

    writers: tuple[Node, ...]
    passed: tuple[Node, ...]
    readers: tuple[Node, ...]

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return self.writers[0].layer.filters


def channel_groups(model: keras.Model) -> list[Group]:
    """Return the groups of channels of a model that can be cut: no shortcut reads them, and an activation follows.

    Raises:
        UserError: The graph cannot be read, or a layer is called more than once.
    """
    graph = compressible_nodes(model)
    groups: list[Group] = []
    taken: set[str] = set()
    for name, node in graph.items():
        if name not in taken and (group := _group(node, graph)) is not None:
            groups.append(group)
            taken.update(writer.layer.name for writer in group.writers)
    return groups


def _group(first: Node, graph: dict[str, Node]) -> Group | None:
    """Return the group of a convolution's output channels: all their readers, and the convolutions that gate them.

    Returns:
        None where the channels cannot be cut: they reach a shortcut or the model's output, or no activation follows.
    """
    if not _is_convolution(first.layer):
        return None
    writers, passed, readers = {first.layer.name}, set(), set()
    waiting = [first.layer.name]
    while waiting:
        node = graph[waiting.pop()]
        if not node.readers:
            return None  # the model's output
        for name in node.readers:
            reader = graph[name]
            if _is_convolution(reader.layer) or _is_dense(reader.layer):
                readers.add(name)
            elif name not in passed:
                if not _passes(reader, node):
                    return None
                passed.add(name)
                waiting.append(name)
                for source in reader.sources:  # a gate; it must come from a convolution of its own
                    if source in writers or source in passed:
                        continue
                    back = _followed_back(source, graph)
                    if back is None:
                        return None
                    writers.add(back[-1])
                    passed.update(back[:-1])
                    waiting += back
    if writers & readers or any(graph[name].layer.filters != first.layer.filters for name in writers):
        return None
    chosen = [[graph[name] for name in graph if name in names] for names in (writers, passed, readers)]
    nonlinear = any(_is_nonlinear(node.layer) for node in [*chosen[0], *chosen[1]])
    main = [first, *(node for node in chosen[0] if node is not first)]
    return Group(tuple(main), tuple(chosen[1]), tuple(chosen[2])) if nonlinear and readers else None


def _followed_back(name: str, graph: dict[str, Node]) -> list[str] | None:
    """Return the operations back to the convolution that writes this one's channels; None if another one is met."""
    path = [name]
    while not _is_convolution(graph[path[-1]].layer):
        node = graph[path[-1]]
        if len(node.sources) != 1 or not _passes(node, graph[node.sources[0]]):
            return None
        path.append(node.sources[0])
    return path


def _passes(node: Node, source: Node) -> bool:
    """Return whether an operation processes each channel of its source separately."""
    layer = node.layer
    if not isinstance(layer, keras.Layer):
        numbers = all(np.ndim(value) == 0 for value in node.constants)
        return type(layer).__name__ in PASSING_OPERATIONS and len(node.sources) == 1 and numbers
    if getattr(layer, "depth_multiplier", 1) != 1 or getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    if isinstance(layer, keras.layers.Reshape):  # [C] to [1,1,C]
        before, after = _shape(source)[1:], layer.output.shape[1:]
        return before[-1] == after[-1] and math.prod(before[:-1]) == math.prod(after[:-1])
    if isinstance(layer, keras.layers.Multiply):
        return len({tensor.shape[-1] for tensor in node.arguments.keras_tensors}) == 1
    if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.softmax:
        return False
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis in (-1, layer.input_spec.ndim - 1)
    numbers = all(np.ndim(getattr(layer, name, 0)) == 0 for name in ("scale", "offset"))
    return isinstance(layer, PASSES_CHANNELS) and numbers


def _shape(node: Node) -> tuple[int, ...]:
    return calls_of(node.layer)[0].outputs[0].shape


def _is_nonlinear(layer: Any) -> bool:
    """Return whether an operation is or ends in an activation."""
    if not isinstance(layer, keras.Layer):
        return type(layer).__name__ in NONLINEAR_OPERATIONS
    kinds = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
    return isinstance(layer, kinds) or (getattr(layer, "activation", None) is not None and not is_linear(layer))


def _is_convolution(layer: Any) -> bool:
    plain = isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, keras.layers.DepthwiseConv2D)
    return plain and layer.groups == 1 and layer.data_format == "channels_last" and has_plain_kernel(layer)


def _is_dense(layer: Any) -> bool:
    return type(layer) is keras.layers.Dense and has_plain_kernel(layer)


def importance(group: Group) -> np.ndarray:
    """Return the importance of each channel of a group for its readers, [channels]."""
    squares = 0.0
    for node in group.readers:
        kernel = keras.ops.convert_to_numpy(node.layer.kernel)
        axes = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
        squares = squares + np.sum(kernel**2, axis=axes)
    scores = np.sqrt(squares)
    norms = [node.layer for node in group.passed if isinstance(node.layer, keras.layers.BatchNormalization)]
    if norms and norms[-1].scale:
        return scores * np.abs(keras.ops.convert_to_numpy(norms[-1].gamma))
    first = np.abs(keras.ops.convert_to_numpy(group.writers[0].layer.kernel))
    return scores * first.sum(axis=(0, 1, 2))


def cut_channels(model: keras.Model, share: float) -> keras.Model:
    """Return a copy of a model without the least important channels of each group.

    Args:
        model: Functional or Sequential; it is not changed. Models inside it are flattened.
        share: Share of the channels of each group to remove, in (0, 1); the number of kept channels is rounded to a
            multiple of 8.

    Returns:
        A Functional model with the same layer names and fewer channels; the kept weights are copied. It is the
        function of the model whose readers have zeros for the channels that are cut.

    Raises:
        ValueError: the share is not in (0, 1).
        UserError: the model has no group of layers with channels to cut, or by rounding keeps all.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    model = flattened(model)
    groups = [group for group in channel_groups(model) if _kept_count(group, share) < group.channels]
    if not groups:
        raise UserError(
            f"{model.name} has no channels to cut; expected a wide convolution that no shortcut reads, of which "
            f"a share of {share:g} leaves fewer, in multiples of {MULTIPLE}"
        )
    gives: dict[str, np.ndarray] = {}  # layer name to the kept output channels
    passes: dict[str, np.ndarray] = {}  # layer name to the kept channels, each processed separately
    takes: dict[str, np.ndarray] = {}  # layer name to the kept input channels
    for group in groups:
        best = np.argsort(-importance(group), kind="stable")[: _kept_count(group, share)]
        kept = np.sort(best)
        for chosen, part in ((gives, group.writers), (passes, group.passed), (takes, group.readers)):
            chosen.update({node.layer.name: kept for node in part})

    def replace(layer: keras.Layer) -> keras.Layer:
        if layer.name in gives:
            return type(layer).from_config({**layer.get_config(), "filters": len(gives[layer.name])})
        if layer.name in passes and isinstance(layer, keras.layers.Reshape):
            shape = (*layer.output.shape[1:-1], len(passes[layer.name]))
            return keras.layers.Reshape(shape, name=layer.name)
        return copy_layer(layer)

    def kept_values(layer: keras.Layer) -> list[np.ndarray] | None:
        kinds = [cut.get(layer.name) for cut in (gives, passes, takes)]
        return None if all(kept is None for kept in kinds) else list(_sliced(layer, *kinds))

    def silenced(layer: keras.Layer) -> list[np.ndarray] | None:
        if layer.name not in takes:
            return None
        kernel, *rest = layer.get_weights()
        dead = np.setdiff1d(np.arange(kernel.shape[-2]), takes[layer.name])
        kernel[..., dead, :] = 0
        return [kernel, *rest]

    result, reference = with_new_layers(model, replace), with_new_layers(model)
    copy_state(model, result, kept_values)
    copy_state(model, reference, silenced)
    check_same(result, reference, what="the copy with fewer channels")
    return result


def _kept_count(group: Group, share: float) -> int:
    return min(group.channels, max(MULTIPLE, round(group.channels * (1 - share) / MULTIPLE) * MULTIPLE))


def _sliced(
    layer: keras.Layer, gives: np.ndarray | None, passes: np.ndarray | None, takes: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yield the weights of a layer for the kept channels."""
    for value in layer.get_weights():
        if value.ndim >= 2:  # a kernel: [..,inputs,outputs]; of a depthwise convolution: [..,channels,1]
            inner = takes if passes is None else passes
            value = value if inner is None else np.take(value, inner, axis=-2)
            value = value if gives is None else np.take(value, gives, axis=-1)
        else:
            # a bias belongs to the outputs; where channels stay separate, these are the passing channels
            own = gives if passes is None else passes
            value = value if own is None else value[own]
        yield value
