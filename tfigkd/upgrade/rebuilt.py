"""The graph of a model of Keras 2, built again in Keras 3 call by call, with the same weights."""

import importlib
import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import keras

from tfigkd.models.graph import flatten_layers, maker_of, nodes_of, sources_of
from tfigkd.runtime.errors import UserError
from tfigkd.upgrade.description import APPLICATIONS
from tfigkd.upgrade.operations import OPERATION_LAYERS, OPERATIONS, operation_name

RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "ThresholdedReLU": {"theta": "threshold"}}
"""Arguments by class, and their names in Keras 3. A ThresholdedReLU becomes a ReLU with a threshold."""
WITHOUT_EFFECT = {"batch_input_shape", "input_length", "fused", "time_major", "implementation", "seed", "rng_type"}
WITHOUT_EFFECT |= {"query_shape", "key_shape", "value_shape"}
"""Arguments that Keras 3 may lack: how a layer computes, not what."""
SLICE = ("start", "stop", "step")
"""Keys of a slice, as Keras 2 stores it."""
HARD_SIGMOID_SCALE = 1.2
"""Keras 2's hard sigmoid of x, clip(x / 5 + 1/2, 0, 1), is that of Keras 3, clip(x / 6 + 1/2, 0, 1), of 1.2 x."""


class Rebuilt:
    """A model of tf_keras, built again in Keras 3 call by call.

    Args:
        old: A Functional model or a Sequential one that knows its inputs.

    Attributes:
        model: The new model.
        notes: What differs in training.
        pairs: For each call outside of nested models the name of its layer, and its outputs in the old and new graph.

    Raises:
        UserError: It has no graph, or a layer has no counterpart.
    """

    def __init__(self, old: Any):
        self._layers: dict[int, Callable[..., Any]] = {}
        self._names: set[str] = set()  # in the graph that is being built
        self._filled: set[int] = set()  # layers that have their weights
        self.notes: list[str] = []
        self.pairs: list[tuple[str, Any, Any]] = []
        self.model = self._graph(old, self.pairs)

    def _graph(self, old: Any, pairs: list[tuple[str, Any, Any]]) -> keras.Model:
        """Return a model, or one inside it, and note the outputs of its calls."""
        if not getattr(old, "inputs", None):
            raise UserError(
                f"{old.name!r} ({type(old).__name__}) is no graph of layers, or has no size of its inputs; save a "
                "Functional or Sequential model with an input layer"
            )
        names, self._names = self._names, set()
        inputs = [
            keras.Input(tensor.shape[1:], dtype=tensor.dtype.name, name=self._name(tensor.node.layer.name))
            for tensor in old.inputs
        ]
        made = {id(tensor): new for tensor, new in zip(old.inputs, inputs, strict=True)}

        def value(given: Any) -> Any:
            if id(given) in made:
                return made[id(given)]
            return given.numpy() if hasattr(given, "numpy") else given

        for node in nodes_of(old):
            if node.is_input:
                continue
            args, named = _mapped(value, node.call_args), _mapped(value, dict(node.call_kwargs))
            named = {name: one for name, one in named.items() if one is not None and name != "name"}
            if named.get("training") is False and _differs_in_training(node.layer):
                self.notes.append(f"Keras 2 ran {node.layer.name} with training=False, Keras 3 trains all of it alike")
            outputs = self._layer(node.layer)(*args, **named)
            if type(node.layer).__name__ in OPERATION_LAYERS:
                self._rename(outputs, node.layer.name, given={id(new) for new in made.values()})
            for before, after in zip(keras.tree.flatten(node.outputs), keras.tree.flatten(outputs), strict=True):
                made[id(before)] = after
                pairs.append((node.layer.name, before, after))
        outputs = [made[id(tensor)] for tensor in old.outputs]
        ends = [inputs[0] if len(inputs) == 1 else inputs, outputs[0] if len(outputs) == 1 else outputs]
        self._names = names
        model = keras.Model(*ends, name=self._name(old.name))
        if not old.trainable:
            model.trainable = False  # of all layers in it, as in Keras 2
        return model

    def _layer(self, old: Any) -> Callable[..., Any]:
        """Return the counterpart of a layer, a model or an operation; the same one for each call of it."""
        if id(old) not in self._layers:
            if hasattr(old, "inputs"):  # a model
                self._layers[id(old)] = self._graph(old, [])
            elif type(old).__name__ in OPERATION_LAYERS:
                self._layers[id(old)] = OPERATIONS[str(operation_name(old.get_config()["function"]))]
            else:
                self._layers[id(old)] = self._counterpart(old)
        return self._layers[id(old)]

    def _counterpart(self, old: Any) -> Callable[..., Any]:
        """Return a call of the layer of Keras 3 with the arguments and the weights of one of Keras 2."""
        (layer, behind), filled = self._configured(old), self._filled

        def call(*args: Any, **named: Any) -> Any:
            outputs = layer(*args, **named)
            if id(layer) not in filled:
                _copy_weights(old, layer)
                filled.add(id(layer))
            for one in behind:
                outputs = one(outputs)
            return outputs

        return call

    def _configured(self, old: Any) -> tuple[keras.Layer, list[keras.Layer]]:
        """Return a layer of Keras 3, and the layers behind it that are Keras 2's hard sigmoid, if that is wanted."""
        kind, renamed = _kind(old), RENAMED.get(type(old).__name__, {})
        given = {renamed.get(name, name): value for name, value in old.get_config().items()}
        given |= {"name": self._name(old.name), "dtype": old.dtype_policy.name}
        taken = {*inspect.signature(kind.__init__).parameters}
        taken |= {"name", "trainable", "dtype", "activity_regularizer"} if "kwargs" in taken else set()
        config = {name: value for name, value in given.items() if name in taken and not name.endswith("_initializer")}
        for name in sorted({*given} - {*config} - WITHOUT_EFFECT):
            if not name.endswith("_initializer") and given[name] not in (None, False, True, 0, 1):
                self.notes.append(f"{old.name} had {name}={given[name]}, which Keras 3's {kind.__name__} does not have")
        if kind is keras.layers.BatchNormalization:
            (config["axis"],) = keras.tree.flatten(config["axis"])
        wraps = [name for name in ("layer", "backward_layer", "cell") if name in config]
        for name in wraps:
            config[name], behind = self._configured(getattr(old, name))
            if behind:
                raise UserError(f"a hard sigmoid inside of {old.name!r} is another one in Keras 3; put it behind")
        behind = []
        if config.get("activation") == "hard_sigmoid":
            config["activation"] = "linear"
            behind.append(keras.layers.Rescaling(HARD_SIGMOID_SCALE, name=self._name(f"{old.name}_scale")))
            behind.append(keras.layers.Activation("hard_sigmoid", name=self._name(f"{old.name}_hard_sigmoid")))
        return kind(**config) if wraps else kind.from_config(config), behind

    def _rename(self, tensor: Any, name: str, given: set[int]) -> None:
        """Name the operations between given tensors and one: Keras's own names may be those of layers."""
        if id(tensor) not in given:
            maker_of(tensor).name = self._name(name)
            for source in sources_of(maker_of(tensor)):
                self._rename(source, name, given)

    def _name(self, old: str) -> str:
        """Return a name that Keras 3 takes, and that no other layer has."""
        free = wanted = old.replace("/", "_")
        for count in itertools.count(1):
            if free not in self._names:
                break
            free = f"{wanted}_{count}"
        self._names.add(free)
        return free


def _kind(old: Any) -> Any:
    """Return the class in Keras 3 of a layer of Keras 2."""
    name = type(old).__name__
    if name == "ThresholdedReLU":
        return keras.layers.ReLU
    if name in APPLICATIONS:
        return getattr(importlib.import_module(f"keras.src.applications.{APPLICATIONS[name]}"), name)
    if not hasattr(keras.layers, name):
        raise UserError(f"layer {old.name!r} is of class {name}, which Keras 3 does not have; use a layer that it has")
    return getattr(keras.layers, name)


def _mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """Return nested arguments with a function applied to each of their values, and stored slices as slices."""
    if isinstance(values, dict) and {*values} == {*SLICE}:
        return slice(*(values[end] for end in SLICE))
    if isinstance(values, dict):
        return {name: _mapped(function, value) for name, value in values.items()}
    if isinstance(values, list | tuple) and not hasattr(values, "numpy"):
        return type(values)(_mapped(function, value) for value in values)
    return function(values)


def _copy_weights(old: Any, layer: keras.Layer) -> None:
    """Copy the weights of a layer of Keras 2 to its counterpart, which is built."""
    layer.set_weights(old.get_weights())
    if hasattr(layer, "finalize_state"):  # of a Normalization, which computes with what it derives from its weights
        layer.finalize_state()


def _differs_in_training(old: Any) -> bool:
    """Return whether a layer of tf_keras, or one inside it, computes something else in training."""
    inside = [layer for layer in flatten_layers(old, include_self=True) if layer.trainable or not layer.weights]
    names = [type(layer).__name__ for layer in inside]
    return any(re.search("BatchNormalization|Dropout|Noise|Random|StochasticDepth", name) for name in names)
