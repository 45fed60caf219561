"""Random geometry for image and map at once, and the overlay of the map on the image.

Every draw is stateless: a function of (seed, epoch, example id, purpose). So a resumed run repeats the draws of an
uninterrupted one, arms of one seed share them, and the order of the batches has no part in them. Draws are NumPy's on
every backend; what moves and overlays pixels takes NumPy's arrays and JAX's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tfigkd.config.fields import AugmentConfig, OverlayConfig
from tfigkd.data import to_model_input
from tfigkd.data.grid import spread

ORDER, CROP_Y, CROP_X, FLIP, OVERLAY, EXPONENT, VIEW, MIX, CUT_Y, CUT_X = range(10)
GRAY = 122
"""What fills a cut square: about the mean of natural images."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray) -> np.ndarray:
    """Return the finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def example_keys(ids: np.ndarray) -> np.ndarray:
    """Ids [N] (16 hex digits, a duplicate with an ordinal: "…-1") as uint64 keys [N]."""
    digits, _, ordinals = np.strings.partition(ids.astype(str), "-")
    keys = np.array([int(digit, 16) for digit in digits], np.uint64)
    return keys + np.array([int(ordinal or 0) for ordinal in ordinals], np.uint64)


def uniform(keys: np.ndarray, *, seed: int, epoch: int | np.ndarray, purpose: int) -> np.ndarray:
    """Uniform draws in [0, 1), float64 [N], one for each key; equal arguments give equal draws."""
    state = np.asarray(keys, np.uint64)
    for word in (seed, epoch, purpose):
        state = _mix(state + _GOLDEN * np.asarray(word + 1, np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def geometry(
    keys: np.ndarray, size: tuple[int, int], config: AugmentConfig, *, seed: int, epoch: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row and column of a moved image lies in the image padded by `crop_padding` on all sides.

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
    rows = np.broadcast_to(np.arange(height, dtype=np.int32), (len(keys), height))
    columns = np.broadcast_to(np.arange(width, dtype=np.int32), (len(keys), width))
    if config.flip:
        alternate = config.flip_order == "alternate"
        flipped = uniform(keys, seed=seed, epoch=0 if alternate else epoch, purpose=FLIP) < 0.5
        if alternate:
            flipped = flipped ^ (np.asarray(epoch) % 2 == 1)
        columns = np.where(flipped[:, None], width - 1 - columns, columns)
    if config.crop_padding:
        span = 2 * config.crop_padding + 1
        rows = rows + (uniform(keys, seed=seed, epoch=epoch, purpose=CROP_Y) * span).astype(np.int32)[:, None]
        columns = columns + (uniform(keys, seed=seed, epoch=epoch, purpose=CROP_X) * span).astype(np.int32)[:, None]
    return rows, columns


def gather(pixels: Any, rows: Any, columns: Any, padding: int, border: str = "zeros") -> Any:
    """Return the images [B,H,W,C] moved as `geometry` says; NumPy's arrays or JAX's.

    At the border come in zeros, or with `border="reflect"` the image mirrored at its edge pixels.
    """
    xp = pixels.__array_namespace__()
    if padding:
        mode = "constant" if border == "zeros" else border
        pixels = xp.pad(pixels, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    return pixels[xp.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]


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
    for indices, purpose in ((rows, CUT_Y), (columns, CUT_X)):
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
    padding: int,
    lay: Callable[[Any, Any, Any], Any],
    border: str = "zeros",
    cut: bool = False,
) -> tuple[Any, Any, Any]:
    """Moved images, the same with overlays, and their maps; NumPy's arrays or JAX's.

    Args:
        pixels: uint8 [B,H,W,3], or [B,H,W,4] with the maps.
        rows: From `geometry`; so are `columns`.
        columns: [B,W].
        exponents: From `overlay_exponents`; None overlays no map.
        padding: Pixels that the geometry reaches beyond the images.
        lay: `overlay_some`, or what does the same where it cannot run: of images, maps and exponents.
        border: As for `gather`.
        cut: Rows and columns are from `cut_square`, and the square is filled.

    Returns:
        Images float32 [B,H,W,3] in [0,1] without and with overlays, and maps float32 [B,H,W] or None.
    """
    if cut:
        xp = rows.__array_namespace__()
        inside = (rows < 0)[:, :, None] & (columns < 0)[:, None, :]
        rows, columns = (xp.where(indices < 0, ~indices, indices) for indices in (rows, columns))
    moved = gather(pixels, rows, columns, padding, border)
    if cut:
        moved = _fill_cut(moved, inside)
    clean = to_model_input(moved[..., :3])
    maps = moved[..., 3].astype(np.float32) if moved.shape[-1] == 4 else None
    return clean, clean if exponents is None else lay(clean, maps, exponents), maps


def crop_and_flip(
    pixels: np.ndarray, keys: np.ndarray, config: AugmentConfig, *, seed: int, epoch: int | np.ndarray
) -> np.ndarray:
    """Shift by up to `crop_padding` pixels and flip left to right; at the border comes in what `crop_border` says.

    Args:
        pixels: [B,H,W,C]; a map that rides along as a further channel gets the image's geometry.
        keys: As for `geometry`; so are `config`, `seed` and `epoch`.

    Returns:
        An array of the shape and dtype of `pixels`.
    """
    rows, columns = geometry(keys, pixels.shape[1:3], config, seed=seed, epoch=epoch)
    return gather(pixels, rows, columns, config.crop_padding, config.crop_border)


def mixup_shares(keys: np.ndarray, alpha: float, *, seed: int, epoch: int) -> np.ndarray:
    """Return the share of its own image in each mixed image, drawn from Beta(alpha, alpha), float32 [B].

    The draws are a function of the seed, the epoch and the batch's examples in their order.
    """
    if alpha == 1:
        return uniform(keys, seed=seed, epoch=epoch, purpose=MIX).astype(np.float32)
    words = [seed, epoch, MIX, *np.atleast_1d(keys)[:1].tolist()]
    return np.random.default_rng(words).beta(alpha, alpha, len(keys)).astype(np.float32)


def mix(images: Any, shares: np.ndarray) -> Any:
    """Mix each image [B,H,W,C] with its partner, `shares` [B] of its own; NumPy's arrays or JAX's.

    The partner of image i is image B - 1 - i: batches are shuffled, and a control that moves images on by one within
    the batch meets other pairs.
    """
    own = shares[:, None, None, None]
    return own * images + (1 - own) * images[::-1]


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
    """Lay maps over images: 0.5 image + 0.5 m, with m the map to the power s, scaled to [0, 1].

    A constant map says nothing about any pixel; its image is returned as it is. The scaling is per map, so that the
    unit of the attributions does not matter (arXiv 2503.13008, with the exponent of the published code).

    Args:
        images: float32 [B,H,W,C] in [0,1], NumPy's or JAX's.
        maps: [B,H,W], not negative, any unit.
        exponents: s > 0, [B].

    Returns:
        float32 [B,H,W,C] in [0,1].
    """
    xp = images.__array_namespace__()
    powered = maps.astype(np.float32) ** exponents.astype(np.float32)[:, None, None]
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
    chosen = (uniform(keys, seed=seed, epoch=epoch, purpose=OVERLAY) < config.probability) & usable
    low, high = np.log(config.min_exponent), np.log(config.max_exponent)
    exponents = np.exp(low + (high - low) * uniform(keys, seed=seed, epoch=epoch, purpose=EXPONENT))
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
