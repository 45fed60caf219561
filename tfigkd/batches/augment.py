"""Random geometry for image and map at once, and the overlay of the map on the image.

Every draw is stateless: a function of (seed, epoch, example id, purpose). So a resumed run repeats the draws of an
uninterrupted one, arms of one seed share them, and they do not depend on the order of the batches. Draws are NumPy's on
every backend; what moves and overlays pixels takes NumPy's arrays and JAX's.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data import to_model_input
from tfigkd.data.grid import spread


class Purpose(IntEnum):
    """What a draw is for. Each number is a part of its draws, so none may change; a new purpose starts at 1000."""

    ORDER = 0
    CROP_Y = 1
    CROP_X = 2
    FLIP = 3
    OVERLAY = 4
    EXPONENT = 5
    VIEW = 6
    MIX = 7
    CUT_Y = 8
    CUT_X = 9
    AREA = 10
    ASPECT = 11
    PASTE_Y = 12
    PASTE_X = 13
    WHICH = 14
    STRENGTH = 15
    OPERATION = 16
    """Of RandAugment's first operation; the next numbers are those of its further operations."""


GRAY = 122
"""What fills a cut square: about the mean of natural images."""
LARGEST_LOGARITHM = 87.0
"""Of a power that float32 holds; a map whose power has a larger one is divided by its maximum first."""
FINE = 256
"""Subpixel positions to a pixel in `gather`; integers, so that every backend gives the same pixels."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray) -> np.ndarray:
    """Return the finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def example_keys(ids: np.ndarray) -> np.ndarray:
    """Return ids [N] (16 hex digits, a duplicate with an ordinal: "…-1") as uint64 keys [N]."""
    digits, _, ordinals = np.strings.partition(ids.astype(str), "-")
    keys = np.array([int(digit, 16) for digit in digits], np.uint64)
    return keys + np.array([int(ordinal or 0) for ordinal in ordinals], np.uint64)


def uniform(keys: np.ndarray, *, seed: int, epoch: int | np.ndarray, purpose: int) -> np.ndarray:
    """Return uniform draws in [0, 1), float64 [N], one for each key; equal arguments give equal draws.

    Args:
        keys: uint64 [N], from `example_keys`.
        seed: The run's seed.
        epoch: The epoch, from 0; or one for each key, [N].
        purpose: What the draw is for, a `Purpose`: each has draws of its own.
    """
    state = np.asarray(keys, np.uint64)
    for word in (seed, epoch, purpose):
        state = _mix(state + _GOLDEN * np.asarray(word + 1, np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def geometry(
    keys: np.ndarray, size: tuple[int, int], config: AugmentConfig, *, seed: int, epoch: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row and column of a moved image lies in the image padded by `crop_padding` on all sides.

    Where crops are resized (`config.resizes`), places are counted in parts of a pixel, `FINE` to one.

    Args:
        keys: uint64 [B], from `example_keys`.
        size: Height and width of the images.
        config: Which of crop and flip to draw.
        seed: The run's seed.
        epoch: The epoch, from 0; or [B], where each example takes the geometry of an epoch, or a view, of its own.

    Returns:
        Rows [B,H] and columns [B,W], int32.
    """
    height, width = size
    if config.resizes:
        rows, columns = _resized_crop(keys, size, config, seed=seed, epoch=epoch)
        return rows, np.where(_flipped(keys, config, seed=seed, epoch=epoch)[:, None], columns[:, ::-1], columns)
    rows = np.broadcast_to(np.arange(height, dtype=np.int32), (len(keys), height))
    columns = np.broadcast_to(np.arange(width, dtype=np.int32), (len(keys), width))
    if config.flip:
        columns = np.where(_flipped(keys, config, seed=seed, epoch=epoch)[:, None], width - 1 - columns, columns)
    if config.crop_padding:
        span = 2 * config.crop_padding + 1
        rows = rows + (uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.CROP_Y) * span).astype(np.int32)[:, None]
        columns = (
            columns + (uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.CROP_X) * span).astype(np.int32)[:, None]
        )
    return rows, columns


def _flipped(keys: np.ndarray, config: AugmentConfig, *, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Return which images are flipped left to right, bool [B]."""
    if not config.flip:
        return np.zeros(len(keys), bool)
    if config.flip_order == "random":
        return uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.FLIP) < 0.5
    return (uniform(keys, seed=seed, epoch=0, purpose=Purpose.FLIP) < 0.5) ^ (np.asarray(epoch) % 2 == 1)


def _resized_crop(
    keys: np.ndarray, size: tuple[int, int], config: AugmentConfig, *, seed: int, epoch: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a crop of another size, and return where the pixels of the image that is made of it lie: `FINE` to a pixel.

    A side that would be longer than the image's is cut to it; torchvision's `RandomResizedCrop` draws again.
    """
    drawn = {
        purpose: uniform(keys, seed=seed, epoch=epoch, purpose=purpose)
        for purpose in (Purpose.AREA, Purpose.ASPECT, Purpose.CROP_Y, Purpose.CROP_X)
    }
    least, most = config.crop_area
    narrow, wide = np.log(config.crop_aspect)
    area = (least + (most - least) * drawn[Purpose.AREA]) * size[0] * size[1]
    aspect = np.exp(narrow + (wide - narrow) * drawn[Purpose.ASPECT])
    places = []
    for length, side, purpose in (
        (np.sqrt(area / aspect), size[0], Purpose.CROP_Y),
        (np.sqrt(area * aspect), size[1], Purpose.CROP_X),
    ):
        length = np.minimum(length, side)
        centers = (np.arange(side) + 0.5) * (length / side)[:, None] + (drawn[purpose] * (side - length))[:, None]
        places.append(np.rint(np.clip(centers - 0.5, 0, side - 1) * FINE).astype(np.int32))
    return places[0], places[1]


def gather(pixels: Any, rows: Any, columns: Any, config: AugmentConfig) -> Any:
    """Return the images [B,H,W,C] moved as `geometry` says; NumPy's arrays or JAX's.

    Outside the image are zeros, or with `crop_border="reflect"` the image mirrored at its edge pixels. Resized crops
    are interpolated between the four nearest pixels, and integers are rounded.

    Args:
        pixels: Integers or floats [B,H,W,C].
        rows: int32 [B,H], from `geometry`.
        columns: int32 [B,W], from `geometry`.
        config: What `geometry` was given.
    """
    xp = pixels.__array_namespace__()
    if config.resizes:
        in_bytes = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
        return (_interpolated_bytes if in_bytes else _interpolated)(pixels, rows, columns)
    padding = config.crop_padding
    if padding:
        mode = "constant" if config.crop_border == "zeros" else config.crop_border
        pixels = xp.pad(pixels, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    return pixels[xp.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _interpolated(pixels: Any, rows: Any, columns: Any) -> Any:
    """Return the images [B,H,W,C] between pixels, at places that are counted `FINE` to one."""
    xp = pixels.__array_namespace__()
    whole = xp.issubdtype(pixels.dtype, xp.integer)
    values = pixels.astype(xp.int32) if whole else pixels
    batch, (height, width) = xp.arange(len(pixels)), pixels.shape[1:3]
    top, left = rows // FINE, columns // FINE
    low, right = rows % FINE, columns % FINE
    upper, lower = values[batch[:, None], top], values[batch[:, None], xp.minimum(top + 1, height - 1)]
    lines = upper * (FINE - low)[..., None, None] + lower * low[..., None, None]
    before = lines[batch[:, None, None], xp.arange(height)[None, :, None], left[:, None, :]]
    after = lines[batch[:, None, None], xp.arange(height)[None, :, None], xp.minimum(left + 1, width - 1)[:, None, :]]
    weighted = before * (FINE - right)[:, None, :, None] + after * right[:, None, :, None]
    if not whole:
        return weighted / FINE**2
    return ((weighted + FINE**2 // 2) // FINE**2).astype(pixels.dtype)


def _interpolated_bytes(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return what `_interpolated` does of uint8, four times faster: an image at a time, in as few bits as it takes."""
    result = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    whole = FINE * FINE
    for out, image, row, column in zip(result, pixels, rows, columns, strict=True):
        top, left = row // FINE, column // FINE
        low = (row % FINE).astype(np.uint16)[:, None, None]  # 255 * FINE fits in 16 bits
        lines = image[top] * (np.uint16(FINE) - low) + image[np.minimum(top + 1, height - 1)] * low
        right = (column % FINE).astype(np.uint32)[:, None]
        weighted = lines.take(left, axis=1) * (np.uint32(FINE) - right)
        weighted += lines.take(np.minimum(left + 1, width - 1), axis=1) * right
        out[:] = (weighted + np.uint32(whole // 2)) // np.uint32(whole)
    return result


def cut_square(
    rows: np.ndarray, columns: np.ndarray, keys: np.ndarray, side: int, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mark a square in each moved image, as DeVries and Taylor (2017, arXiv 1708.04552): its rows and columns negative.

    The center is anywhere in the image, so that a part of the square may be outside.

    Args:
        rows: [B,H], from `geometry`.
        columns: [B,W].
        keys: uint64 [B], from `example_keys`.
        side: Side of the square in pixels.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Rows and columns, those of the square as their complement -1 - index.
    """
    marked = []
    for indices, purpose in ((rows, Purpose.CUT_Y), (columns, Purpose.CUT_X)):
        size = indices.shape[1]
        start = (uniform(keys, seed=seed, epoch=epoch, purpose=purpose) * size).astype(np.int32) - side // 2
        places = np.arange(size, dtype=np.int32)
        inside = (places >= start[:, None]) & (places < start[:, None] + side)
        marked.append(np.where(inside, ~indices, indices))
    return marked[0], marked[1]


def _fill_cut(moved: Any, inside: Any) -> Any:
    """Fill the pixels [B,H,W,3 or 4] that are inside the square with gray, and their map with zero."""
    xp = moved.__array_namespace__()
    fill = xp.asarray([GRAY, GRAY, GRAY, 0][: moved.shape[-1]], dtype=moved.dtype)
    return xp.where(inside[..., None], fill, moved)


def augmented(
    pixels: Any,
    rows: Any,
    columns: Any,
    exponents: Any,
    *,
    config: AugmentConfig,
    blend: Callable[[Any, Any, Any], Any],
    cut: bool = False,
    change: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Return moved images, the same with overlays, and their maps; NumPy's arrays or JAX's.

    Args:
        pixels: uint8 [B,H,W,3], or [B,H,W,4] with the maps.
        rows: From `geometry`; so are `columns`.
        columns: [B,W].
        exponents: From `overlay_exponents`; None overlays no map.
        config: What rows and columns were drawn with.
        blend: `overlay_some`, or what does the same where it cannot run: of images, maps and exponents.
        cut: Rows and columns are from `cut_square`, and the square is filled.
        change: What else is done to the moved images, before any overlay, or None.

    Returns:
        Images float32 [B,H,W,3] in [0,1] without and with overlays, and maps float32 [B,H,W] or None.
    """
    if cut:
        xp = rows.__array_namespace__()
        inside = (rows < 0)[:, :, None] & (columns < 0)[:, None, :]
        rows, columns = (xp.where(indices < 0, ~indices, indices) for indices in (rows, columns))
    moved = gather(pixels, rows, columns, config)
    if cut:
        moved = _fill_cut(moved, inside)
    clean = to_model_input(moved[..., :3])
    clean = clean if change is None else change(clean)
    maps = moved[..., 3].astype(np.float32) if moved.shape[-1] == 4 else None
    return clean, clean if exponents is None else blend(clean, maps, exponents), maps


def crop_and_flip(
    pixels: np.ndarray, keys: np.ndarray, config: AugmentConfig, *, seed: int, epoch: int | np.ndarray
) -> np.ndarray:
    """Crop and flip left to right, as `config` says.

    Args:
        pixels: [B,H,W,C]; a map that rides along as a further channel gets the image's geometry.
        keys: As for `geometry`; so are `config`, `seed` and `epoch`.

    Returns:
        An array of the shape and dtype of `pixels`.
    """
    rows, columns = geometry(keys, pixels.shape[1:3], config, seed=seed, epoch=epoch)
    return gather(pixels, rows, columns, config)


def move_coarse(
    maps: np.ndarray,
    side: tuple[int, int],
    keys: np.ndarray,
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int | np.ndarray,
) -> np.ndarray:
    """Crop and flip maps of a coarser grid as `crop_and_flip` does their images.

    A shift by some pixels is no whole number of cells: a new cell is the mean of what comes to lie in it. A network's
    own feature map of the moved image is close to that, and not equal.

    Args:
        maps: [B,h,w].
        side: Height and width of the images, multiples of h and w.
        keys: As for the images; so are `config`, `seed` and `epoch`.

    Returns:
        float32 [B,h,w].

    Raises:
        ValueError: `side` is no multiple of the grid.
    """
    pixels = spread(maps.astype(np.float32), side)[..., None]
    moved = crop_and_flip(pixels, keys, config, seed=seed, epoch=epoch)
    _, rows, columns = maps.shape
    return moved.reshape(len(maps), rows, side[0] // rows, columns, side[1] // columns).mean(axis=(2, 4))


def overlay(images: Any, maps: Any, exponents: Any) -> Any:
    """Overlay maps on images: 0.5 image + 0.5 m, with m the map to the power s, scaled to [0, 1].

    An image whose map is constant, and so ranks no pixel, is returned as it is. The scaling is per map, so that the
    unit of the attributions does not matter (arXiv 2503.13008, with the exponent of the published code).

    Args:
        images: float32 [B,H,W,C] in [0,1], NumPy's or JAX's.
        maps: [B,H,W], not negative, any unit.
        exponents: s > 0, [B].

    Returns:
        float32 [B,H,W,C] in [0,1].
    """
    xp = images.__array_namespace__()
    maps, exponents = maps.astype(np.float32), exponents.astype(np.float32)[:, None, None]
    largest = maps.max(axis=(1, 2), keepdims=True)
    logarithm = exponents * xp.log(xp.where(largest > 0, largest, 1))
    powered = (maps / xp.where(abs(logarithm) > LARGEST_LOGARITHM, largest, 1)) ** exponents
    low = powered.min(axis=(1, 2), keepdims=True)
    span = powered.max(axis=(1, 2), keepdims=True) - low
    constant = span == 0
    scaled = (powered - low) / xp.where(constant, 1, span)
    blended = np.float32(0.5) * (images + scaled[..., None])
    return xp.where(constant[..., None], images, blended).astype(np.float32)


def overlay_exponents(
    usable: np.ndarray, keys: np.ndarray, config: OverlayConfig, *, seed: int, epoch: int
) -> np.ndarray:
    """Draw which images of a batch carry an overlay, with probability `config.probability`, and each map's exponent.

    Args:
        usable: bool [B]; false for maps over the completeness gate, which are never overlaid.
        keys: uint64 [B], from `example_keys`.
        config: Probability and exponents.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        s, log-uniform between the exponents, float32 [B]; 0 where there is no overlay.
    """
    chosen = (uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.OVERLAY) < config.probability) & usable
    low, high = np.log(config.min_exponent), np.log(config.max_exponent)
    exponents = np.exp(low + (high - low) * uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.EXPONENT))
    return np.where(chosen, exponents, 0).astype(np.float32)


def overlay_some(images: np.ndarray, maps: np.ndarray | None, exponents: np.ndarray) -> np.ndarray:
    """Overlay the images that have an exponent, those of `overlay_exponents`.

    Args:
        images: float32 [B,H,W,C] in [0,1].
        maps: [B,H,W], in the geometry of the images; None dims as an overlay does and adds no map (a control).
        exponents: float32 [B], 0 where the image stays as it is.
    """
    chosen = exponents > 0
    if not chosen.any():
        return images
    result = images.copy()
    if maps is None:
        result[chosen] *= np.float32(0.5)
    else:
        result[chosen] = overlay(images[chosen], maps[chosen], exponents[chosen])
    return result
