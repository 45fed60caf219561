"""A user-provided model, read from a .keras file and adapted: images in [0,1] to logits."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import special

from tfigkd.data import to_model_input
from tfigkd.data.disk import Pictures, blocks
from tfigkd.data.spaces import UNIT, Outputs, Range, to_gray, to_logits
from tfigkd.models import batch_norm
from tfigkd.models.adapt import PROBED_IMAGES, graph_as_classifier, logits_of, with_rgb
from tfigkd.models.cost import UNCOMPILED
from tfigkd.models.equivalence import TOLERANCE, close, tolerance_of
from tfigkd.models.input_range import infer_input_range
from tfigkd.models.keras_file import load_model
from tfigkd.models.output_end import last_operation
from tfigkd.models.precision import HALF, OTHERS, computes_in, with_precision
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, expanded

ROUNDING = 1e-5
"""Relative change of images by which is measured how much rounding moves the outputs."""


def load_classifier(
    path: str | Path,
    *,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Load a Functional or Sequential classifier as a model from images in [0,1] to logits; see `graph_as_classifier`.

    Stock batch normalization becomes the fused one, an open image size the size given. A model of gray images takes RGB
    images if these are asked for.

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
    plain, wanted = _fitting(path, num_classes, input_shape)
    gray = plain.inputs[0].shape[-1] == 1 and wanted[2] == 3
    if gray:
        wanted, images = (*wanted[:2], 1), None if images is None else to_gray(images[:PROBED_IMAGES])
    try:
        model = graph_as_classifier(plain, input_shape=wanted, input_range=input_range, outputs=outputs, images=images)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if computes_in(model, OTHERS):
        model = with_precision(model, "float32")
    model = batch_norm.with_fused_batch_norm(model)
    if model is not plain:
        _check_against(plain, model, input_range, path)
    return with_rgb(model) if gray else model


def _check_against(plain: keras.Model, model: keras.Model, input_range: Range | None, path: str | Path) -> None:
    """Check that a classifier has the outputs of the model that plain Keras opened, in the classifier's spaces."""
    images, taken = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:])) / 255, input_range
    taken = taken or infer_input_range(plain) or UNIT
    expected = _outputs(plain, images, taken)
    logits = ops.convert_to_numpy(model(images.astype("float32"), training=False)).astype("float64")
    shares = special.softmax(logits, axis=-1)
    forms = [logits, shares, np.log(np.maximum(shares, 1e-300)), logits[:, 1:] - logits[:, :1], shares[:, 1:]]
    forms = [form for form in forms if form.shape == expected.shape]
    tolerance = max(tolerance_of(plain), TOLERANCE)
    if any(close(form, expected, tolerance) for form in forms):
        return
    # a network of huge gains moves as much by rounding; the layers themselves have been compared one by one
    moved = np.abs(_outputs(plain, images * (1 - ROUNDING), taken) - expected).max()
    if not any(np.abs(form - expected).max() <= moved * TOLERANCE / ROUNDING for form in forms):
        raise UserError(
            f"{path} as this package reads it has other outputs than in plain Keras; declare --input-range and "
            "--outputs (of a student in a run: --student.input_range, --student.outputs), or report this model as a bug"
        )


def _outputs(plain: keras.Model, images: np.ndarray, taken: Range) -> np.ndarray:
    """Return the outputs of a model, float64, for images in [0,1]; it takes them in its own range and type."""
    values, dtype = taken[0] + images * (taken[1] - taken[0]), keras.backend.standardize_dtype(plain.inputs[0].dtype)
    values = np.round(values) if "int" in dtype else values
    return ops.convert_to_numpy(ops.cast(plain(values.astype(dtype), training=False), "float32")).astype("float64")


class ReferenceClassifier:
    """A .keras classifier as plain Keras opens it, which all that is made of the file is compared with.

    Nothing is rebuilt: every layer is the one that Keras made, with the state that the file holds. A softmax or sigmoid
    at the end is switched off in place, so that the outputs are logits.

    Args:
        path: The file.
        input_range: As for `load_classifier`.
        outputs: As for `load_classifier`.

    Attributes:
        half: Whether the model computes in half precision, and so rounds more than a float32 file.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """

    def __init__(self, path: str | Path, *, input_range: Range | None = None, outputs: Outputs | None = None):
        self.model = load_model(Path(path))
        self.half = computes_in(self.model, HALF)
        self._range = input_range or infer_input_range(self.model) or UNIT
        last, activation = last_operation(self.model)
        self._convert: Callable[[Any], Any] | None = None
        if activation in ("softmax", "sigmoid", "log_softmax") and outputs != "logits":
            if isinstance(last, keras.layers.Layer) and not isinstance(last, keras.layers.Softmax):
                last.activation = keras.activations.linear
            else:  # a Softmax layer or a function of keras.ops
                last.call = _identity
        else:
            try:
                self._convert = logits_of(self.model, outputs)
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error

    def __call__(self, images: np.ndarray, training: bool = False) -> np.ndarray:
        """Return the logits [B,C], float32, of images in [0,1], gray ones or RGB."""
        if images.shape[-1] == 3 and self.model.inputs[0].shape[-1] == 1:
            images = to_gray(images)
        outputs = _outputs(self.model, images, self._range)
        if self._convert is not None:
            outputs = ops.convert_to_numpy(self._convert(outputs.astype("float32")))
        return to_logits(outputs, "logits").astype("float32")

    def logits(self, pixels: Pictures, *, batch_size: int = 256) -> np.ndarray:
        """Return the logits [N,C], float32, of uint8 images; large ones go through the model one by one."""
        count = max(1, min(batch_size, UNCOMPILED // math.prod(pixels.shape[1:3])))
        return np.concatenate([self(to_model_input(block)) for block in blocks(pixels, count)])


def _identity(inputs: Any, mask: Any = None) -> Any:
    return inputs


def load_own_classifier(path: str | Path, *, num_classes: int, input_shape: Sequence[int]) -> keras.Model:
    """Load a model that this package saved: it takes images in [0,1] and gives logits, and nothing of that is inferred.

    Args:
        path: A .keras file.
        num_classes: Number of classes that it must have.
        input_shape: (H, W, C) of the images that it must take.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes], with fused batch normalization.

    Raises:
        UserError: As `load_classifier`.
    """
    return batch_norm.with_fused_batch_norm(_fitting(path, num_classes, input_shape)[0])


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
    if len(takes) == 3 and takes[2] not in (None, 1, 3) and takes[0] in (1, 3):
        raise UserError(
            f"{path} takes inputs of shape {takes}, channels first; save it for images whose channels come last, such "
            "as with a Permute((3, 1, 2)) layer in front"
        )
    if len(takes) != 3:
        raise UserError(
            f"{path} takes inputs of shape {takes}, expected images (height, width, channels); save it with a Reshape "
            "layer in front"
        )
    fitting = takes if (takes[2], wanted[2]) != (1, 3) else (*takes[:2], 3)  # gray is made of RGB
    if any(own not in (None, size) for own, size in zip(fitting, wanted, strict=True)):
        raise UserError(f"{path} takes inputs of shape {takes}, but the images are {wanted}; {_remedy(takes, wanted)}")
    gives = tuple(model_output.shape[1:])
    two = gives == (1,) and num_classes in (None, 2)
    if len(gives) != 1 or not (two or num_classes is None or gives == (num_classes,)):
        expected = "classes" if num_classes is None else num_classes
        remedy = "give the data that it was made for" if len(gives) == 1 else "save it with a Flatten layer at its end"
        raise UserError(
            f"{path} gives outputs of shape {gives}, expected ({expected},): a logit for each class; {remedy}"
        )
    return model, wanted


def _remedy(takes: Sequence[int | None], wanted: Sequence[int]) -> str:
    """Return what makes images fit a model of another input shape (H, W, C)."""
    height, width, channels = takes
    if channels not in (None, wanted[2]):
        return f"save it for images of {wanted[2]} channels"
    if height != width:
        return "leave out --image-size if the pictures have that size, else resize them first"
    option = f"teacher.image_size {height} (student.image_size)"
    return f"give --image-size {height}; in a run also --{option}, with which it resizes the images itself"


def image_size_of(path: str | Path) -> int | None:
    """Return height and width of the images that a .keras file takes; None where they are open or differ.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """
    inputs = getattr(load_model(Path(path)), "inputs", None) or []
    sides = {*inputs[0].shape[1:3]} if len(inputs) == 1 and len(inputs[0].shape) == 4 else set()
    return sides.pop() if len(sides) == 1 else None


def channels_of(path: str | Path) -> int:
    """Return the number of channels of the images that a .keras file takes; 3 where it is open.

    Raises:
        UserError: The file is missing, unreadable or refused.
    """
    inputs = getattr(load_model(Path(path)), "inputs", None) or []
    return (inputs[0].shape[3] if len(inputs) == 1 and len(inputs[0].shape) == 4 else None) or 3


def pixels_said(path: str, input_range: Range | None, *, remedy: str = "--input-range sets them") -> str:
    """Return a phrase for the last line of a command: which pixel values a .keras file is given, and why.

    Args:
        path: The file.
        input_range: As the command was given it, if at all.
        remedy: What to do where the range is assumed.
    """
    shown = input_range_of(path)
    low, high = input_range or shown or UNIT
    why = "as given" if input_range else "as its first layers tell" if shown else f"assumed; {remedy}"
    return f"pixels from {low:g} to {high:g}, {why}"


def input_range_of(path: str) -> Range | None:
    """Return the input range that a .keras file shows, see `input_range.infer_input_range`; read once a content."""
    return _shown_range(expanded(path), checksum(expanded(path)))


@functools.lru_cache(maxsize=8)
def _shown_range(path: Path, content: str) -> Range | None:
    """Return the input range that a file of this checksum shows."""
    return infer_input_range(load_model(path))
