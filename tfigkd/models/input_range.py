"""The range of pixel values that a model expects, inferred from its first layers: Rescaling, arithmetic and others."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.data.ranges import Affine, by_channel, range_of, scalar
from tfigkd.data.spaces import PIXELS, UNIT, Range
from tfigkd.models.graph import ARITHMETIC, float64_of, readers_of, single_graph
from tfigkd.runtime.errors import UserError

INPUT_RANGE = "input_range"
"""Name of the layer that maps [0,1] to the model's own range; a model that begins with it takes [0,1]."""
PASSED = (
    *(keras.layers.Dropout, keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.ZeroPadding2D),
    *(keras.layers.Resizing, keras.layers.CenterCrop, keras.layers.InputLayer, keras.layers.Identity),
)
"""Layers that leave the range of the pixels as it is; so do those whose name begins with Random."""
PASSED_OPERATIONS = ("GetItem", "Stack", "Concatenate", "Cast", "Flip", "Clip", "Pad", "RGBToGrayscale")
PROBED_VALUES = (0.0, 64.0, 128.0, 255.0)
"""Pixel values of the images of one color with which an operation in front of all others is probed."""
OPEN_SIDE = 8
"""Height and width of these images where those of the model are open."""


def infer_input_range(model: keras.Model) -> Range | None:
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
    found = _infer_range(first)
    if found is None and len(readers) == 1 and single_graph(readers[0].operation) is not None:
        found = infer_input_range(readers[0].operation)  # in which several may read the image
    if found is None and len(readers) > 1:
        told = {_infer_range(first, node) for node in readers}
        found = told.pop() if len(told) == 1 else None
    integer = "int" in keras.backend.standardize_dtype(first.inputs[0].dtype)
    return PIXELS if integer and found is None else found


def require_unit_range(model: keras.Model, given: Range | None = None, *, remedy: str = "") -> None:
    """Check that a model takes pixels from 0 to 1, as far as it shows.

    Args:
        model: Functional or Sequential, built.
        given: The range that the user states; by default that of `infer_input_range`.
        remedy: What else the user can do, after "give tfigkd.models.as_classifier(model)".

    Raises:
        UserError: It takes another range.
    """
    shown = infer_input_range(model) if given is None else given
    if shown is not None and tuple(shown) != UNIT:
        raise UserError(
            f"{model.name} takes pixels from {shown[0]:g} to {shown[1]:g}, expected images in [0,1]; give "
            f"tfigkd.models.as_classifier(model){remedy}"
        )


def _infer_range(model: keras.Model, start: Any = None) -> Range | None:
    return range_of([*_affine_parts(model, start)])


def _affine_parts(model: keras.Model, start: Any = None) -> Iterator[Affine]:
    untouched = True  # the image still has its own pixel values
    for operation, node in _leading(model, start):
        if operation.name == INPUT_RANGE:  # written by `with_input_range`
            yield Affine(scalar(1), scalar(-0.5))
            return
        part = _affine(operation, node)
        if part is None and untouched:
            part = _probed(operation, node)
        if part is None:
            return
        untouched = untouched and part.neutral
        yield part


def _leading(model: keras.Model, start: Any = None) -> Generator[tuple[Any, Any], None, bool]:
    """Yield the operations, with their nodes, that the image passes one after the other; models inside are entered.

    Args:
        model: Functional or Sequential.
        start: Which of the nodes that read the image is the first one; needed where there are several.

    Returns:
        Whether the last one makes the output of the model: none was left out.
    """
    bare = single_graph(model)
    if bare is None:
        return False
    tensor = bare.inputs[0]
    while tensor is not bare.outputs[0]:
        reading = readers_of(bare, tensor) if start is None else [start]
        start = None
        if len(reading) > 1 and all(type(node.operation).__name__ == "GetItem" for node in reading):
            # channels taken apart, as keras.applications turns RGB into BGR, until one operation joins them
            picked = [node.outputs[0] for node in reading]
            reading = readers_of(bare, picked[0])
        if len(reading) != 1:
            return False
        node = reading[0]
        if single_graph(node.operation) is None:
            yield node.operation, node
        elif not (yield from _leading(node.operation)):
            return False
        tensor = node.outputs[0]
    return True


def _affine(operation: Any, node: Any) -> Affine | None:
    """Return what an operation does to every pixel alike; None where it does something else."""
    kind = type(operation).__name__
    if isinstance(operation, PASSED) or kind.startswith("Random") or kind in PASSED_OPERATIONS:
        return Affine(scalar(1), scalar(0))
    if isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear:
        return Affine(scalar(1), scalar(0))
    if isinstance(operation, keras.layers.Rescaling):
        return Affine(np.asarray(operation.scale, float), np.asarray(operation.offset, float))
    if isinstance(operation, keras.layers.Normalization):
        fixed = operation.input_mean is not None
        mean, variance = (
            (operation.mean, operation.variance) if fixed else (operation.adapt_mean, operation.adapt_variance)
        )
        if not _of_channels(operation, node):  # a value for each pixel
            mean, variance = np.mean(float64_of(mean)), np.mean(float64_of(variance))
        return _statistics(mean, variance, operation.invert)
    if isinstance(operation, keras.layers.BatchNormalization):
        if not _of_channels(operation, node):
            return None
        return replace(_statistics(operation.moving_mean, operation.moving_variance), moving=True)
    if isinstance(operation, keras.layers.DepthwiseConv2D):
        linear = operation.activation is keras.activations.linear
        if set(operation.kernel_size) | set(operation.strides) | {operation.depth_multiplier} != {1} or not linear:
            return None
        bias = float64_of(operation.bias) if operation.use_bias else scalar(0)
        return Affine(float64_of(operation.kernel).reshape(-1), bias)
    return _arithmetic(kind, node)


def _probed(operation: Any, node: Any) -> Affine | None:
    """Return what an operation without weights does to images of one color; None where it is not affine in the color.

    Cropping, pooling, resizing, transposing and the mean of the channels leave the color as it is.
    """
    if len(node.input_tensors) != 1 or len(node.outputs) != 1 or getattr(operation, "weights", None):
        return None
    source = node.input_tensors[0]
    shape = [1, *(size or OPEN_SIDE for size in source.shape[1:])]
    colors = []
    for value in PROBED_VALUES:
        arguments, options = node.arguments.fill_in({id(source): ops.full(shape, value, source.dtype)})
        try:
            given = ops.convert_to_numpy(operation(*arguments, **options)).astype(np.float64)
        except (ValueError, TypeError, RuntimeError):  # it takes no other batch or size
            return None
        pixels = given.reshape(-1, given.shape[-1])
        if given.ndim < 3 or np.ptp(pixels, axis=0).max() > 1e-3:
            return None
        colors.append(pixels[0])
    scale, offset = (colors[-1] - colors[0]) / PROBED_VALUES[-1], colors[0]
    straight = all(
        np.allclose(scale * value + offset, color, atol=0.01)
        for value, color in zip(PROBED_VALUES, colors, strict=True)
    )
    return Affine(scale, offset) if straight and np.all(scale) else None


def _of_channels(layer: Any, node: Any) -> bool:
    """Return whether the statistics of a layer are of the channels, the last axis, or one for all values."""
    axes = {axis % len(node.outputs[0].shape) for axis in np.atleast_1d(() if layer.axis is None else layer.axis)}
    return axes <= {len(node.outputs[0].shape) - 1}


def _arithmetic(kind: str, node: Any) -> Affine | None:
    arguments = list(node.arguments.args)
    if kind not in ARITHMETIC or len(arguments) != 2:
        return None
    symbolic = [isinstance(one, keras.KerasTensor) for one in arguments]
    if sum(symbolic) != 1:
        return None
    constant = by_channel(np.asarray(ops.convert_to_numpy(arguments[symbolic.index(False)]), float))
    if kind in ("Add", "Subtract"):
        sign = -1.0 if kind == "Subtract" else 1.0
        return Affine(scalar(1), sign * constant) if symbolic[0] else Affine(scalar(sign), constant)
    if kind == "Multiply":
        return Affine(constant, scalar(0))
    return Affine(1 / constant, scalar(0)) if symbolic[0] else None


def _statistics(mean: Any, variance: Any, invert: bool = False) -> Affine:
    center, deviation = float64_of(mean).reshape(-1), np.sqrt(np.maximum(float64_of(variance), 1e-12)).reshape(-1)
    if invert:
        return Affine(deviation, center, statistics=True)
    return Affine(1 / deviation, -center / deviation, statistics=True)
