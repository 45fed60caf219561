"""The range of pixel values that the first operations of a network show, each of them `scale · x + offset`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfigkd.data.spaces import PIXELS, SIGNED, UNIT, Range

SMALLEST_SCALE = 0.1
"""Smallest factor for pixels from 0 to 1; a smaller one is for larger pixel values, since networks compute with values
of about -3 to 3."""
LARGEST_VALUE = 6.0
"""Largest absolute value that a scaled black or white pixel may have; above it another range is assumed."""


@dataclass(frozen=True)
class Affine:
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


def scalar(value: float) -> np.ndarray:
    """Return a number as the scale or offset of all channels."""
    return np.asarray(value, np.float64)


def by_channel(constant: np.ndarray) -> np.ndarray:
    """Return a constant as a value for each channel, its last axis, or one for all; of several pixels the mean."""
    return constant.reshape(-1, constant.shape[-1]).mean(axis=0) if constant.ndim else constant


def composed(operations: Sequence[Affine]) -> Affine:
    """Return the scale and offset of operations that an image passes one after the other."""
    scale, offset = scalar(1), scalar(0)
    for part in operations:
        scale, offset = part.scale * scale, part.scale * offset + part.offset
    return Affine(scale, offset)


def range_of(operations: Sequence[Affine]) -> Range | None:
    """Return the values of a black and of a white pixel that a network takes; None where it does not show them.

    Args:
        operations: What the image passes first, in this order; neutral ones count for nothing.
    """
    parts = [part for part in operations if not part.neutral]
    if not parts:
        return None
    whole = composed(parts)
    scale, offset = whole.scale, whole.offset
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
        rest, first = range_of(parts[1:]), parts[0]
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
    if 0.5 <= largest <= LARGEST_VALUE or np.mean(np.abs(scale)) >= 0.5:  # as where only a mean is subtracted
        return PIXELS
    if measured:
        return PIXELS if largest < 4 * LARGEST_VALUE else None  # of dark images
    high = round(float(np.mean((1 - offset) / scale)), 6)  # white becomes 1
    return (0.0, high) if high > 0 else None
