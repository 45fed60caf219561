"""The range of pixels that a LiteRT file takes: by its contract, the scale of its input, or its first operations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tfigkd.data.ranges import Affine, by_channel, composed, range_of, scalar
from tfigkd.data.spaces import PIXELS, SIGNED, UNIT, Range
from tfigkd.edge.litert import TYPE_CONVERSIONS, dequantize, file_operations, input_details

KEEPS_PIXEL_RANGE = (*TYPE_CONVERSIONS, "CAST", "RESHAPE", "PAD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
"""Operations that leave the range of the pixels as it is."""


def infer_input_range(interpreter: Any, contract: Mapping[str, Any] | None) -> Range | None:
    """Return the range of pixels that a contract states, or an integer input's scale or the first operations show.

    Args:
        interpreter: From `open_classifier`.
        contract: From `verified_contract`, or None.

    Returns:
        The values of a black and of a white pixel; None where nothing tells them.
    """
    about = (contract or {}).get("input")
    described = about.get("range") if isinstance(about, Mapping) else None
    if described:
        return float(described[0]), float(described[1])
    source = input_details(interpreter)
    return _range_of_integers(source) or _leading_range(interpreter)


def assumption(interpreter: Any, contract: Mapping[str, Any] | None, given: Range | None) -> str:
    """Return a note on the range of pixels that is assumed for a file; empty where the user or the file tells it.

    Args:
        interpreter: From `open_classifier`.
        contract: From `verified_contract`, or None.
        given: The range that the user gives.
    """
    if given is not None or infer_input_range(interpreter, contract) is not None:
        return ""
    return "note: pixels from 0 to 1 are assumed, as the file does not say; --input-range sets them"


def _range_of_integers(tensor: Mapping[str, Any]) -> Range | None:
    """Return the usual range that the scale of an integer input shows; None for floats and for unusual scales."""
    if np.issubdtype(tensor["dtype"], np.floating):
        return None
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    if not scale:
        return PIXELS if tensor["dtype"] == np.uint8 else None
    low, high = (float(scale * (limit - zero_point)) for limit in (limits.min, limits.max))
    if high > 16:
        # 16 bits are always symmetric; of 8 bits, low is far below zero for pixels minus 128
        return PIXELS if limits.bits > 8 or low > -high / 4 else (low, high)
    if limits.bits > 8:
        return None
    if high > 1.1 or low < -1.1:  # standardized pixels: the images of the calibration had black and white ones
        return low, high
    return SIGNED if low < -0.5 else UNIT


def _leading_range(interpreter: Any) -> Range | None:
    """Return the values of a black and of a white pixel that a file takes; None where its operations do not show it.

    Scale and offset together may be statistics of the training images, as a batch normalization becomes them: they
    show a range only where no other one is possible.

    Args:
        interpreter: From `open_classifier`.
    """
    operations = file_operations(interpreter)
    written = {int(index) for one in operations for index in one["outputs"]}
    tensors = {one["index"]: one for one in interpreter.get_tensor_details()}
    tensor, found = int(input_details(interpreter)["index"]), []
    while True:
        readers = [one for one in operations if tensor in one["inputs"]]
        constants = [int(index) for one in readers for index in one["inputs"] if int(index) not in {tensor, *written}]
        if len(readers) != 1:
            break
        values = [_values(interpreter, tensors[index]) for index in constants if index in tensors]
        part = _affine(readers[0]["op_name"], values, first=int(readers[0]["inputs"][0]) == tensor)
        if part is None:
            break
        found.append(part)
        tensor = int(readers[0]["outputs"][0])
    whole = composed(found)
    if whole.neutral:
        return range_of(found)
    return range_of([replace(whole, statistics=bool(np.any(whole.offset)), moving=True)])


def _values(interpreter: Any, tensor: dict[str, Any]) -> np.ndarray | None:
    """Return the values of a constant, one for each channel or one for all; None of a tensor that is not stored."""
    try:
        values = dequantize(interpreter.get_tensor(tensor["index"]), tensor).astype(np.float64)
    except ValueError:  # a tensor without data
        return None
    return by_channel(values)


def _affine(name: str, constants: list[np.ndarray | None], *, first: bool) -> Affine | None:
    """Return what an operation does to every pixel alike; None where it does something else.

    Args:
        name: Of the operation.
        constants: Its inputs that are stored in the file.
        first: Whether the image is the first of its inputs.
    """
    if name in KEEPS_PIXEL_RANGE:
        return Affine(scalar(1), scalar(0))
    constant = constants[0] if len(constants) == 1 else None
    if constant is None:
        return None
    if name == "MUL":
        return Affine(constant, scalar(0))
    if name == "ADD":
        return Affine(scalar(1), constant)
    if name == "SUB":
        return Affine(scalar(1), -constant) if first else Affine(scalar(-1), constant)
    if name == "DIV" and first and np.all(constant):
        return Affine(1 / constant, scalar(0))
    return None
