"""Reader of folders of pictures, a folder for each class."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.data.pictures import (
    PICTURE_SUFFIXES,
    is_hidden,
    is_picture,
)
from tfigkd.data.sources import (
    ROLES,
    UNREAD,
    Notes,
    Source,
    SplitPart,
    given_splits,
    open_pictures,
    taken,
    unused,
    usual,
)
from tfigkd.runtime.errors import UserError, readable
from tfigkd.runtime.text import counted, shortened


def read_folder(root: Path, wanted: Reading) -> Source:
    """Read `train/<class>/*` with `test/`, `validation/` or `val/`, or only `<class>/*` without a test split.

    Classes are the folders of train in sorted order, with the pictures in them and in deeper folders. Hidden files are
    ignored, hidden folders of pictures named; files that are pictures neither by ending nor by content are left out and
    counted. If there is a test folder, a validation folder is left out unless `wanted.splits` names it; a class may
    have no pictures in it. Train, Test, valid, training and the like are understood.

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
    with readable(f"folder {root}", "check its files and permissions"):
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
    """Return the folders of each split; None if the class folders lie in `root`.

    Raises:
        UserError: The folders have no class folders, or only one split is there.
    """
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
    train = usual("train", able, but=taken(chosen))
    if "train" not in chosen and train:
        chosen["train"] = (train[0],)
    unlabeled = [name for name in usual("test", folders) if name not in able]
    if "test" not in chosen:
        kinds = ("test", "validation") if "validation" not in chosen else ("test",)
        test = [name for kind in kinds for name in usual(kind, able, but=taken(chosen))]
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
        if name in unlabeled and name not in taken(chosen):
            notes.lines.append(f"left out the folder {name}, which has no class folders")
        elif name not in taken(chosen):
            notes.lines.append(unused("folder", name, name))
    return chosen


def _read_classes(
    root: Path, folders: Sequence[Path], wanted: Reading, notes: Notes, expected: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], SplitPart]:
    """Return the class names and pictures of `folder/<class>/**` of some folders.

    Args:
        root: Folder of the data set.
        folders: Folders of one split.
        wanted: How the pictures are read.
        notes: Gets what is left out.
        expected: The classes of train, for another split; a class may have no pictures in it.

    Raises:
        UserError: A class is not among those expected, has an unprintable name or no pictures, or a picture is not
            usable.
    """
    found: dict[str, list[tuple[Path, str]]] = {}
    known = frozenset(expected or ())
    on_disk: dict[str, str] = {}
    for folder in folders:
        loose = 0
        for child in sorted(_visible_children(root, folder)):
            if not child.is_dir():
                loose += is_picture(child)
                continue
            if not child.name.isprintable():
                raise UserError(f"class folder {folder}/{child.name!a} is not named in printable UTF-8; rename it")
            name = unicodedata.normalize("NFC", child.name)  # macOS takes accents apart, others do not
            if expected is not None and name not in known:
                raise UserError(
                    f"{child} is not a class of train ({shortened(expected)}); rename or remove it, or add it to train"
                )
            members = [(file, _group(root, child, file)) for file in _pictures(root, child, notes)]
            if not members and expected is not None:
                continue  # a class without pictures to test on; train decides which classes there are
            if not members:
                kinds = ", ".join(sorted(UNREAD & notes.endings.keys()))
                remedy = f"save those of {kinds} as .jpg" if kinds else "add some or remove it"
                raise UserError(f"class folder {child} has no pictures of a known format; {remedy}")
            found.setdefault(name, []).extend(members)
            on_disk.setdefault(name, child.name)
        notes.lines += [f"left out {hidden}, a hidden folder of pictures" for hidden in _hidden_classes(folder)]
        if loose:
            notes.lines.append(f"left out {counted(loose, 'picture')} of {folder} in no class folder")
    if not found:
        raise UserError(f"{folders[0]} has no class folders with pictures; expected <class>/<picture> in it")
    class_names = tuple(sorted(found, key=on_disk.__getitem__)) if expected is None else expected  # as Keras sorts
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[name] for name, members in found.items() for _ in members]
    members = [member for each in found.values() for member in each]
    paths = [path for path, _ in members]
    source_ids = [path.relative_to(root).as_posix() for path in paths]
    images, digests = open_pictures(paths, source_ids, root, wanted, notes)
    groups = np.array([group for _, group in members]) if wanted.group == "folder" else None
    return class_names, SplitPart(images, np.array(labels, np.int64), np.array(source_ids), groups, digests)


def _group(root: Path, folder: Path, file: Path) -> str:
    """Return the folder below the class folder in which a picture lies, or its own path if there is none."""
    below = file.relative_to(folder).parts
    return below[0] if len(below) > 1 else file.relative_to(root).as_posix()


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


def _hidden_classes(folder: Path) -> list[Path]:
    """Return the hidden folders that hold pictures, such as .net among names of languages."""
    hidden = [child for child in folder.glob(".*") if child.is_dir() and not child.is_symlink()]
    return sorted(child for child in hidden if any(file.suffix.lower() in PICTURE_SUFFIXES for file in child.iterdir()))


def _visible_children(root: Path, folder: Path) -> list[Path]:
    """Return the children of a folder that are not hidden; raise an error for links to outside of `root`."""
    real_root = os.path.realpath(root)
    children = [child for child in folder.iterdir() if not is_hidden(child)]
    for child in (folder, *children):
        # realpath, because Path.resolve raises an error for a cycle of links.
        if child != root and child.is_symlink() and not Path(os.path.realpath(child)).is_relative_to(real_root):
            raise UserError(f"{child} is a link that leaves {root}; copy its target there instead")
    return children
