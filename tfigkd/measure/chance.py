"""Detect a classifier that is no better than guessing, or whose input range or class order is clearly another one."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tfigkd.data import Dataset, Examples, concatenate
from tfigkd.measure.metrics import balanced_accuracy
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import shortened

PROBE_EXAMPLES = 256
"""Number of images used for these checks; more would hardly change the result."""
DEVIATIONS = 2.0
"""Standard deviations of chance within which an accuracy is near it."""
CLEARLY = 3.0
"""Standard deviations by which another input range or class order must be right on more images (McNemar's test)."""
WEAK = 0.2
"""Share of the way from guessing to all right below which a network has hardly learned."""
RANGE_GAIN = 0.05
"""Gain of balanced accuracy from which another input range is suggested."""
CHANCE_KAPPA = 0.05
"""Cohen's kappa (0 for guesses) below which a study calls an arm at chance; its rows have no counts of the classes."""
ORDER_RECALL = 0.5
"""Balanced accuracy from which another class order is suggested."""
ORDER_GAIN = 0.2
"""Gain of balanced accuracy from which another class order is suggested; it is fitted to the images that judge it."""
FITTED_EXAMPLES = 4
"""Images of each class that an order of many classes is fitted to; of two, random answers would fit half."""
MOST_FITTED = 2000
"""Largest number of classes of which an order is fitted: it takes a matrix of their pairs."""
NEVER_RIGHT = 0.2
"""Largest share of classes that a model in another order may never name rightly.

An untrained model that happens to tell two of three classes apart is no model of another order.
"""


def probe_examples(data: Dataset) -> Examples:
    """Return `PROBE_EXAMPLES` images for these checks: validation, and some of train where validation has fewer."""
    held_out = data.validation.take(slice(PROBE_EXAMPLES))
    missing = PROBE_EXAMPLES - len(held_out)
    return held_out if missing <= 0 else concatenate([held_out, data.train.take(slice(missing))])


def examples_of_each_class(data: Dataset) -> Examples:
    """Return up to `FITTED_EXAMPLES` images of each class, from validation and train, for the order of many classes."""
    known = concatenate([data.validation, data.train])
    order = np.argsort(known.labels, kind="stable")
    sorted_labels = known.labels[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)  # within the class
    return known.take(np.sort(order[place < FITTED_EXAMPLES]))


def explained_by_guessing(recall: float, counts: Sequence[int] | np.ndarray) -> bool:
    """Return whether a balanced accuracy is no higher than guessing explains.

    Args:
        recall: The balanced accuracy, from 0 to 1.
        counts: Examples of each class that occurs.
    """
    counts = np.asarray(counts)
    chance = 1 / len(counts)
    spread = np.sqrt(np.sum(chance * (1 - chance) / counts)) / len(counts)  # of a mean of recalls, one for each class
    return bool(recall < chance + DEVIATIONS * spread)


def near_chance(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the balanced accuracy of logits [N,C] for labels [N] is no higher than guessing explains."""
    counts = np.unique(labels, return_counts=True)[1]
    return not len(labels) or explained_by_guessing(balanced_accuracy(logits, labels), counts)


def hardly_learned(recall: float, counts: Sequence[int] | np.ndarray) -> bool:
    """Return whether a balanced accuracy is near that of guessing, or not far above it; see `explained_by_guessing`."""
    guessed = 1 / len(counts)
    return recall < guessed + WEAK * (1 - guessed) or explained_by_guessing(recall, counts)


def _clearly_better(other: np.ndarray, logits: np.ndarray, labels: np.ndarray, gain: float) -> bool:
    """Return whether other logits [N,C] have a balanced accuracy that is higher by `gain` and are right on more images
    than chance explains, by McNemar's test."""
    right, other_right = logits.argmax(axis=1) == labels, other.argmax(axis=1) == labels
    gained, lost = int((other_right & ~right).sum()), int((right & ~other_right).sum())
    sure = gained - lost > CLEARLY * np.sqrt(gained + lost) and not near_chance(other, labels)
    return sure and balanced_accuracy(other, labels) >= balanced_accuracy(logits, labels) + gain


def suggest_fix(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    others: Mapping[str, Callable[[], np.ndarray]],
    *,
    try_orders: bool = True,
) -> str | None:
    """Return what makes a classifier right on clearly more images, in words; None where nothing that is tried does.

    Args:
        logits: Its logits [N,C].
        labels: int [N].
        class_names: Of the data, in the order of the labels.
        others: What the user would give, such as "--input-range 0 255", to the logits [N,C] that it leads to. One that
            a model cannot take raises a UserError or ValueError, and is left out.
        try_orders: Whether to look for another order of the classes, too.
    """
    wrong = int((logits.argmax(axis=1) != labels).sum())
    if wrong <= CLEARLY**2 or len(np.unique(labels)) < 2:
        return None  # nothing can be clearly better, or a constant answer would be
    found = {text: values for text, compute in others.items() if (values := _computed(compute)) is not None}
    scores = {
        text: balanced_accuracy(other, labels)
        for text, other in found.items()
        if _clearly_better(other, logits, labels, RANGE_GAIN)
    }
    if scores:
        best = max(scores, key=lambda text: scores[text])
        return f"with {best} its balanced accuracy on the same images is {100 * scores[best]:.1f} %"
    if not try_orders:
        return None
    advice = (
        suggest_order(other, labels, class_names, before=logits, given=text)
        for text, other in {"": logits, **found}.items()
    )
    return next(filter(None, advice), None)


def suggest_order(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    before: np.ndarray | None = None,
    given: str = "",
) -> str | None:
    """Return the order of classes in which a classifier is right on clearly more images, in words; None if in none.

    Args:
        logits: Its logits [N,C].
        labels: int [N].
        class_names: Of the data, in the order of the labels.
        before: Those with which it is compared; by default its own.
        given: What the user has to give besides, so that it has these logits.
    """
    before = logits if before is None else before
    classes = len(class_names)
    if logits.shape[1] != classes:
        return None
    orders = [(order, RANGE_GAIN) for order in _usual_orders(class_names)]
    fitted = better_order(logits, labels, classes) if classes <= MOST_FITTED else None
    orders += [] if fitted is None else [(fitted, ORDER_GAIN)]
    for order, gain in orders:
        placed = _in_order(logits, order)
        if _clearly_better(placed, before, labels, gain):
            listed = shortened([class_names[index] for index in order])
            also = f" and its pixels those of {given}" if given else ""
            score = f"{100 * balanced_accuracy(placed, labels):.1f} %"
            return (
                f"its outputs seem to be in the order {listed}{also} (balanced accuracy in this order: {score}): "
                "rename the class folders so that they sort in this order"
            )
    return None


def _usual_orders(class_names: Sequence[str]) -> Iterator[list[int]]:
    """Yield other orders in which programs sort names: by the numbers in them, and without regard to case."""

    def by_number(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]

    for key in (by_number, str.casefold):
        order = sorted(range(len(class_names)), key=lambda index: key(class_names[index]))
        if order != [*range(len(class_names))]:
            yield order


def _computed(compute: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Return the logits of a model in another range; None where it cannot take that range, as one of bytes cannot."""
    try:
        return compute()
    except (UserError, ValueError):
        return None


def _in_order(logits: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return logits [N,C] with each output in the column of its label."""
    placed = np.empty_like(logits)
    placed[:, list(order)] = logits
    return placed


def better_order(logits: np.ndarray, labels: np.ndarray, classes: int) -> list[int] | None:
    """Return the label of each output in the order of classes that makes a model right; None where none does.

    Args:
        logits: [N,C].
        labels: int [N].
        classes: Number of classes of the data.
    """
    from scipy.optimize import linear_sum_assignment

    if logits.shape[1] != classes or len(np.unique(labels)) != classes:
        return None
    counts = np.zeros((logits.shape[1], classes))
    np.add.at(counts, (logits.argmax(axis=1), labels), 1)
    _, order = linear_sum_assignment(-counts)
    placed = _in_order(logits, order)
    right = labels[placed.argmax(axis=1) == labels]
    clear = balanced_accuracy(placed, labels) >= ORDER_RECALL and not near_chance(placed, labels)
    named = len(np.unique(right)) >= (1 - NEVER_RIGHT) * classes
    return [int(label) for label in order] if clear and named else None
