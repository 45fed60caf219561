"""Labeled examples: stable ids, and train, validation and test splits that do not depend on the source's order.

The id of an example is the hash of its decoded pixels, so the same picture has the same id whether it comes from tfds,
an image folder or an `.npz`, on any backend. Splits, random draws and the overlay store all use this id. Only data
from tfds need TensorFlow.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfigkd.data import catalog, sources
from tfigkd.data.pictures import one_line
from tfigkd.runtime.errors import UserError

DIGEST_LENGTH = 16
VALIDATION_DIVISOR = 10
TEST_DIVISOR = 5


@dataclass(frozen=True, eq=False)
class Examples:
    """Labeled pictures of one split, sorted by id.

    Args:
        ids: Unicode [N], unique within the split.
        images: uint8 RGB [N,H,W,3], 0 to 255.
        labels: int64 [N], class indices.
        source_ids: Unicode [N], name of each example in its source; for messages only.
    """

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    source_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray | slice) -> "Examples":
        """Return the examples at `indices` (integers, a boolean mask or a slice), in that order."""
        return Examples(self.ids[indices], self.images[indices], self.labels[indices], self.source_ids[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test splits of one source, with the names of the classes.

    Args:
        name: The name that was passed to `load`.
        train: The source's training pictures without `validation`.
        validation: Per class, the tenth of the source's training pictures whose ids sort first.
        test: The source's test pictures; only the evaluation stage uses them.
        class_names: One name for each label.
        fingerprint: 16 hex digits over the ids and labels of the three splits.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    class_names: tuple[str, ...]
    fingerprint: str

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
    *,
    directory: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set and split it by id.

    Args:
        name: "digits" (embedded, 8x8), the path of an `.npz` file, the path of an image folder, or a
            tfds name such as "cifar10" or "name/config". An existing folder wins over a tfds name.
        directory: Folder of tfds data, searched before $TFDS_DATA_DIR and tfds's own default; downloads go there.
        image_size: Height and width to stretch every picture to, with antialiasing; None keeps the
            source's size. Ids are those of the resized pixels.
        limit: Largest number of examples of each split, for a quick trial run; those whose ids sort first are kept.
        download: Whether to download a tfds data set that is not prepared.

    Returns:
        The splits. Without a test split in the source, the test split is, per class, the fifth whose ids sort last.

    Raises:
        UserError: The source is missing, damaged, or not a set of labeled 8-bit pictures of one size.
    """
    if not name.isprintable():
        raise UserError(f"data set {name!r}: its name is not printable UTF-8; rename the file or folder")
    for setting, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"data.{setting} must be at least 1, got {value}")
    try:
        source = _open(name, directory, image_size, download)
    except ImportError as error:
        raise UserError(
            f"data set {name!r} needs a package that is not installed ({one_line(error)}); "
            "install it, or give the data as an .npz file"
        ) from error
    _check(name, source)
    train = _identify(source.train)
    if source.test is None:
        # Identified again, because duplicates are numbered within a split.
        train, test = (_identify(part) for part in _hold_out(train, TEST_DIVISOR, last=True))
    else:
        test = _identify(source.test)
    train, validation = _hold_out(train, VALIDATION_DIVISOR)
    splits = {"train": train, "validation": validation, "test": test}
    for split, examples in splits.items():
        if not len(examples):
            raise UserError(f"data set {name!r}: the {split} split is empty; add pictures to each class")
    splits = {split: examples.take(slice(limit)) for split, examples in splits.items()}
    return Dataset(name, **splits, class_names=source.class_names, fingerprint=splits_fingerprint(splits))


def identify(images: np.ndarray, labels: np.ndarray) -> Examples:
    """Turn arrays into examples, with the hash of the pixels as id and sorted by id.

    Args:
        images: uint8 RGB [N,H,W,3].
        labels: Integers [N], class indices.

    Raises:
        ValueError: The arrays are not as above.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 [N,H,W,3], got {images.dtype} of shape {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [{len(images)}], got {labels.dtype} of shape {labels.shape}")
    names = np.array([str(number) for number in range(len(images))])
    return _identify(sources.Part(np.ascontiguousarray(images), labels.astype(np.int64), names))


def digest(image: np.ndarray) -> str:
    """Return the id of a picture, uint8 [H,W,3]: 16 hex digits of the SHA-256 of its pixels in C order."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:DIGEST_LENGTH]


def to_model_input(images: np.ndarray) -> np.ndarray:
    """Convert pixels to the input of models: uint8 [...] from 0 to 255 becomes float32 [...] in [0,1].

    This is the only place where pixels are scaled, so all modules scale alike.
    """
    return images.astype(np.float32) / np.float32(255)


def mean_color(examples: Examples) -> np.ndarray:
    """Return the mean of each channel over all images, float32 [3] in [0,1]."""
    return examples.images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32) / 255


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Join splits and sort by id, for example train and validation for the training of the final models."""
    return _Joined(parts)


class _Joined(Examples):
    """Several splits as one, sorted by id; the pictures are not copied until they are read."""

    _parts: tuple[Examples, ...]
    _order: np.ndarray

    def __init__(self, parts: Sequence[Examples]):
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "labels", "source_ids")]
        order = np.argsort(columns[0], kind="stable")
        for name, column in zip(("ids", "labels", "source_ids"), columns, strict=True):
            object.__setattr__(self, name, column[order])
        object.__setattr__(self, "_parts", tuple(parts))
        object.__setattr__(self, "_order", order)

    @property
    def images(self) -> np.ndarray:
        """All pictures, as a new array."""
        return self.take(slice(None)).images

    def take(self, indices: np.ndarray | slice) -> Examples:
        """Return the examples at `indices`, in that order."""
        positions = self._order[indices]
        images = np.empty((len(positions), *self._parts[0].images.shape[1:]), np.uint8)
        start = 0
        for part in self._parts:
            here = (positions >= start) & (positions < start + len(part))
            images[here] = part.images[positions[here] - start]
            start += len(part)
        return Examples(self.ids[indices], images, self.labels[indices], self.source_ids[indices])


def _open(name: str, directory: str | None, image_size: int | None, download: bool) -> sources.Source:
    path = Path(name).expanduser()
    if name == "digits":
        return sources.read_digits(image_size)
    if path.suffix == ".npz":
        return sources.read_npz(path, image_size)
    if name and path.is_dir():
        return sources.read_folder(path, image_size)
    return catalog.read(name, directory, image_size, download)


def _check(name: str, source: sources.Source) -> None:
    """Raise an error for data that no later stage can use."""
    classes = len(source.class_names)
    if classes < 2:
        raise UserError(f"data set {name!r} has {classes} class(es); a classifier needs at least 2")
    for split, part in (("train", source.train), ("test", source.test)):
        if part is None:
            continue
        if not len(part.labels):
            raise UserError(f"data set {name!r}: the {split} split is empty")
        if 0 in part.images.shape:
            raise UserError(f"data set {name!r}: {split} pictures of {_size(part)} have no pixels")
        if part.labels.min() < 0 or part.labels.max() >= classes:
            wrong = int(part.labels[(part.labels < 0) | (part.labels >= classes)][0])
            raise UserError(f"data set {name!r}: label {wrong} in {split}; expected 0 to {classes - 1}")
        if part.images.shape[1:] != source.train.images.shape[1:]:
            raise UserError(
                f"data set {name!r}: train pictures are {_size(source.train)}, test pictures {_size(part)}; "
                "set data.image_size to resize them"
            )


def _size(part: sources.Part) -> str:
    height, width = part.images.shape[1:3]
    return f"{width}x{height}"


def _identify(part: "sources.Part | Examples") -> Examples:
    """Compute the id of every picture from its pixels and sort by id.

    Pictures with equal pixels are numbered in the order of their labels, not in the source's order.
    """
    digests = np.array([digest(image) for image in part.images])
    order = np.lexsort((part.source_ids, part.labels, digests))
    _, starts, counts = np.unique(digests[order], return_index=True, return_counts=True)
    ordinals = np.arange(len(order)) - np.repeat(starts, counts)
    ids = np.array(
        [f"{digest}-{ordinal}" if ordinal else digest for digest, ordinal in zip(digests[order], ordinals, strict=True)]
    )
    by_id = np.argsort(ids, kind="stable")
    order = order[by_id]
    return Examples(ids[by_id], part.images[order], part.labels[order], part.source_ids[order])


def _hold_out(examples: Examples, divisor: int, *, last: bool = False) -> tuple[Examples, Examples]:
    """Hold out, per class, 1/`divisor` of the examples in the order of ids; at least one if a class has two or more."""
    held = np.zeros(len(examples), bool)
    for label in np.unique(examples.labels):
        members = np.flatnonzero(examples.labels == label)
        count = max(len(members) // divisor, 1) if len(members) > 1 else 0
        held[members[len(members) - count :] if last else members[:count]] = True
    return examples.take(~held), examples.take(held)


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


def covered(data: Dataset) -> Examples:
    """Return the examples that stores cover: train and validation, sorted by id."""
    return concatenate([data.train, data.validation])
