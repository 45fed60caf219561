"""Similarity of two models' attribution maps of the same images.

Maps differ in scale from model to model, so no measure here depends on scale. A constant map does not rank the pixels:
its rank correlation and its top overlap with any map are 0, and so is the cosine of a map of zeros.
"""

import numpy as np
from scipy import stats


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of the pixels of each pair of maps; equal pixels share their mean rank.

    Args:
        first: [B,H,W].
        second: [B,H,W].

    Returns:
        float64 [B], from -1 to 1; 0 if a map is constant.
    """
    ranks = [stats.rankdata(maps, axis=1) for maps in _flatten(first, second)]
    return _cosine(*(rank - rank.mean(axis=1, keepdims=True) for rank in ranks))


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine of the angle between each pair of maps.

    Args:
        first: [B,H,W].
        second: [B,H,W].

    Returns:
        float64 [B], from -1 to 1, non-negative for non-negative maps; 0 if a map is all zeros.
    """
    return _cosine(*_flatten(first, second))


def top_overlap(first: np.ndarray, second: np.ndarray, *, fraction: float = 0.1) -> np.ndarray:
    """Return the intersection over union of the highest pixels of each pair of maps.

    Pixels that tie for the last places each count in part, so that the result does not depend on their positions.

    Args:
        first: [B,H,W].
        second: [B,H,W].
        fraction: Share of the pixels that count as highest, in (0, 1]; at least one pixel counts.

    Returns:
        float64 [B], from 0 to 1; 0 if a map is constant.

    Raises:
        ValueError: `fraction` is out of range, or the maps are not as above.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    maps = _flatten(first, second)
    one, other = (_membership(values, max(1, round(fraction * values.shape[1]))) for values in maps)
    overlap = np.minimum(one, other).sum(axis=1) / np.maximum(one, other).sum(axis=1)
    constant = np.any([np.ptp(values, axis=1) == 0 for values in maps], axis=0)
    return np.where(constant, 0.0, overlap)


def _flatten(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 3 or first.shape != second.shape or not first.size:
        raise ValueError(f"maps must be two arrays [B,H,W] of one shape, got {first.shape} and {second.shape}.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("maps must be finite; check the model's weights for NaN and infinity.")
    return first.reshape(len(first), -1), second.reshape(len(second), -1)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    product = (first * second).sum(axis=1)
    return np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0).clip(-1, 1)


def _membership(maps: np.ndarray, count: int) -> np.ndarray:
    """Return the membership of each pixel in the highest `count` of its map [B,P]: 1, 0, or a fraction for ties."""
    threshold = np.partition(maps, -count, axis=1)[:, [-count]]
    above, ties = maps > threshold, maps == threshold
    return above + ties * (count - above.sum(axis=1, keepdims=True)) / ties.sum(axis=1, keepdims=True)
