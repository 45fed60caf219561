"""Pictures that are larger than memory: decoded once into a file, and read from it where they are used.

`DiskPictures` is indexed by its first axis as an array is, and gives arrays. The file is named after everything that
its pixels depend on, so the next run finds it; an interrupted decoding goes on where it ended.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfigkd.config.data_fields import Reading
from tfigkd.data.pictures import attempt, bombs_refused, check_size, refusal
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, locked, read_signed, write_signed
from tfigkd.runtime.machine import cores

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

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


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
                raise _damaged(self._files.paths[which])
            if self._digests is not None and not self._intact[which][number]:
                if digest(picture) != self._digests[which][number]:
                    raise _damaged(self._files.paths[which])
                self._intact[which][number] = True
        return found if self._convert is None else self._convert(found)


def _damaged(pixels: Path) -> UserError:
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

    def _with(self, places: np.ndarray, convert: Convert | None) -> DiskPictures:
        return JoinedPictures(self._parts, places, convert)

    def _read(self, places: np.ndarray) -> np.ndarray:
        found = np.empty((len(places), *self._one), np.uint8)
        for which, part in enumerate(self._parts):
            here = places[:, 0] == which
            if here.any():
                found[here] = part[places[here, 1]]
        return found if self._convert is None else self._convert(found)


def pick(images: Pictures, indices: Any) -> Pictures:
    """Return some pictures: of an array an array, of pictures on disk those on disk."""
    return images.pick(indices) if isinstance(images, DiskPictures) else images[indices]


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


FOLDER = ".tfigkd"
"""Beside the data: the decoded pictures; readers of folders ignore hidden ones."""
DIGEST_LENGTH = 16
FORMAT = 1
PILLOW = metadata.version("pillow")


def digest(image: np.ndarray) -> str:
    """Return the id of a picture, uint8 [H,W,3]: 16 hex digits of the SHA-256 of its pixels in C order."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:DIGEST_LENGTH]


Encoded = tuple[Sequence[bytes] | Sequence[Path] | np.ndarray, Sequence[str]]
"""Some pictures, encoded or as pixels uint8 [N,H,W,3], and their names in messages."""


def decoded(
    folder: Path,
    sources: Sequence[str],
    read: Callable[[int], Iterator[Encoded]],
    wanted: Reading,
) -> tuple[DiskPictures, np.ndarray, Counter[str]]:
    """Decode the pictures of a split to a file, if they have not been decoded before.

    Args:
        folder: Where the files are.
        sources: A line for each picture, which changes whenever its pixels may change.
        read: Function of the number of the first picture to be read; it yields blocks of encoded pictures.
        wanted: Size, background and fit.

    Returns:
        The pictures; the hash of the pixels of each, unicode [N]; and what was done to how many of them.

    Raises:
        UserError: As for `decode_all`; or the disk has too little space, or the folder cannot be written.
    """
    lines = hashlib.sha256("\n".join(sources).encode("utf-8", "surrogateescape")).hexdigest()
    fit = [] if wanted.fit == "stretch" else [wanted.fit]  # as in versions without it
    # another Pillow may decode otherwise
    identity = json.dumps([FORMAT, PILLOW, wanted.image_size, wanted.background, *fit, lines])
    name = hashlib.sha256(identity.encode()).hexdigest()[:DIGEST_LENGTH]
    pixels, journal, finished = (folder / f"{name}.{kind}" for kind in ("pixels", "journal", "json"))
    again = f"delete {finished} and {journal}, so that the pictures are decoded again"
    with _prepared(folder, finished):
        if not finished.is_file():
            _decode(pixels, journal, len(sources), read, wanted)
            write_signed(finished, {"journal": checksum(journal)})
        known = read_signed(finished, again, names=("journal",))
        shape, digests, done = _written(journal)
        size = len(sources) * math.prod(shape)
        if checksum(journal) != known["journal"] or not pixels.is_file() or pixels.stat().st_size != size:
            raise _damaged(pixels)
    hashes = np.array(digests)
    return DiskPictures.of(pixels, hashes, shape), hashes, done


@contextlib.contextmanager
def _prepared(folder: Path, finished: Path) -> Iterator[None]:
    """Lock the folder if its pictures have yet to be decoded, as another process may be decoding them.

    Raises:
        UserError: The folder cannot be made or locked.
    """
    if finished.is_file():
        yield
        return
    try:
        lock = contextlib.ExitStack()
        lock.enter_context(locked(folder, wait=True))
    except UserError as error:
        raise UserError(
            f"decoded pictures cannot be kept in {folder}; name a folder in --cache (data.cache)"
        ) from error
    with lock:
        yield


def _written(journal: Path) -> tuple[tuple[int, ...], list[str], Counter[str]]:
    """Return the shape and hashes of the pictures that are on disk, and what was done to how many of them.

    An incomplete last line, of a process that was killed, is taken off the journal.
    """
    shape: tuple[int, ...] = ()
    digests: list[str] = []
    done: Counter[str] = Counter()
    whole = 0
    with open(journal, "rb") if journal.is_file() else io.BytesIO() as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            shape = tuple(entry["shape"])
            digests += entry["digests"]
            done.update(entry["done"])
            whole += len(line)
    if journal.is_file() and journal.stat().st_size > whole:
        os.truncate(journal, whole)
    return shape, digests, done


def _decode(
    pixels: Path,
    journal: Path,
    count: int,
    read: Callable[[int], Iterator[Encoded]],
    wanted: Reading,
) -> None:
    """Decode the pictures that are not written yet; the journal gets a line for each block whose pixels are on disk.

    Raises:
        UserError: As for `decoded`.
    """
    shape, digests, _ = _written(journal)
    if digests and (not pixels.is_file() or pixels.stat().st_size < len(digests) * math.prod(shape)):
        journal.unlink()  # the pixels that it lists were deleted
        shape, digests = (), []
    position, first = len(digests), "the first picture"
    if wanted.image_size is not None:
        _check_space(pixels.parent, count - position, (wanted.image_size, wanted.image_size, 3))
    unusable: dict[int, UserError] = {}
    with bombs_refused(), ThreadPoolExecutor(cores()) as pool, open(pixels, "ab") as file:
        file.truncate(position * math.prod(shape) if shape else 0)
        for encoded, names in read(position):
            end = 0
            while end < len(names):
                start = end
                end = start + (max(1, AT_ONCE // math.prod(shape)) if shape else 1)
                found = [*pool.map(attempt, encoded[start:end], names[start:end], repeat(wanted))]
                good = [one for one in found if not isinstance(one, UserError)]
                unusable |= {position + index: one for index, one in enumerate(found) if isinstance(one, UserError)}
                position += len(found)
                if unusable:
                    continue  # all of them are named at once
                if not shape:
                    shape, first = good[0][0].shape, names[0]
                    _check_space(pixels.parent, count, shape)
                for (picture, _), name in zip(good, names[start:end], strict=True):
                    check_size(shape, first, picture.shape, name)
                    file.write(picture.tobytes())
                _note(journal, file, shape, good)
    if unusable:
        raise refusal(unusable, count)


def _note(
    journal: Path, pixels: BinaryIO, shape: Sequence[int], written: Sequence[tuple[np.ndarray, list[str]]]
) -> None:
    """Add a line for pictures to the journal, once their pixels are on disk."""
    pixels.flush()
    os.fsync(pixels.fileno())
    done = Counter(word for _, words in written for word in words)
    entry = {"shape": shape, "digests": [digest(picture) for picture, _ in written], "done": done}
    with open(journal, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def _check_space(folder: Path, count: int, shape: Sequence[int]) -> None:
    wanted, free = count * math.prod(shape), shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"{count:,} pictures of {shape[1]}x{shape[0]} take {wanted / 2**30:.1f} GiB on disk, {folder} has "
            f"{free / 2**30:.1f}; make room (it may hold files of earlier states of the data), give a smaller "
            "--image-size (data.image_size), or another folder in --cache (data.cache)"
        )
