"""Hold out a part of a split for validation or test: a share of each class by the order of ids, or whole groups."""

import hashlib

import numpy as np

from tfigkd.data.examples import Examples
from tfigkd.runtime.errors import UserError

COLUMN_GROUP = "; if the column group of a CSV file is another thing, rename it"
"""End of messages about groups, which a CSV file may have without an option."""


def hold_out(examples: Examples, divisor: int, *, last: bool = False) -> tuple[Examples, Examples]:
    """Hold out a share of each class; of examples with groups whole groups, near to that share.

    Args:
        examples: Sorted by id.
        divisor: Of each class 1/`divisor` is held out, and at least one example if the class has two or more.
        last: Whether the examples whose ids sort last are held out, or the first ones.

    Returns:
        The examples that stay, and those held out.
    """
    held = np.zeros(len(examples), bool)
    wanted = {}
    by_label = np.argsort(examples.labels, kind="stable")
    labels, starts = np.unique(examples.labels[by_label], return_index=True)
    for label, members in zip(labels, np.split(by_label, starts[1:]), strict=True):
        count = max(len(members) // divisor, 1) if len(members) > 1 else 0
        wanted[int(label)] = count
        held[members[len(members) - count :] if last else members[:count]] = True
    if examples.groups is not None:
        held = np.isin(examples.groups, _groups_to_hold_out(examples, wanted, last=last))
    return examples.take(~held), examples.take(held)


def _groups_to_hold_out(examples: Examples, wanted: dict[int, int], *, last: bool) -> list[str]:
    """Choose whole groups, in the order of the hashes of their names, that come near a number of examples per class.

    A group is held out if it brings the number of examples of the classes nearer to the wanted numbers (the sum of the
    squared relative differences falls), and if each of its classes is in a group that stays, too. A class of which no
    example is held out then gets the group that fits best. The choice does not depend on the order of the examples, and
    a new group rarely changes it.
    """
    assert examples.groups is not None
    known, group_of = np.unique(examples.groups, return_inverse=True)
    names = [str(name) for name in known]
    digests = [hashlib.sha256(f"group {name}".encode()).hexdigest() for name in names]
    order = sorted(range(len(names)), key=digests.__getitem__, reverse=last)
    aim = np.array([wanted[label] for label in sorted(wanted)], np.float64)
    rows = np.unique(examples.labels, return_inverse=True)[1]
    left = np.bincount(rows, minlength=len(aim)).astype(np.int64)
    held = np.zeros(len(aim))
    # many groups are of few classes each
    pairs, numbers = np.unique(group_of * len(aim) + rows, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(names) + 1) * len(aim))
    chosen: dict[int, None] = {}

    def counts_of(group: int) -> tuple[np.ndarray, np.ndarray]:
        own = slice(starts[group], starts[group + 1])
        return pairs[own] % len(aim), numbers[own]

    def distance(group: int | None = None) -> float:
        counted = held.copy()
        if group is not None:
            classes, count = counts_of(group)
            counted[classes] += count
        return float((((counted - aim) / np.maximum(aim, 1)) ** 2).sum())

    def remains(group: int) -> bool:
        classes, count = counts_of(group)
        return bool((left[classes] > count).all())

    def choose(group: int) -> None:
        classes, count = counts_of(group)
        chosen[group] = None
        held[classes] += count
        left[classes] -= count

    now = distance()
    for group in order:
        if remains(group) and distance(group) < now:
            choose(group)
            now = distance()
    lacking = {int(row) for row in np.flatnonzero((aim > 0) & (held == 0))}
    having: dict[int, list[int]] = {row: [] for row in lacking}
    for group in order if lacking else ():
        for row in lacking.intersection(counts_of(group)[0].tolist()):
            having[row].append(group)
    for row in np.argsort(aim, kind="stable"):  # for a class whose groups all have more than twice the wanted number
        able = [] if held[row] else [group for group in having.get(int(row), ()) if remains(group)]
        if able:
            choose(min(able, key=distance))
    return [names[group] for group in chosen]


def check_groups(name: str, splits: dict[str, Examples], hint: str = "") -> None:
    """Refuse a group that is in two splits, which can only be splits of the source itself.

    Args:
        name: Of the data set.
        splits: Role to examples.
        hint: End of the message.

    Raises:
        UserError: There is one.
    """
    before: dict[str, str] = {}
    for split, examples in splits.items():
        for group in np.unique(examples.groups) if examples.groups is not None else ():
            if group in before:
                raise UserError(
                    f"data set {name!r}: group {str(group)!r} is in {before[group]} and in {split}; move its pictures "
                    "into one split, or set data.splits.train to both splits, such as train+test: whole groups are "
                    f"then held out{hint}"
                )
            before[group] = split
