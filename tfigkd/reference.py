"""`python -m tfigkd.reference`: every field of an experiment, from the dataclasses of `config/`, as Markdown.

python -m tfigkd.reference > experiments/reference.md

The range of a field is found by trying values: the error message of a refused value says what was expected.
"""

import dataclasses
import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tfigkd.config.experiment import Config, experiments_folder, read_experiment
from tfigkd.config.flags import SHORT
from tfigkd.config.helptext import field_docs
from tfigkd.config.reading import from_mapping
from tfigkd.run import Options
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import markdown_table

TRIED: tuple[Any, ...] = (-1, 0, 2, 10**6, -1.0, 0.0, 1.0, 2.0, [], [0], [-1])
HEAD = """\
# Reference

Written by `python -m tfigkd.reference > experiments/reference.md` from the dataclasses in `tfigkd/config/`
(`experiment.py` and the `*fields.py` modules); a test checks that it is up to date.

An experiment is a TOML file. `base = "ig_kd"` in its first line starts from another experiment, a table `[training]`
with the line `epochs = 30` sets a field, and `--training.epochs 30` sets it on the command line. Unknown names,
wrong types and values out of range are refused in one line. *none* means that the field has no value unless it is set.
"""


def type_words(annotation: Any) -> str:
    """Return a type in the words of a TOML file."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in members)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_words(member) for member in members if member is not type(None))
    if origin is tuple:
        count = "list" if members[-1] is Ellipsis else f"list of {len(members)}"
        return f"{count}: {type_words(members[0])}"
    if origin is dict:
        return f"table of {type_words(members[1])}s"
    return {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}[annotation]


def allowed(table: str, name: str) -> str:
    """Return the range of a field, in the words of the errors that refuse other values; empty without a range."""
    said = []
    for value in TRIED:
        nested: Any = {name: value}
        for part in reversed(table.split(".")):
            nested = {part: nested} if part else nested
        try:
            from_mapping(Config, nested, base=Config())
        except UserError as error:
            found = re.fullmatch(r"config: .*? must (?!be of type|be one of|be a list)(?:be )?(.*), got .*", str(error))
            if found:
                said.append(found[1].replace("not be", "not"))
    return "; ".join(dict.fromkeys(said))


def _default(value: Any) -> str:
    return "*none*" if value is None else f"`{json.dumps(value)}`"


def table_lines(table: Any, name: str, said: str = "") -> Iterator[str]:
    """Yield the fields of a table, then the tables in it; `said` is the text of this table in the one above."""
    cls: Any = type(table)
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls)
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    own = {key: value for key, value in values.items() if not dataclasses.is_dataclass(value)}
    yield f"## {f'[{name}]' if name else 'At the top of the file'}"
    yield ""
    yield said or " ".join((cls.__doc__ or "").split())
    yield ""
    if own:
        yield from markdown_table(
            ("field", "type", "default", "range", "what it does"),
            (
                (f"`{key}`", type_words(hints[key]), _default(value), allowed(name, key), docs[key])
                for key, value in own.items()
            ),
        )
        yield ""
    for key, value in values.items():
        if dataclasses.is_dataclass(value):
            dotted = f"{name}.{key}" if name else key
            yield from _same_as_losses(value) if dotted == "compress.losses" else table_lines(value, dotted, docs[key])


def _same_as_losses(losses: Any) -> Iterator[str]:
    """Yield the losses of `[compress]`: the tables of `[losses]` with other defaults."""
    other = Config().losses
    yield "## [compress.losses]"
    yield ""
    yield "The same tables as `[losses]`. These defaults differ:"
    yield ""
    for name in vars(losses):
        for key, value in vars(getattr(losses, name)).items():
            if value != getattr(getattr(other, name), key):
                yield f"- `compress.losses.{name}.{key}`: {_default(value)}"
    yield ""


def command_lines() -> Iterator[str]:
    """Yield the flags of `python -m tfigkd.run` that are no fields."""
    yield "## The command"
    yield ""
    yield "`python -m tfigkd.run` has these flags besides the fields:"
    yield ""
    lines = []
    for field in dataclasses.fields(Options):
        if field.name != "config":
            unset = field.default is dataclasses.MISSING or field.default is None or field.default is False
            shown = "" if unset else f"`{field.default}`"
            lines.append((f"`--{field.name}`", shown, field_docs(Options)[field.name]))
    yield from markdown_table(("flag", "default", "what it does"), lines)
    yield ""
    yield "Short forms: " + ", ".join(f"`{short}` for `{flag}`" for short, flag in SHORT.items()) + "."
    yield ""


def experiment_lines() -> Iterator[str]:
    """Yield the shipped experiments and studies."""
    folder = experiments_folder()
    yield "## Shipped experiments"
    yield ""
    lines = []
    for path in sorted(folder.glob("*.toml")):
        base = tomllib.loads(path.read_text(encoding="utf-8")).get("base", "")
        lines.append((f"`{path.stem}`", f"`{base}`" if base else "", read_experiment(path.stem)[1].description))
    yield from markdown_table(("experiment", "base", "what it is"), lines)
    yield ""
    yield "Studies, for `python -m tfigkd.study --experiment NAME`:"
    yield ""
    studies = {
        path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted((folder / "studies").glob("*.toml"))
    }
    asked = [(f"`{name}`", study["description"]) for name, study in studies.items()]
    yield from markdown_table(("study", "what it asks"), asked)


def reference() -> str:
    """Return the whole page."""
    lines = [HEAD, *table_lines(Config(), ""), *command_lines(), *experiment_lines()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the page, in UTF-8 wherever it is printed to: it is the text of a file."""
    sys.stdout.buffer.write(reference().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
