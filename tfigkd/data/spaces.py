"""Which values stand for black and white, and whether outputs are logits or probabilities."""

from typing import Any, Literal

import numpy as np

from tfigkd.data.disk import DiskPictures
from tfigkd.runtime.errors import UserError

Range = tuple[float, float]
"""The values of a black and of a white pixel."""
Outputs = Literal["logits", "probabilities"]

UNIT: Range = (0.0, 1.0)
PIXELS: Range = (0.0, 255.0)
SIGNED: Range = (-1.0, 1.0)
RANGES = (UNIT, PIXELS, SIGNED)
"""The usual ranges."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in gray (ITU-R BT.601), as in Pillow and Keras."""

SMALLEST_PROBABILITY = 1e-7
"""Smaller probabilities count as this, since zero has no logarithm."""
SUM_TOLERANCE = 1e-2


def in_range(images: np.ndarray, input_range: Range) -> np.ndarray:
    """Return float32 images in [0,1] with the values of another range."""
    low, high = input_range
    return images if input_range == UNIT else (low + (high - low) * images).astype(np.float32)


def check_range(given: Range) -> None:
    """Check the values of a black and of a white pixel.

    Raises:
        ValueError: They are not two, they are equal, or one is no finite number.
    """
    values = np.asarray(given)
    if values.shape != (2,) or values.dtype.kind not in "iuf":
        raise ValueError(f"expected two numbers, of a black and of a white pixel, such as 0 255, got {given!r}")
    if values[0] == values[1] or not np.isfinite(values).all():
        raise ValueError(f"expected different values for black and white, such as 0 255, got {given[0]} and {given[1]}")


def to_gray(images: Any) -> Any:
    """Return RGB images [...,3] as gray ones [...,1] of the same type; uint8 as Pillow's convert("L") rounds them.

    Pictures on disk stay there.
    """
    if isinstance(images, DiskPictures):
        return images.converted(to_gray)
    if images.dtype == np.uint8:
        shares = np.array([19595, 38470, 7471], np.uint32)  # of 2**16, in Pillow
        return ((images @ shares + 0x8000) >> 16).astype(np.uint8)[..., None]
    return (images @ np.array(LUMA, images.dtype))[..., None]


def noise_images(shape: tuple[int, ...]) -> np.ndarray:
    """Return images of independent uniform pixels, the same in every call: uint8 of a shape [N,H,W,C]."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def probe_images(shape: tuple[int, ...]) -> np.ndarray:
    """Return images that show whether a classifier gives logits or probabilities.

    Args:
        shape: (H, W, C) of each.

    Returns:
        float32 [6,H,W,C] in [0,1]: four images of noise, a black and a white one.
    """
    noise = np.random.default_rng(0).random((4, *shape), np.float32)
    return np.concatenate([noise, np.zeros((1, *shape), np.float32), np.ones((1, *shape), np.float32)])


def output_kind(values: np.ndarray, tolerance: float = SUM_TOLERANCE) -> Outputs:
    """Return whether outputs of a classifier are logits or probabilities.

    Args:
        values: [N,C]; with C = 1 the probability or the logit of the second of two classes.
        tolerance: Largest deviation of a row's sum from one.

    Returns:
        "probabilities" where no value is negative and each row sums to 1; for one output where all are in [0, 1].
    """
    rows = np.asarray(values, np.float64)
    if rows.shape[1] == 1:
        return "probabilities" if rows.min() >= 0 and rows.max() <= 1 else "logits"
    sums = bool((np.abs(rows.sum(axis=1) - 1) <= tolerance).all())
    return "probabilities" if rows.min() >= 0 and sums else "logits"


def to_logits(values: np.ndarray, outputs: Outputs) -> np.ndarray:
    """Return outputs [N,C] as logits of at least two classes.

    One output, a logit z or a probability, is that of the second of two classes, whose logits are [-z/2, z/2].
    """
    if outputs == "probabilities":
        logits = np.log(np.maximum(values, SMALLEST_PROBABILITY))
        if values.shape[1] == 1:
            logits = logits - np.log(np.maximum(1 - values, SMALLEST_PROBABILITY))
    else:
        logits = values
    return np.concatenate([-logits / 2, logits / 2], axis=1) if logits.shape[1] == 1 else logits


def require_finite_outputs(outputs: np.ndarray, what: str) -> np.ndarray:
    """Return the outputs of a model, which are checked.

    Args:
        outputs: Of any shape.
        what: The model, for the message.

    Raises:
        UserError: They hold NaN or infinity.
    """
    if not np.isfinite(outputs).all():
        raise UserError(f"{what} gives NaN or infinity; look at its weights, and at the values of its pixels")
    return outputs
