"""Read the command line: the options of a command, and the fields of an experiment by their dotted names."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry

from tfigkd.config import helptext
from tfigkd.config.data_fields import Fit, Reading, Resident, SplitsConfig
from tfigkd.config.declare import require_seed
from tfigkd.config.experiment import Config, read_experiment, smoke
from tfigkd.config.helptext import Fields, plain_tables
from tfigkd.config.reading import field_types, refused_as
from tfigkd.runtime.errors import UserError, closest, misspelled
from tfigkd.runtime.files import expanded

T = TypeVar("T")

SHORT = {"--data": "--data.name", "--data-dir": "--data.dir", "--image-size": "--data.image_size"}
SHORT |= {"--background": "--data.background", "--fit": "--data.fit", "--group": "--data.group"}
SHORT |= {"--resident": "--data.resident", "--cache": "--data.cache"}
SHORT |= {"--input-range": "--teacher.input_range", "--outputs": "--teacher.outputs"}
SHORT |= {f"--splits.{role}": f"--data.splits.{role}" for role in ("train", "validation", "test")}
"""Options of other commands, and the fields of an experiment that they set in `run` and its like."""
STATES = ("true", "false", "none")
"""The words that switches and unset fields take, as in TOML files."""


def read_options(cls: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> tuple[T, list[str]]:
    """Read the options of a command that takes the fields of an experiment as well.

    Args:
        cls: A dataclass of options; its docstrings are the help.
        arguments: Of the command line; `--help` prints the help and exits.
        prog: Name of the command, for the help.
        default: Values of what is not given.

    Returns:
        The options, and the other arguments.

    Raises:
        UserError: a value is missing, of the wrong type or not among the choices.
    """
    if helptext.is_wanted(arguments):
        helptext.print_help_with_fields(cls, arguments, prog=prog, default=default)
    return _parse(cls, arguments, default=default)


def read_experiment_options(cls: type[T], arguments: Sequence[str], *, prog: str, hint: str) -> tuple[T, str]:
    """Return the options of a command that runs an experiment, and the experiment's name.

    Args:
        cls: The dataclass of the options; `experiment` is its first field, `config` and `seed` are others.
        arguments: Of the command line.
        prog: The command.
        hint: Which experiments there are, where none is given.

    Raises:
        UserError: An unknown experiment, flag or field, or a value of the wrong type or range.
    """
    given = first_value(arguments, "--experiment")
    if not helptext.is_wanted(arguments):
        require_option(given, "--experiment", hint, arguments, cls)
    name, config = read_experiment(given) if given else ("", Config())
    config = smoke(config) if "--smoke" in arguments else config
    default: Any = cls(name, config=config)  # type: ignore[call-arg]
    options, unknown = read_options(cls, plain_flags(arguments), prog=prog, default=default)
    refuse_unknown(unknown, arguments, cls)
    require_seed(options.seed, "--seed")
    return options, name


def read_all_options(cls: type[T], arguments: Sequence[str], *, prog: str) -> T:
    """Read the options of a command that takes nothing else.

    Args:
        cls: A dataclass of options; its docstrings are the help.
        arguments: Of the command line; `--help` prints the help and exits.
        prog: Name of the command, for the help.

    Raises:
        UserError: as `read_options`, and an argument is unknown.
    """
    if helptext.is_wanted(arguments):
        helptext.print_help(cls, prog=prog, use_underscores=False)
    options, unknown = _parse(cls, arguments, with_fields=False)
    if unknown:
        raise UserError(
            misspelled(unknown, _names(cls)) or f"unknown argument {unknown[0]!r}; --help shows all options"
        )
    return options


def _names(cls: type) -> list[str]:
    """Return the options of a command, such as `--data`, also of nested tables, and the opposites of switches."""
    names, unnamed = [], _positional(cls)
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            names += [f"--{name}.{inner.name}" for inner in dataclasses.fields(hint)]
        elif name not in unnamed:
            names += [f"--{name}"] + [f"--no_{name}"] * (hint is bool)
    return names


def _positional(cls: type) -> dict[str, str]:
    """Return the arguments of a command that are given without a name, and the words for them in the help."""
    hints = typing.get_type_hints(cls, include_extras=True)
    named = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    words = {name: [each.metavar for each in said if hasattr(each, "metavar")] for name, said in named.items()}
    return {name: words[name][0] for name, said in named.items() if tyro.conf.Positional in said}


def require_option(given: str, flag: str, hint: str, arguments: Sequence[str], cls: type) -> None:
    """Refuse a command line that lacks a required option, or in which an option is misspelled.

    Args:
        given: The option's value; empty if it is missing.
        flag: The option, as `--experiment`.
        hint: What to say where it is missing.
        arguments: Of the command line.
        cls: The dataclass of all options of the command.

    Raises:
        UserError: it is missing.
    """
    if not given:
        raise UserError(misspelled(arguments, [*_names(cls), *SHORT]) or f"{flag} is missing; {hint}")


def _parse(
    cls: type[T], arguments: Sequence[str], *, default: T | None = None, with_fields: bool = True
) -> tuple[T, list[str]]:
    """Return the options of a command, and the other arguments.

    `--image_size`, as fields are named in TOML files, and `--image-size` are understood either way.

    Args:
        cls: The dataclass of the options.
        arguments: Of the command line.
        default: Values of what is not given.
        with_fields: Whether the fields of an experiment are among the options. Then errors show `--image_size` and not
            `--image-size`, and every switch has its opposite, `--no_NAME`.

    Raises:
        UserError: A value is missing, of the wrong type, not among the choices or out of range.
        SystemExit: tyro has printed what was asked for.
    """
    _refuse_empty_paths(cls, arguments)
    said = io.StringIO()
    registry = ConstructorRegistry()
    if with_fields:
        registry.struct_rule(plain_tables)
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):  # a usage error becomes one line
            options, unknown = tyro.cli(
                cls,
                args=list(arguments),
                return_unknown_args=True,
                use_underscores=with_fields,
                registry=registry,
                config=() if with_fields else (tyro.conf.FlagCreatePairsOff,),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box of title, rule, message, rule, help text: the message is what a single line has room for
        title, *parts = re.split(r"[─-]{20,}", re.sub(r"[╭╮╰╯│]", " ", said.getvalue()))
        message = next((part for part in parts if part.split()), title)
        raise UserError(misspelled(arguments, [*_names(cls), *SHORT]) or _one_line(message, cls)) from None
    homes = {name: expanded(str(value)) for name, value in vars(options).items() if isinstance(value, Path)}
    return dataclasses.replace(typing.cast(Any, options), **homes), unknown


def _refuse_empty_paths(cls: type, arguments: Sequence[str]) -> None:
    """Refuse an empty path, such as `--workdir "$UNSET"`, which would mean the current folder.

    Raises:
        UserError: There is one.
    """
    hints = typing.get_type_hints(cls)
    for argument, following in zip_longest(arguments, arguments[1:]):
        flag, equals, value = argument.partition("=")
        is_path = hints.get(flag.removeprefix("--").replace("-", "_")) in (Path, Path | None)
        if flag.startswith("--") and is_path and (value if equals else following) == "":
            raise UserError(f"{flag} is empty; give a path, . for the current folder")


def _one_line(message: str, cls: type) -> str:
    """Return a usage error of tyro in one line, without the help of options that are missing."""
    message = " ".join(message.split())
    if message.startswith("Missing from"):
        named = message.replace("-", "_").split()
        absent = [word for name, word in _positional(cls).items() if word.replace("-", "_") in named]
        absent += [name for name in _names(cls) if name.replace("-", "_") in named]
        return f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} missing; --help shows all options"
    valueless = re.match(r"Missing value for argument '(-*)([\w.]+)'", message)
    if valueless:
        dashes, name = valueless.groups()
        lacks = f"--{name} needs a value" if dashes else f"{_positional(cls).get(name, name)} is missing"
        return f"{lacks}; --help shows all options"
    return message


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a command that reads a data set."""

    data: str | None = None
    """A tfds name, "digits", the path of an .npz file, of a .csv list or of an image folder."""
    data_dir: str | None = None
    """Prepared tfds directory. Default: TFDS_DATA_DIR, then tfds's own."""
    image_size: int | None = None
    """Resize pictures to this height and width, as `fit` says. Default: the size that the model takes."""
    background: str | None = None
    """Color that transparent pictures are composited on: white, gray, black or "#rrggbb". Default: as in the model's
    training, where the contract of a .tflite file or the run of a .keras file says it, else white."""
    fit: Fit | None = None
    """How pictures come to that size; see data.fit in the reference. Default: as in the model's training, where that is
    said, else stretch."""
    group: str | None = None
    """What keeps pictures on one side of every split that is held out; see data.group in the reference. Default: as in
    the model's training, where that was on this data set."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    """Which splits of the source train, validate and test. Default: as in the model's training, where that was on this
    data set."""
    resident: Resident = "auto"
    """Where decoded pictures are kept; see data.resident in the reference."""
    cache: str | None = None
    """Folder of the pictures that are kept on disk. Default: .tfigkd beside the data."""

    @property
    def reading(self) -> Reading:
        """How the data are read, as far as the options say it.

        Raises:
            UserError: A value is out of range.
        """
        with refused_as("--"):
            return Reading.of(self)


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """The options of a command that opens a model whose pixels and outputs may be of another kind."""

    input_range: tuple[float, float] | None = None
    """The values of a black and of a white pixel that the model takes, such as 0 255 or -1 1. Default: what its first
    layers or its contract tell, else 0 1."""
    outputs: Literal["logits", "probabilities"] | None = None
    """What the model gives. Default: what its end, its contract or its outputs on images tell."""


def with_flags(config: Config, flags: Sequence[str], options: type | None = None) -> Config:
    """Return the config with fields replaced as on the command line, such as `["--training.epochs", "30"]`.

    Args:
        config: The fields before.
        flags: Arguments of the command line.
        options: The dataclass of the command's options, for the hint to one that is misspelled.

    Raises:
        UserError: a flag is no field, or a value is of the wrong type or out of range.
    """
    if not flags:
        return config
    read, unknown = _parse(Fields, plain_flags(flags), default=Fields(config))
    refuse_unknown(unknown, flags, options)
    return read.config


def refuse_unknown(unknown: Sequence[str], arguments: Sequence[str], options: type | None = None) -> None:
    """Refuse arguments that are neither options nor fields, with the closest one.

    Args:
        unknown: Those arguments.
        arguments: All of the command line.
        options: The dataclass of the command's options, for the hint to one that is misspelled.

    Raises:
        UserError: there is one.
    """
    if unknown:
        # a switch that is given a value comes back as the bare value
        whole = next((one for one in arguments if one == unknown[0] or one.endswith(f"={unknown[0]}")), unknown[0])
        known = [name.removeprefix("--") for name in _names(options)] if options else []
        near = closest(whole.removeprefix("--"), [*known, *field_types(Config)], "--")
        hint = near if near.startswith("did you mean") else "--help shows them all"
        raise UserError(f"unknown argument {whole!r}; {hint}")


def plain_flags(arguments: Sequence[str]) -> list[str]:
    """Return arguments of the command line as tyro takes them.

    `SHORT` options become fields. A switch, which TOML files set to true or false, becomes `--a.b` or `--a.no_b`; one
    that may be left undecided gets a value. `true`, `false` and `none` may be in capital letters.
    """
    said: list[str] = []
    waiting = [*arguments]
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        flag = SHORT.get(flag.replace("_", "-"), flag)
        kind = _type_of(flag)
        if not equals and kind is not None and waiting and waiting[0].lower() in STATES:
            alone = len(waiting) == 1 or waiting[1].startswith("--")
            table = any(typing.get_origin(member) is dict for member in typing.get_args(kind))
            if alone or not table:  # else it is a key that is called so
                value = waiting.pop(0)
        if value.lower() in STATES and kind is not None:
            said += _with_state(flag, kind, value)
        elif kind == bool | None and not equals:
            said += [flag, "True"]
        elif (positive := _without_no(flag)) != flag and _type_of(positive) == bool | None:
            said += [positive, "False"]
        else:
            said.append(flag + equals + value)
    return said


def _type_of(flag: str) -> Any:
    """Return the annotation of the field that a flag such as `--training.epochs` sets; None if there is no such field.

    No annotation of a field is None.
    """
    return field_types(Config).get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None


def _without_no(flag: str) -> str:
    """Return a flag such as `--teacher.no_train` without its `no_`."""
    table, dot, last = flag.rpartition(".")
    return table + dot + last.removeprefix("no_").removeprefix("no-")


def _with_state(flag: str, kind: Any, word: str) -> list[str]:
    """Return a flag and true, false or none as tyro takes them.

    Args:
        flag: Of a field.
        kind: The annotation of the field.
        word: true, false or none, in any case of letters.
    """
    members, state = typing.get_args(kind), word.lower()
    if kind is bool and state != "none":
        table, _, last = flag.rpartition(".")
        return [flag if state == "true" else f"{table}.no_{last}"]
    if kind == bool | None:
        return [flag, word.capitalize()]
    if state == "none" and "none" in members:  # a choice
        return [flag, "none"]
    return [flag, "None" if state == "none" and type(None) in members else word]


def first_value(arguments: Sequence[str], flag: str) -> str:
    """Return the value of a flag, or an empty text, before the arguments are parsed.

    The parser needs the fields of the experiment that `--experiment` names.

    Args:
        arguments: Of the command line.
        flag: Such as `--experiment`.
    """
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments) and not arguments[position + 1].startswith("--"):
            return arguments[position + 1]
    return ""
