"""Outputs of layers inside a model, of models inside it too: `block_09`, `backbone/block_13`."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.models.graph import flatten_layers, input_like, is_built_graph, maker_of, output_in, run_graph, single_graph


def tap_outputs(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Return a model from the same images to the model's own output and those of named layers, in one forward pass.

    The layers are the model's own, so that training the result trains them. A model inside is entered where a name
    leads into it, `backbone/block_13` or deeper; then its layers stand in the result one by one. Nothing runs twice.

    Args:
        model: Functional, or Sequential and built.
        names: Names of layers; of one in a model inside, the names on the way to it, separated by "/".

    Returns:
        A Functional model whose outputs are a list: the model's output, then that of each name.

    Raises:
        ValueError: The model is subclassed or not built, or has no such layer.
    """
    bare = _graph(model)
    for name in names:
        _check(model, name)
    if not any("/" in name for name in names):
        own = {operation.name: operation for operation in bare.operations}
        return keras.Model(bare.inputs[0], [bare.outputs[0], *(output_in(bare, own[name]) for name in names)])
    found: dict[str, Any] = {}
    inputs = input_like(bare.inputs[0])
    output = _replay(bare, inputs, "", set(names), found, None)
    return keras.Model(inputs, [output, *(found[name] for name in names)])


def head_behind(model: keras.Model, name: str) -> keras.Model:
    """Return the layers between a named layer and a model's output, as a model from that layer's output.

    Args:
        model: Functional, or Sequential and built.
        name: Of a layer; of one in a model inside, the names on the way to it, separated by "/".

    Returns:
        A Functional model of the model's own layers.

    Raises:
        ValueError: The model is subclassed or not built, has no such layer, or a path to its output that bypasses it.
    """
    tapped = tap_outputs(model, [name])
    output, features = tapped.outputs
    try:
        return keras.Model(features, output)
    except ValueError as error:
        raise ValueError(
            f"{model.name} has a path to its output that bypasses layer {name!r}; choose a layer on every path"
        ) from error


def cut_at(model: keras.Model, name: str) -> tuple[list[keras.Layer], list[keras.Layer]]:
    """Return the layers that train up to a named layer, and those that train behind it.

    Args:
        model: Functional, or Sequential and built.
        name: Of the layer at the cut, as for `tap_outputs`.

    Returns:
        Layers that a named layer's output depends on, and all others; models inside come as their layers.

    Raises:
        ValueError: The model is subclassed or not built, has no such layer, or has no weights that train on a side.
    """
    tapped = tap_outputs(model, [name])
    before = {id(layer) for layer in flatten_layers(keras.Model(tapped.inputs[0], tapped.outputs[1]))}
    parts = [layer for layer in flatten_layers(model) if not isinstance(layer, keras.Model) and layer.trainable]
    front = [layer for layer in parts if id(layer) in before]
    behind = [layer for layer in parts if id(layer) not in before]
    for where, layers in (("up to", front), ("behind", behind)):
        if not any(layer.trainable_variables for layer in layers):
            raise ValueError(f"{model.name} has no weights that train {where} its layer {name!r}; choose another layer")
    return front, behind


@contextlib.contextmanager
def frozen(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """Freeze layers inside a `with` block; afterwards each of them, and of those inside, is trainable as before."""
    inside = [inner for layer in layers for inner in flatten_layers(layer, include_self=True)]
    before = [(layer, layer.trainable) for layer in inside]
    for layer in layers:
        layer.trainable = False
    try:
        yield
    finally:
        for layer, trained in before:  # a layer sets those inside it, which come after it
            layer.trainable = trained


def tap_names(model: keras.Model) -> list[str]:
    """Return the names of all layers that can be taps, those of models inside with the names on the way.

    Raises:
        ValueError: The model is subclassed or not built.
    """
    names = []
    for operation in _graph(model).operations:
        names.append(operation.name)
        if is_built_graph(operation):
            names += [f"{operation.name}/{inner}" for inner in tap_names(operation)]
    return names


def _graph(model: keras.Model) -> Any:
    """Return `single_graph` of a model, or refuse the model."""
    graph = single_graph(model)
    if graph is None:
        kind = "is not built" if isinstance(model, keras.Sequential) else "is a subclassed model"
        raise ValueError(
            f"{model.name} {kind}, so its layers cannot be looked into; build it as Functional, or as Sequential with "
            "an Input, or leave out losses that compare layers"
        )
    return graph


def _check(model: keras.Model, name: str) -> None:
    known = tap_names(model)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        # a user often knows the name of the layer and not that of the model around it
        inside = [each for each in known if each.endswith(f"/{name}")]
        listed = ", ".join(inside[:3] or near or known[-3:])
        raise ValueError(f"{model.name} has no layer {name!r}; its nearest: {listed}")


def _replay(
    model: Any, tensor: Any, prefix: str, wanted: set[str], found: dict[str, Any], training: bool | None
) -> Any:
    """Run the graph of a model on another tensor and keep the outputs of the wanted layers."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        name = prefix + operation.name
        if training is not None and isinstance(operation, keras.Layer):
            kwargs["training"] = training  # base(x, training=False) also applies to the layers inside base
        if is_built_graph(operation) and any(each.startswith(f"{name}/") for each in wanted):
            fixed = kwargs.get("training", training)
            output = _replay(_graph(operation), args[0], f"{name}/", wanted, found, fixed)
        else:
            output = operation(*args, **kwargs)
        if name in wanted:
            found[name] = output
        return output

    output = run_graph(model, [tensor], call)
    own_input = prefix + maker_of(model.inputs[0]).name
    if own_input in wanted:
        found[own_input] = ops.identity(tensor)
    return output[0] if isinstance(output, list) else output
