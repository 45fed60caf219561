"""The reference of config fields: up to date, complete, and true about what is refused."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from tfigkd.config.experiment import Config, override
from tfigkd.reference import allowed, field_docs, reference, type_words
from tfigkd.runtime.errors import UserError

PAGE = Path(__file__).resolve().parents[1] / "experiments" / "reference.md"


def dotted(table, prefix=""):
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if dataclasses.is_dataclass(value):
            yield from dotted(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "python -m tfigkd.reference > experiments/reference.md"


def test_every_field_stands_in_its_table_with_a_sentence():
    tables, heading = {}, ""
    for line in reference().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").strip("[]")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            tables.setdefault(heading, {})[cells[0].strip("`")] = cells[-1]
    for name in dotted(Config()):
        table, _, field = name.rpartition(".")
        if not table.startswith("compress.losses"):
            assert len(tables[table or "At the top of the file"][field].split()) > 2, name
    experiments = {path.stem for path in PAGE.parent.glob("*.toml")}
    assert set(tables["Shipped experiments"]) >= experiments


@pytest.mark.parametrize(
    ("table", "field", "expected", "refused"),
    [
        ("data", "train_fraction", "in (0, 1]", 1.5),
        ("student", "drop_blocks", "in 0..18", 19),
        ("losses.at", "weight", "not negative", -0.1),
        ("losses.kd", "temperature", "positive", 0.0),
        ("compress", "clusters", "2 or more", 1),
        ("tensorboard", "profile_steps", "a first and a last step, from 1", [3]),
        ("data", "name", "", 7),
    ],
)
def test_ranges_are_those_of_the_errors(table, field, expected, refused):
    assert allowed(table, field) == expected
    with pytest.raises(UserError):
        override(Config(), {f"{table}.{field}": refused})


def test_types_in_words():
    assert type_words(int | None) == "integer"
    assert type_words(tuple[str, str]) == "list of 2: text"
    assert type_words(tuple[int, ...]) == "list: integer"
    assert type_words(Literal["a", "b"]) == '`"a"`, `"b"`'


def test_docs_of_inherited_fields_are_found_and_can_be_overruled():
    @dataclasses.dataclass
    class Base:
        """A table."""

        first: int = 1
        """The first
        of two."""
        second: int = 2
        """The second."""

    @dataclasses.dataclass
    class Child(Base):
        """Another."""

        second: int = 3
        """Its own."""

    assert field_docs(Child) == {"first": "The first of two.", "second": "Its own."}
