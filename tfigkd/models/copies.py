"""Copies of models and layers: the same graph made of new layers, with the same state, and compared with the model."""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.models.equivalence import check_same
from tfigkd.models.graph import flatten_layers, graph_of, input_like, is_graph, without_empty_mask

Replace = Callable[[keras.Layer], keras.Layer]
Values = Callable[[keras.Layer], list[np.ndarray] | None]


def mapped(config: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a config of Keras in which each dictionary is changed, those inside it first; lists and tuples stay such.

    Args:
        config: Of a layer or model, or a part of it.
        change: Function from a dictionary, whose values are changed already, to the one in its place.
    """
    if isinstance(config, list | tuple):
        return type(config)(mapped(value, change) for value in config)
    if not isinstance(config, dict):
        return config
    return change({key: mapped(value, change) for key, value in config.items()})


@contextlib.contextmanager
def keeps_random_numbers() -> Iterator[None]:
    """Leave Python's random numbers as they are: Keras draws the seed of each new layer from them."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def copy_layer(
    layer: keras.Layer, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
) -> keras.Layer:
    """Return a new layer of the same configuration, with its own fresh weights.

    Args:
        layer: Any layer or subclassed model.
        change: Function from its configuration to that of the new one; of a Lambda layer, from name and dtype alone.

    Raises:
        ValueError: The layer, or the subclassed model, does not tell its configuration.
    """
    if isinstance(layer, keras.layers.Lambda):  # whose code Keras refuses to take from a configuration
        given = {name: getattr(layer, name) for name in ("function", "mask", "arguments")}
        own = change({"name": layer.name, "dtype": layer.dtype_policy.name})
        return keras.layers.Lambda(**given, output_shape=layer._output_shape, **own)
    try:
        return type(layer).from_config(change({"name": layer.name, **layer.get_config()}))
    except NotImplementedError as error:
        raise ValueError(
            f"{layer.name} cannot be copied: its class {type(layer).__name__} does not say its arguments; give it a "
            "method get_config that returns them"
        ) from error


def verified_copy(
    model: keras.Model,
    replace: Replace = copy_layer,
    *,
    values: Values | None = None,
    skip: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    through: Callable[[np.ndarray], np.ndarray] | None = None,
) -> keras.Model:
    """Rebuild a model from new layers, with the weights and all other state, and compare it with the model itself.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        replace: Gives the new layer for an old one.
        values: Gives the new weights of an old layer's replacement; None for a layer takes over the old layer's state.
        skip: As for `with_new_layers`; only layers that change no value.
        input_shape: As for `with_new_layers`.
        through: Applied to the new outputs before they are compared, such as the softmax that was taken off.

    Returns:
        A Functional model of the same name and layer names, not compiled.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
        UserError: The outputs differ on random inputs; the first layer that differs is named.
    """
    result = with_new_layers(model, replace, skip=skip, input_shape=input_shape)
    copy_state(model, result, values)
    check_same(result, model, through=through)
    return result


def with_new_layers(
    model: keras.Model,
    replace: Replace = copy_layer,
    *,
    skip: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
) -> keras.Model:
    """Return the same graph made of new layers with fresh weights; not compiled.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        replace: Gives the new layer for an old one.
        skip: Names of layers with one input to leave out; what they fed is fed by their input.
        input_shape: Fixed shape, without the batch, for the model's single input; by default the model's own.

    Returns:
        A Functional model of the same name and layer names; models inside it are Functional as well.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
    """
    return _rebuild(model, replace, {}, skip, input_shape)


def _rebuild(
    model: keras.Model,
    replace: Replace,
    made: dict[int, Any],
    skip: Sequence[str],
    input_shape: Sequence[int] | None,
) -> keras.Model:
    def fresh_input(tensor: Any) -> Any:
        # clone_model would take the tensor's name, which an unnamed input does not share with its layer.
        return input_like(tensor, None if input_shape is None else (None, *input_shape))

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return layer  # keras.ops inside a functional model are operations without weights and need no copy
        if id(layer) not in made:  # a layer that is used twice is one layer in the copy too
            inner = is_graph(layer)
            made[id(layer)] = _rebuild(layer, replace, made, skip, None) if inner else replace(layer)
        return made[id(layer)]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in skip else layer(*args, **without_empty_mask(kwargs))

    bare = graph_of(model)
    result = keras.models.clone_model(
        bare,
        input_tensors=keras.tree.map_structure(fresh_input, bare.input),
        clone_function=clone,
        call_function=call,
    )
    if not model.trainable:
        result.trainable = False
    return result


def copy_state(source: keras.Model, target: keras.Model, values: Values | None = None) -> None:
    """Copy the whole state of every layer of `target` from the layer of that name in `source`.

    State is what a .keras file holds of a layer, written and read by the layer's own methods: weights, the adapted
    statistics of `Normalization` and the vocabulary of `IntegerLookup` among them; and the states of random generators
    and metrics.

    Args:
        source: Has a layer for every layer of `target`, at the same depth.
        target: Of the same structure, or the beginning of it; it is altered.
        values: Gives the weights for a layer of `source` in place of its own; None takes its own.
    """
    for layer in target.layers:
        if isinstance(layer, keras.layers.InputLayer):  # which a Sequential model does not list
            continue
        original = source.get_layer(layer.name)
        if is_graph(layer):
            copy_state(original, layer, values)
            continue
        given = None if values is None else values(original)
        if given is not None:
            layer.set_weights(given)
        else:
            copy_layer_state(original, layer)


def copy_layer_state(source: keras.Layer, target: keras.Layer) -> None:
    """Copy the whole state of one layer and of the layers inside it; see `copy_state`."""
    pairs = zip(flatten_layers(source, include_self=True), flatten_layers(target, include_self=True), strict=True)
    for mine, theirs in pairs:
        store: dict[str, Any] = {}
        mine.save_own_variables(store)
        if store:
            theirs.load_own_variables({name: _values_of(variable) for name, variable in store.items()})
        if hasattr(mine, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                mine.save_assets(folder)
                theirs.load_assets(folder)
        for generator, other in zip(mine._seed_generators, theirs._seed_generators, strict=True):
            other.state.assign(_values_of(generator.state))
        for metric, twin in zip(mine._metrics, theirs._metrics, strict=True):
            for variable, copy in zip(metric.variables, twin.variables, strict=True):
                copy.assign(_values_of(variable))


def _values_of(variable: Any) -> np.ndarray:
    """Return a copy of a variable's values: on JAX, training and `predict` delete the array that a variable holds."""
    return np.array(ops.convert_to_numpy(variable))
