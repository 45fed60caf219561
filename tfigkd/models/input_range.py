"""The range of pixel values that a model expects, recognized by its first layers: Rescaling, arithmetic and others."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.data.spaces import PIXELS, SIGNED, UNIT, Range
from tfigkd.models.graph import ARITHMETIC, readers_of, single_graph

INPUT_RANGE = "input_range"
"""Name of the layer that maps [0,1] to the model's own range; a model that begins with it takes [0,1]."""
SMALLEST_SCALE = 0.1
"""Smallest factor for pixels from 0 to 1; a smaller one is for larger pixel values, since networks compute with values
of about -3 to 3."""
LARGEST_VALUE = 6.0
"""Largest absolute value that a scaled black or white pixel may have; above it another range is assumed."""
PASSED = (
    *(keras.layers.Dropout, keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.ZeroPadding2D),
    *(keras.layers.Resizing, keras.layers.CenterCrop, keras.layers.InputLayer, keras.layers.Identity),
)
"""Layers that leave the range of the pixels as it is; so do those whose name begins with Random."""
PASSED_OPERATIONS = ("GetItem", "Stack", "Concatenate", "Cast", "Flip", "Clip", "RGBToGrayscale")


@dataclass(frozen=True)
class _Affine:
    """An operation `scale · x + offset`, with a value for each channel or one for all."""

    scale: np.ndarray
    offset: np.ndarray
    statistics: bool = False
    """Whether scale and offset are a deviation and a mean that were measured on images."""
    moving: bool = False
    """Whether these are moving averages, which hold much of their initial variance of 1 after a short training."""

    @property
    def neutral(self) -> bool:
        """Whether it changes nothing."""
        return bool(np.allclose(self.scale, 1, atol=0.02) and np.allclose(self.offset, 0, atol=1e-3))


def _scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float64)


def recognize_input_range(model: keras.Model) -> Range | None:
    """Return the values of a black and of a white pixel that a model shows it was made for.

    The type of the input tells, and the operations that a single image passes first: Rescaling, Normalization, batch
    normalization, 1x1 depthwise convolutions and arithmetic with constants, as keras.applications' `preprocess_input`
    does it; models inside the model are read too. Where several read the image, as in an ensemble, all have to agree.

    Args:
        model: Functional or Sequential, built.

    Returns:
        (0, 255), (0, 1), (-1, 1) or another range; None where the model does not tell.
    """
    first = single_graph(model)
    if first is None:
        return None
    readers = readers_of(first, first.inputs[0])
    found = _told_by(first)
    if found is None and len(readers) > 1:
        told = {_told_by(first, node) for node in readers}
        found = told.pop() if len(told) == 1 else None
    integer = "int" in keras.backend.standardize_dtype(first.inputs[0].dtype)
    return PIXELS if integer and found is None else found


def _told_by(model: keras.Model, start: Any = None) -> Range | None:
    return _range_of([part for part in _affine_parts(model, start) if not part.neutral])


def _range_of(parts: list[_Affine]) -> Range | None:
    if not parts:
        return None
    scale, offset = _scalar(1), _scalar(0)
    for part in parts:
        scale, offset = part.scale * scale, part.scale * offset + part.offset
    if not np.all(scale):
        return None
    center = float(np.mean(-offset / scale))  # the value that becomes zero, which is about the mean pixel
    if abs(center) > 1e-3:
        if len(parts) == 1 and parts[0].statistics and 0 < center <= 1:
            # no values in [0,1] of this mean have a larger variance (Bhatia, Davis 2000)
            within = np.mean(1 / scale**2) <= center * (1 - center) + 0.02
            if within:
                return UNIT
            return None if parts[0].moving else SIGNED
        if center > 1:
            return _pixels(scale, offset, measured=any(part.statistics for part in parts))
        return UNIT if center > 0 else SIGNED if center >= -1.01 else None
    if len(parts) > 1 and np.allclose(scale, 1, atol=0.02):
        # the first operation is undone by the others: they say what it has to give
        rest, first = _range_of(parts[1:]), parts[0]
        if rest is None:
            return None
        low, high = ((value - np.mean(first.offset)) / np.mean(first.scale) for value in rest)
        return round(float(low), 6), round(float(high), 6)
    if np.mean(np.abs(scale)) >= SMALLEST_SCALE:
        return UNIT
    return _pixels(scale, offset, measured=any(part.statistics for part in parts))


def _pixels(scale: np.ndarray, offset: np.ndarray, *, measured: bool) -> Range | None:
    """Return (0, 255) where `scale · x + offset` makes values for a network of it, else from 0 to what becomes 1.

    Args:
        scale: A value for each channel or one for all.
        offset: The same.
        measured: Whether they are statistics of images, which do not tell where the values end.
    """
    black, white = float(np.mean(offset)), float(np.mean(scale * 255 + offset))
    largest = max(abs(black), abs(white))
    if 0.5 <= largest <= LARGEST_VALUE or np.mean(np.abs(scale)) >= 0.5:  # as where a mean alone is subtracted
        return PIXELS
    if measured:
        return PIXELS if largest < 4 * LARGEST_VALUE else None  # of dark images
    high = round(float(np.mean((1 - offset) / scale)), 6)  # white becomes 1
    return (0.0, high) if high > 0 else None


def _affine_parts(model: keras.Model, start: Any = None) -> Iterator[_Affine]:
    for operation, node in _leading(model, start):
        if operation.name == INPUT_RANGE:  # written by `with_input_range`
            yield _Affine(_scalar(1), _scalar(-0.5))
            return
        part = _affine(operation, node)
        if part is None:
            return
        yield part


def _leading(model: keras.Model, start: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield the operations, with their nodes, that the image passes one after the other; models inside are entered.

    Args:
        model: Functional or Sequential.
        start: Which of the nodes that read the image is the first one; needed where there are several.
    """
    bare = single_graph(model)
    if bare is None:
        return
    tensor = bare.inputs[0]
    while tensor is not bare.outputs[0]:
        reading = readers_of(bare, tensor) if start is None else [start]
        start = None
        if len(reading) > 1 and all(type(node.operation).__name__ == "GetItem" for node in reading):
            # channels taken apart, as keras.applications turns RGB into BGR, until one operation joins them
            picked = [node.outputs[0] for node in reading]
            reading = readers_of(bare, picked[0])
        if len(reading) != 1:
            return
        node = reading[0]
        if single_graph(node.operation) is not None:
            yield from _leading(node.operation)
        else:
            yield node.operation, node
        tensor = node.outputs[0]


def _affine(operation: Any, node: Any) -> _Affine | None:
    """Return what an operation does to every pixel alike; None where it does something else."""
    kind = type(operation).__name__
    if isinstance(operation, PASSED) or kind.startswith("Random") or kind in PASSED_OPERATIONS:
        return _Affine(_scalar(1), _scalar(0))
    if isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear:
        return _Affine(_scalar(1), _scalar(0))
    if isinstance(operation, keras.layers.Rescaling):
        return _Affine(np.asarray(operation.scale, float), np.asarray(operation.offset, float))
    if isinstance(operation, keras.layers.Normalization):
        fixed = operation.input_mean is not None
        mean, variance = (
            (operation.mean, operation.variance) if fixed else (operation.adapt_mean, operation.adapt_variance)
        )
        return _statistics(mean, variance, operation.invert)
    if isinstance(operation, keras.layers.BatchNormalization):
        return replace(_statistics(operation.moving_mean, operation.moving_variance), moving=True)
    if isinstance(operation, keras.layers.DepthwiseConv2D):
        linear = operation.activation is keras.activations.linear
        if set(operation.kernel_size) | set(operation.strides) | {operation.depth_multiplier} != {1} or not linear:
            return None
        bias = _array(operation.bias) if operation.use_bias else _scalar(0)
        return _Affine(_array(operation.kernel).reshape(-1), bias)
    return _arithmetic(kind, node)


def _arithmetic(kind: str, node: Any) -> _Affine | None:
    arguments = list(node.arguments.args)
    if kind not in ARITHMETIC or len(arguments) != 2:
        return None
    symbolic = [isinstance(one, keras.KerasTensor) for one in arguments]
    if sum(symbolic) != 1:
        return None
    constant = np.asarray(ops.convert_to_numpy(arguments[symbolic.index(False)]), float).reshape(-1)
    if kind in ("Add", "Subtract"):
        sign = -1.0 if kind == "Subtract" else 1.0
        return _Affine(_scalar(1), sign * constant) if symbolic[0] else _Affine(_scalar(sign), constant)
    if kind == "Multiply":
        return _Affine(constant, _scalar(0))
    return _Affine(1 / constant, _scalar(0)) if symbolic[0] else None


def _statistics(mean: Any, variance: Any, invert: bool = False) -> _Affine:
    center, deviation = _array(mean).reshape(-1), np.sqrt(np.maximum(_array(variance), 1e-12)).reshape(-1)
    if invert:
        return _Affine(deviation, center, statistics=True)
    return _Affine(1 / deviation, -center / deviation, statistics=True)


def _array(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype("float64")
