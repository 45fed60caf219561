"""Whether a classifier is right on more images than by chance, and what makes one of another kind so."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfigkd.data import Dataset, Examples, concatenate

LOOKED_AT = 256
"""Images that decide; more would make the decision little surer."""
DEVIATIONS = 2.0
"""Standard deviations of chance within which an accuracy is near it."""
CLEARLY = 0.5
"""Accuracy from which another reading of the same outputs is worth naming."""
NEVER_RIGHT = 0.2
"""Largest share of classes that a model in another order may never name rightly.

An untrained model that happens to tell two of three classes apart is no model of another order.
"""


def looked_at(data: Dataset, count: int = LOOKED_AT) -> Examples:
    """Return images that decide: validation, and some of train where validation has fewer than `count`."""
    held_out = data.validation.take(slice(count))
    missing = count - len(held_out)
    return held_out if missing <= 0 else concatenate([held_out, data.train.take(slice(missing))])


def mean_recall(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the recall of the classes that occur, averaged, so that a constant answer has the one of chance."""
    right = logits.argmax(axis=1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def near_chance(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether logits [N,C] are right on no more labels [N] than guessing explains."""
    chance = 1 / len(np.unique(labels)) if len(labels) else 1.0
    spread = np.sqrt(chance * (1 - chance) / max(len(labels), 1))
    return mean_recall(logits, labels) < chance + DEVIATIONS * spread


def what_helps(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    others: Mapping[str, Callable[[], np.ndarray]],
) -> str | None:
    """Return what makes a classifier at chance right, in words; None where nothing that is tried does.

    Args:
        logits: Its logits [N,C].
        labels: int [N].
        class_names: Of the data, in the order of the labels.
        others: What the user would give, such as "--input-range 0 255", to the logits [N,C] that it leads to.
    """
    found = {text: compute() for text, compute in others.items()}
    scores = {text: mean_recall(other, labels) for text, other in found.items() if not near_chance(other, labels)}
    if scores:
        best = max(scores, key=lambda text: scores[text])
        return f"with {best} its balanced accuracy on the same images is {100 * scores[best]:.1f} %"
    for text, other in {"": logits, **found}.items():
        order = better_order(other, labels, len(class_names))
        if order is not None:
            listed = ", ".join(class_names[index] for index in order[:10]) + (" …" if len(order) > 10 else "")
            also = f" and its pixels those of {text}" if text else ""
            score = 100 * mean_recall(_in_order(other, order), labels)
            return (
                f"its outputs seem to be in the order {listed}{also} (balanced accuracy in this order: {score:.1f} %): "
                "rename the class folders so that they sort in this order"
            )
    return None


def _in_order(logits: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return logits [N,C] with each output in the column of its label."""
    placed = np.empty_like(logits)
    placed[:, list(order)] = logits
    return placed


def better_order(logits: np.ndarray, labels: np.ndarray, classes: int) -> list[int] | None:
    """Return the label of each output in the order of classes that makes a model right; None where none does."""
    from scipy.optimize import linear_sum_assignment

    if logits.shape[1] != classes:
        return None
    counts = np.zeros((logits.shape[1], classes))
    np.add.at(counts, (logits.argmax(axis=1), labels), 1)
    _, order = linear_sum_assignment(-counts)
    placed, present = _in_order(logits, order), np.unique(labels)
    right = labels[placed.argmax(axis=1) == labels]
    clear = mean_recall(placed, labels) >= CLEARLY and not near_chance(placed, labels)
    named = len(np.unique(right)) >= (1 - NEVER_RIGHT) * classes
    return [int(label) for label in order] if clear and named and len(present) == classes else None
