"""What a reader of a source returns, functions that several readers share, and the embedded digits.

Each reader returns the pictures in the form that models use (uint8 RGB of one size), in the order of the source: see
`folders.py`, `npz.py`, `tables.py`, and `catalog.py` for tfds.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.data.decoded import FOLDER, decoded
from tfigkd.data.disk import BLOCK, Pictures, join
from tfigkd.data.pictures import (
    RAW,
    bombs_refused,
    decode_all,
    open_picture,
    resize,
    to_rgb,
)
from tfigkd.runtime.errors import UserError, closest
from tfigkd.runtime.files import checksum, expanded
from tfigkd.runtime.machine import cores, free_memory
from tfigkd.runtime.text import counted

SHARE = 0.25
"""Share of the free memory that the pictures of a split may take: they are copied when they are sorted and cropped."""
ROLES = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}
"""Usual names of splits, in lower case."""
UNREAD = RAW | {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd"}
"""Endings of pictures in formats that are not decoded."""


@dataclass(frozen=True, eq=False)
class SplitPart:
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

    train: SplitPart
    test: SplitPart | None
    class_names: tuple[str, ...]
    validation: SplitPart | None = None
    notes: tuple[str, ...] = ()


def kept_on_disk(wanted: Reading, count: int, shape: Sequence[int], encoded: int = 0) -> bool:
    """Return whether decoded pictures are kept on disk, not in memory.

    Args:
        wanted: How they are read.
        count: How many there are in the split.
        shape: (H, W, 3) of each.
        encoded: Bytes of their files, where these are in memory too while they are decoded.
    """
    if wanted.resident == "auto":
        return max(count * math.prod(shape), encoded) > free_memory() * SHARE
    return wanted.resident == "disk"


def cache_folder(wanted: Reading, beside: Path) -> Path:
    """Return the folder of the pictures that are kept on disk: the wanted one, or one in the folder of the data."""
    return expanded(wanted.cache) if wanted.cache else beside / FOLDER


@dataclass
class Notes:
    """What a reader leaves out or changes: counts of what was done to pictures, endings left out, and other lines."""

    done: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def said(self) -> tuple[str, ...]:
        """Return one line for each kind of note."""
        said = [f"{counted(count, 'picture')} {what}" for what, count in self.done.items()]
        if self.endings:
            listed = ", ".join(f"{count:,} {ending}" for ending, count in self.endings.most_common())
            remedy = "; save them as .jpg to use them" if UNREAD & self.endings.keys() else ""
            files = counted(self.endings.total(), "file")
            said.append(f"left out {files} of no known picture format ({listed}){remedy}")
        return (*said, *self.lines)


def given_splits(available: Collection[str], splits: SplitsConfig, where: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the splits that a config gives to each role, such as `{"train": ("train", "extra")}`.

    Args:
        available: The splits of the source.
        splits: Those of the config.
        where: The source, for messages.

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
    refuse_twice(chosen)
    return chosen


def refuse_twice(chosen: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a split that is taken twice: by two roles, of which one may have it by default, or by one.

    Raises:
        UserError: There is one.
    """
    twice = [name for name, count in Counter(sum(chosen.values(), ())).items() if count > 1]
    if twice:
        raise UserError(f"data.splits takes the pictures of {twice[0]!r} twice; a picture must be in one split")


def usual(role: str, names: Collection[str], *, but: Collection[str] = ()) -> list[str]:
    """Return the names that are usual for a role, in any case of letters, the most usual first.

    Args:
        role: A key of `ROLES`.
        names: Names of splits.
        but: Those of them that are left out, as they have a role already.
    """
    found = [name for name in names if name.lower() in ROLES[role] and name not in but]
    return sorted(found, key=lambda name: (ROLES[role].index(name.lower()), name.lower() != name, name))


def taken(chosen: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the names of all splits that have a role."""
    return {name for names in chosen.values() for name in names}


def read_digits(wanted: Reading) -> Source:
    """Read scikit-learn's 1,797 handwritten digits (8x8 gray levels 0 to 16, scaled to 0 to 255)."""
    from sklearn.datasets import load_digits

    refuse_group("digits", wanted)
    refuse_twice({"train": ("train",)} | given_splits(("train",), wanted.splits, "digits"))
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    part = numbered(resize(to_rgb(images), wanted.image_size, wanted.fit), digits.target, "digits")
    return Source(part, None, tuple(str(name) for name in digits.target_names))


def refuse_group(where: str, wanted: Reading) -> None:
    """Refuse groups in a source that has none.

    Raises:
        UserError: Groups are wanted.
    """
    if wanted.group is not None:
        raise UserError(f"data.group = {wanted.group!r}: {where} has no groups; leave it out")


def join_parts(parts: Sequence[SplitPart]) -> SplitPart:
    """Return the parts of one split, one after the other.

    Raises:
        UserError: Their pictures differ in size.
    """
    if len(parts) == 1:
        return parts[0]
    sizes = {part.images.shape[1:] for part in parts}
    if len(sizes) > 1:
        texts = " and ".join(sorted(f"{width}x{height}" for height, width, _ in sizes))
        raise UserError(f"pictures of one split are {texts}; give --image-size (data.image_size)")
    labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "source_ids"))
    groups = [part.groups for part in parts if part.groups is not None]
    digests = [part.digests for part in parts if part.digests is not None]
    return SplitPart(
        join([part.images for part in parts]),
        labels,
        ids,
        np.concatenate(groups) if groups else None,
        np.concatenate(digests) if len(digests) == len(parts) else None,
    )


def unused(kind: str, what: str, split: str) -> str:
    """Return the note on a split that is left out, with the option that uses it.

    Args:
        kind: "split", "folder", "arrays" or "rows of split".
        what: How the source names it, such as "x_extra".
        split: Its name in `data.splits`.
    """
    role = next((role for role in ROLES if split.lower() in ROLES[role]), "train")
    return f'left out the {kind} {what}; data.splits.{role} = "{split}" uses it'


def numbered(
    images: Pictures,
    labels: np.ndarray,
    name: str,
    groups: np.ndarray | None = None,
    digests: np.ndarray | None = None,
) -> SplitPart:
    """Return one split of a source whose pictures have no names; they are numbered.

    Args:
        images: uint8 RGB [N,H,W,3].
        labels: Integers [N] or [N,1].
        name: Name of the split.
        groups: Texts or integers [N], or None.
        digests: Hashes of the pixels, unicode [N], or None.
    """
    source_ids = np.array([f"{name}-{index:06d}" for index in range(len(labels))], dtype=str)
    groups = None if groups is None else groups.astype(str)
    return SplitPart(images, labels.reshape(-1).astype(np.int64), source_ids, groups, digests)


def open_pictures(
    paths: Sequence[Path], source_ids: Sequence[str], beside: Path, wanted: Reading, notes: Notes
) -> tuple[Pictures, np.ndarray | None]:
    """Decode the pictures of a split, and keep them in memory or on disk.

    Args:
        paths: The file of each of N pictures.
        source_ids: Name of each picture in its source.
        beside: Folder of the data.
        wanted: How the pictures are read.
        notes: Gets counts of what was done to pictures.

    Returns:
        The pictures, uint8 RGB [N,H,W,3]; and the hashes of their pixels, unicode [N], of those on disk, else None.

    Raises:
        UserError: As for `decode_all` and `decoded`.
    """
    names = [str(path) for path in paths]
    side = wanted.image_size
    if not paths or not kept_on_disk(wanted, len(paths), (side, side, 3) if side else _shape_of(paths[0])):
        images, done = decode_all(paths, names, wanted)
        notes.done += done
        return images, None

    def read(start: int) -> Iterator[tuple[Sequence[Path], Sequence[str]]]:
        for first in range(start, len(paths), BLOCK):
            yield paths[first : first + BLOCK], names[first : first + BLOCK]

    with ThreadPoolExecutor(cores()) as pool:  # a file is identified by its content, not by its time
        lines = [f"{id_} {content}" for id_, content in zip(source_ids, pool.map(checksum, paths), strict=True)]
    found, digests, done = decoded(cache_folder(wanted, beside), lines, read, wanted)
    notes.done += done
    return found, digests


def _shape_of(path: Path) -> tuple[int, int, int]:
    """Return (H, W, 3) of a picture; of one that cannot be read (1, 1, 3)."""
    try:
        with bombs_refused(), open_picture(path, str(path)) as file:
            return file.height, file.width, 3
    except UserError:
        return 1, 1, 3
