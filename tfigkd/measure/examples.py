"""The choice of validation images that a report shows: the first ones, and some on which two models differ."""

from dataclasses import dataclass

import keras
import numpy as np

from tfigkd.data import Examples
from tfigkd.measure.metrics import predict_logits

SEARCHED = 500  # number of validation images that are searched for disagreements

Explained = tuple[np.ndarray, np.ndarray]
"""Maps [B,H,W] of the label's logit, and their completeness errors [B]."""


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
