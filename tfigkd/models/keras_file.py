"""A .keras file of any origin, opened in safe mode: what it may import, where it may write, how large it may become."""

import json
import math
import re
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
from keras.src.backend.common import global_state

import tfigkd.models.fake_quant  # noqa: F401 - registers what a quantized student is made of
from tfigkd.models.copies import keeps_random_numbers, mapped
from tfigkd.runtime.errors import UserError, readable
from tfigkd.runtime.files import expanded

CONFIGS = ("config.json", "metadata.json")
HDF5 = b"\x89HDF\r\n\x1a\n"
MEMBER = re.compile(r"config\.json|metadata\.json|model\.weights\.(h5|npz)|assets/[\w./-]*", re.ASCII)
PACKAGES = ("keras", "tfigkd", "builtins")
METADATA = "keras_metadata.pb"
"""The file in a SavedModel of Keras 2 that describes its layers."""
UNINITIALIZED = "uninitialized_variables"
"""Keras's name of the variables that it initializes when a scope next ends, those of a model that is not kept too."""
MAX_CONFIG = 2**26
MAX_BYTES = 2**32
"""Largest size in bytes of an unpacked .keras file; `MAX_CONFIG` is that of the description of its layers."""


def not_a_keras_file(path: Path) -> str:
    """Return a message that says what a file or folder is in place of a .keras file, and how to make one of it."""
    renamed = f"{path.name.removesuffix('.keras')}.keras"
    if (path / "model.weights.h5").is_file():
        opened = f"keras.saving.load_model({path.name!r}, compile=False)"
        given = f"its content in a folder; save it as one file: {opened}.save({renamed!r})"
    elif version := keras_version(path):
        given = f"a model that Keras {version} saved; {_upgrade(path)}"
    elif (path / "saved_model.pb").is_file():
        given = f"the folder of a SavedModel without Keras's layers; open it where it was made and save it as {renamed}"
    elif path.is_dir():
        given = "a folder; give the path of a .keras file"
    elif is_hdf5(path) and _opens(path):
        given = "only weights; build its model, load_weights them and save it with model.save('NAME.keras')"
    elif path.read_bytes()[4:8] == b"TFL3":
        given = "a LiteRT file, which cannot be turned back; give the .keras file that it was made from"
    else:
        given = "damaged or of another kind; save the model anew with model.save('NAME.keras')"
    return f"{path} is not a .keras file but {given}"


def _opens(path: Path) -> bool:
    """Return whether an HDF5 file is whole."""
    try:
        with h5py.File(path):
            return True
    except OSError:
        return False


def _upgrade(path: Path) -> str:
    """Return the command that makes a .keras file of Keras 3 of an older one."""
    output = path.with_name(path.stem + ("_keras3.keras" if path.suffix == ".keras" else ".keras"))
    return f"python -m tfigkd.upgrade {shlex.quote(str(path))} --output {shlex.quote(str(output))}"


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 does."""
    with open(path, "rb") as file:
        return file.read(len(HDF5)) == HDF5


def is_of_keras2(version: str) -> bool:
    """Return whether a version that `keras_version` returns is one before Keras 3."""
    return version.partition(".")[0] in ("1", "2")


def keras_version(path: Path) -> str | None:
    """Return the version of Keras that a file or folder with a model says it was saved with.

    Args:
        path: A .keras file, an HDF5 file or the folder of a SavedModel.

    Returns:
        Such as "2.15.0", and "2" where it is not said; None where no Keras model is described.
    """
    try:
        if path.is_dir():
            return "2" if (path / METADATA).is_file() else None
        if not is_hdf5(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        with h5py.File(path) as file:
            said = file.attrs.get("keras_version", "2")  # bytes before version 2.4
            said = said.decode() if isinstance(said, bytes) else str(said)
            return said if "model_config" in file.attrs else None
    except Exception:  # a damaged archive raises errors of many kinds
        return None


def load_model(path: Path) -> Any:
    """Return the model of a .keras file, of any kind, as Keras opens it in safe mode; see `_with_bare_ends`.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """
    path = expanded(str(path))
    if not (path.is_file() or path.is_dir()):  # a pipe would wait for a writer
        raise UserError(f"no model file {path}; give the path of a .keras file")
    if not zipfile.is_zipfile(path):
        raise UserError(not_a_keras_file(path))
    if path.suffix != ".keras":
        raise UserError(f"{path} does not end in .keras, by which Keras knows its files; rename it {path.stem}.keras")
    config, stored = inspect_archive(path)
    version = keras_version(path)
    if version is not None and is_of_keras2(version):
        raise UserError(f"{path} was saved by Keras {version}; {_upgrade(path)}")
    _refuse_code(path, config)
    try:
        check_values(path, values_of(lambda: _deserialized(config)), stored)
        bare = {**mapped(config, not_compiled), "compile_config": None}
        if bare == {**config, "compile_config": None}:
            return _with_bare_ends(keras.saving.load_model(path, compile=False, safe_mode=True))
        # compile=False does not reach the models inside, whose optimizers may then be refused
        with tempfile.TemporaryDirectory() as folder:
            copy = _with_config(path, bare, Path(folder))
            return _with_bare_ends(keras.saving.load_model(copy, compile=False, safe_mode=True))
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Keras raise errors of any type
        message = " ".join(str(error).split())
        if "lambda" in message.lower():
            raise UserError(
                f"{path} contains a lambda, which could run any code and is refused; use a stock layer in its place"
            ) from error
        raise UserError(
            f"cannot load {path} ({type(error).__name__}: {message[:200]}); save the model anew with stock layers"
        ) from error


def _with_bare_ends(model: Any) -> Any:
    """Return a model of one input and one output that takes and gives tensors, not dictionaries or lists of one."""
    inputs, outputs = (list(getattr(model, ends, None) or []) for ends in ("inputs", "outputs"))
    if isinstance(model, keras.Sequential) or len(inputs) != 1 or len(outputs) != 1:
        return model
    if isinstance(model.input, keras.KerasTensor) and isinstance(model.output, keras.KerasTensor):
        return model
    return keras.Model(inputs[0], outputs[0], name=model.name)


def _with_config(path: Path, config: dict[str, Any], folder: Path) -> Path:
    """Return a copy of a .keras file with another config, in a folder."""
    copy = folder / path.name
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for member in old.infolist():
            if member.filename == "config.json":
                new.writestr(member, json.dumps(config))
            else:
                with old.open(member) as source, new.open(member.filename, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    return copy


def inspect_archive(path: Path) -> tuple[dict[str, Any], int]:
    """Check a file before Keras opens it: where it may write and how large it may become.

    Keras itself checks most of this, more in each version; what is refused here is refused with every version.

    Returns:
        The config, and the bytes of the weights.

    Raises:
        UserError: it holds anything that a saved model of stock layers does not.
    """
    with readable(str(path), "save the model anew with model.save"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if not MEMBER.fullmatch(member.filename) or ".." in member.filename.split("/"):
                raise UserError(f"{path} holds {member.filename!a}, which is no part of a model, and is refused")
        names = [member.filename for member in members]
        if len({*names}) < len(names):
            raise UserError(f"{path} holds two files of one name and is refused; save the model anew with model.save")
        size = sum(member.file_size for member in members)
        if size > MAX_BYTES or any(member.file_size > MAX_CONFIG for member in members if member.filename in CONFIGS):
            raise UserError(f"{path} unpacks to {size / 2**30:.1f} GiB or has a huge config, and is refused")
        config = json.loads(archive.read("config.json"))
        stored = sum(member.file_size for member in members if member.filename.startswith("model.weights."))
    return config, stored


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Check that a config asks for no code but that of Keras and of this package.

    Raises:
        UserError: It does.
    """
    foreign = sorted({str(module) for module in _foreign(config)})
    if foreign:
        raise UserError(f"{path} asks for code of {', '.join(foreign)!a}, which is refused; use stock layers")


def _deserialized(config: dict[str, Any]) -> Any:
    """Return the model of a config, of which Keras changes a copy."""
    return keras.saving.deserialize_keras_object(mapped(config, not_compiled), safe_mode=True)


def check_values(path: Path, values: int, stored: int) -> None:
    """Check that the weights of a file can hold the values of its layers, before these are allocated.

    Args:
        path: The file, which an error names.
        values: Number of values of the variables that the description in the file asks for.
        stored: Bytes of the weights.

    Raises:
        UserError: They cannot.
    """
    if values > stored:  # a value takes a byte at least
        reason = f"its layers have more values than the {stored:,} bytes of its weights can hold"
        raise UserError(f"cannot load {path}: {reason}; save the model anew")


def values_of(build: Callable[[], keras.Model]) -> int:
    """Return how many values the variables of a model that a function builds would hold; none is allocated."""
    waiting = list(global_state.get_global_attribute(UNINITIALIZED) or [])
    try:
        with keeps_random_numbers(), keras.StatelessScope(initialize_variables=False):
            return sum(math.prod(variable.shape) for variable in build().variables)
    finally:
        global_state.set_global_attribute(UNINITIALIZED, waiting)


def not_compiled(config: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary of a config without the compilation of a model, the outer one or one inside it."""
    return {**config, "compile_config": None} if "compile_config" in config else config


def _foreign(config: Any) -> Iterator[Any]:
    """Return modules, or names of registered objects, that a config asks for and that are neither known nor Keras's."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            package = str(value.get("module") or "builtins").partition(".")[0]
            name = value.get("registered_name")
            registered = keras.saving.get_registered_object(name)
            if "class_name" in value and package not in PACKAGES and registered is None:
                yield value["module"]
            if "class_name" in value and value.get("module") is None and name and registered is None:
                yield name
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
