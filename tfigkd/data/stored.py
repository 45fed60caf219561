"""Arrays of a store, such as maps and logits, which are read from its shards when they are indexed."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.disk import OpenFiles
from tfigkd.runtime.tfrecord import read_record


class StoredArrays:
    """One array of each of N records, all of one shape and dtype; few of them are in memory at a time.

    It is indexed by its first axes as an array [N,...] is, and gives arrays.

    Args:
        files: TFRecord files.
        places: int64 [N,2], N > 0: for each record the index of its file and the offset at which it begins.
        parse: From the data of a record to its array.

    Raises:
        UserError: A record is damaged; also when it is read later.
    """

    def __init__(self, files: Sequence[Path], places: np.ndarray, parse: Callable[[bytes], np.ndarray]):
        self._files, self._places, self._parse = OpenFiles(files), places, parse
        self._shown = np.ones(len(places), bool)
        one = self._record(*places[0].tolist())
        self.dtype, self._one = one.dtype, one.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return len(self), *self._one

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        rows = np.arange(len(self))[first]
        found = self._read(np.atleast_1d(rows))
        found = found[(np.arange(len(found)), *rest)] if rest else found
        return found if np.ndim(rows) else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def pick(self, indices: Any) -> "StoredArrays":
        """Return some of the arrays, which are not read yet; indices as for an array's first axis."""
        return self._with(self._places[indices], self._shown[indices])

    def only(self, shown: np.ndarray) -> "StoredArrays":
        """Return the arrays with zeros where `shown`, bool [N], is false."""
        return self._with(self._places, self._shown & shown)

    def _with(self, places: np.ndarray, shown: np.ndarray) -> "StoredArrays":
        other = copy.copy(self)
        other._files = OpenFiles(self._files.paths)
        other._places, other._shown = places, shown
        return other

    def _read(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), *self._one), self.dtype)
        for place, row in enumerate(rows.tolist()):
            if self._shown[row]:
                found[place] = self._record(*self._places[row].tolist())
        return found

    def _record(self, which: int, offset: int) -> np.ndarray:
        return self._parse(read_record(self._files.paths[which], self._files.descriptor(which), offset))


def masked(arrays: "np.ndarray | StoredArrays", shown: np.ndarray) -> "np.ndarray | StoredArrays":
    """Return arrays [N,...] with zeros where `shown`, bool [N], is false; those of a store stay there."""
    if isinstance(arrays, StoredArrays):
        return arrays.only(shown)
    return np.where(shown.reshape(-1, *[1] * (arrays.ndim - 1)), arrays, 0).astype(arrays.dtype)
