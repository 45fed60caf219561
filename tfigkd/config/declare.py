"""How the fields of the config are declared: their part in fingerprints, and the checks of their ranges."""

import math
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass
from typing import Any

from tfigkd.runtime.errors import UserError


def late(default: Any) -> Any:
    """Return a dataclass field that came with a later version: at its default it is left out of fingerprints."""
    return field(default=default, metadata={"late": True})


def revised(default: Any, revision: int) -> Any:
    """Return a dataclass field whose non-default values changed meaning; fingerprints hold this revision beside
    them."""
    return field(default=default, metadata={"revision": revision})


def settled(default: Any, value: Callable[[Any], Any]) -> Any:
    """Return a dataclass field of which fingerprints hold `value(table)`, such as what None stands for."""
    return field(default=default, metadata={"settled": value})


def inert(default: Any) -> Any:
    """Return a dataclass field that no result depends on: fingerprints leave it out."""
    return field(default=default, metadata={"inert": True})


def free(default: Any, *, late: bool = False) -> Any:
    """Return a dataclass field that may differ when a run is repeated, as no result depends on it.

    It names a place, or says what is shown or how something is computed. Fingerprints hold it, unlike an inert field.

    Args:
        default: The field's default.
        late: As `late`.
    """
    return field(default=default, metadata={"free": True} | ({"late": True} if late else {}))


def free_fields(table: Any, prefix: str = "") -> tuple[str, ...]:
    """Return the dotted names of all fields without effect on results, free ones and inert ones; tables end in a dot.

    Args:
        table: A config, or one of its tables.
        prefix: Of the names.
    """
    names: list[str] = []
    for one in fields(table):
        value, name = getattr(table, one.name), f"{prefix}{one.name}"
        if {"free", "inert"} & one.metadata.keys():
            names.append(f"{name}." if is_dataclass(value) else name)
        elif is_dataclass(value):
            names += free_fields(value, f"{name}.")
    return tuple(names)


def require(condition: bool, what: str, value: Any) -> None:
    """Refuse a value that is out of range, in one line.

    Args:
        condition: Whether the value is accepted.
        what: The field and what is expected, such as "epochs must be positive".
        value: What was given.

    Raises:
        UserError: `condition` is false.
    """
    if not condition:
        raise UserError(f"config: {what}, got {value!r}")


def forbid(wrong: bool, message: str, value: Any) -> None:
    """Refuse a value of a field, or a combination of several fields, in one line.

    A table begins the message with its field's own name, such as `epochs`. What reads the table puts the table's place
    before it (`refused_as` of `reading.py`), such as `teacher.training.`, because several tables may be of one class.

    Args:
        wrong: Whether the value is refused.
        message: What is expected instead.
        value: What was given.

    Raises:
        UserError: `wrong` is true.
    """
    require(not wrong, message, value)


def require_finite(table: Any, name: str = "") -> None:
    """Refuse an infinite number or NaN in a config or in one of its tables."""
    for one in fields(table):
        value, dotted = getattr(table, one.name), f"{name}{one.name}"
        if is_dataclass(value):
            require_finite(value, f"{dotted}.")
        members = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(member) for member in members if isinstance(member, float))
        require(finite, f"{dotted} must be a finite number", value)


def require_seed(seed: int, name: str) -> None:
    """Refuse a seed that NumPy and Keras would refuse hours later."""
    require(0 <= seed < 2**32, f"{name} must be in 0..4294967295", seed)
