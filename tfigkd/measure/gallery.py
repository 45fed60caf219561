"""The file of example images with the teacher's map, the overlaid image as used in training, and the student's map."""

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, write_bytes

FILE = "gallery.npz"
OF_TEACHER = ("teacher_predicted", "teacher_maps", "overlays", "overlaid", "alike", "chance")


@dataclass(frozen=True)
class Gallery:
    """K validation images with predictions and maps of two models; without a teacher, its arrays are empty.

    Attributes:
        ids: [K].
        images: uint8 [K,H,W,3].
        labels: int64 [K].
        predicted: The student's class, int64 [K].
        maps: The student's Integrated Gradients maps of the label, float32 [K,H,W].
        teacher_predicted: int64 [K].
        teacher_maps: Maps as in the store, uint8 [K,H,W], each scaled by its own maximum.
        overlays: Images overlaid as in training, with the change of a control arm, uint8 [K,H,W,3]; empty without
            overlays.
        overlaid: bool [K], false for images whose map has a completeness error above the tolerance.
        alike: Rank correlation of the two models' maps, float64 [K].
        chance: The same measure with the teacher's map of another image, float64 [K].
    """

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    maps: np.ndarray
    teacher_predicted: np.ndarray
    teacher_maps: np.ndarray
    overlays: np.ndarray
    overlaid: np.ndarray
    alike: np.ndarray
    chance: np.ndarray

    def save(self, path: Path) -> str:
        """Write the file atomically and return its checksum."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{one.name: getattr(self, one.name) for one in fields(self)})
        write_bytes(path, buffer.getvalue())
        return checksum(path)

    @classmethod
    def load(cls, path: Path) -> "Gallery":
        """Read a file whose checksum is already verified.

        Raises:
            UserError: The file is not a gallery.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(**{one.name: content[one.name] for one in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{path} is no gallery of examples ({error}); run stage evaluate again") from error
