"""Read the command line: the options of a command, and the fields of an experiment by their dotted names."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from tfigkd.config import helptext
from tfigkd.config.experiment import Config, to_mapping
from tfigkd.config.fields import BACKGROUND, DataConfig, Fit, SplitsConfig
from tfigkd.config.helptext import Fields
from tfigkd.config.reading import dotted_names, value_at
from tfigkd.runtime.errors import UserError, closest, misspelled
from tfigkd.runtime.files import expanded

T = TypeVar("T")

SHORT = {"--data": "--data.name", "--data-dir": "--data.dir", "--image-size": "--data.image_size"}
SHORT |= {"--background": "--data.background", "--fit": "--data.fit", "--group": "--data.group"}
SHORT |= {"--resident": "--data.resident", "--cache": "--data.cache"}
SHORT |= {"--input-range": "--teacher.input_range", "--outputs": "--teacher.outputs"}
SHORT |= {f"--splits.{role}": f"--data.splits.{role}" for role in ("train", "validation", "test")}
"""Options that other commands have, for the field of an experiment."""
STATES = ("true", "false", "none")


def read_options(cls: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> tuple[T, list[str]]:
    """Read the options of a command that takes the fields of an experiment as well.

    Args:
        cls: A dataclass of options; its docstrings are the help.
        arguments: Of the command line; `--help` prints the help and exits.
        prog: Name of the command, for the help.
        default: Values of what is not given.

    Returns:
        The options, and the arguments that are none of them.

    Raises:
        UserError: a value is missing, of the wrong type or not among the choices.
    """
    if helptext.is_wanted(arguments):
        helptext.print_help_with_fields(cls, arguments, prog=prog, default=default)
    return _parse(cls, arguments, default=default)


def read_all_options(
    cls: type[T], arguments: Sequence[str], *, prog: str, former: Mapping[str, str] | None = None
) -> T:
    """Read the options of a command that takes nothing else.

    Args:
        cls: A dataclass of options; its docstrings are the help.
        arguments: Of the command line; `--help` prints the help and exits.
        prog: Name of the command, for the help.
        former: Options under their names of earlier versions, with dashes, to those of today.

    Raises:
        UserError: as `read_options`, and an argument is unknown.
    """
    if helptext.is_wanted(arguments):
        helptext.print_help(cls, prog=prog, use_underscores=False)
    renamed = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        renamed.append((former or {}).get(flag.replace("_", "-"), flag) + equals + value)
    options, unknown = _parse(cls, renamed, use_underscores=False)
    if unknown:
        raise UserError(
            misspelled(unknown, _names(cls)) or f"unknown argument {unknown[0]!r}; --help shows all options"
        )
    return options


def _names(cls: type) -> list[str]:
    """Return the options of a command with their dashes, those of nested tables and the opposites of switches too."""
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
    """Refuse a command line without an option that has to be read first, or with a misspelled one.

    Args:
        given: The option's value; nothing if it is missing.
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
    cls: type[T], arguments: Sequence[str], *, default: T | None = None, use_underscores: bool = True
) -> tuple[T, list[str]]:
    """Return options, and the arguments that are none of them.

    `--image_size`, as fields are named in TOML files, and `--image-size` are understood either way; errors show the
    one with underscores if `use_underscores`, and then every switch has its opposite, `--no_NAME`.
    """
    said = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):  # a usage error becomes one line
            options, unknown = tyro.cli(
                cls,
                args=list(arguments),
                return_unknown_args=True,
                use_underscores=use_underscores,
                config=() if use_underscores else (tyro.conf.FlagCreatePairsOff,),
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
    """Color that transparent pictures are composited on: white, gray, black or "#rrggbb". Default: what the contract of
    a .tflite file says, else white."""
    fit: Fit | None = None
    """How pictures come to that size, as data.fit had it in the training. Default: what the contract of a .tflite file
    says, else stretch."""
    group: str | None = None
    """What keeps pictures on one side of every split that is held out; see data.group in the reference."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    """Which splits of the source train, validate and test."""
    resident: Literal["auto", "memory", "disk"] = "auto"
    """Where decoded pictures are kept; see data.resident in the reference."""
    cache: str | None = None
    """Folder of the pictures that are kept on disk. Default: .tfigkd beside the data."""

    @property
    def reading(self) -> dict[str, Any]:
        """How the data are read, as arguments of `tfigkd.data.load`.

        Raises:
            UserError: A value is out of range.
        """
        checked = DataConfig(image_size=self.image_size, background=self.background or BACKGROUND, group=self.group)
        where = {"resident": self.resident, "cache": self.cache}
        return {
            "background": checked.background,
            "group": checked.group,
            "fit": self.fit or "stretch",
            "splits": self.splits,
            **where,
        }


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
    read, unknown = _parse(Fields, plain_flags(flags, config), default=Fields(config))
    refuse_unknown(unknown, flags, config, options)
    return read.config


def refuse_unknown(
    unknown: Sequence[str], arguments: Sequence[str], config: Config, options: type | None = None
) -> None:
    """Refuse arguments that are neither options nor fields, with the closest one.

    Raises:
        UserError: there is one.
    """
    if unknown:
        # a switch that is given a value comes back as the value alone
        whole = next((one for one in arguments if one == unknown[0] or one.endswith(f"={unknown[0]}")), unknown[0])
        known = [name.removeprefix("--") for name in _names(options)] if options else []
        near = closest(whole.removeprefix("--"), [*known, *dotted_names(to_mapping(config))], "--")
        hint = near if near.startswith("did you mean") else "--help shows them all"
        raise UserError(f"unknown argument {whole!r}; {hint}")


def plain_flags(arguments: Sequence[str], config: Config) -> list[str]:
    """Return arguments as tyro takes them.

    A switch that is given true or false, as in TOML, becomes `--a.b` or `--a.no_b`; `SHORT` options become fields; none
    is understood in any case of letters.
    """
    arguments = _three_states(arguments, config)
    values = to_mapping(config)
    switches = {name for name in dotted_names(values) if isinstance(value_at(values, name), bool)}
    known = {name for name in switches if not _may_be_undecided(config, name)}
    said: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not equals and said and argument.lower() in ("true", "false") and said[-1].removeprefix("--") in known:
            flag, value = said.pop(), argument
        name = flag.removeprefix("--")
        if argument.lower() == "none" and said and said[-1].startswith("--"):
            said.append(_none_word(said[-1], argument))
            continue
        if value.lower() == "none":
            said.append(f"{SHORT.get(flag, flag)}={_none_word(flag, value)}")
            continue
        if name in known and value.lower() in ("true", "false"):
            table, _, last = name.rpartition(".")
            said.append(flag if value.lower() == "true" else f"--{table}.no_{last}")
        else:
            said.append(SHORT.get(flag, flag) + equals + value if flag in SHORT else argument)
    return said


def _three_states(arguments: Sequence[str], config: Config) -> list[str]:
    """Return arguments with a value for each switch that may be left undecided, which tyro takes for an option."""
    names = {name for name in dotted_names(to_mapping(config)) if _may_be_undecided(config, name)}
    said: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        table, _, last = flag.removeprefix("--").rpartition(".")
        if f"{table}.{last}" in names and flag.startswith("--"):
            if not equals:
                value = waiting.pop(0) if waiting and waiting[0].lower() in STATES else "true"
            said += [flag, value.capitalize()]
        elif f"{table}.{last.removeprefix('no_')}" in names and flag.startswith("--"):
            said += [f"--{table}.{last.removeprefix('no_')}", "False"]
        else:
            said.append(argument)
    return said


def _may_be_undecided(config: Config, name: str) -> bool:
    *tables, last = name.split(".")
    table: Any = config
    for each in tables:
        table = getattr(table, each)
    return typing.get_type_hints(type(table)).get(last) == bool | None


def _none_word(flag: str, given: str) -> str:
    """Return the word for none that a field takes: "none" where it is a choice, None where it means no value."""
    hint: Any = Config
    for name in SHORT.get(flag, flag).removeprefix("--").replace("-", "_").split("."):
        hints = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        if name not in hints:
            return given
        hint = hints[name]
    members = typing.get_args(hint)
    if "none" in members:
        return "none"
    return "None" if type(None) in members else given


def first_value(arguments: Sequence[str], flag: str) -> str:
    """Return the value of a flag, or nothing, before the real parse, which needs the experiment's fields."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments) and not arguments[position + 1].startswith("--"):
            return arguments[position + 1]
    return ""
