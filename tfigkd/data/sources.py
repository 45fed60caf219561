"""Readers of local sources: the embedded digits, `.npz` files, image folders and `.csv` lists of pictures.

Each returns the pictures in the form that models use (uint8 RGB of one size), in the order of the source.
"""

import csv
import io
import math
import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfigkd.config.fields import BACKGROUND, SplitsConfig
from tfigkd.config.reading import closest
from tfigkd.data import hints
from tfigkd.data.disk import BLOCK, FOLDER, Pictures, decoded, join
from tfigkd.data.pictures import (
    PICTURE_SUFFIXES,
    bombs_refused,
    check_memory,
    decode_all,
    free_memory,
    is_picture,
    open_picture,
    reading,
    refusal,
    resize,
    to_rgb,
)
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum

SHARE = 0.25
"""Share of the free memory that the pictures of a split may take: they are copied when they are sorted and cropped."""
MAX_NAMES = 2**24
"""Largest size of the names of all classes, in bytes."""
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
LOOKED_AT = 2**20
"""How many values of an array of another type are read to say what they are."""
ROLES = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}
"""Usual names of splits, in lower case."""
UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".cr2", ".nef", ".dng", ".svg", ".psd"})
"""Endings of pictures in formats that are not decoded."""
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
"""Folders that operating systems leave beside pictures; ignored like hidden ones."""


@dataclass(frozen=True, eq=False)
class Part:
    """One split in the order of its source: uint8 images [N,H,W,3], int64 labels [N], source ids [N].

    Pictures with the same text in `groups` [N] stay on one side of every split that is held out. `digests` [N] are the
    hashes of their pixels, where they are known.
    """

    images: Pictures
    labels: np.ndarray
    source_ids: np.ndarray
    groups: np.ndarray | None = None
    digests: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """The result of a reader; `test` or `validation` is None if the source has no such split.

    Each of the `notes` is a line on what was left out or changed, and how often.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    validation: Part | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """How a source is read; see the fields of `tfigkd.config.fields.DataConfig` with the same names."""

    image_size: int | None = None
    background: str = BACKGROUND
    group: str | None = None
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    resident: Literal["auto", "memory", "disk"] = "auto"
    cache: str | None = None

    def on_disk(self, pictures: int, shape: Sequence[int]) -> bool:
        """Return whether decoded pictures of a shape (H, W, 3) are kept on disk."""
        if self.resident == "auto":
            return pictures * math.prod(shape) > free_memory() * SHARE
        return self.resident == "disk"

    def folder(self, beside: Path) -> Path:
        """Return where they are kept: the folder of the config, or one in the folder of the data."""
        return Path(self.cache).expanduser() if self.cache else beside / FOLDER


@dataclass
class Notes:
    """What a reader leaves out or changes: counts of what was done to pictures, endings left out, and other lines."""

    done: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def said(self) -> tuple[str, ...]:
        """Return one line for each kind."""
        said = [f"{count:,} picture{'s' * (count != 1)} {what}" for what, count in self.done.items()]
        if self.endings:
            listed = ", ".join(f"{count:,} {ending}" for ending, count in self.endings.most_common())
            remedy = "; save them as .jpg to use them" if UNREAD & self.endings.keys() else ""
            files = f"{self.endings.total():,} file{'s' * (self.endings.total() != 1)}"
            said.append(f"left out {files} of no known picture format ({listed}){remedy}")
        return (*said, *self.lines)


def given_splits(available: Collection[str], splits: SplitsConfig, where: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the splits that a config gives to each role, such as `{"train": ("train", "extra")}`.

    Raises:
        UserError: A split does not exist, is named twice, or only a part of it is asked for.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for role in ROLES:
        text = getattr(splits, role)
        if text is None:
            continue
        names = tuple(name.strip() for name in text.split("+"))
        for name in names:
            if "[" in name:
                raise UserError(f"data.splits.{role} = {text!r}: only tfds sets can be sliced; name a split of {where}")
            if name not in available:
                raise UserError(f"data.splits.{role}: {where} has no split {name!r}; {closest(name, available)}")
        chosen[role] = names
    twice = [name for name, count in Counter(sum(chosen.values(), ())).items() if count > 1]
    if twice:
        raise UserError(f"data.splits names {twice[0]!r} twice; a picture must be in one split")
    return chosen


def usual(role: str, names: Collection[str], *, but: Collection[str] = ()) -> list[str]:
    """Return those of some names that are usual for a role, in any case of letters, the most usual first."""
    found = [name for name in names if name.lower() in ROLES[role] and name not in but]
    return sorted(found, key=lambda name: (ROLES[role].index(name.lower()), name.lower() != name, name))


def _taken(chosen: Mapping[str, Sequence[str]]) -> set[str]:
    return {name for names in chosen.values() for name in names}


def read_digits(wanted: Wanted) -> Source:
    """Read scikit-learn's 1,797 handwritten digits (8x8 gray levels 0 to 16, scaled to 0 to 255)."""
    from sklearn.datasets import load_digits

    refuse_group("digits", wanted)
    given_splits(("train",), wanted.splits, "digits")
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    part = _part(resize(to_rgb(images), wanted.image_size), digits.target, "digits")
    return Source(part, None, tuple(str(name) for name in digits.target_names))


def refuse_group(where: str, wanted: Wanted) -> None:
    """Raise an error if groups are asked for in a source that has none."""
    if wanted.group is not None:
        raise UserError(f"data.group = {wanted.group!r}: {where} has no groups; leave it out")


def read_npz(path: Path, wanted: Wanted) -> Source:
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
    with reading(str(path), "save it again with np.savez"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            available = sorted(
                name[2:-4] for name in names if name.startswith("x_") and name.endswith(".npy") and len(name) > 6
            )
            chosen = given_splits(available, wanted.splits, str(path))
            chosen.setdefault("train", ("train",))
            if wanted.splits == SplitsConfig():
                chosen.setdefault("test", ("test",))
            elif "test" not in chosen and "test" in available and "test" not in _taken(chosen):
                chosen["test"] = ("test",)
            for split in sorted({*available} - _taken(chosen)):
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
            class_names = arrays.get("class_names")
    train = parts["train"]
    if class_names is not None:
        names = [str(name) for name in class_names.ravel()]
        if len(train.labels) and train.labels.max() >= len(names):
            most = train.labels.max()
            counted = train.labels.min() == 1 and most == len(names)
            raise UserError(
                f"{path}: y_train has labels to {most}, class_names names {len(names)} classes, 0 to {len(names) - 1}; "
                f"{'they count from 1, so subtract 1' if counted else 'name each class'}"
            )
    else:
        present = np.unique(train.labels)
        if not np.array_equal(present, np.arange(len(present))):
            counted = np.array_equal(present, np.arange(1, len(present) + 1))
            raise UserError(
                f"{path}: y_train has {len(present)} labels from {present.min()} to {present.max()}; expected "
                "0 to classes - 1 without gaps, or an array class_names that names every class"
                f"{'; they count from 1, so subtract 1' if counted else ''}"
            )
        names = [str(label) for label in present]
    return Source(train, parts.get("test"), tuple(names), parts.get("validation"), notes.said())


def join_parts(parts: Sequence[Part]) -> Part:
    """Return the parts of one split, one after the other.

    Raises:
        UserError: Their pictures differ in size.
    """
    if len(parts) == 1:
        return parts[0]
    sizes = {part.images.shape[1:] for part in parts}
    if len(sizes) > 1:
        texts = " and ".join(sorted(f"{width}x{height}" for height, width, _ in sizes))
        raise UserError(f"pictures of one split are {texts}; set data.image_size to resize them")
    labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "source_ids"))
    groups = [part.groups for part in parts if part.groups is not None]
    digests = [part.digests for part in parts if part.digests is not None]
    return Part(
        join([part.images for part in parts]),
        labels,
        ids,
        np.concatenate(groups) if groups else None,
        np.concatenate(digests) if len(digests) == len(parts) else None,
    )


def unused(kind: str, what: str, split: str) -> str:
    """Return the line for a split that is left out."""
    role = next((role for role in ROLES if split.lower() in ROLES[role]), "train")
    return f'left out the {kind} {what}; data.splits.{role} = "{split}" uses it'


def read_folder(root: Path, wanted: Wanted) -> Source:
    """Read `train/<class>/*` with `test/`, `validation/` or `val/`, or only `<class>/*` without a test split.

    Classes are the folders of train in sorted order, with the pictures in them and in deeper folders. Hidden files are
    ignored; files that are pictures neither by ending nor by content are left out and counted. If there is a test
    folder, a validation folder is left out unless `wanted.splits` names it. Train, Test, valid, training and the like
    are understood.

    Args:
        root: The folder.
        wanted: Size, without which all pictures must have the same size; background, splits; the group may be "folder".

    Raises:
        UserError: A picture is unreadable, too large or of another size, a link leaves the folder or is broken,
            a class has an unprintable name, or the folder has no class folders.
    """
    if wanted.group not in (None, "folder"):
        raise UserError(
            f"data.group = {wanted.group!r}: the groups of a folder are 'folder', the folders below the class folders; "
            "for columns give a .csv file"
        )
    notes = Notes()
    with reading(f"folder {root}", "check its files and permissions"):
        chosen = _folder_splits(root, wanted.splits, notes)
        if chosen is None:
            class_names, train = _read_classes(root, [root], wanted, notes)
            return Source(train, None, class_names, notes=notes.said())
        folders = {role: [root / name for name in names] for role, names in chosen.items()}
        class_names, train = _read_classes(root, folders["train"], wanted, notes)
        held = {
            role: _read_classes(root, folders[role], wanted, notes, class_names)[1]
            for role in ("test", "validation")
            if role in folders
        }
        return Source(train, held.get("test"), class_names, held.get("validation"), notes.said())


def _folder_splits(root: Path, splits: SplitsConfig, notes: Notes) -> dict[str, tuple[str, ...]] | None:
    """Return the folders of each split; None if the class folders lie in `root`."""
    folders = [child.name for child in sorted(_visible_children(root, root)) if child.is_dir()]
    chosen = given_splits(folders, splits, f"folder {root}")
    # A class may be called test or train as well: what holds no folders is no split.
    able = [
        name
        for role in ROLES
        for name in usual(role, folders)
        if any(child.is_dir() for child in _visible_children(root, root / name))
    ]
    asked = bool(chosen)
    train = usual("train", able, but=_taken(chosen))
    if "train" not in chosen and train:
        chosen["train"] = (train[0],)
    unlabeled = [name for name in usual("test", folders) if name not in able]
    if "test" not in chosen:
        kinds = ("test", "validation") if "validation" not in chosen else ("test",)
        test = [name for kind in kinds for name in usual(kind, able, but=_taken(chosen))]
        if test:
            chosen["test"] = (test[0],)
    if not chosen:
        if folders and all(any(usual(role, [name]) for role in ROLES) for name in folders):
            raise UserError(
                f"the folders {', '.join(folders)} of {root} have no class folders; expected "
                f"{folders[0]}/<class>/<picture>, or a .csv file with the columns path, label and split"
            )
        return None
    if "train" not in chosen or not (asked or "test" in chosen or unlabeled):
        only = sum(chosen.values(), ())[0]
        raise UserError(
            f"folder {root} has only {only}; expected train/<class>/ and test/<class>/ (or validation/ or val/), or "
            f"only <class>/ folders; {root / only} by itself is split into all three"
        )
    for name in folders:
        if name in unlabeled and name not in _taken(chosen):
            notes.lines.append(f"left out the folder {name}, which has no class folders")
        elif name not in _taken(chosen):
            notes.lines.append(unused("folder", name, name))
    return chosen


def read_csv(path: Path, wanted: Wanted) -> Source:
    """Read the pictures that a table lists: columns path and label and, where they are given, split and group.

    Paths are relative to the table's folder. Without a split column, validation and test are held out. The classes are
    the labels of train in sorted order, by number if all are integers.

    Args:
        path: UTF-8 text, its cells separated by commas, semicolons or tabs.
        wanted: Size, background; splits by the values of the column split; the column that groups pictures.

    Raises:
        UserError: The file is missing or is no such table, or a picture is missing, listed twice or unreadable.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; expected a .csv with the columns path and label")
    with reading(str(path), "save it as UTF-8 text with the columns path and label"):
        rows = _rows(path, wanted.group)
        notes = Notes()
        values = [row["split"] for row in rows if "split" in row]
        chosen = given_splits([*dict.fromkeys(values)] or ["train"], wanted.splits, f"column split of {path}")
        for role in ROLES:
            found = usual(role, {*values}, but=_taken(chosen))
            if role not in chosen and found:
                chosen[role] = tuple(found)
        if not values:
            chosen["train"] = ("train",)
        unknown = sorted({*values} - _taken(chosen))
        if unknown and wanted.splits == SplitsConfig():
            raise UserError(
                f"{path}: split {unknown[0]!r} is none of train, validation and test; rename it or set data.splits"
            )
        if "train" not in chosen:
            raise UserError(f"{path}: no row has the split train; add some or set data.splits.train")
        notes.lines += [unused("rows of split", name, name) for name in unknown]
        by_role = {role: [row for row in rows if row.get("split", "train") in names] for role, names in chosen.items()}
        class_names = _class_names({row["label"] for row in by_role["train"]})
        parts = {role: _read_rows(path, listed, class_names, wanted, notes) for role, listed in by_role.items()}
        return Source(parts["train"], parts.get("test"), class_names, parts.get("validation"), notes.said())


def _rows(path: Path, group: str | None) -> list[dict[str, str]]:
    """Return the rows of a table as path, label and, where they are there, split and group, with the number `line`."""
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    header = [name.lower() if name.lower() in ("path", "label", "split") else name for name in header]
    if not {"path", "label"} <= {*header}:
        found = f"has the columns {', '.join(header)[:200]}" if header else "is empty"
        raise UserError(f"{path} {found}; expected path and label in its first line")
    columns = {name: header.index(name) for name in ("path", "label")}
    if "split" in header:
        columns["split"] = header.index("split")
    if group is not None and group not in header:
        raise UserError(f"data.group: {path} has no column {group!r}; {closest(group, header)}")
    if group is not None or "group" in header:
        columns["group"] = header.index(group or "group")
    rows: list[dict[str, str]] = []
    before: dict[str, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
        row["label"] = unicodedata.normalize("NFC", row["label"])
        lacking = [header[columns[name]] for name, cell in row.items() if not cell]
        if lacking:
            raise UserError(f"{path}, line {reader.line_num}: the column {lacking[0]} is empty; fill it in")
        if row["path"] in before:
            first_line = before[row["path"]]
            raise UserError(f"{path}, line {reader.line_num}: {row['path']} is listed in line {first_line} as well")
        before[row["path"]] = reader.line_num
        rows.append(row)
    if not rows:
        raise UserError(f"{path} lists no pictures; expected a row for each")
    return rows


def _class_names(labels: set[str]) -> tuple[str, ...]:
    """Return labels in sorted order: by number if all are integers, else as text."""
    unprintable = [label for label in labels if not label.isprintable()]
    if unprintable:
        raise UserError(f"label {unprintable[0]!a} is not printable; rename it")
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label))) if numbers else tuple(sorted(labels))


def _read_rows(
    table: Path, rows: Sequence[Mapping[str, str]], class_names: tuple[str, ...], wanted: Wanted, notes: Notes
) -> Part:
    """Read the pictures of rows."""
    paths, missing = [], {}
    for index, row in enumerate(rows):
        if row["label"] not in class_names:
            raise UserError(f"{table}: {row['path']} has the label {row['label']!r}, which no picture of train has")
        place = table.parent / Path(row["path"]).expanduser()
        if not place.is_file():
            place = table.parent / row["path"].replace("\\", "/")  # of a table that was made on Windows
        if not place.is_file():
            missing[index] = UserError(f"{table}: no picture {place}; correct its path or remove its row")
        paths.append(place)
    if missing:
        raise refusal(missing, len(rows))
    source_ids = [row["path"] for row in rows]
    images, digests = _open_pictures(paths, source_ids, table.parent, wanted, notes)
    labels = np.array([class_names.index(row["label"]) for row in rows], np.int64)
    groups = np.array([row["group"] for row in rows]) if rows and "group" in rows[0] else None
    return Part(images, labels, np.array(source_ids), groups, digests)


def _part(
    images: Pictures,
    labels: np.ndarray,
    name: str,
    groups: np.ndarray | None = None,
    digests: np.ndarray | None = None,
) -> Part:
    source_ids = np.array([f"{name}-{index:06d}" for index in range(len(labels))], dtype=str)
    groups = None if groups is None else groups.astype(str)
    return Part(images, labels.reshape(-1).astype(np.int64), source_ids, groups, digests)


def _read_arrays(path: Path, arrays: Any, split: str, wanted: Wanted) -> Part:
    """Return the arrays of a split of an `.npz` file, whose headers have been checked."""
    labels = arrays[f"y_{split}"]
    groups = None if wanted.group is None else arrays[f"{wanted.group}_{split}"]
    key, side = f"x_{split}", wanted.image_size
    shape, transposed, _ = _header(path, arrays.zip, key)
    on_disk = shape[0] > 0 and wanted.on_disk(shape[0], (side or shape[1], side or shape[2], 3))
    if on_disk and transposed:
        raise UserError(f"{path}: {key} is in Fortran order and cannot be read in parts; save numpy.ascontiguousarray")
    if not on_disk:
        check_memory(f"{path}: {key}", (*shape[:3], 3))
        return _part(resize(to_rgb(arrays[key]), side), labels, split, groups)

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
    where = wanted.folder(path.parent)
    images, digests, _ = decoded(where, lines, read, image_size=side, background=wanted.background)
    return _part(images, labels, split, groups, digests)


def _check_headers(path: Path, archive: zipfile.ZipFile, split: str, group: str | None = None) -> None:
    """Check the kind of the arrays of a split by their headers, before any data are read."""
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
        count = min(math.prod(map(int, shape)), LOOKED_AT)
        return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, order and dtype of an array; only its header is read."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise UserError(f"{path}: {key} is not a plain array (format {version}); save it with np.savez")
        return HEADER_READERS[version](file)


def _read_classes(
    root: Path, folders: Sequence[Path], wanted: Wanted, notes: Notes, expected: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Part]:
    """Read `folder/<class>/**` of some folders; with `expected`, raise an error for other classes."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for folder in folders:
        loose = 0
        for child in sorted(_visible_children(root, folder)):
            if not child.is_dir():
                loose += is_picture(child)
                continue
            if not child.name.isprintable():
                raise UserError(f"class folder {folder}/{child.name!a} is not named in printable UTF-8; rename it")
            name = unicodedata.normalize("NFC", child.name)  # macOS takes accents apart, others do not
            if expected is not None and name not in expected:
                raise UserError(
                    f"{child} is not a class of train ({', '.join(expected[:10])}); rename or remove it, or add it to "
                    "train"
                )
            members = [(file, _group(child, file)) for file in _pictures(root, child, notes)]
            if not members:
                kinds = ", ".join(sorted(UNREAD & notes.endings.keys()))
                remedy = f"save those of {kinds} as .jpg" if kinds else "add some or remove it"
                raise UserError(f"class folder {child} has no pictures of a known format; {remedy}")
            found.setdefault(name, []).extend(members)
        if loose:
            notes.lines.append(f"left out {loose:,} picture{'s' * (loose != 1)} of {folder} in no class folder")
    if not found:
        raise UserError(f"{folders[0]} has no class folders; expected <class>/<picture> in it")
    class_names = tuple(sorted(found)) if expected is None else expected
    labels = [class_names.index(name) for name, members in found.items() for _ in members]
    members = [member for each in found.values() for member in each]
    paths = [path for path, _ in members]
    source_ids = [path.relative_to(root).as_posix() for path in paths]
    images, digests = _open_pictures(paths, source_ids, root, wanted, notes)
    groups = np.array([group for _, group in members]) if wanted.group == "folder" else None
    return class_names, Part(images, np.array(labels, np.int64), np.array(source_ids), groups, digests)


def _open_pictures(
    paths: Sequence[Path], source_ids: Sequence[str], beside: Path, wanted: Wanted, notes: Notes
) -> tuple[Pictures, np.ndarray | None]:
    """Return decoded pictures, in memory or on disk, and the hashes of their pixels where they are known."""
    names = [str(path) for path in paths]
    side = wanted.image_size
    if not paths or not wanted.on_disk(len(paths), (side, side, 3) if side else _shape_of(paths[0])):
        images, done = decode_all(paths, names, side, wanted.background)
        notes.done += done
        return images, None

    def read(start: int) -> Iterator[tuple[Sequence[Path], Sequence[str]]]:
        for first in range(start, len(paths), BLOCK):
            yield paths[first : first + BLOCK], names[first : first + BLOCK]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # what is in a file decides, and not its time
        lines = [f"{id_} {content}" for id_, content in zip(source_ids, pool.map(checksum, paths), strict=True)]
    found, digests, done = decoded(wanted.folder(beside), lines, read, image_size=side, background=wanted.background)
    notes.done += done
    return found, digests


def _shape_of(path: Path) -> tuple[int, int, int]:
    """Return (H, W, 3) of a picture; of one that cannot be read (1, 1, 3)."""
    try:
        with bombs_refused(), open_picture(path, str(path)) as file:
            return file.height, file.width, 3
    except UserError:
        return 1, 1, 3


def _group(folder: Path, file: Path) -> str:
    """Return the folder below the class folder in which a picture lies, or its own path if there is none."""
    below = file.relative_to(folder).parts
    return below[0] if len(below) > 1 else f"{folder.name}/{below[0]}"


def _pictures(root: Path, folder: Path, notes: Notes, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the pictures in a folder and in its deeper folders, and count the files that are none."""
    above |= {os.path.realpath(folder)}
    for child in sorted(_visible_children(root, folder)):
        named = child.suffix.lower() in PICTURE_SUFFIXES
        if child.is_dir() and not named:
            if os.path.realpath(child) not in above:  # a link to a folder above would be followed for ever
                yield from _pictures(root, child, notes, above)
            continue
        if named and not child.is_file():  # must not be opened: reading from a pipe would wait forever
            raise UserError(f"{child} is not a regular file but a folder, a pipe or a broken link; remove it")
        if is_picture(child):
            yield child
        else:
            notes.endings[child.suffix.lower() or "without an ending"] += 1


def _visible_children(root: Path, folder: Path) -> list[Path]:
    """Return the children of a folder that are not hidden; raise an error for links to outside of `root`."""
    real_root = os.path.realpath(root)
    children = [
        child for child in folder.iterdir() if not child.name.startswith(".") and child.name not in SYSTEM_FOLDERS
    ]
    for child in (folder, *children):
        # realpath, because Path.resolve raises an error for a cycle of links.
        if child != root and child.is_symlink() and not Path(os.path.realpath(child)).is_relative_to(real_root):
            raise UserError(f"{child} is a link that leaves {root}; copy its target there instead")
    return children
