"""The graph of layers of a Keras model: the only module that uses Keras's private names of it.

A graph is a Functional or a Sequential model. Its operations are layers, models inside it among them, and functions of
keras.ops. A node of Keras is one call of an operation; a layer that is called twice has two nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

ARITHMETIC = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")
"""Class names of the operations that Keras makes of `+`, `-`, `*` and `/`; layers can have the first three as well."""


def student_of(model: Any) -> Any:
    """Return the student of a `Distiller`, any other model itself."""
    student = getattr(model, "student", None)
    return student if isinstance(student, keras.Model) and hasattr(model, "distillation_losses") else model


def is_graph(layer: Any) -> bool:
    """Return whether a layer is a Functional or Sequential model, built or not."""
    return isinstance(layer, keras.Model) and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))


def is_built_graph(layer: Any) -> bool:
    """Return whether a layer is a Functional model, or a Sequential one whose inputs are known."""
    return is_graph(layer) and bool(getattr(layer, "inputs", None))


def graph_of(model: keras.Model) -> keras.Model:
    """Return a plain Functional model of the same layers, inputs and outputs: not compiled, of no subclass.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
    """
    if student_of(model) is not model:
        raise ValueError(f"{model!r} is a Distiller; give its student, distiller.student")
    try:
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        return keras.Model(model.input, model.output, name=model.name)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{model!r} must be Functional, or Sequential with a known input shape; begin it with keras.Input"
        ) from error


def single_graph(model: Any) -> Any:
    """Return a plain Functional model of the same layers, from the only input to the only output, both tensors.

    Returns:
        None for what is no Functional or built Sequential model, or has several inputs or outputs.
    """
    if not isinstance(model, keras.Model):
        return None
    try:
        (source,), (output,) = model.inputs, model.outputs
        return keras.Model(source, output)
    except (AttributeError, TypeError, ValueError):
        return None


def flatten_layers(layer: keras.Layer, *, include_self: bool = False) -> list[keras.Layer]:
    """Return every layer inside a model or layer, at any depth; models and wrappers among them as well.

    Args:
        layer: A model, or a layer that may have others inside.
        include_self: Whether the layer itself comes first.
    """
    return list(layer._flatten_layers(include_self=include_self))


def maker_of(tensor: Any) -> Any:
    """Return the operation whose output a symbolic tensor is; of a model's input, its `InputLayer`."""
    return tensor._keras_history.operation


def calls_of(operation: Any) -> list[Any]:
    """Return the nodes of an operation, one for each call on symbolic tensors, in whatever graph."""
    return list(operation._inbound_nodes)


def sources_of(operation: Any) -> list[Any]:
    """Return the symbolic tensors that an operation reads in its first call; none of an input."""
    return [tensor for node in operation._inbound_nodes[:1] for tensor in node.input_tensors]


def nodes_of(graph: keras.Model) -> list[Any]:
    """Return the nodes of a graph, each after those that it reads."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def readers_of(graph: keras.Model, tensor: Any) -> list[Any]:
    """Return the nodes of a graph that read a tensor of it."""
    nodes = [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]
    return [node for node in nodes if any(source is tensor for source in node.input_tensors)]


def output_in(graph: keras.Model, operation: Any) -> Any:
    """Return the output of an operation in this very graph; a layer may be called in several.

    Raises:
        ValueError: The graph does not call the operation.
    """
    for nodes in graph._nodes_by_depth.values():
        for node in nodes:
            if node.operation is operation:
                return node.outputs[0]
    raise ValueError(f"the graph does not call {operation.name!r}")


def takes_training(operation: Any) -> bool:
    """Return whether the `call` of a layer names an argument `training`; False for a function of keras.ops."""
    return bool(getattr(operation, "_call_has_training_arg", False))


def without_empty_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a recorded call without a `mask` of None.

    Keras records the argument for every layer that knows masks; the layer's replacement may know none.
    """
    return {name: value for name, value in kwargs.items() if name != "mask" or value is not None}


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


def run_graph(graph: keras.Model, inputs: Any, call: Callable[..., Any] | None = None) -> Any:
    """Return the outputs of a graph on other inputs, computed operation by operation.

    Args:
        graph: A Functional model.
        inputs: Tensors, symbolic or not, in any nested structure that has them in the order of the graph's inputs.
        call: Called in the place of each operation, as `call(operation, *args, **kwargs)`; it returns the outputs.

    Returns:
        Tensors in the structure of the graph's outputs.
    """
    return graph._run_through_graph(inputs, call_fn=call)


def float64_of(variable: Any) -> np.ndarray:
    """Return the values of a variable or tensor as a NumPy array, float64."""
    return keras.ops.convert_to_numpy(variable).astype("float64")


def input_like(tensor: Any, batch_shape: Sequence[int | None] | None = None) -> Any:
    """Return a new input of the type and name of a model's input, by default also of its shape.

    Args:
        tensor: An input of a model. Its name is that of its layer, which a tensor of an unnamed input does not have.
        batch_shape: Another shape, with the batch.
    """
    shape = tensor.shape if batch_shape is None else batch_shape
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=maker_of(tensor).name)
