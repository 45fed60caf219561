"""The user's own model, read from a .keras file and made to fit: images in, logits out."""

import json
import math
import random
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfigkd.models.fake_quant  # noqa: F401 - registers what a quantized student is made of
from tfigkd.data.pictures import reading
from tfigkd.models import layers
from tfigkd.models.precision import computes_in_half, in_float32
from tfigkd.runtime.errors import UserError

CONFIGS = ("config.json", "metadata.json")
MEMBER = re.compile(r"config\.json|metadata\.json|model\.weights\.(h5|npz)|assets/[\w./-]*", re.ASCII)
PACKAGES = ("keras", "tfigkd", "builtins")
MAX_CONFIG = 2**26
MAX_BYTES = 2**32
"""Of a .keras file, unpacked; `MAX_CONFIG` of the description of its layers."""


def load_own(
    path: str | Path, *, num_classes: int | None = None, input_shape: Sequence[int] | None = None
) -> keras.Model:
    """Load a Functional or Sequential classifier; a softmax at its end is taken off.

    Nothing is lost by that: the softmax of the logits is what the file's model said, and distillation needs
    the logits. Stock batch normalization becomes the fused one, an open image size the size given, and layers that
    compute in half precision compute in float32. What is rebuilt is compared with the model as Keras opened it.

    Args:
        path: A .keras file, read in safe mode: code inside it is refused.
        num_classes: Number of logits that it must give; without it, as many as it gives.
        input_shape: (H, W, C) of the images that it must take, float32 in [0,1]; without it, those that it takes.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes], not compiled.

    Raises:
        UserError: The file is missing, unreadable or refused, or the model does not fit.
    """
    plain = _load(Path(path))
    try:
        (model_input,), (model_output,) = plain.inputs, plain.outputs
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} must hold a Functional or Sequential model with one image as input and one output; "
            "save one that was built so"
        ) from error
    takes = tuple(model_input.shape[1:])
    wanted = takes if input_shape is None else tuple(input_shape)
    if None in wanted:
        raise UserError(f"{path} takes images of any size {takes}; give the size that it is meant for")
    if len(takes) != 3 or any(own not in (None, size) for own, size in zip(takes, wanted, strict=True)):
        raise UserError(f"{path} takes inputs of shape {takes}, but the images are {wanted}; make them agree")
    gives = tuple(model_output.shape[1:])
    if len(gives) != 1 or (num_classes is not None and gives != (num_classes,)):
        expected = "classes" if num_classes is None else num_classes
        raise UserError(f"{path} gives outputs of shape {gives}, expected ({expected},): a logit for each class")
    return _fitted(plain, path, wanted)


def load_plain(path: str | Path) -> keras.Model:
    """Open a .keras classifier as plain Keras does and let it give logits: the reference that all else is held to.

    Nothing is rebuilt: every layer is the one that Keras made, with the state that the file holds. A softmax at the
    end is switched off in place.

    Args:
        path: As for `load_own`.

    Returns:
        The model that Keras has opened, from images as the file takes them to logits; not to be saved.

    Raises:
        UserError: The file is missing, unreadable or refused, or ends in no logits.
    """
    model = _load(Path(path))
    last, softmax = _ending(model, path)
    if softmax and isinstance(last, keras.layers.Softmax):
        last.call = _identity
    elif softmax:
        last.activation = keras.activations.linear
    return model


def _identity(inputs: Any, mask: Any = None) -> Any:
    return inputs


def with_input_range(model: keras.Model, low: float, high: float) -> keras.Model:
    """The same classifier for images in [0,1], where the model itself takes black for `low` and white for `high`.

    Raises:
        ValueError: the two are equal.
    """
    if (low, high) == (0, 1):
        return model
    if low == high:
        raise ValueError(f"Expected different values for black and white, got {low} and {high}.")
    shape = model.input_shape[1:]
    inputs = keras.Input(shape, name="image")
    layer = keras.layers.DepthwiseConv2D(1, name="input_range", trainable=False)
    outputs = model(layer(inputs))
    layer.set_weights([np.full((1, 1, shape[-1], 1), high - low), np.full(shape[-1], low)])
    return keras.Model(inputs, outputs, name=model.name)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no model file {path}; give the path of a .keras file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .keras file; save the model anew with model.save")
    config, stored = _inspect(path)
    try:
        if _values(config) > stored:  # a value takes a byte at least
            raise ValueError(f"its layers have more values than the {stored:,} bytes of its weights can hold")
        bare = {**_not_compiled(config), "compile_config": None}
        if bare == {**config, "compile_config": None}:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        # compile=False does not reach the models inside, whose optimizers may then be refused
        with tempfile.TemporaryDirectory() as folder:
            return keras.saving.load_model(_with_config(path, bare, Path(folder)), compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the file makes it stumble over
        message = " ".join(str(error).split())
        if "lambda" in message.lower():
            raise UserError(
                f"{path} contains a lambda, which could run any code and is refused; use a stock layer in its place"
            ) from error
        raise UserError(
            f"cannot load {path} ({type(error).__name__}: {message[:200]}); save the model anew with stock layers"
        ) from error


def _with_config(path: Path, config: dict[str, Any], folder: Path) -> Path:
    """A copy of a .keras file with another config, in a folder."""
    copy = folder / path.name
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for member in old.infolist():
            if member.filename == "config.json":
                new.writestr(member, json.dumps(config))
            else:
                with old.open(member) as source, new.open(member.filename, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    return copy


def _inspect(path: Path) -> tuple[dict[str, Any], int]:
    """Look into a file before Keras does: what it may import, where it may write and how large it may become.

    Keras looks after most of this itself, more in each version; what is refused here is so with all of them.

    Returns:
        The config, and the bytes of the weights.

    Raises:
        UserError: it holds anything that a saved model of stock layers does not.
    """
    with reading(str(path), "save the model anew with model.save"), zipfile.ZipFile(path) as archive:
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
        foreign = sorted({str(module) for module in _foreign(config)})
    if foreign:
        raise UserError(f"{path} asks for code of {', '.join(foreign)!a}, which is refused; use stock layers")
    return config, stored


def _values(config: dict[str, Any]) -> int:
    """How many values the variables of a model would hold; nothing of that size is allocated."""
    state = random.getstate()  # initializers draw their seeds from it: a look must not change what comes after
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(_not_compiled(config), safe_mode=True)
            return sum(math.prod(variable.shape) for variable in model.variables)
    finally:
        random.setstate(state)


def _not_compiled(config: Any) -> Any:
    """A config without the compilation of the model and of the models inside it."""
    if isinstance(config, dict):
        return {key: None if key == "compile_config" else _not_compiled(value) for key, value in config.items()}
    return [_not_compiled(value) for value in config] if isinstance(config, list) else config


def _foreign(config: Any) -> Iterator[Any]:
    """The Python modules that a config names for what is neither Keras's, ours nor registered by this process."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            package = str(value.get("module") or "builtins").partition(".")[0]
            registered = keras.saving.get_registered_object(value.get("registered_name"))
            if "class_name" in value and package not in PACKAGES and registered is None:
                yield value["module"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _ending(model: keras.Model, path: str | Path) -> tuple[Any, bool]:
    """The last operation of a model, and whether it is or ends in a softmax."""
    last = _last_operation(model)
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    softmax_layer = isinstance(last, keras.layers.Softmax)
    squashed = activation in ("sigmoid", "log_softmax") or type(last).__name__ in ("Sigmoid", "LogSoftmax")
    if squashed or (type(last).__name__ == "Softmax" and not softmax_layer):
        raise UserError(f"{path} ends in {type(last).__name__}, expected logits; save it with a linear last layer")
    return last, softmax_layer or activation == "softmax"


def _fitted(plain: keras.Model, path: str | Path, input_shape: tuple[int, ...]) -> keras.Model:
    """The model itself, or a copy of fixed input size that gives logits in float32 by fused batch normalization."""
    last, softmax = _ending(plain, path)
    every = layers.flatten_layers(plain)
    norms = any(type(layer) is keras.layers.BatchNormalization for layer in every)
    half = computes_in_half(plain)
    if not (softmax or norms or half or None in plain.inputs[0].shape[1:]):
        return plain

    def replace(layer: keras.Layer) -> keras.Layer:
        if softmax and layer is last and isinstance(last, keras.layers.Softmax):
            return keras.layers.Activation("linear", name=layer.name)
        made = in_float32(layer) if half else layers.copy_layer(layer)
        if softmax and layer is last:
            made = type(made).from_config({**made.get_config(), "activation": "linear"})
        fused = type(layer) is keras.layers.BatchNormalization
        return layers.FusedBatchNormalization.from_config(made.get_config()) if fused else made

    return layers.rebuilt(plain, replace, input_shape=input_shape, through=_softmax if softmax else None)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _last_operation(model: keras.Model) -> Any:
    last: Any = model
    while isinstance(last, keras.Model):
        last = last.layers[-1] if isinstance(last, keras.Sequential) else last.outputs[0]._keras_history.operation
    return last
