"""A model that Keras 2 saved, built again from layers of Keras 3 with the same weights, and compared with the original.

Keras 3 opens few such files: it refuses arguments that its layers no longer have, and operations on tensors. Here
tf_keras, the last Keras 2, opens the file, and each call in its graph becomes a call in Keras 3.
"""

import functools
import importlib
import inspect
import itertools
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from tfigkd.models.equivalence import close, random_inputs, tolerance_of
from tfigkd.models.graph import maker_of, sources_of
from tfigkd.models.keras_file import METADATA, keras_version, not_a_keras_file, refuse_code
from tfigkd.runtime.errors import UserError, one_line, readable
from tfigkd.runtime.files import expanded

RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "ThresholdedReLU": {"theta": "threshold"}}
"""Arguments by class, and their names in Keras 3, where ReLU is the class of the second."""
OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")
"""Classes of the layers that stand for `OPERATIONS`."""
OPEN_SIZE = 96
"""Of images where the model leaves it open; Inception needs 75."""
SLICE = ("start", "stop", "step")
"""Keys of a slice, as Keras 2 stores it."""
STEEPER = 1.2
"""Keras 2's hard sigmoid of x, clip(x / 5 + 1/2, 0, 1), is that of Keras 3, clip(x / 6 + 1/2, 0, 1), of 1.2 x."""


def _constant(given: Any) -> Any:
    """Return a list of numbers, as Keras 2 stores an array, as an array."""
    return np.asarray(given, "float32") if isinstance(given, list | tuple) else given


def _of_two(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation of x and y, either of which may be a stored array."""
    return lambda x, y: operation(_constant(x), _constant(y))


def _slices(given: Any) -> Any:
    """Return what is between the brackets of a slice from its stored form."""
    return tuple(given) if isinstance(given, list) else given


OPERATIONS: dict[str, Callable[..., Any]] = {
    "__operators__.getitem": lambda tensor, slice_spec, var=None: tensor[_slices(slice_spec)],
    "__operators__.add": _of_two(ops.add),
    "math.add": _of_two(ops.add),
    "math.subtract": _of_two(ops.subtract),
    "math.multiply": _of_two(ops.multiply),
    "math.truediv": _of_two(ops.true_divide),
    "math.divide": _of_two(ops.true_divide),
    "math.pow": _of_two(ops.power),
    "math.negative": ops.negative,
    "math.abs": ops.abs,
    "math.square": ops.square,
    "math.sqrt": ops.sqrt,
    "math.rsqrt": ops.rsqrt,
    "math.exp": ops.exp,
    "math.log": ops.log,
    "math.tanh": ops.tanh,
    "math.sigmoid": ops.sigmoid,
    "math.softplus": lambda features: ops.softplus(features),
    "math.maximum": _of_two(ops.maximum),
    "math.minimum": _of_two(ops.minimum),
    "math.add_n": lambda inputs: functools.reduce(ops.add, inputs),
    "math.reduce_mean": lambda input_tensor, axis=None, keepdims=False: ops.mean(input_tensor, axis, keepdims),
    "math.reduce_sum": lambda input_tensor, axis=None, keepdims=False: ops.sum(input_tensor, axis, keepdims),
    "math.reduce_max": lambda input_tensor, axis=None, keepdims=False: ops.max(input_tensor, axis, keepdims),
    "math.reduce_min": lambda input_tensor, axis=None, keepdims=False: ops.min(input_tensor, axis, keepdims),
    "nn.relu": lambda features: ops.relu(features),
    "nn.relu6": lambda features: ops.relu6(features),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "nn.elu": lambda features: ops.elu(features),
    "nn.selu": lambda features: ops.selu(features),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis),
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, axis),
    "nn.bias_add": lambda value, bias, data_format=None: ops.add(value, _constant(bias)),
    "math.l2_normalize": lambda x, axis=None, epsilon=1e-12: (
        x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis, keepdims=True), epsilon))
    ),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(t, clip_value_min, clip_value_max),
    "cast": lambda x, dtype: ops.cast(x, getattr(dtype, "name", dtype)),
    "identity": lambda input: input,
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "transpose": lambda a, perm=None, conjugate=False: ops.transpose(a, perm),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "pad": lambda tensor, paddings, mode="CONSTANT", constant_values=0: ops.pad(tensor, paddings, mode.lower()),
    "linalg.matmul": lambda a, b: ops.matmul(a, b),
    "image.resize": lambda images, size, method="bilinear": ops.image.resize(images, size, method),
}
"""Operations on tensors that Keras 2 saves as layers, by name without "compat.v1.", with TensorFlow's arguments."""
APPLICATIONS = {
    "LayerScale": "convnext",
    "StochasticDepth": "convnext",
    "CustomScaleLayer": "inception_resnet_v2",
}
"""Layers that belong to a network of keras.applications, and its module in both versions of Keras."""
INITIALIZERS = "tensorflow.python.ops.init_ops_v2"
"""Module of the initializers in EfficientNetV2, besides Keras's own the only one that may be imported."""


def upgraded(path: str | Path) -> tuple[keras.Model, float | None]:
    """Return the model of a file of Keras 2 as one of Keras 3, and how far its outputs are off.

    Layers keep their names, but for "/", which becomes "_". Regularizers stay, initializers do not. The outputs of both
    are compared on random inputs in the ranges of images, in inference mode.

    Args:
        path: An HDF5 file (.h5), a .keras file or the folder of a SavedModel with its Keras layers.

    Returns:
        A Functional model, not compiled, and the largest difference of an output, relative to the largest output. An
        HDF5 file of Keras 3 is opened by Keras itself; its difference is None.

    Raises:
        UserError: The file is missing, damaged, not of Keras 2, or holds code; a layer has no counterpart in Keras 3;
            the outputs are not the same.
    """
    path = expanded(str(path))
    if not path.exists():
        raise UserError(f"no model file {path}; give the path of a .h5 or .keras file, or the folder of a SavedModel")
    version = keras_version(path)
    if version is None:
        raise UserError(not_a_keras_file(path))
    with_keras3 = not version.startswith(("1.", "2"))
    if with_keras3 and zipfile.is_zipfile(path):
        raise UserError(f"{path} is a .keras file of Keras {version}, which needs no upgrade")
    with warnings.catch_warnings(), readable(str(path), "save the model anew where it was made"):
        warnings.simplefilter("ignore")
        for config in _configs(path):
            _refuse(path, config)
        if with_keras3:
            return keras.saving.load_model(path, compile=False, safe_mode=True), None
        old = _load_old(path)
    with _refused(path):
        rebuilding = _Rebuilding(old)
        return rebuilding.model, _difference(old, rebuilding)


def _load_old(path: Path) -> Any:
    """Return the model of a file as tf_keras opens it."""
    import tf_keras

    modules = {name: f"tf_keras.src.applications.{module}" for name, module in APPLICATIONS.items()}
    own = {name: getattr(importlib.import_module(module), name) for name, module in modules.items()}
    try:
        return tf_keras.models.load_model(path, custom_objects=own, compile=False)
    except ValueError as error:
        if unknown := re.match(r"Unknown layer: '(\w+)'", str(error)):
            raise UserError(f"{path} has layers of class {unknown[1]}, not Keras's; use stock layers") from error
        raise


def _configs(path: Path) -> Iterator[Any]:
    """Yield the configs of models and layers in a file or folder; nothing in it is run."""
    if (path / METADATA).is_file():
        from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

        for node in SavedMetadata.FromString((path / METADATA).read_bytes()).nodes:
            yield json.loads(node.metadata)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield json.loads(archive.read("config.json"))
    else:
        with h5py.File(path) as file:
            yield json.loads(file.attrs["model_config"])


def _refuse(path: Path, config: Any) -> None:
    """Check a config before tf_keras opens it.

    Raises:
        UserError: It holds code, or an operation that is not carried over.
    """
    refuse_code(path, config, also=(INITIALIZERS,))
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("class_name")
            if kind == "Lambda":
                raise UserError(f"{path} holds a Lambda layer, which could run any code; save it with a stock layer")
            if kind in (*OPERATION_LAYERS, "TensorFlowOpLayer", "ClassMethod", "InstanceProperty"):
                name = _operation(value.get("config", {}).get("function", kind))
                if name not in OPERATIONS:
                    raise UserError(f"{path} holds the operation {name!r}, which is not carried over; use a layer")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _operation(name: str) -> str:
    """Return the name of an operation in `OPERATIONS`."""
    return name.removeprefix("compat.v1.")


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an error of a layer of Keras 3 into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # layers raise errors of any type for arguments and shapes
        raise UserError(f"{path} cannot be built of Keras 3's layers: {one_line(error)}; report this model") from error


class _Rebuilding:
    """A model of tf_keras, built again in Keras 3 call by call.

    Args:
        old: A Functional model or a Sequential one that knows its inputs.

    Attributes:
        model: The new model.
        pairs: For each call outside of nested models the name of its layer, and its outputs in the old and new graph.

    Raises:
        UserError: It has no graph, or a layer has no counterpart.
    """

    def __init__(self, old: Any):
        self._layers: dict[int, Callable[..., Any]] = {}
        self._names: set[str] = set()  # in the graph that is being built
        self.pairs: list[tuple[str, Any, Any]] = []
        self.model = self._graph(old, self.pairs)

    def _graph(self, old: Any, pairs: list[tuple[str, Any, Any]]) -> keras.Model:
        """Return a model, or one inside it, and note the outputs of its calls."""
        if not (getattr(old, "inputs", None) and getattr(old, "_nodes_by_depth", None)):
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
            if isinstance(given, dict):
                return slice(*(given[end] for end in SLICE))
            return made.get(id(given), given.numpy() if hasattr(given, "numpy") else given)

        for depth in sorted(old._nodes_by_depth, reverse=True):
            for node in old._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args, named = _mapped(value, node.call_args), _mapped(value, dict(node.call_kwargs))
                named = {name: one for name, one in named.items() if one is not None and name != "name"}
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
            if hasattr(old, "_nodes_by_depth"):
                self._layers[id(old)] = self._graph(old, [])
            elif type(old).__name__ in OPERATION_LAYERS:
                self._layers[id(old)] = OPERATIONS[_operation(old.get_config()["function"])]
            else:
                self._layers[id(old)] = self._counterpart(old)
        return self._layers[id(old)]

    def _counterpart(self, old: Any) -> Callable[..., Any]:
        """Return a call of the layer of Keras 3 with the arguments and the weights of one of Keras 2."""
        layer, steeper = self._configured(old)

        def call(*args: Any, **named: Any) -> Any:
            built = bool(layer.built and layer.variables)
            outputs = layer(*args, **named)
            if not built:
                _copy_weights(old, layer)
            for added in steeper:
                outputs = added(outputs)
            return outputs

        return call

    def _configured(self, old: Any) -> tuple[keras.Layer, list[keras.Layer]]:
        """Return a layer of Keras 3, and the layers behind it that are Keras 2's hard sigmoid, if that is wanted."""
        kind, renamed = _kind(old), RENAMED.get(type(old).__name__, {})
        config = {renamed.get(name, name): value for name, value in old.get_config().items()}
        config |= {"name": self._name(old.name), "dtype": old.dtype_policy.name}
        parameters = inspect.signature(kind.__init__).parameters
        taken = {*parameters} | ({"name", "trainable", "dtype"} if "kwargs" in parameters else set())
        config = {name: value for name, value in config.items() if name in taken and not name.endswith("_initializer")}
        if kind is keras.layers.BatchNormalization:
            (config["axis"],) = keras.tree.flatten(config["axis"])
        for wrapped in ("layer", "backward_layer", "cell"):
            if wrapped in config:
                inner = getattr(old, wrapped)
                config[wrapped] = self._configured(inner)[0]
        steeper = []
        if config.get("activation") == "hard_sigmoid":
            config["activation"] = "linear"
            steeper.append(keras.layers.Rescaling(STEEPER, name=self._name(f"{old.name}_scale")))
            steeper.append(keras.layers.Activation("hard_sigmoid", name=self._name(f"{old.name}_hard_sigmoid")))
        return kind(**config) if {"layer", "cell"} & {*config} else kind.from_config(config), steeper

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
    """Return nested arguments with a function applied to each of their values, and to slices stored as dictionaries."""
    if isinstance(values, dict) and {*values} != {*SLICE}:
        return {name: _mapped(function, value) for name, value in values.items()}
    if isinstance(values, list | tuple) and not hasattr(values, "numpy"):
        return type(values)(_mapped(function, value) for value in values)
    return function(values)


def _copy_weights(old: Any, layer: keras.Layer) -> None:
    """Copy the weights of a layer of Keras 2 to its counterpart, which is built."""
    layer.set_weights(old.get_weights())
    if hasattr(layer, "finalize_state"):  # of a Normalization, which computes with what it derives from its weights
        layer.finalize_state()


def _difference(old: Any, rebuilding: _Rebuilding) -> float:
    """Compare a rebuilt model with tf_keras's, and return the largest difference relative to the largest output.

    Raises:
        UserError: They differ by more than rounding; the first layer that differs is named.
    """
    import tf_keras

    model = rebuilding.model
    images, tolerance = random_inputs(model, OPEN_SIZE), tolerance_of(model)
    expected, found = _outputs(old, images), _outputs(model, images)
    if not all(close(new, before, tolerance) for new, before in zip(found, expected, strict=True)):
        names, before, after = zip(*rebuilding.pairs, strict=True)
        inside = (
            _outputs(tf_keras.Model(old.inputs, before), images),
            _outputs(keras.Model(model.inputs, after), images),
        )
        steps = zip(names, *inside, strict=True)
        first = next((name for name, one, other in steps if not close(other, one, tolerance)), model.name)
        raise UserError(f"built of Keras 3's layers it has other outputs, first in layer {first!r}; replace it")
    largest = max(float(np.abs(before).max()) for before in expected)
    return max(float(np.abs(new - before).max()) for new, before in zip(found, expected, strict=True)) / largest


def _outputs(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model of either Keras in inference mode, float64."""
    given = list(inputs) if len(inputs) > 1 else inputs[0]
    return [np.asarray(output, "float64") for output in keras.tree.flatten(model(given, training=False))]
