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
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from tfigkd.models.equivalence import close, random_inputs, tolerance_of
from tfigkd.models.graph import flatten_layers, maker_of, nodes_of, sources_of
from tfigkd.models.keras_file import (
    METADATA,
    inspect_archive,
    is_hdf5,
    is_of_keras2,
    keras_version,
    not_a_keras_file,
    not_compiled,
)
from tfigkd.models.layers import mapped
from tfigkd.runtime.errors import UserError, one_line, readable
from tfigkd.runtime.files import expanded

RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "ThresholdedReLU": {"theta": "threshold"}}
"""Arguments by class, and their names in Keras 3. A ThresholdedReLU becomes a ReLU with a threshold."""
WITHOUT_EFFECT = {"batch_input_shape", "input_length", "fused", "time_major", "implementation", "seed", "rng_type"}
WITHOUT_EFFECT |= {"query_shape", "key_shape", "value_shape"}
"""Arguments that Keras 3 may lack: how a layer computes, not what."""
OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")
"""Classes of the layers that stand for `OPERATIONS`."""
OPEN_SIZE = 96
"""Of images where the model leaves it open; Inception needs 75."""
SLICE = ("start", "stop", "step")
"""Keys of a slice, as Keras 2 stores it."""
HARD_SIGMOID_SCALE = 1.2
"""Keras 2's hard sigmoid of x, clip(x / 5 + 1/2, 0, 1), is that of Keras 3, clip(x / 6 + 1/2, 0, 1), of 1.2 x."""


def _constant(given: Any) -> Any:
    """Return a list of numbers, as Keras 2 stores an array, as an array."""
    return np.asarray(given, "float32") if isinstance(given, list | tuple) else given


def _of_two(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation of x and y, either of which may be a stored array."""
    return lambda x, y: operation(_constant(x), _constant(y))


def _add_bias(value: Any, bias: Any, data_format: str | None = None) -> Any:
    if (data_format or "NHWC").startswith("NC"):
        raise UserError("it adds a bias to channels that come first; save it for images whose channels come last")
    return ops.add(value, _constant(bias))


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
    "nn.bias_add": _add_bias,
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
    "pad": lambda tensor, paddings, mode="CONSTANT", constant_values=0: ops.pad(
        tensor, paddings, mode.lower(), constant_values if mode.lower() == "constant" else None
    ),
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
"""Module of the initializers in EfficientNetV2, the only one outside of Keras."""


@dataclass(frozen=True)
class Upgrade:
    """A model of Keras 2 as one of Keras 3.

    Attributes:
        model: Functional, not compiled. Layers keep their names, but for "/", which becomes "_".
        difference: Largest difference of an output of any layer, relative to the largest output of that layer. None for
            a model of Keras 3, which Keras has opened itself.
        notes: What differs in training, in words.
    """

    model: keras.Model
    difference: float | None
    notes: tuple[str, ...] = ()


def upgrade(path: str | Path) -> Upgrade:
    """Build a model that Keras 2 saved again in Keras 3.

    Only its description and its weights are read, and only layers of Keras are built, so that no code in the file can
    run. Regularizers and constraints stay, initializers do not. The outputs of each layer are compared with those in
    tf_keras, in inference mode, on random inputs in the ranges of images.

    Args:
        path: An HDF5 file (.h5), a .keras file or the folder of a SavedModel with its Keras layers.

    Raises:
        UserError: The file is missing, damaged, not of Keras 2, or has layers of other classes; a layer has no
            counterpart in Keras 3; the outputs are not the same.
    """
    path = expanded(str(path))
    if not (path.is_file() or path.is_dir()):  # a pipe would wait for a writer
        raise UserError(f"no model file {path}; give the path of a .h5 or .keras file, or the folder of a SavedModel")
    version = keras_version(path)
    if version is None:
        raise UserError(not_a_keras_file(path))
    if path.is_file() and is_hdf5(path) and zipfile.is_zipfile(path):
        raise UserError(f"{path} is HDF5 and a zip file at once, and is refused; save the model anew")
    zipped = path.is_file() and not is_hdf5(path)
    if zipped and not is_of_keras2(version):
        raise UserError(f"{path} is a .keras file of Keras {version}, which needs no upgrade")
    with warnings.catch_warnings(), readable(str(path), "save the model anew where it was made"):
        warnings.simplefilter("ignore")
        config = inspect_archive(path)[0] if zipped else _config(path)
        config = mapped(config, not_compiled)
        _check_classes(path, config)
        if not is_of_keras2(version):
            return Upgrade(keras.saving.load_model(path, compile=False, safe_mode=True), None)
        old = _old_model(path, config, zipped=zipped)
    with _naming(path):
        rebuilt = _Rebuilt(old)
        return Upgrade(rebuilt.model, _difference(old, rebuilt), tuple(rebuilt.notes))


def _config(path: Path) -> Any:
    """Return the description of the model in an HDF5 file or a SavedModel."""
    if path.is_file():
        with h5py.File(path) as file:
            return json.loads(file.attrs["model_config"])
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    nodes = SavedMetadata.FromString((path / METADATA).read_bytes()).nodes
    root = json.loads(next(node.metadata for node in nodes if node.node_path == "root"))
    if not root.get("model_config"):
        raise UserError(f"{path} holds a model that is no graph of layers; save a Functional or Sequential model")
    return root["model_config"]


def _check_classes(path: Path, config: Any) -> None:
    """Check that a description asks for nothing but layers of Keras, operations that are known, and their arguments.

    Raises:
        UserError: It does.
    """
    import tf_keras

    # layers of Keras 3 only are left out too: some of them unpickle code
    known = {name for name in dir(tf_keras.layers) if hasattr(keras.layers, name)} - {"Lambda"}
    known |= {*dir(tf_keras.initializers), *dir(tf_keras.regularizers), *dir(tf_keras.constraints)}
    known = {name for name in known if name[0].isupper()}  # classes, no functions
    known |= {"ThresholdedReLU", "Functional", "Sequential", "Model", "Policy", "DTypePolicy", *OPERATION_LAYERS}
    known |= {*APPLICATIONS, *(f"Custom>{name}" for name in APPLICATIONS), "TensorShape", "__tuple__", "__ellipsis__"}
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            _check_class(path, value, known)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_class(path: Path, value: dict[str, Any], known: Collection[str]) -> None:
    """Check what one dictionary in a description asks for; see `_check_classes`."""
    asked = [value[key] for key in ("class_name", "registered_name") if value.get(key) is not None]
    if "Lambda" in asked:
        raise UserError(f"{path} holds a Lambda layer, which could run any code; save it with a stock layer")
    unknown = next((name for name in asked if not isinstance(name, str) or name not in known), None)
    if unknown is not None:
        raise UserError(f"{path} asks for the class {unknown!a}, which is none of Keras 3; use stock layers")
    module = value.get("module")
    by_keras = module is None or str(module).partition(".")[0] in ("keras", "tf_keras")
    initializer = module == INITIALIZERS and hasattr(keras.initializers, str(value.get("class_name")))
    if asked and not (by_keras or initializer):
        raise UserError(f"{path} asks for code of {module!a}, which is refused; use stock layers")
    if value.get("class_name") in OPERATION_LAYERS:
        name = value.get("config", {}).get("function")
        if not isinstance(name, str) or _operation(name) not in OPERATIONS:
            raise UserError(f"{path} holds the operation {name!a}, which is not carried over; use a layer")


def _operation(name: str) -> str:
    """Return the name of an operation in `OPERATIONS`."""
    return name.removeprefix("compat.v1.")


def _old_model(path: Path, config: Any, *, zipped: bool) -> Any:
    """Return the tf_keras model of a description that has been checked, with the weights in the file."""
    import tf_keras

    modules = {name: f"tf_keras.src.applications.{module}" for name, module in APPLICATIONS.items()}
    own = {name: getattr(importlib.import_module(module), name) for name, module in modules.items()}
    with tf_keras.saving.custom_object_scope(own | {f"Custom>{name}": layer for name, layer in own.items()}):
        if zipped:
            old = tf_keras.saving.deserialize_keras_object(config, safe_mode=True)
        else:
            old = tf_keras.models.model_from_json(json.dumps(config))
    if path.is_dir():
        old.load_weights(path / "variables/variables").assert_existing_objects_matched()
        return old
    with tempfile.TemporaryDirectory() as folder:  # tf_keras reads the format from the end of the name
        named = Path(folder) / ("old.keras" if zipped else "old.h5")
        named.symlink_to(path.resolve())
        old.load_weights(named)
    return old


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of building a model into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # layers raise errors of any type for arguments and shapes
        raise UserError(f"{path} cannot be built of Keras 3's layers: {one_line(error)}; report this model") from error


class _Rebuilt:
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
            if isinstance(given, dict):
                return slice(*(given[end] for end in SLICE))
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
                self._layers[id(old)] = OPERATIONS[_operation(old.get_config()["function"])]
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


def _difference(old: Any, rebuilt: _Rebuilt) -> float:
    """Compare each layer of a rebuilt model with tf_keras's; see `Upgrade.difference`.

    Raises:
        UserError: They differ by more than rounding, and the first layer that does is named; or all outputs are NaN or
            infinite.
    """
    import tf_keras

    model = rebuilt.model
    images, tolerance = random_inputs(model, OPEN_SIZE), tolerance_of(model)
    names, before, after = zip(*rebuilt.pairs, strict=True)
    expected = _outputs(tf_keras.Model(old.inputs, before), images)
    found = _outputs(keras.Model(model.inputs, after), images)
    if not np.isfinite(expected[-1]).any():
        raise UserError("its outputs on random images are all NaN or infinite; save a model that has learned")
    largest = 0.0
    for name, old_output, new_output in zip(names, expected, found, strict=True):
        if not close(new_output, old_output, tolerance):
            raise UserError(f"built of Keras 3's layers it has other outputs, first in layer {name!r}; replace it")
        with np.errstate(invalid="ignore"):
            off, size = (np.nan_to_num(np.abs(one)).max() for one in (new_output - old_output, old_output))
        largest = max(largest, float(off / size) if size else 0.0)
    return largest


def _differs_in_training(old: Any) -> bool:
    """Return whether a layer of tf_keras, or one inside it, computes something else in training."""
    inside = [layer for layer in flatten_layers(old, include_self=True) if layer.trainable or not layer.weights]
    names = [type(layer).__name__ for layer in inside]
    return any(re.search("BatchNormalization|Dropout|Noise|Random|StochasticDepth", name) for name in names)


def _outputs(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model of either Keras in inference mode, float64."""
    given = list(inputs) if len(inputs) > 1 else inputs[0]
    return [np.asarray(output, "float64") for output in keras.tree.flatten(model(given, training=False))]
