"""Pictures that are larger than memory: read from the files that `decoded.py` makes, where they are used.

`DiskPictures` is indexed by its first axis as an array is, and gives arrays.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.pictures import digest
from tfigkd.runtime.errors import UserError

BLOCK = 256
"""Number of pictures that are read at once where all of them are needed."""
AT_ONCE = 2**26
"""Bytes of pictures that are decoded, read or computed with before they are written."""
Convert = Callable[[np.ndarray], np.ndarray]


class OpenFiles:
    """Files that are opened when they are first read, and by each process for itself; threads share them."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}

    def descriptor(self, which: int) -> int:
        """Return the descriptor of an open file.

        Raises:
            UserError: the file cannot be read.
        """
        if which not in self._open:
            try:
                opened = os.open(self.paths[which], os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"cannot read {self.paths[which]}: {error.strerror}; start the command again"
                ) from error
            if self._open.setdefault(which, opened) != opened:
                os.close(opened)  # another thread has opened it meanwhile
        return self._open[which]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # another process opens the files itself

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the end of Python there is no os
        for descriptor in self.__dict__.get("_open", {}).values():
            close(descriptor)


class DiskPictures:
    """Pictures uint8 [N,H,W,C] in one file or several; few of them are in memory at a time.

    Args:
        files: Each with pictures of one shape, one after the other.
        shape: (H, W, C) of each picture.
        places: int64 [N,2], for each picture the index of its file and its number in it.
        convert: Function applied to pictures uint8 [B,H,W,C] when they are read, or None.
        digests: For each file the `digest` of each picture, with which the picture is compared when it is read for the
            first time; None compares none.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        files: Sequence[Path],
        shape: Sequence[int],
        places: np.ndarray,
        convert: Convert | None = None,
        digests: Sequence[np.ndarray] | None = None,
    ):
        self._files = OpenFiles(files)
        self._one = tuple(int(side) for side in shape)
        self._places = np.asarray(places, np.int64).reshape(-1, 2)
        self._convert = convert
        self._digests = digests
        self._intact = [np.zeros(len(one), bool) for one in digests or ()]

    @classmethod
    def of(cls, file: Path, digests: np.ndarray, shape: Sequence[int]) -> "DiskPictures":
        """Return all pictures of one file, in its order.

        Args:
            file: N pictures of one shape, one after the other.
            digests: Unicode [N], the `digest` of each picture.
            shape: (H, W, C) of each picture.
        """
        places = np.stack([np.zeros(len(digests), np.int64), np.arange(len(digests))], axis=1)
        return cls([file], shape, places, digests=[digests])

    @property
    def on_disk(self) -> bool:
        """Whether any of the pictures are on disk."""
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self), *(self._one if self._convert is None else self._read(self._places[:0]).shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        chosen = self._places[first]
        found = self._read(chosen[None])[0] if chosen.ndim == 1 else self._read(chosen)
        return found[(slice(None),) * (found.ndim - 3) + tuple(rest)] if rest else found

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def pick(self, indices: Any) -> "DiskPictures":
        """Return some of the pictures, which are not read yet; indices as for an array's first axis."""
        return self._with(self._places[indices], self._convert)

    def converted(self, convert: Convert) -> "DiskPictures":
        """Return the pictures with a function of uint8 [B,H,W,C], also of none, applied whenever some are read."""
        assert self._convert is None
        return self._with(self._places, convert)

    def _with(self, places: np.ndarray, convert: Convert | None) -> "DiskPictures":
        chosen = DiskPictures(self._files.paths, self._one, places, convert, self._digests)
        chosen._intact = self._intact  # shared, so that each picture is compared once
        return chosen

    def _read(self, places: np.ndarray) -> np.ndarray:
        found = np.empty((len(places), *self._one), np.uint8)
        length = math.prod(self._one)
        for (which, number), picture in zip(places.tolist(), found, strict=True):
            if os.preadv(self._files.descriptor(which), [picture.reshape(-1).data], number * length) != length:
                raise damaged(self._files.paths[which])
            if self._digests is not None and not self._intact[which][number]:
                if digest(picture) != self._digests[which][number]:
                    raise damaged(self._files.paths[which])
                self._intact[which][number] = True
        return found if self._convert is None else self._convert(found)


def damaged(pixels: Path) -> UserError:
    """Return the error of a file of pictures that has changed; it says what to delete."""
    kept = " and ".join(str(pixels.with_suffix(ending)) for ending in (".json", ".journal"))
    return UserError(f"{pixels} is damaged; delete {kept}, so that the pictures are decoded again")


Pictures = np.ndarray | DiskPictures


class JoinedPictures(DiskPictures):
    """Pictures of several splits one after the other, of which some may be in memory.

    Args:
        parts: Pictures of one shape.
        places: int64 [N,2], for each picture the index of its part and its number in it; by default all.
        convert: As for `DiskPictures`.
    """

    def __init__(self, parts: Sequence[Pictures], places: np.ndarray | None = None, convert: Convert | None = None):
        if places is None:
            counts = [len(part) for part in parts]
            places = np.stack([np.repeat(range(len(parts)), counts), np.concatenate([*map(np.arange, counts)])], axis=1)
        super().__init__([], parts[0].shape[1:], places, convert)
        self._parts = tuple(parts)

    @property
    def on_disk(self) -> bool:
        """Whether any of the pictures are on disk."""
        return any(isinstance(part, DiskPictures) for part in self._parts)

    def _with(self, places: np.ndarray, convert: Convert | None) -> DiskPictures:
        return JoinedPictures(self._parts, places, convert)

    def _read(self, places: np.ndarray) -> np.ndarray:
        found = np.empty((len(places), *self._one), np.uint8)
        for which, part in enumerate(self._parts):
            here = places[:, 0] == which
            if here.any():
                found[here] = part[places[here, 1]]
        return found if self._convert is None else self._convert(found)


def pick(arrays: Any, indices: Any) -> Any:
    """Return some of the arrays [N,...], in this order; those on disk or in a store stay there."""
    return arrays[indices] if isinstance(arrays, np.ndarray) else arrays.pick(indices)


def join(parts: Sequence[Pictures]) -> Pictures:
    """Return pictures of several splits, of one shape, one after the other; an array if all are in memory."""
    if any(isinstance(part, DiskPictures) for part in parts):
        return JoinedPictures(parts)
    return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


def blocks(images: Pictures, size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the pictures as arrays of `size` of them; not given: of at most `AT_ONCE` bytes."""
    size = size or max(1, AT_ONCE // math.prod(images.shape[1:]))
    for start in range(0, len(images), size):
        yield images[start : start + size]
