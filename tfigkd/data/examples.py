"""Labeled pictures of one split, in memory or on disk, and several of them as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfigkd.data.disk import DiskPictures, JoinedPictures, Pictures, pick


@dataclass(frozen=True, eq=False)
class Examples:
    """Labeled pictures of one split, sorted by id.

    Attributes:
        ids: Unicode [N], unique within the split.
        images: uint8 RGB [N,H,W,3], 0 to 255; an array, or pictures on disk, which give arrays when they are indexed.
        labels: int64 [N], class indices.
        source_ids: Unicode [N], name of each example in its source; for messages only.
        groups: Unicode [N], what each example has in common with others, such as a patient; None without groups.
    """

    ids: np.ndarray
    images: Pictures
    labels: np.ndarray
    source_ids: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images."""
        return tuple(self.images.shape[1:])

    def take(self, indices: np.ndarray | slice) -> "Examples":
        """Return the examples at `indices` (integers, a boolean mask or a slice), in that order."""
        groups = None if self.groups is None else self.groups[indices]
        images = pick(self.images, indices)
        return Examples(self.ids[indices], images, self.labels[indices], self.source_ids[indices], groups)


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Join splits and sort by id, for example train and validation for the training of the final models."""
    return _Joined(parts)


class _Joined(Examples):
    """Several splits as one, sorted by id; the pictures are not copied until they are read."""

    _pictures: DiskPictures

    def __init__(self, parts: Sequence[Examples]):
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "labels", "source_ids")]
        order = np.argsort(columns[0], kind="stable")
        for name, column in zip(("ids", "labels", "source_ids"), columns, strict=True):
            object.__setattr__(self, name, column[order])
        pictures = [part.images for part in parts]
        object.__setattr__(self, "_pictures", JoinedPictures(pictures).pick(order))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the pictures."""
        return self._pictures.shape[1:]

    @property
    def images(self) -> Pictures:
        """All pictures; where they are in memory, as a new array."""
        return self.take(slice(None)).images

    def take(self, indices: np.ndarray | slice) -> Examples:
        """Return the examples at `indices`, in that order."""
        pictures = self._pictures.pick(indices)
        images = pictures if pictures.on_disk else pictures[:]
        return Examples(self.ids[indices], images, self.labels[indices], self.source_ids[indices])
