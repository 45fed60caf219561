"""Readers of local sources: the embedded digits, `.npz` files and image folders.

Each returns the pictures in the form that models use (uint8 RGB of one size), in the order of the source.
"""

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfigkd.data.pictures import PICTURE_SUFFIXES, check_memory, decode_all, reading, resize, to_rgb
from tfigkd.runtime.errors import UserError

MAX_NAMES = 2**24
"""Largest size of the names of all classes, in bytes."""
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, eq=False)
class Part:
    """One split in the order of its source: uint8 images [N,H,W,3], int64 labels [N], source ids [N]."""

    images: np.ndarray
    labels: np.ndarray
    source_ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Source:
    """The result of a reader; `test` is None if the source has no test split."""

    train: Part
    test: Part | None
    class_names: tuple[str, ...]


def read_digits(image_size: int | None) -> Source:
    """Read scikit-learn's 1,797 handwritten digits (8x8 gray levels 0 to 16, scaled to 0 to 255)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    part = _part(resize(to_rgb(images), image_size), digits.target, "digits")
    return Source(part, None, tuple(str(name) for name in digits.target_names))


def read_npz(path: Path, image_size: int | None) -> Source:
    """Read the arrays `x_train`, `y_train`, `x_test`, `y_test` and, if present, `class_names` of a file.

    Args:
        path: An `.npz` file: uint8 images [N,H,W], [N,H,W,1] or [N,H,W,3] and integer labels [N] or [N,1].
        image_size: Height and width to resize to, or None.

    Raises:
        UserError: The file is missing, damaged, too large, or has arrays of another kind.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; expected an .npz with x_train, y_train, x_test and y_test")
    with reading(str(path), "save it again with np.savez"):
        with zipfile.ZipFile(path) as archive:
            # Check headers first: a small file can declare arrays of terabytes.
            for split in ("train", "test"):
                _check_headers(path, archive, split)
            if "class_names.npy" in archive.namelist():
                shape, _, dtype = _header(path, archive, "class_names")
                if dtype.kind not in "USiu" or math.prod(map(int, (*shape, dtype.itemsize))) > MAX_NAMES:
                    raise UserError(f"{path}: class_names is {dtype} {list(shape)}; expected one short text per class")
        with np.load(path, allow_pickle=False) as arrays:
            parts = {
                split: _part(resize(to_rgb(arrays[f"x_{split}"]), image_size), arrays[f"y_{split}"], split)
                for split in ("train", "test")
            }
            names = arrays.get("class_names")
    if names is not None:
        return Source(parts["train"], parts["test"], tuple(str(name) for name in names.ravel()))
    present = np.unique(parts["train"].labels)
    if not np.array_equal(present, np.arange(len(present))):
        raise UserError(
            f"{path}: y_train has {len(present)} labels from {present.min()} to {present.max()}; expected "
            "0 to classes - 1 without gaps, or an array class_names that names every class"
        )
    return Source(parts["train"], parts["test"], tuple(str(label) for label in present))


def read_folder(root: Path, image_size: int | None) -> Source:
    """Read `train/<class>/*` with `test/`, `validation/` or `val/`, or only `<class>/*` without a test split.

    Classes are the folders of train in sorted order. Hidden files and files without the suffix of a picture are
    ignored; if there is a test folder, a validation folder is ignored too.

    Args:
        root: The folder.
        image_size: Height and width to resize to; may be None if all pictures have the same size.

    Raises:
        UserError: A picture is unreadable, too large or of another size, a link leaves the folder or is broken,
            a class has an unprintable name, or the folder has no class folders.
    """
    with reading(f"folder {root}", "check its files and permissions"):
        held_out = [split for split in ("test", "validation", "val") if (root / split).is_dir()]
        has_train = (root / "train").is_dir()
        if has_train != bool(held_out):
            raise UserError(
                f"folder {root} has only {'train' if has_train else held_out[0]}; expected train/<class>/ "
                "and test/<class>/ (or validation/ or val/), or only <class>/ folders"
            )
        class_names, train = _read_classes(root, root / "train" if has_train else root, image_size)
        if not has_train:
            return Source(train, None, class_names)
        _, test = _read_classes(root, root / held_out[0], image_size, class_names)
        return Source(train, test, class_names)


def _part(images: np.ndarray, labels: np.ndarray, name: str) -> Part:
    source_ids = np.array([f"{name}-{index:06d}" for index in range(len(labels))], dtype=str)
    return Part(images, labels.reshape(-1).astype(np.int64), source_ids)


def _check_headers(path: Path, archive: zipfile.ZipFile, split: str) -> None:
    """Check the kind of the arrays of a split by their headers, before any data are read."""
    headers = {}
    for key in (f"x_{split}", f"y_{split}"):
        if f"{key}.npy" not in archive.namelist():
            raise UserError(f"{path} has no array {key}; expected x_train, y_train, x_test and y_test")
        headers[key] = _header(path, archive, key)
    (shape, _, dtype), (label_shape, _, label_dtype) = headers.values()
    if dtype != np.uint8:
        hint = "; multiply by 255, round and convert" if dtype.kind == "f" else ""
        raise UserError(f"{path}: x_{split} is {dtype}; expected uint8 pixels 0 to 255{hint}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(f"{path}: x_{split} is {list(shape)}; expected [N,H,W], [N,H,W,1] or [N,H,W,3]")
    if label_dtype.kind not in "iu" or label_shape not in ((shape[0],), (shape[0], 1)):
        raise UserError(
            f"{path}: y_{split} is {label_dtype} {list(label_shape)}; expected one integer for each of the "
            f"{shape[0]} pictures"
        )
    check_memory(f"{path}: x_{split}", (*shape[:3], 3))


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, order and dtype of an array; only its header is read."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise UserError(f"{path}: {key} is not a plain array (format {version}); save it with np.savez")
        return HEADER_READERS[version](file)


def _read_classes(
    root: Path, folder: Path, image_size: int | None, expected: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Part]:
    """Read `folder/<class>/*`; with `expected`, raise an error for other classes."""
    files = {
        child.name: [file for file in sorted(_visible_children(root, child)) if file.suffix.lower() in PICTURE_SUFFIXES]
        for child in sorted(_visible_children(root, folder))
        if child.is_dir()
    }
    class_names = tuple(files) if expected is None else expected
    for name, members in files.items():
        if not name.isprintable():
            raise UserError(f"class folder {folder}/{name!a} is not named in printable UTF-8; rename it")
        if name not in class_names:
            raise UserError(f"{folder / name} is not a class of train ({', '.join(class_names[:10])})")
        for file in members:
            if not file.is_file():  # must not be opened: reading from a pipe would wait forever
                raise UserError(f"{file} is not a regular file but a folder, a pipe or a broken link; remove it")
        if not members:
            raise UserError(f"class folder {folder / name} has no pictures; add some or remove it")
    if not files:
        raise UserError(f"{folder} has no class folders; expected <class>/<picture> in it")
    paths = [path for members in files.values() for path in members]
    labels = [class_names.index(name) for name, members in files.items() for _ in members]
    images = decode_all(paths, [str(path) for path in paths], image_size)
    source_ids = np.array([path.relative_to(root).as_posix() for path in paths])
    return class_names, Part(images, np.array(labels, np.int64), source_ids)


def _visible_children(root: Path, folder: Path) -> list[Path]:
    """Return the children of a folder that are not hidden; raise an error for links to outside of `root`."""
    real_root = os.path.realpath(root)
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    for child in (folder, *children):
        # realpath, because Path.resolve raises an error for a cycle of links.
        if child != root and child.is_symlink() and not Path(os.path.realpath(child)).is_relative_to(real_root):
            raise UserError(f"{child} is a link that leaves {root}; copy its target there instead")
    return children
