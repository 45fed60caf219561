"""Store only the k largest logits and the total of the rest, to save space with many classes."""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from tfigkd.data.disk import pick
from tfigkd.data.stored import StoredArrays

MOST_CLASSES = 2**16 - 1
"""Classes are stored as uint16."""


def spread_rest(logits: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return logits in which all classes but the chosen ones have the same logit.

    The total probability of these other classes stays the same at temperature 1. At a higher temperature it is a little
    larger than that of the original logits.

    Args:
        logits: [...,C].
        indices: [...,k], the classes that keep their logits; k from 1 to C.

    Returns:
        float32 [...,C]; with k = C the logits themselves.
    """
    rest = logits.astype(np.float32).copy()
    np.put_along_axis(rest, indices, -np.inf, axis=-1)
    others = logits.shape[-1] - indices.shape[-1]
    filled = np.zeros(logits.shape, np.float32)
    if others:
        filled += (logsumexp(rest, axis=-1, keepdims=True) - np.log(others)).astype(np.float32)
    np.put_along_axis(filled, indices, np.take_along_axis(logits.astype(np.float32), indices, axis=-1), axis=-1)
    return filled


def pack(logits: np.ndarray, count: int) -> np.ndarray:
    """Return logits as they are stored: the k largest, their classes, and the one logit of all other classes.

    Args:
        logits: float32 [...,C], C at most `MOST_CLASSES`.
        count: k from 1 to C.

    Returns:
        uint16 [...,2k+2]: the bits of k logits as float16, k classes, the bits of the other classes' logit, and C.

    Raises:
        ValueError: There are more classes.
    """
    if logits.shape[-1] > MOST_CLASSES:
        raise ValueError(f"pack() takes at most {MOST_CLASSES} classes, got {logits.shape[-1]}.")
    order = np.argsort(-logits, axis=-1, kind="stable")  # of equal ones the first class comes first
    indices, smallest = order[..., :count], order[..., -1:]
    filled = spread_rest(logits, indices)
    values, rest = (np.take_along_axis(filled, each, axis=-1) for each in (indices, smallest))
    classes = np.full(rest.shape, logits.shape[-1])
    bits = [each.astype("<f2").view("<u2") for each in (values, rest)]
    return np.concatenate([bits[0], indices.astype("<u2"), bits[1], classes.astype("<u2")], axis=-1)


def chosen_classes(packed: np.ndarray) -> np.ndarray:
    """Return the classes of the stored logits, int64 [...,k]."""
    count = packed.shape[-1] // 2 - 1
    return packed[..., count : 2 * count].astype(np.int64)


def unpack(packed: np.ndarray) -> np.ndarray:
    """Return logits float16 [...,C] from what `pack` made of them: as `spread_rest`, to the rounding of float16."""
    count, classes = packed.shape[-1] // 2 - 1, int(packed[..., -1].flat[0]) if packed.size else 0
    values, rest = (np.ascontiguousarray(each).view("<f2") for each in (packed[..., :count], packed[..., -2:-1]))
    logits = np.repeat(rest, classes, axis=-1)
    np.put_along_axis(logits, chosen_classes(packed), values, axis=-1)
    return logits


def finite(values: np.ndarray) -> np.ndarray:
    """Return which of floats [N,...], or of packed logits, uint16 [N,...], are all finite numbers, bool [N]."""
    if values.dtype == np.uint16:
        count = values.shape[-1] // 2 - 1
        values = np.concatenate([values[..., :count], values[..., -2:-1]], axis=-1).view("<f2")
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)


class TopLogits:
    """Logits that are kept as `pack` returns them, and unpacked when they are indexed.

    It is indexed by its first axes as an array [N,...,C] is, and gives arrays, float16.

    Args:
        packed: uint16 [N,...,2k+2], N > 0, from `pack`; in memory or in the files of a store.
    """

    dtype = np.dtype(np.float16)

    def __init__(self, packed: np.ndarray | StoredArrays):
        self.packed = packed
        self._classes = unpack(packed[:1]).shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ..., C)."""
        return *self.packed.shape[:-1], self._classes

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, key: Any) -> np.ndarray:
        return unpack(self.packed[key])

    def pick(self, indices: Any) -> "TopLogits":
        """Return some of the examples; indices as for an array's first axis."""
        return TopLogits(pick(self.packed, indices))


StoredViews = np.ndarray | StoredArrays | TopLogits
"""Logits or attention of K views, [N,K,...]."""
