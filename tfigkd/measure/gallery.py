"""Example images with the teacher's map, the overlaid image as used in training, and the student's map."""

import io
from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np

from tfigkd.data import Examples
from tfigkd.measure.metrics import predict_logits
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic, checksum

FILE = "gallery.npz"
SEARCHED = 500  # number of validation images that are searched for disagreements
OF_TEACHER = ("teacher_predicted", "teacher_maps", "overlays", "overlaid", "alike", "chance")

Explained = tuple[np.ndarray, np.ndarray]
"""Maps [B,H,W] of the label's logit, and their completeness errors [B]."""


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
        with atomic(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
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


def choose(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Choose positions of examples to show: the first ones, and up to half with different predictions.

    Args:
        first: Classes that one model predicts, [N].
        second: Classes that the other model predicts, [N].
        count: Largest number of positions.

    Returns:
        Positions, at most `count` integers.
    """
    apart = np.flatnonzero(first != second)[: count // 2]
    rest = np.setdiff1d(np.arange(len(first)), apart)[: count - len(apart)]
    return np.concatenate([rest, apart])


@dataclass(frozen=True)
class Shown:
    """The chosen validation images, and the classes that the models predict for them: int64 [K] by role."""

    examples: Examples
    predicted: dict[str, np.ndarray]


def choose_examples(examples: Examples, roles: dict[str, keras.Model], count: int) -> Shown:
    """Choose the images of a gallery.

    Args:
        examples: The validation examples; the first `SEARCHED` are searched for disagreements.
        roles: The student and, if available, the teacher, by role.
        count: Largest number of images.
    """
    searched = examples.take(slice(SEARCHED if count else 0))
    if not len(searched):
        return Shown(searched, {})
    models = {role: roles[role] for role in ("teacher", "student") if role in roles}
    predicted = {role: predict_logits(model, searched.images).argmax(axis=1) for role, model in models.items()}
    student = predicted["student"]
    chosen = choose(predicted.get("teacher", student), student, count)
    return Shown(searched.take(chosen), {role: classes[chosen] for role, classes in predicted.items()})
