"""What an experiment is: read from TOML, strict about names and types, overridden by dotted names.

The fields themselves are in `fields.py` and `loss_fields.py`. An experiment is one TOML file with at most one level of
`base = "other"`. Any field can be overridden by its dotted name, on the command line (`--losses.kd.temperature 4`) and
by `override()`.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tfigkd.config.fields import Config
from tfigkd.runtime.errors import UserError

FINGERPRINT_DIGITS = 16
MAX_TOML = 2**20


def dotted_names(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of all values of nested tables, such as losses.kd.weight."""
    names = []
    for key, value in mapping.items():
        names += dotted_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def value_at(mapping: Mapping[str, Any], dotted: str) -> Any:
    """The value of nested tables that a dotted name leads to.

    Raises:
        KeyError: it leads to none.
    """
    value: Any = mapping
    for name in dotted.split("."):
        if not isinstance(value, dict) or name not in value:
            raise KeyError(dotted)
        value = value[name]
    return value


def fingerprint(*parts: Any) -> str:
    """Hash of configs, strings and plain JSON values: equal parts, equal fingerprint, on any machine."""
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def to_mapping(config: Config) -> dict[str, Any]:
    """The resolved config as nested plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # as it reads back: lists, no tuples


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two config mappings differ."""
    names = []
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name, or all the names there are; of dotted ones the tables."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    tables = dict.fromkeys(re.sub(r"\..*", ".*", one) for one in known)
    return f"known: {', '.join(tables)}"


def _convert(value: Any, expected: Any, where: str) -> Any:
    """Check one value against its annotation; an integer is welcome where a float is expected."""
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise UserError(f"config: {where} is a table, got {value!r}")
        return from_mapping(typing.cast(type, expected), value, where)
    origin = typing.get_origin(expected)
    if origin is tuple:
        members = typing.get_args(expected)
        if members[-1] is Ellipsis and isinstance(value, list | tuple):
            members = (members[0],) * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(members):
            raise UserError(f"config: {where} must be a list{_length(members)}, got {value!r}")
        return tuple(_convert(item, member, where) for item, member in zip(value, members, strict=True))
    if origin is Literal:
        if value not in typing.get_args(expected):
            choices = ", ".join(map(repr, typing.get_args(expected)))
            raise UserError(f"config: {where} must be one of {choices}, got {value!r}")
        return value
    options = typing.get_args(expected) if origin in (types.UnionType, typing.Union) else (expected,)
    if type(value) in options:
        return value
    if float in options and type(value) is int:
        return float(value)
    wanted = " or ".join(option.__name__ for option in options if option is not type(None))
    raise UserError(f"config: {where} must be of type {wanted}, got {value!r} ({type(value).__name__})")


def _length(members: tuple) -> str:
    return "" if members[-1] is Ellipsis else f" of {len(members)}"


def from_mapping(cls: type, mapping: Mapping[str, Any], where: str = "", base: Any = None) -> Any:
    """Build a config dataclass from nested plain values, over `base` where one is given.

    Raises:
        UserError: an unknown key (with the closest known one), a wrong type or a value out of range.
    """
    hints = typing.get_type_hints(cls)
    start = base if base is not None else cls()
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{where}.{key}" if where else key
        if key not in hints:
            raise UserError(f"config: unknown field {dotted!r}; {closest(key, hints)}")
        current = getattr(start, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = from_mapping(type(current), value, dotted, current)
        else:
            changes[key] = _convert(value, hints[key], dotted)
    return replace(start, **changes)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with dotted fields replaced, e.g. `{"losses.kd.temperature": 4.0}`."""
    nested: dict[str, Any] = {}
    for dotted, value in changes.items():
        *tables, last = dotted.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return from_mapping(Config, nested, base=config)


def smoke(config: Config) -> Config:
    """The same experiment, shrunk to a few steps of a small slice; the code path is the same."""
    limit = min(config.data.limit or 128, 128)
    return override(
        config,
        {
            "data.limit": limit,
            "teacher.training.epochs": 1,
            "teacher.training.batch_size": 32,
            "teacher.training.warmup_epochs": 0.0,
            "training.epochs": 2,
            "training.batch_size": 32,
            "training.warmup_epochs": 0.0,
            "attribution.max_steps": min(config.attribution.max_steps, 16),
            "attribution.shard_size": 64,
            "compress.steps": 4,
            "compress.batch_size": 16,
            # a few steps leave logits that are nearly equal, so the top class of an int8 file is a matter of chance
            "export.min_int8_agreement": 0.0,
            "export.calibration_examples": 32,
            "evaluation.attribution_examples": 8,
            "benchmark.runs": 20,
            "benchmark.warmup": 2,
        },
    )


def experiments_folder() -> Path:
    """Where the shipped experiments lie: in the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "experiments", here.parent / "experiments") if path.is_dir())


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        UserError: it cannot be read, is too large or is malformed, as one that was half written is.
    """
    try:
        if path.stat().st_size > MAX_TOML:
            raise UserError(f"{what} {path}: it is larger than {MAX_TOML >> 20} MiB, which no {what} is")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} {path}: {reason}; mend the file") from error


def read_experiment(name_or_file: str) -> tuple[str, Config]:
    """Read an experiment by its shipped name or from a TOML file.

    Returns:
        The experiment's name (the file's stem) and its config.

    Raises:
        UserError: no such experiment, malformed TOML, unknown keys, wrong types, or more than one level of `base`.
    """
    folder = experiments_folder()
    path = Path(name_or_file) if name_or_file.endswith(".toml") else folder / f"{name_or_file}.toml"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.toml")]
        raise UserError(f"unknown experiment {name_or_file!r}; {closest(name_or_file, known)} (or a .toml file)")
    table = read_toml(path, "experiment")
    config = Config()
    base = table.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"experiment {path}: base must be the name of an experiment, got {base!r}")
        beside = path.parent / f"{base}.toml"
        parent = read_toml(beside if beside.is_file() else folder / f"{base}.toml", "experiment")
        if "base" in parent:
            raise UserError(f"experiment {path}: base {base!r} has a base itself; one level is the most")
        config = from_mapping(Config, parent)
    return path.stem, from_mapping(Config, table, base=config)
