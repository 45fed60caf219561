"""The description and the weights of a model that Keras 2 saved: read, checked for code, and opened by tf_keras."""

import importlib
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras

from tfigkd.models.copies import mapped
from tfigkd.models.keras_file import METADATA, check_values, inspect_archive, is_hdf5, not_compiled
from tfigkd.runtime.errors import UserError
from tfigkd.upgrade.operations import OPERATION_LAYERS, operation_name

APPLICATIONS = {
    "LayerScale": "convnext",
    "StochasticDepth": "convnext",
    "CustomScaleLayer": "inception_resnet_v2",
}
"""Layers that belong to a network of keras.applications, and its module in both versions of Keras."""
DEFLATED = 1032
"""How many times smaller zlib makes data at most."""
INITIALIZERS = "tensorflow.python.ops.init_ops_v2"
"""Module of the initializers in EfficientNetV2, the only one outside of Keras."""


def read_description(path: Path) -> Any:
    """Return the description of the model in a file or folder, which asks for nothing but what Keras has.

    Args:
        path: An HDF5 file, a .keras file or the folder of a SavedModel.

    Raises:
        UserError: It holds or asks for code, or describes no graph of layers.
    """
    if path.is_dir():
        config = _of_saved_model(path)
    elif is_hdf5(path):
        if zipfile.is_zipfile(path):
            raise UserError(f"{path} is HDF5 and a zip file at once, and is refused; save the model anew")
        with h5py.File(path) as file:
            config = json.loads(file.attrs["model_config"])
    else:
        config = inspect_archive(path)[0]
    config = mapped(config, not_compiled)
    _check_classes(path, config)
    return config


def _of_saved_model(path: Path) -> Any:
    """Return the description of the model in a SavedModel."""
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
        stored = value.get("config", {}).get("function")
        if operation_name(stored) is None:
            raise UserError(f"{path} holds the operation {stored!a}, which is not carried over; use a layer")


def weight_bytes(path: Path) -> int:
    """Return how many bytes the weights in a file or folder can have, unpacked."""
    if path.is_dir():
        return sum(file.stat().st_size for file in (path / "variables").glob("*"))
    if not is_hdf5(path):
        return inspect_archive(path)[1]
    sizes: list[int] = []

    def add(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            stored = item.id.get_storage_size()
            sizes.append(stored if item.compression is None else min(item.nbytes, DEFLATED * stored))

    with h5py.File(path) as file:
        file.visititems(add)
    return sum(sizes)


@contextmanager
def _limited(path: Path) -> Iterator[None]:
    """Let TensorFlow create no more variables than the weights in a file can hold; see `check_values`."""
    import tensorflow as tf

    values, stored = 0, weight_bytes(path)

    def creator(create: Callable[..., Any], **options: Any) -> Any:
        nonlocal values
        values += math.prod(options["shape"] or ())
        check_values(path, values, stored)
        return create(**options)

    with tf.variable_creator_scope(creator):
        yield


def open_in_keras2(path: Path, description: Any) -> Any:
    """Return the tf_keras model of a description that `read_description` has checked, with the weights in the file."""
    import tf_keras

    modules = {name: f"tf_keras.src.applications.{module}" for name, module in APPLICATIONS.items()}
    own = {name: getattr(importlib.import_module(module), name) for name, module in modules.items()}
    zipped = path.is_file() and not is_hdf5(path)
    with (
        _limited(path),
        tf_keras.saving.custom_object_scope(own | {f"Custom>{name}": layer for name, layer in own.items()}),
    ):
        if zipped:
            old = tf_keras.saving.deserialize_keras_object(description, safe_mode=True)
        else:
            old = tf_keras.models.model_from_json(json.dumps(description))
    if path.is_dir():
        old.load_weights(path / "variables/variables").assert_existing_objects_matched()
        return old
    with tempfile.TemporaryDirectory() as folder:  # tf_keras reads the format from the end of the name
        named = Path(folder) / ("old.keras" if zipped else "old.h5")
        named.symlink_to(path.resolve())
        old.load_weights(named)
    return old
