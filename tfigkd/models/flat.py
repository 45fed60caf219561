"""A model without models inside it, and its graph: operations with their sources and readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfigkd.models.copies import copy_layer_state
from tfigkd.models.equivalence import check_same
from tfigkd.models.graph import (
    graph_of,
    input_like,
    is_graph,
    maker_of,
    nodes_of,
    run_graph,
    takes_training,
    without_empty_mask,
)


def flattened(model: keras.Model) -> keras.Model:
    """Return a copy in which the layers of the models inside stand in the outer graph; the same function.

    Args:
        model: Functional or Sequential; it is not altered. One without models inside is returned as it is.

    Returns:
        A Functional model, not compiled. Layers keep their names; a name that is taken gets that of its model before
        it: "backbone_conv". A model inside that is called with `training=False` passes this on to its layers.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
        UserError: The copy is not the same function.
    """
    bare = graph_of(model)
    if not any(is_graph(layer) for layer in bare.layers):
        return model
    copies: dict[int, tuple[keras.Layer, keras.Layer]] = {}  # old and new, by the identity of the old
    names = {layer.name for layer in bare.layers if not is_graph(layer)}

    def copied(layer: keras.Layer, inside: Sequence[keras.Model]) -> keras.Layer:
        if id(layer) not in copies:
            name = layer.name
            if inside:
                while name in names:
                    name = f"{inside[-1].name}_{name}"
                names.add(name)
            new = type(layer).from_config({**layer.get_config(), "name": name})
            if not all(one.trainable for one in inside):
                new.trainable = False
            copies[id(layer)] = layer, new
        return copies[id(layer)][1]

    def run(graph: keras.Model, inputs: Any, inside: Sequence[keras.Model], training: bool | None) -> Any:
        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if is_graph(operation):
                asked = kwargs.get("training")
                return run(graph_of(operation), args[0], [*inside, operation], training if asked is None else asked)
            if not isinstance(operation, keras.Layer):
                return operation(*args, **kwargs)
            kwargs = without_empty_mask(kwargs)
            if training is not None and kwargs.get("training") is None and takes_training(operation):
                kwargs["training"] = training
            return copied(operation, inside)(*args, **kwargs)

        return run_graph(graph, inputs, call)

    inputs = [input_like(tensor) for tensor in bare.inputs]
    given = keras.tree.pack_sequence_as(bare.input, inputs) if isinstance(bare.input, dict | list) else inputs[0]
    result = keras.Model(given, run(bare, given, [], None), name=model.name)
    for old, new in copies.values():
        copy_layer_state(old, new)
    check_same(result, model)
    return result


@dataclass(frozen=True)
class Node:
    """An operation of a graph: a layer, or a function of keras.ops.

    Attributes:
        layer: The layer or operation.
        sources: Names of the operations that it reads, in the order of its arguments; one that is read twice stands
            twice.
        readers: Names of the operations that read it.
        arguments: With what it was called, as Keras records it; None of the input.
    """

    layer: Any
    sources: tuple[str, ...]
    readers: tuple[str, ...]
    arguments: Any = None

    def call(self, layer: Any, inputs: Sequence[Any]) -> Any:
        """Call a replacement of the layer with these tensors in the place of its sources, and its other arguments."""
        tensors = {id(old): new for old, new in zip(self.arguments.keras_tensors, inputs, strict=True)}
        args, kwargs = self.arguments.fill_in(tensors)
        return layer(*args, **without_empty_mask(kwargs))

    @property
    def constants(self) -> list[Any]:
        """The other positional arguments of the call, such as the 3 of `x + 3`."""
        return [value for value in self.arguments.args if not isinstance(value, keras.KerasTensor)]


def graph_nodes(model: keras.Model) -> dict[str, Node]:
    """Return the operations of a flat model by name, each after its sources; readers and sources by name.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or an operation is called more than once.
    """
    found: dict[str, tuple[Any, tuple[str, ...], Any]] = {}
    for node in nodes_of(graph_of(model)):
        name = node.operation.name
        if name in found:
            raise ValueError(f"layer {name!r} is called more than once; give each call a layer of its own")
        sources = tuple(maker_of(tensor).name for tensor in node.arguments.keras_tensors)
        found[name] = (node.operation, () if node.is_input else sources, node.arguments)
    readers: dict[str, list[str]] = {name: [] for name in found}
    for name, (_, sources, _) in found.items():
        for source in sources:
            readers[source].append(name)
    return {
        name: Node(operation, sources, tuple(readers[name]), arguments)
        for name, (operation, sources, arguments) in found.items()
    }


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


HEADS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.Flatten)
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.SeparableConv2D, keras.layers.Conv2DTranspose)


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
