"""Pictures decoded once into a file, with a journal of what is in it.

The file is named after everything that its pixels depend on, so the next run finds it; an interrupted decoding goes on
where it ended.
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
from typing import BinaryIO

import numpy as np

from tfigkd.config.data_fields import Reading
from tfigkd.data.disk import AT_ONCE, DiskPictures, damaged
from tfigkd.data.pictures import DIGEST_LENGTH, attempt, bombs_refused, check_size, digest, refusal
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, locked, read_signed, write_signed
from tfigkd.runtime.machine import cores

FOLDER = ".tfigkd"
"""Beside the data: the decoded pictures; readers of folders ignore hidden ones."""
FORMAT = 1
PILLOW = metadata.version("pillow")


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
            raise damaged(pixels)
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
