"""What `--help` shows: the options of a command, and of an experiment's fields only the table that was asked for."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Annotated, Any, Literal, NoReturn

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from tfigkd.config.experiment import Config
from tfigkd.config.reading import from_mapping
from tfigkd.runtime.errors import UserError, closest

HELP = ("-h", "--help")
TABLES = tuple(name for name, value in vars(Config()).items() if dataclasses.is_dataclass(value))
NOTE = (
    "Any other option is a field of the experiment, such as --training.epochs 30. "
    f"experiments/reference.md has them all; --help TABLE shows those of one table:\n\n{', '.join(TABLES)}"
)


@dataclass(frozen=True)
class Fields:
    """The fields of an experiment, as options."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def is_wanted(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of a command ask for help."""
    return not {*HELP}.isdisjoint(arguments)


def print_help_with_fields(cls: type, arguments: Sequence[str], *, prog: str, default: Any = None) -> None:
    """Print the help of a command that takes the fields of an experiment, or of one table of them.

    Args:
        cls: The dataclass of its options.
        arguments: Of the command line; after `--help` there may be the name of a table.
        prog: Name of the command.
        default: Values of what is not given.

    Raises:
        UserError: there is no such table.
        SystemExit: else, with status 0.
    """
    position = max(arguments.index(word) for word in HELP if word in arguments)
    table = next(iter(arguments[position + 1 : position + 2]), "-")
    if table.startswith("-"):
        print_help(cls, prog=prog, default=default, note=NOTE)
    if table not in TABLES:
        raise UserError(f"no table of fields is named {table!r}; {closest(table, TABLES)}")
    values = Fields(getattr(default, "config", Config()))
    print_help(Fields, prog=prog, default=values, table=table)


def print_help(
    cls: type, *, prog: str, default: Any = None, note: str = "", table: str | None = None, use_underscores: bool = True
) -> NoReturn:
    """Print the options of a command.

    Args:
        cls: The dataclass of the options.
        prog: Name of the command.
        default: Values of what is not given.
        note: Text below the description of the command.
        table: The table of an experiment that is shown; without it none is.
        use_underscores: Whether options are shown as `--image_size`, or as `--image-size`.

    Raises:
        SystemExit: always, with status 0.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(partial(_struct, table=table))
    tyro.cli(
        cls,
        prog=prog,
        args=["--help"],
        description=f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{note}".strip(),
        registry=registry,
        use_underscores=use_underscores,
        config=(tyro.conf.FlagCreatePairsOff,),
        **({} if default is None else {"default": default}),
    )
    raise SystemExit


@cache
def field_docs(cls: Any) -> dict[str, str]:
    """Return the text below each field of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for each in (base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)):
        tree = ast.parse(textwrap.dedent(inspect.getsource(typing.cast(type, each)))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = following.value.value if _is_text(following) else ""  # type: ignore[attr-defined]
                docs[statement.target.id] = " ".join(text.split())
    return docs


def _is_text(statement: ast.stmt) -> bool:
    constant = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


@cache
def _table_classes(cls: type) -> frozenset[type]:
    """Return the classes of all tables of a config dataclass, also of the tables of its tables."""
    own = [hint for hint in typing.get_type_hints(cls).values() if isinstance(hint, type)]
    tables = [hint for hint in own if dataclasses.is_dataclass(hint)]
    return frozenset(tables).union(*map(_table_classes, tables))


def plain_tables(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe an experiment to tyro, which gets the values of its tables as mappings.

    The tables are made by `from_mapping`, whose errors name the whole field: tyro does not tell a table its place.
    """
    cls: Any = info.type
    if cls is not Config and cls not in _table_classes(Config):
        return None
    given = info.default if isinstance(info.default, cls) else cls()
    hints, names = typing.get_type_hints(cls), [each.name for each in dataclasses.fields(cls)]
    fields = tuple(StructFieldSpec(name, hints[name], getattr(given, name)) for name in names)

    def make(**values: Any) -> Any:
        return from_mapping(Config, values, base=given) if cls is Config else values

    return StructConstructorSpec(make, fields)


def _struct(info: StructTypeInfo, table: str | None) -> StructConstructorSpec | None:
    """Describe a dataclass to tyro: each text in one paragraph, plain words for values, no default where it is none."""
    cls: Any = info.type
    if not dataclasses.is_dataclass(cls):
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    given: Any = info.default if isinstance(info.default, typing.cast(type, cls)) else None
    described = []
    for each in dataclasses.fields(cls):
        default = _default(each) if given is None else getattr(given, each.name)
        hint = hints[each.name]
        if cls is Config and each.name != table:
            hint = Annotated[hint, tyro.conf.Suppress]
        elif not dataclasses.is_dataclass(default):
            hint = _described(hint, default)
        described.append(StructFieldSpec(each.name, hint, default, partial(_text, cls, each.name)))
    return StructConstructorSpec(cls, tuple(described))


def _text(cls: type, name: str) -> str:
    return field_docs(cls).get(name, "")


def _default(each: dataclasses.Field) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return tyro.MISSING if each.default is dataclasses.MISSING else each.default


def _described(hint: Any, default: Any) -> Any:
    """Return a type with what the help shows of it: a word for its values, and its default if there is one."""
    shown: dict[str, Any] = {}
    if default is None or default is False or default in ("", ()):
        shown["help_behavior_hint"] = ""
    if type(None) in typing.get_args(hint):
        shown["metavar"] = _word(hint)
    return Annotated[hint, tyro.conf.arg(**shown)] if shown else hint


def _word(hint: Any) -> str:
    """Return the word for the values of a type, None left out: `PATH`, `FLOAT FLOAT`, `{a,b}`."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "{" + ",".join(map(str, members)) + "}"
    if origin in (types.UnionType, typing.Union):
        return "|".join(_word(member) for member in members if member is not type(None))
    if origin is tuple:
        return " ".join(_word(member) for member in members if member is not Ellipsis)
    return hint.__name__.upper()
