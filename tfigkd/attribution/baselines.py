"""Baselines: images without information, the start of the path of Integrated Gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

BASELINES = ("black", "mean", "blur")


def blur_sigma(image_shape: Sequence[int]) -> float:
    """Return the standard deviation in pixels that removes the same detail at any size: an eighth of the shorter side.

    Args:
        image_shape: (H, W, ...) of the images.
    """
    return min(image_shape[:2]) / 8


def make_baseline(
    kind: Any,
    images: np.ndarray,
    *,
    mean_color: Sequence[float] | np.ndarray | None = None,
    sigma: float | None = None,
) -> np.ndarray:
    """Return the baseline of a batch of images.

    A pixel equal to its baseline gets no attribution, so with "black" the black pixels of an image get none. The mean
    color is zero after normalization. The blurred image differs from the image only where the image has detail.

    Args:
        kind: "black", "mean", "blur", or an array that broadcasts to the images.
        images: float [B,H,W,C] in [0,1].
        mean_color: Mean of each channel in [0,1]; used only by "mean".
        sigma: Standard deviation of the Gaussian in pixels; used only by "blur". By default `blur_sigma` of the images.

    Returns:
        float32 [1,H,W,C] if all images share one baseline, else [B,H,W,C].

    Raises:
        ValueError: The kind is unknown, or an argument that it needs is missing or invalid.
    """
    shared = (1, *images.shape[1:])
    if not isinstance(kind, str):
        return _broadcast(np.asarray(kind), images)
    if kind == "black":
        return np.zeros(shared, np.float32)
    if kind == "mean":
        if mean_color is None:
            raise ValueError(
                'baseline "mean" needs the mean color of the training images: '
                'baseline=make_baseline("mean", images, mean_color=...).'
            )
        color = np.asarray(mean_color, np.float32)
        if color.shape != images.shape[3:] or not ((color >= 0) & (color <= 1)).all():
            raise ValueError(f"mean_color must be {images.shape[3]} numbers in [0,1], got {mean_color}.")
        return np.broadcast_to(color, shared)
    if kind == "blur":
        sigma = blur_sigma(images.shape[1:]) if sigma is None else sigma
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}.")
        return ndimage.gaussian_filter(np.asarray(images, np.float32), (0, sigma, sigma, 0), mode="reflect")
    raise ValueError(f"baseline must be an array or one of {', '.join(BASELINES)}, got {kind!r}.")


def _broadcast(baseline: np.ndarray, images: np.ndarray) -> np.ndarray:
    if baseline.dtype.kind != "f":
        raise ValueError(f"a baseline array must be floats in the images' range [0,1], got {baseline.dtype}.")
    if not ((baseline >= 0) & (baseline <= 1)).all():
        raise ValueError(
            f"a baseline array must be finite, in the images' range [0,1], got {baseline.min()} to {baseline.max()}; "
            "divide pixels from 0 to 255 by 255."
        )
    own = baseline.ndim == images.ndim and len(baseline) == len(images)
    try:
        return np.broadcast_to(baseline.astype(np.float32), (len(images) if own else 1, *images.shape[1:]))
    except ValueError:
        raise ValueError(
            f"a baseline array must broadcast to the images, shape {images.shape}, got {baseline.shape}."
        ) from None
