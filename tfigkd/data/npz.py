"""Reader of `.npz` files; their headers are checked before any pixels are read."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.data import hints
from tfigkd.data.decoded import decoded
from tfigkd.data.disk import BLOCK
from tfigkd.data.pictures import (
    check_memory,
    resize,
    to_rgb,
)
from tfigkd.data.sources import (
    ROLES,
    Notes,
    Source,
    SplitPart,
    cache_folder,
    given_splits,
    join_parts,
    kept_on_disk,
    numbered,
    refuse_twice,
    taken,
    unused,
)
from tfigkd.runtime.errors import UserError, readable
from tfigkd.runtime.files import checksum

MAX_NAMES = 2**24
"""Largest size of the names of all classes, in bytes."""
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PROBED_VALUES = 2**20
"""How many values of an array of another type are read to say what they are."""


def read_npz(path: Path, wanted: Reading) -> Source:
    """Read the arrays `x_train`, `y_train`, `x_test`, `y_test` and, if present, `class_names` of a file.

    Args:
        path: An `.npz` file: uint8 images [N,H,W], [N,H,W,1] or [N,H,W,3] and integer labels [N] or [N,1]. Other splits
            are the arrays x_NAME and y_NAME; groups are arrays GROUP_NAME of texts or integers [N].
        wanted: Size, splits and groups.

    Raises:
        UserError: The file is missing, damaged, too large, or has arrays of another kind.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; expected an .npz with x_train, y_train, x_test and y_test")
    notes = Notes()
    with readable(str(path), "save it again with np.savez"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            available = sorted(
                name[2:-4] for name in names if name.startswith("x_") and name.endswith(".npy") and len(name) > 6
            )
            chosen = given_splits(available, wanted.splits, str(path))
            chosen.setdefault("train", ("train",))
            if wanted.splits == SplitsConfig():
                chosen.setdefault("test", ("test",))
            elif "test" not in chosen and "test" in available and "test" not in taken(chosen):
                chosen["test"] = ("test",)
            refuse_twice(chosen)
            for split in sorted({*available} - taken(chosen)):
                notes.lines.append(unused("arrays", f"x_{split}", split))
            # Check headers first: a small file can declare arrays of terabytes.
            for split in (name for role in ROLES for name in chosen.get(role, ())):
                _check_headers(path, archive, split, wanted.group)
            if "class_names.npy" in names:
                shape, _, dtype = _header(path, archive, "class_names")
                if dtype.kind not in "USiu" or math.prod(map(int, (*shape, dtype.itemsize))) > MAX_NAMES:
                    raise UserError(
                        f"{path}: class_names is {dtype} {list(shape)}; expected one short text per class, such as "
                        "numpy.array(names, dtype=str)"
                    )
        with np.load(path, allow_pickle=False) as arrays:
            parts = {
                role: join_parts([_read_arrays(path, arrays, split, wanted) for split in splits])
                for role, splits in chosen.items()
            }
            given = arrays.get("class_names")
            names_given = None if given is None else [_text(name) for name in given.ravel()]
    train = parts["train"]
    class_names = _class_names(path, train.labels, names_given)
    return Source(train, parts.get("test"), class_names, parts.get("validation"), notes.said())


def _class_names(path: Path, labels: np.ndarray, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes: the given ones, or else the labels.

    Args:
        path: For messages.
        labels: int64 [N], of the training pictures.
        given: Those of the array class_names, or None.

    Raises:
        UserError: A label has no name; or there are no names, and the labels do not run from 0 without gaps.
    """
    if given is not None:
        if len(labels) and labels.max() >= len(given):
            most = labels.max()
            counted = labels.min() == 1 and most == len(given)
            raise UserError(
                f"{path}: y_train has labels to {most}, class_names names {len(given)} classes, 0 to {len(given) - 1}; "
                f"{'they count from 1, so subtract 1' if counted else 'name each class'}"
            )
        return tuple(given)
    present = np.unique(labels)
    if not np.array_equal(present, np.arange(len(present))):
        counted = np.array_equal(present, np.arange(1, len(present) + 1))
        raise UserError(
            f"{path}: y_train has {len(present)} labels from {present.min()} to {present.max()}; expected "
            "0 to classes - 1 without gaps, or an array class_names that names every class"
            f"{'; they count from 1, so subtract 1' if counted else ''}"
        )
    return tuple(str(label) for label in present)


def _text(name: Any) -> str:
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise UserError(f"class_names has {name!r}, which is not UTF-8; store it as an array of str") from error


def _read_arrays(path: Path, arrays: Any, split: str, wanted: Reading) -> SplitPart:
    """Return the arrays of a split of an `.npz` file, whose headers have been checked."""
    labels = arrays[f"y_{split}"]
    groups = None if wanted.group is None else arrays[f"{wanted.group}_{split}"]
    key, side = f"x_{split}", wanted.image_size
    shape, transposed, _ = _header(path, arrays.zip, key)
    on_disk = shape[0] > 0 and kept_on_disk(wanted, shape[0], (side or shape[1], side or shape[2], 3))
    if on_disk and transposed:
        raise UserError(f"{path}: {key} is in Fortran order and cannot be read in parts; save numpy.ascontiguousarray")
    if not on_disk:
        check_memory(f"{path}: {key}", (*shape[:3], 3))
        return numbered(resize(to_rgb(arrays[key]), side, wanted.fit), labels, split, groups)

    def read(start: int) -> Iterator[tuple[np.ndarray, Sequence[str]]]:
        with arrays.zip.open(f"{key}.npy") as file:
            HEADER_READERS[np.lib.format.read_magic(file)](file)
            length = math.prod(shape[1:])
            file.seek(file.tell() + start * length)
            for first in range(start, shape[0], BLOCK):
                count = min(BLOCK, shape[0] - first)
                block = np.frombuffer(file.read(count * length), np.uint8).reshape(count, *shape[1:])
                yield to_rgb(block), [f"{index} of {key}" for index in range(first, first + count)]

    content = checksum(path)
    lines = [f"{content} {key} {index}" for index in range(shape[0])]
    images, digests, _ = decoded(cache_folder(wanted, path.parent), lines, read, wanted)
    return numbered(images, labels, split, groups, digests)


def _check_headers(path: Path, archive: zipfile.ZipFile, split: str, group: str | None = None) -> None:
    """Check the arrays of a split by their headers, before any data are read.

    Raises:
        UserError: An array is missing, or has another dtype or shape than expected.
    """
    headers = {}
    for key in (f"x_{split}", f"y_{split}"):
        if f"{key}.npy" not in archive.namelist():
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            remedy = f"it has {names[:200] or 'none'}, so save them under these names"
            if split == "test":
                remedy = 'save them, or hold some of train out with data.splits.train = "train"'
            raise UserError(f"{path} has no array {key}; expected x_train, y_train, x_test and y_test; {remedy}")
        headers[key] = _header(path, archive, key)
    (shape, _, dtype), (label_shape, _, label_dtype) = headers.values()
    if dtype != np.uint8:
        hint = hints.of_pixels(dtype, _some_values(archive, f"x_{split}"))
        raise UserError(f"{path}: x_{split} is {dtype}; expected uint8 pixels 0 to 255{hint}")
    held, declared = archive.getinfo(f"x_{split}.npy").file_size, math.prod(map(int, shape))
    if held < declared:
        raise UserError(f"{path}: x_{split} is {list(shape)} by its header, but has {held:,} bytes; save it again")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        first = len(shape) == 4 and shape[1] in (1, 3)
        hint = "; channels come last: transpose(0, 2, 3, 1)" if first else ""
        if len(shape) == 4 and shape[3] == 4:
            hint = "; of RGBA take the first three channels, [..., :3], or save the pictures as files"
        raise UserError(f"{path}: x_{split} is {list(shape)}; expected [N,H,W], [N,H,W,1] or [N,H,W,3]{hint}")
    if label_dtype.kind not in "iu" or label_shape not in ((shape[0],), (shape[0], 1)):
        raise UserError(
            f"{path}: y_{split} is {label_dtype} {list(label_shape)}; expected one integer for each of the "
            f"{shape[0]} pictures{hints.of_labels(label_dtype, label_shape, shape[0])}"
        )
    if group is not None:
        key = f"{group}_{split}"
        if f"{key}.npy" not in archive.namelist():
            raise UserError(f"data.group: {path} has no array {key}; expected a group for each picture of {split}")
        group_shape, _, group_dtype = _header(path, archive, key)
        if group_shape != (shape[0],) or group_dtype.kind not in "USiu":
            raise UserError(
                f"{path}: {key} is {group_dtype} {list(group_shape)}; expected a text or an integer for each of the "
                f"{shape[0]} pictures"
            )


def _some_values(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """Return the first values of an array of numbers; nothing of objects, which are no plain values."""
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype = HEADER_READERS[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            return np.empty(0)
        count = min(math.prod(map(int, shape)), PROBED_VALUES)
        return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape of an array, whether it is in Fortran order, and its dtype; only its header is read.

    Raises:
        UserError: The array is not in a format of numpy.savez.
    """
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise UserError(f"{path}: {key} is not a plain array (format {version}); save it with np.savez")
        return HEADER_READERS[version](file)
