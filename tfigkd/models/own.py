"""The user's own model, read from a .keras file and made to fit: images in, logits out."""

import functools
import json
import math
import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfigkd.models.fake_quant  # noqa: F401 - registers what a quantized student is made of
from tfigkd.data.pictures import reading
from tfigkd.data.spaces import Outputs, Range
from tfigkd.models import layers
from tfigkd.models.spaces import classifier, recognise_input_range
from tfigkd.runtime.errors import UserError

CONFIGS = ("config.json", "metadata.json")
MEMBER = re.compile(r"config\.json|metadata\.json|model\.weights\.(h5|npz)|assets/[\w./-]*", re.ASCII)
PACKAGES = ("keras", "tfigkd", "builtins")
MAX_CONFIG = 2**26
MAX_BYTES = 2**32
"""Of a .keras file, unpacked; `MAX_CONFIG` of the description of its layers."""


def load_own(
    path: str | Path,
    *,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Load a Functional or Sequential classifier as a model from images in [0,1] to logits; see `spaces.classifier`.

    Stock batch normalization becomes the fused one, an open image size the size given.

    Args:
        path: A .keras file, read in safe mode: code inside it is refused.
        num_classes: Number of classes that it must have; without it, as many as it has. One output is two classes.
        input_shape: (H, W, C) of the images that it must take; without it, those that it takes.
        input_range: The values of a black and of a white pixel that it takes; without it, as its first layers tell,
            else (0, 1).
        outputs: "logits" or "probabilities"; without it, what its end and its outputs tell.
        images: uint8 [N,H,W,C], on which its outputs are looked at.

    Returns:
        A Functional model from images [B,H,W,C], float32 in [0,1], to logits [B,num_classes], not compiled.

    Raises:
        UserError: The file is missing, unreadable or refused, or the model does not fit.
    """
    model, wanted = _fitting(path, num_classes, input_shape)
    try:
        model = classifier(model, input_shape=wanted, input_range=input_range, outputs=outputs, images=images)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return layers.with_fused_layers(model)


def load_written(path: str | Path, *, num_classes: int, input_shape: Sequence[int]) -> keras.Model:
    """Load a file that this package wrote, from images in [0,1] to logits whatever its layers look like.

    Raises:
        UserError: As `load_own`.
    """
    return layers.with_fused_layers(_fitting(path, num_classes, input_shape)[0])


def _fitting(
    path: str | Path, num_classes: int | None, input_shape: Sequence[int] | None
) -> tuple[keras.Model, tuple[int, ...]]:
    """Return the model of a file, and the size of its images; refuse one that does not fit."""
    model = load_model(Path(path))
    try:
        (model_input,), (model_output,) = model.inputs, model.outputs
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} must hold a Functional or Sequential model with one image as input and one output; "
            "save one that was built so"
        ) from error
    takes = tuple(model_input.shape[1:])
    wanted = takes if input_shape is None else tuple(input_shape)
    if None in wanted:
        raise UserError(f"{path} takes images of any size {takes}; give the size that it is meant for: --image-size")
    if len(takes) != 3 or any(own not in (None, size) for own, size in zip(takes, wanted, strict=True)):
        raise UserError(f"{path} takes inputs of shape {takes}, but the images are {wanted}; make them agree")
    gives = tuple(model_output.shape[1:])
    two = gives == (1,) and num_classes in (None, 2)
    if len(gives) != 1 or not (two or num_classes is None or gives == (num_classes,)):
        expected = "classes" if num_classes is None else num_classes
        raise UserError(f"{path} gives outputs of shape {gives}, expected ({expected},): a logit for each class")
    return model, wanted


def own_image_size(path: str | Path) -> int | None:
    """Return height and width of the images that a .keras file takes; None where they are open or differ.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """
    inputs = getattr(load_model(Path(path)), "inputs", None) or []
    sides = {*inputs[0].shape[1:3]} if len(inputs) == 1 and len(inputs[0].shape) == 4 else set()
    return sides.pop() if len(sides) == 1 else None


@functools.lru_cache(maxsize=8)
def own_input_range(path: str, checksum: str) -> Range | None:
    """Return the input range that a .keras file shows, see `spaces.recognise_input_range`; read once a content.

    Args:
        path: The file.
        checksum: Of its content.
    """
    return recognise_input_range(load_model(Path(path)))


def load_model(path: Path) -> Any:
    """Return the model of a .keras file, of any kind, as Keras opens it in safe mode.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """
    if not path.is_file():
        raise UserError(f"no model file {path}; give the path of a .keras file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .keras file; save the model anew with model.save")
    config, stored = _inspect(path)
    try:
        if _values(config) > stored:  # a value takes a byte at least
            raise ValueError(f"its layers have more values than the {stored:,} bytes of its weights can hold")
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the file makes it stumble over
        message = " ".join(str(error).split())
        if "lambda" in message.lower():
            raise UserError(
                f"{path} contains a lambda, which could run any code and is refused; use a stock layer in its place"
            ) from error
        raise UserError(
            f"cannot load {path} ({type(error).__name__}: {message[:200]}); save the model anew with stock layers"
        ) from error


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
            model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
            return sum(math.prod(variable.shape) for variable in model.variables)
    finally:
        random.setstate(state)


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
