"""Read nested plain values into config dataclasses: strict about names, types and ranges, with hints for typos.

A check of a table names its field without the table, as several tables may be of one class; `refused_as` puts the
table's place before it.

The dataclasses are in the `*fields.py` modules beside this one; `experiment.py` reads whole experiments.
"""

import contextlib
import dataclasses
import functools
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tfigkd.runtime.errors import UserError, closest

MAX_TOML = 2**20
_NONE = type(None)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass; constants of the class are no fields."""
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in dataclasses.fields(cls)}


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a config dataclass and of its tables, by dotted name.

    Only fields are named: not the keys of a field whose value is a table, such as the classes of `class_weight`.
    """
    found: dict[str, Any] = {}
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{inner}": each for inner, each in field_types(typing.cast(type, hint)).items()}
        else:
            found[name] = hint
    return found


def dotted_names(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of all values of nested tables, such as losses.kd.weight."""
    names = []
    for key, value in mapping.items():
        names += dotted_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def value_at(mapping: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of nested tables that a dotted name leads to.

    Raises:
        KeyError: it leads to none.
    """
    value: Any = mapping
    for name in dotted.split("."):
        if not isinstance(value, dict) or name not in value:
            raise KeyError(dotted)
        value = value[name]
    return value


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the values in which two config mappings differ.

    Args:
        left: Nested plain values.
        right: Nested plain values.
        prefix: Put before each name.
    """
    names = []
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def _is_none(value: Any) -> bool:
    """Return whether a value is the word none, in any case of letters."""
    return isinstance(value, str) and value.lower() == "none"


def _convert(value: Any, expected: Any, where: str, what: str) -> Any:
    """Return one value as its annotation has it; an integer becomes a float where a float is expected.

    Args:
        value: A plain value.
        expected: The annotation of its field.
        where: Dotted name of the field.
        what: What is read, for messages.

    Raises:
        UserError: The value is of another type.
    """
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise UserError(f"{what}: {where} is a table, got {value!r}")
        return from_mapping(typing.cast(type, expected), value, where, what=what)
    origin = typing.get_origin(expected)
    if expected is Any:
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{what}: {where} is a table, got {value!r}")
        member = typing.get_args(expected)[1]
        return {key: _convert(item, member, f"{where}.{key}", what) for key, item in value.items()}
    if origin is tuple:
        members = typing.get_args(expected)
        if members[-1] is Ellipsis and isinstance(value, list | tuple):
            members = (members[0],) * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(members):
            raise UserError(f"{what}: {where} must be a list{_length(members)}, got {value!r}")
        return tuple(_convert(item, member, where, what) for item, member in zip(value, members, strict=True))
    if origin is Literal:
        if _is_array(value) or isinstance(value, dict | list) or value not in typing.get_args(expected):
            if _is_none(value) and "none" in typing.get_args(expected):
                return "none"
            choices = ", ".join(map(repr, typing.get_args(expected)))
            raise UserError(f"{what}: {where} must be one of {choices}, got {_shown(value)}")
        return value
    if origin in (types.UnionType, typing.Union):
        # a list or a choice that may be left out
        composed = [one for one in typing.get_args(expected) if typing.get_origin(one) in (tuple, Literal)]
        if composed and _NONE in typing.get_args(expected) and _is_none(value):
            return None
        if composed and value is not None:
            return _convert(value, composed[0], where, what)
    options = typing.get_args(expected) if origin in (types.UnionType, typing.Union) else (expected,)
    if float in options and type(value) is float and not math.isfinite(value):
        raise UserError(f"{what}: {where} must be a finite number, got {value}")
    if type(value) in options and not (_NONE in options and str in options and _is_none(value)):
        return value
    if float in options and type(value) is int:
        return float(value)
    if _NONE in options and _is_none(value):  # TOML has no word of its own for it
        return None
    tables = [option for option in options if typing.get_origin(option) is dict]
    if tables and isinstance(value, Mapping):
        return _convert(value, tables[0], where, what)
    wanted = " or ".join("table" if option in tables else option.__name__ for option in options if option is not _NONE)
    raise UserError(f"{what}: {where} must be of type {wanted}, got {_shown(value)} ({type(value).__name__})")


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "shape", ()))


def _shown(value: Any) -> str:
    """Return a refused value as text; the numbers of an array are too many."""
    return f"an array of shape {tuple(value.shape)}" if _is_array(value) else repr(value)


def _length(members: tuple) -> str:
    return "" if members[-1] is Ellipsis else f" of {len(members)}"


@contextlib.contextmanager
def refused_as(prefix: str) -> Iterator[None]:
    """Put a prefix before the field that a check of a table refuses within this context.

    Args:
        prefix: Such as "config: teacher.training." for the field of a file, or "--" for an option of a command.

    Raises:
        UserError: The check's own error, under the full name of the field.
    """
    try:
        yield
    except UserError as error:
        raise UserError(prefix + str(error).removeprefix("config: ")) from error


def from_mapping(cls: type, mapping: Mapping[str, Any], where: str = "", base: Any = None, what: str = "config") -> Any:
    """Build a config dataclass from nested plain values, over `base` where one is given.

    Args:
        cls: The dataclass.
        mapping: Names of fields to values; tables are mappings.
        where: Dotted name of the table, for messages; empty for the whole config.
        base: An instance, whose values hold where the mapping has none; None: the defaults.
        what: What is read, for messages.

    Raises:
        UserError: an unknown key (with the closest known one), a wrong type or a value out of range.
    """
    hints = _hints(cls)
    start = base if base is not None else cls()
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{where}.{key}" if where else key
        if key not in hints:
            raise UserError(f"{what}: unknown field {dotted!r}; {closest(key, hints)}")
        current = getattr(start, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = from_mapping(type(current), value, dotted, current, what)
        elif type(value) is type(current) and value == current:
            changes[key] = current  # as teacher.training.warmup_epochs, 5: its fingerprint is not that of 5.0
        else:
            changes[key] = _convert(value, hints[key], dotted, what)
    with refused_as(f"{what}: {where}." if where else f"{what}: "):
        return replace(start, **changes)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        UserError: it cannot be read, is too large or is malformed, as one that was half written is.
    """
    try:
        if path.stat().st_size > MAX_TOML:
            raise UserError(f"{what} {path}: it is larger than {MAX_TOML >> 20} MiB, which no {what} is")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte-order mark
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} {path}: {reason}; correct the file") from error
