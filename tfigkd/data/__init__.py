"""Labeled examples: stable ids, and train, validation and test splits that do not depend on the source's order.

The id of an example is the hash of its decoded pixels, so the same picture has the same id whether it comes from tfds,
an image folder or an `.npz`, on any backend. Splits, random draws and the overlay store all use this id. Only data
from tfds need TensorFlow.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfigkd.config.data_fields import BACKGROUND, Fit, Reading
from tfigkd.data import catalog, folders, hints, npz, sources, tables
from tfigkd.data.disk import blocks, pick
from tfigkd.data.examples import Examples, concatenate
from tfigkd.data.pictures import DIGEST_LENGTH, digest
from tfigkd.data.spaces import to_gray
from tfigkd.data.splits import COLUMN_GROUP, check_groups, hold_out
from tfigkd.runtime.errors import UserError, one_line
from tfigkd.runtime.files import expanded
from tfigkd.runtime.text import shortened

VALIDATION_DIVISOR = 10
TEST_DIVISOR = 5


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test splits of one source, with the names of the classes.

    Attributes:
        name: The name that was passed to `load`.
        train: The source's training pictures without `validation`.
        validation: The source's own, or per class the tenth of its training pictures whose ids sort first.
        test: The source's test pictures; only the evaluation stage uses them.
        class_names: One name for each label.
        fingerprint: 16 hex digits over the ids and labels of the three splits.
        notes: Lines on what was left out of the source, or changed, and how often.
        background: Color that transparent pictures were composited on.
        fit: How pictures came to their size.
        split_choice: What was set of `data.group` and `data.splits`; see `Reading.split_choice`.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    background: str = BACKGROUND
    fit: Fit = "stretch"
    split_choice: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def training_fingerprint(self) -> str:
        """16 hex digits over the ids and labels of train and validation, on which no test picture has any effect."""
        return splits_fingerprint({"train": self.train, "validation": self.validation})

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every picture."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def test_train_overlap(self) -> int:
        """Number of test pictures whose pixels also occur in train or validation."""
        seen = np.concatenate([_digests(self.train), _digests(self.validation)])
        return int(np.isin(_digests(self.test), seen).sum())


def load(
    name: str,
    reading: Reading = Reading(),  # noqa: B008 - it is frozen
    *,
    directory: str | None = None,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set and split it by id, such as `load("photos", Reading(image_size=32, fit="crop"))`.

    Args:
        name: "digits" (embedded, 8x8), the path of an `.npz` or `.csv` file, the path of an image folder, or a
            tfds name such as "cifar10" or "name/config". An existing folder wins over a tfds name.
        reading: How the pictures are read. Ids are those of the pixels after resizing.
        directory: Folder of tfds data, searched before $TFDS_DATA_DIR and tfds's own default; downloads go there.
        limit: Largest number of examples of each split, for a quick trial run; those whose ids sort first are kept.
        download: Whether to download a tfds data set that is not prepared.

    Returns:
        The splits. Without a test split in the source, the test split is, per class, the fifth whose ids sort last;
        with groups it consists of whole groups, which are chosen by the hashes of their names.

    Raises:
        UserError: The source is missing, damaged, or not a set of labeled 8-bit pictures of one size.
    """
    if not name.isprintable():
        raise UserError(f"data set {name!r}: its name is not printable UTF-8; rename the file or folder")
    if limit is not None and limit < 1:
        raise UserError(f"data.limit must be at least 1, got {limit}")
    try:
        source = _open(name, directory, reading, download)
    except ImportError as error:
        raise UserError(
            f"data set {name!r} needs a package that is not installed ({one_line(error)}); "
            "install it, or give the data as an .npz file"
        ) from error
    _check(name, source)
    notes = list(source.notes)
    if next(blocks(source.train.images)).max() <= 1:
        notes.append("warning: no pixel of train is above 1, expected 0 to 255; multiply pixels from 0 to 1 by 255")
    parts = _split(source, notes)
    hint = "" if reading.group else COLUMN_GROUP
    check_groups(name, parts, hint)
    for split, examples in parts.items():
        if not len(examples):
            grouped = source.train.groups is not None
            remedy = f"its pictures need more groups{hint}" if grouped else "add pictures to each class"
            raise UserError(f"data set {name!r}: the {split} split is empty; {remedy}")
        if lacking := _lacking(examples.labels, source.class_names):
            notes.append(f"warning: {split} has no pictures of {shortened(lacking)}")
        if limited := sorted({*_lacking(examples.labels[:limit], source.class_names)} - {*lacking}):
            notes.append(f"warning: data.limit = {limit} leaves {split} no pictures of {shortened(limited)}")
    notes += _contradictions([*parts.values()], source.class_names)
    parts = {split: examples.take(slice(limit)) for split, examples in parts.items()}
    return Dataset(
        name,
        **parts,
        class_names=source.class_names,
        fingerprint=splits_fingerprint(parts),
        notes=tuple(notes),
        background=reading.background,
        fit=reading.fit,
        split_choice=reading.split_choice(),
    )


def identify(images: np.ndarray, labels: np.ndarray) -> Examples:
    """Turn arrays into examples, with the hash of the pixels as id and sorted by id; source ids are their positions.

    Args:
        images: uint8 RGB [N,H,W,3].
        labels: Integers [N], class indices.

    Raises:
        ValueError: The arrays are not as above.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_arrays(images, labels)
    names = np.array([str(number) for number in range(len(images))])
    return _identify(sources.SplitPart(np.ascontiguousarray(images), labels.astype(np.int64), names))


def check_arrays(images: np.ndarray, labels: np.ndarray) -> None:
    """Check that arrays are pictures, uint8 RGB [N,H,W,3], and their labels, integers [N] that are not negative.

    Raises:
        ValueError: They are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        hint = "" if images.dtype == np.uint8 else hints.of_pixels(images.dtype, images)
        raise ValueError(f"images must be uint8 [N,H,W,3], got {images.dtype} of shape {images.shape}{hint}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        hint = hints.of_labels(labels.dtype, labels.shape, len(images))
        raise ValueError(f"labels must be integers [{len(images)}], got {labels.dtype} of shape {labels.shape}{hint}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}")


def to_model_input(images: np.ndarray) -> np.ndarray:
    """Convert pixels to the input of models: uint8 [...] from 0 to 255 becomes float32 [...] in [0,1].

    All NumPy code scales pixels here; `OverlayStore.overlay` does the same in TensorFlow.
    """
    return images.astype(np.float32) / np.float32(255)


def in_gray(data: Dataset) -> Dataset:
    """Return a data set with gray pictures, uint8 [N,H,W,1], under the ids of the RGB ones."""
    parts = {split: getattr(data, split) for split in ("train", "validation", "test")}
    return replace(data, **{split: replace(part, images=to_gray(part.images)) for split, part in parts.items()})


def mean_color(examples: Examples) -> np.ndarray:
    """Return the mean of each channel over all images, float32 [3] in [0,1]."""
    totals = sum(block.sum(axis=(0, 1, 2), dtype=np.float64) for block in blocks(examples.images))
    mean = totals / math.prod(examples.images.shape[:3])
    return mean.astype(np.float32) / 255


def _open(name: str, directory: str | None, wanted: Reading, download: bool) -> sources.Source:
    path = expanded(name)
    ending = path.suffix.lower()
    if name == "digits":
        return sources.read_digits(wanted)
    if ending == ".npz":
        return npz.read_npz(path, wanted)
    if name and path.is_dir():
        if catalog.NAME_PATTERN.fullmatch(name) and catalog.find_prepared(path):
            return catalog.read_tfds(name, directory, wanted, download)
        try:
            return folders.read_folder(path, wanted)
        except UserError as error:
            if prepared := catalog.options_of_prepared(path):
                raise UserError(f"{path} holds a tfds data set; give it by its name: {prepared}") from error
            raise
    if ending == ".csv":
        return tables.read_csv(path, wanted)
    return catalog.read_tfds(name, directory, wanted, download)


def _check(name: str, source: sources.Source) -> None:
    """Refuse data that no later stage can use.

    Raises:
        UserError: Such as a single class, labels without a class, an empty split or pictures of several sizes.
    """
    classes = len(source.class_names)
    if classes < 2:
        inside = expanded(name) / (source.class_names or ("",))[0]
        nested = inside.is_dir() and any(child.is_dir() for child in inside.iterdir())
        hint = f"; are the classes the folders in {inside}?" if nested else ""
        raise UserError(f"data set {name!r} has {classes} class(es); a classifier needs at least 2{hint}")
    unprintable = [one for one in source.class_names if not one.isprintable()]
    if unprintable:
        raise UserError(f"data set {name!r} has a class named {unprintable[0]!a}, which is not printable; rename it")
    twice = [one for one, count in Counter(source.class_names).items() if count > 1]
    if twice:
        raise UserError(f"data set {name!r} has two classes named {twice[0]!r}; give each class a name of its own")
    for split, part in (("train", source.train), ("validation", source.validation), ("test", source.test)):
        if part is None:
            continue
        if not len(part.labels):
            raise UserError(f"data set {name!r}: the {split} split is empty; add pictures to it")
        if 0 in part.images.shape:
            raise UserError(f"data set {name!r}: {split} pictures of {_size(part)} have no pixels")
        if part.labels.min() < 0 or part.labels.max() >= classes:
            wrong = int(part.labels[(part.labels < 0) | (part.labels >= classes)][0])
            counted = part.labels.min() == 1 and part.labels.max() == classes
            hint = (
                "; they count from 1, so subtract 1" if counted else "; add its class to train or remove its pictures"
            )
            raise UserError(f"data set {name!r}: label {wrong} in {split}; expected 0 to {classes - 1}{hint}")
        if part.images.shape[1:] != source.train.images.shape[1:]:
            raise UserError(
                f"data set {name!r}: train pictures are {_size(source.train)}, {split} pictures {_size(part)}; "
                "give --image-size (data.image_size) to resize them"
            )


def _lacking(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the classes that labels [N] do not have."""
    found = {*np.unique(labels).tolist()}
    return [name for label, name in enumerate(class_names) if label not in found]


def _size(part: sources.SplitPart) -> str:
    height, width = part.images.shape[1:3]
    return f"{width}x{height}"


def _split(source: sources.Source, notes: list[str]) -> dict[str, Examples]:
    """Return the splits of a source under ids; what it lacks is held out of its training pictures.

    Args:
        source: Checked.
        notes: Gets a line if validation pictures are in train as well.
    """
    validation: Examples | None = None
    if source.validation is None:
        train = _identify(source.train)
    else:
        train, validation = _identify_together(source.train, source.validation)
    if source.test is not None:
        test = _identify(source.test)
    else:
        train, test = hold_out(train, TEST_DIVISOR, last=True)
        test = _identify(test)  # again, because duplicates are numbered within a split
        train = _identify(train) if validation is None else train
    if validation is None:
        train, validation = hold_out(train, VALIDATION_DIVISOR)
    elif twice := int(np.isin(_digests(validation), _digests(train)).sum()):
        notes.append(f"{twice:,} validation pictures are in train as well")
    return {"train": train, "validation": validation, "test": test}


def _identify(part: "sources.SplitPart | Examples") -> Examples:
    """Compute the id of every picture from its pixels and sort by id.

    Pictures with equal pixels are numbered in the order of their labels, not in the source's order.
    """
    digests = _digests(part) if isinstance(part, Examples) else part.digests
    if digests is None:
        digests = np.array([digest(image) for image in part.images])
    order = np.lexsort((part.source_ids, part.labels, digests))
    _, starts, counts = np.unique(digests[order], return_index=True, return_counts=True)
    ordinals = np.arange(len(order)) - np.repeat(starts, counts)
    ids = np.array(
        [f"{digest}-{ordinal}" if ordinal else digest for digest, ordinal in zip(digests[order], ordinals, strict=True)]
    )
    by_id = np.argsort(ids, kind="stable")
    order = order[by_id]
    groups = None if part.groups is None else part.groups[order]
    return Examples(ids[by_id], pick(part.images, order), part.labels[order], part.source_ids[order], groups)


def _identify_together(train: sources.SplitPart, validation: sources.SplitPart) -> tuple[Examples, Examples]:
    """Compute ids that are unique in both splits, as stores cover both; equal pictures are numbered across them."""
    count = len(train.labels)
    # `groups` holds each picture's position until the pictures are split again
    joined = sources.join_parts([replace(train, groups=None), replace(validation, groups=None)])
    positions = np.arange(len(joined.labels))
    both = _identify(replace(joined, groups=positions))
    assert both.groups is not None
    parts = []
    for part, chosen in ((train, both.groups < count), (validation, both.groups >= count)):
        found = both.take(chosen)
        assert found.groups is not None
        own = found.groups - (0 if part is train else count)
        parts.append(replace(found, groups=None if part.groups is None else part.groups[own]))
    return parts[0], parts[1]


def splits_fingerprint(splits: dict[str, Examples]) -> str:
    """Return a hash of the ids and labels of named splits, 16 hex digits."""
    whole = hashlib.sha256()
    for split, examples in splits.items():
        lines = [f"{id_} {label}\n" for id_, label in zip(examples.ids, examples.labels, strict=True)]
        whole.update(f"{split} {len(examples)}\n{''.join(lines)}".encode())
    return whole.hexdigest()[:DIGEST_LENGTH]


def _digests(examples: Examples) -> np.ndarray:
    """Return the ids without the ordinals of duplicates."""
    return examples.ids.astype(f"U{DIGEST_LENGTH}")


def _contradictions(parts: Sequence[Examples], class_names: Sequence[str]) -> list[str]:
    """Return a warning if pictures of the same pixels have different labels, in one split or in several."""
    _, groups = np.unique(np.concatenate([_digests(part) for part in parts]), return_inverse=True)
    labels, names = (np.concatenate([getattr(part, each) for part in parts]) for each in ("labels", "source_ids"))
    first, last = np.full(groups.max() + 1, len(class_names)), np.full(groups.max() + 1, -1)
    np.minimum.at(first, groups, labels)
    np.maximum.at(last, groups, labels)
    contradict = (first < last)[groups]
    if not contradict.any():
        return []
    one = np.flatnonzero(contradict)[0]
    other = np.flatnonzero((groups == groups[one]) & (labels != labels[one]))[0]
    pair = " and ".join(f"{names[each]} ({class_names[labels[each]]})" for each in (one, other))
    return [
        f"warning: {contradict.sum():,} pictures have the pixels of a picture of another class, such as {pair}; "
        "remove those whose label is wrong"
    ]


def train_and_validation(data: Dataset) -> Examples:
    """Return the examples of train and validation, sorted by id."""
    return concatenate([data.train, data.validation])
