"""Which operation of a file an event of LiteRT's profiler belongs to. This module does not need TensorFlow.

XNNPACK runs the operations of a file in groups, in the order of the file, under names of its own: a CONV_2D of 1x1 is a
"Fully Connected", a PAD may vanish in the convolution behind it, an ADD with a ReLU becomes "Add" and "Clamp".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfigkd.edge.litert_profiler import Event
from tfigkd.edge.operations import Operation

NAMES: dict[str, tuple[str, ...]] = {
    "ADD": ("add",),
    "AVERAGE_POOL_2D": ("averagepooling", "globalaveragepooling", "mean"),
    "BATCH_MATMUL": ("batchmatrixmultiply", "dynamicfullyconnected"),
    "CONCATENATION": ("copy", "concatenate"),
    "CONV_2D": ("convolution", "fullyconnected"),
    "DEPTHWISE_CONV_2D": ("convolution",),
    "DEQUANTIZE": ("convert",),
    "DIV": ("divide",),
    "FULLY_CONNECTED": ("fullyconnected", "dynamicfullyconnected"),
    "HARD_SWISH": ("hardswish",),
    "LOGISTIC": ("sigmoid",),
    "MAX_POOL_2D": ("maxpooling", "argmaxpooling"),
    "MEAN": ("mean", "globalaveragepooling"),
    "MUL": ("multiply",),
    "PAD": ("constantpad",),
    "PADV2": ("constantpad",),
    "QUANTIZE": ("convert",),
    "RELU": ("clamp",),
    "RELU6": ("clamp",),
    "RELU_N1_TO_1": ("clamp",),
    "SPLIT": ("slice", "copy"),
    "STRIDED_SLICE": ("slice", "staticslice"),
    "SUB": ("subtract",),
    "TRANSPOSE_CONV": ("deconvolution",),
}
"""What XNNPACK calls an operation, in small letters without spaces; for others it is their own type."""

FOLLOWING = ("clamp", "staticreshape", "reshape", "copy", "convert", "transpose", "multiply", "add", "constantpad")
"""What XNNPACK may add behind an operation, such as an activation."""

MAY_VANISH = frozenset(
    {"PAD", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE", "RELU", "RELU6", "TRANSPOSE", "DENSIFY"}
)
"""Operations that XNNPACK may do without."""

FITS, EXACT, ODD, ABSENT, VANISHED = 4.0, 1.0, -20.0, -6.0, -0.1
"""Scores of an assignment: the name fits; the kind of convolution fits too; the name does not fit; an operation has no
event; it has none and may vanish."""


@dataclass(frozen=True)
class Times:
    """Times of operations.

    Attributes:
        milliseconds: Operation's index to its time; operations that vanish into others are not listed.
        builtin: Indices of the operations that XNNPACK does not take.
        groups: Number of groups that XNNPACK runs; a file that it takes whole has one.
        unmatched: Events that fit no operation.
    """

    milliseconds: dict[int, float]
    builtin: frozenset[int]
    groups: int
    unmatched: tuple[Event, ...]


def operation_times(operations: Sequence[Operation], events: Sequence[Event]) -> Times:
    """Assign events to the operations of a file.

    Args:
        operations: All of the file, in its order.
        events: Of one inference, in the order in which they run.
    """
    # the nodes behind those of the file are the delegates themselves, which hold what is counted already
    events = [event for event in events if event.delegated or event.index < len(operations)]
    builtin = {event.index: event.milliseconds for event in events if not event.delegated}
    if not all(operations[event.index].kind == event.tag for event in events if not event.delegated):
        return Times({}, frozenset(), 0, tuple(events))
    found, groups = dict(builtin), _groups(events)
    parts = partition(operations, frozenset(builtin))
    if len(parts) != len(groups):
        return Times(found, frozenset(builtin), len(groups), tuple(event for event in events if event.delegated))
    unmatched = []
    for part, group in zip(parts, groups, strict=True):
        for event, operation in zip(group, _align(part, group), strict=True):
            if operation is None:
                unmatched.append(event)
            else:
                found[operation.index] = found.get(operation.index, 0.0) + event.milliseconds
    return Times(found, frozenset(builtin), len(groups), tuple(unmatched))


def _groups(events: Sequence[Event]) -> list[list[Event]]:
    """Return the events of each delegate; its operators are counted from 0."""
    groups: list[list[Event]] = []
    before: Event | None = None
    for event in events:
        if event.delegated:
            if before is None or not before.delegated or event.index <= before.index:
                groups.append([])
            groups[-1].append(event)
        before = event
    return groups


def partition(operations: Sequence[Operation], builtin: frozenset[int]) -> list[list[Operation]]:
    """Return the operations that LiteRT gives to each delegate.

    As in its own partitioning, groups of delegated and of other operations take turns; each takes, in the order of the
    file, every operation of its kind whose inputs are computed by then.
    """
    left, groups = list(operations), []
    waiting = {output for operation in operations for output in operation.outputs}
    while left:
        ready = next((one for one in left if not waiting & {*one.inputs}), left[0])
        mine = ready.index in builtin
        group = []
        for operation in left:
            if (operation.index in builtin) == mine and not waiting & {*operation.inputs}:
                group.append(operation)
                waiting -= {*operation.outputs}
        if not group:  # a circle, which no file has
            return []
        left = [operation for operation in left if operation not in group]
        if not mine:
            groups.append(group)
    return groups


def _align(operations: Sequence[Operation], events: Sequence[Event]) -> list[Operation | None]:
    """Return the operation of each event, or None; both are in order, and an operation may have several events.

    The assignment with the highest sum of scores, by dynamic programming.
    """
    skipped = np.cumsum([0.0, *(VANISHED if one.kind in MAY_VANISH else ABSENT for one in operations)])
    count = len(operations)
    scores, origins = np.full(count, -np.inf), []
    for place, event in enumerate(events):
        first = np.array([_first_score(one, event) for one in operations])
        if place == 0:
            scores, origin = first + skipped[:-1], np.full(count, -1)
        else:
            reached = scores - skipped[1:]  # without the operations up to this one, which are not left out
            best, best_at = np.full(count, -np.inf), np.full(count, -1)
            for index in range(1, count):
                better = reached[index - 1] > best[index - 1]
                best[index] = reached[index - 1] if better else best[index - 1]
                best_at[index] = index - 1 if better else best_at[index - 1]
            following = scores + _following_score(event)
            moving = best + skipped[:-1] + first
            origin = np.where(following >= moving, np.arange(count), best_at)
            scores = np.maximum(following, moving)
        origins.append(origin)
    at = int(np.argmax(scores + skipped[-1] - skipped[1:]))
    assigned: list[Operation | None] = []
    for place in reversed(range(len(events))):
        before = int(origins[place][at])
        event = events[place]
        score = _following_score(event) if before == at else _first_score(operations[at], event)
        assigned.append(None if score <= ODD else operations[at])
        at = before
    return assigned[::-1]


def _words(event: Event) -> str:
    return event.tag.partition("(")[0].lower().replace(" ", "")


def _first_score(operation: Operation, event: Event) -> float:
    """Return how well an event fits an operation as its first."""
    names = NAMES.get(operation.kind, (operation.kind.lower().replace("_", ""),))
    if not _words(event).startswith(names):
        return ODD
    return FITS + EXACT * (("DWConv" in event.tag) == (operation.kind == "DEPTHWISE_CONV_2D"))


def _following_score(event: Event) -> float:
    """Return how well an event fits an operation that has one already."""
    return 0.0 if _words(event).startswith(FOLLOWING) else ODD
