"""Reader of `.csv` lists of pictures."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.data.pictures import (
    refusal,
)
from tfigkd.data.sources import (
    ROLES,
    Notes,
    Source,
    SplitPart,
    given_splits,
    open_pictures,
    refuse_twice,
    taken,
    unused,
    usual,
)
from tfigkd.runtime.errors import UserError, closest, readable
from tfigkd.runtime.files import expanded

INTEGER = re.compile(r"-?[0-9]+(\.0*)?")
"""A label that is a whole number, as spreadsheets and pandas may write it too: 3, 03, 3.0."""


def read_csv(path: Path, wanted: Reading) -> Source:
    """Read the pictures that a table lists: columns path and label and, where they are given, split and group.

    Paths are relative to the table's folder. Without a split column, validation and test are held out. The classes are
    the labels of train in sorted order, by number if all are integers.

    Args:
        path: UTF-8 text, its cells separated by commas, semicolons or tabs.
        wanted: Size, background; splits by the values of the column split; the column that groups pictures.

    Raises:
        UserError: The file is missing or is no such table, or a picture is missing, listed twice or unreadable.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; expected a .csv with the columns path and label")
    with readable(str(path), "save it as UTF-8 text with the columns path and label"):
        rows = _rows(path, wanted.group)
        notes = Notes()
        values = [row["split"] for row in rows if "split" in row]
        chosen = given_splits([*dict.fromkeys(values)] or ["train"], wanted.splits, f"column split of {path}")
        for role in ROLES:
            found = usual(role, {*values}, but=taken(chosen))
            if role not in chosen and found:
                chosen[role] = tuple(found)
        if not values:
            chosen["train"] = ("train",)
        refuse_twice(chosen)
        unknown = sorted({*values} - taken(chosen))
        if unknown and wanted.splits == SplitsConfig():
            raise UserError(
                f"{path}: split {unknown[0]!r} is none of train, validation and test; rename it or set data.splits"
            )
        if "train" not in chosen:
            raise UserError(f"{path}: no row has the split train; add some or set data.splits.train")
        notes.lines += [unused("rows of split", name, name) for name in unknown]
        by_role = {role: [row for row in rows if row.get("split", "train") in names] for role, names in chosen.items()}
        class_names = _class_names({row["label"] for row in by_role["train"]})
        notes.lines += _alike(class_names)
        parts = {role: _read_rows(path, listed, class_names, wanted, notes) for role, listed in by_role.items()}
        return Source(parts["train"], parts.get("test"), class_names, parts.get("validation"), notes.said())


def _rows(path: Path, group: str | None) -> list[dict[str, str]]:
    """Return the rows of a table as path and label and, where the table has them, split and group.

    Raises:
        UserError: The table is not UTF-8, lacks a column or a cell, lists a picture twice, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it as CSV UTF-8") from error
    skipped = text.lower().startswith("sep=")  # Excel's way to name the delimiter
    text = text.partition("\n")[2] if skipped else text
    delimiter = _delimiter(text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    header = [name.lower() if name.lower() in ("path", "label", "split") else name for name in header]
    if not {"path", "label"} <= {*header}:
        found = f"has the columns {', '.join(header)[:200]}" if header else "is empty"
        raise UserError(f"{path} {found}; expected path and label in its first line")
    twice = [name for name in ("path", "label", "split") if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has several columns {twice[0]}; rename all but one")
    columns = {name: header.index(name) for name in ("path", "label")}
    if "split" in header:
        columns["split"] = header.index("split")
    if group is not None and group not in header:
        raise UserError(f"data.group: {path} has no column {group!r}; {closest(group, header)}")
    if group is not None or "group" in header:
        columns["group"] = header.index(group or "group")
    rows: list[dict[str, str]] = []
    before: dict[str, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
        row["label"] = unicodedata.normalize("NFC", row["label"])
        line = reader.line_num + skipped
        lacking = [header[columns[name]] for name, cell in row.items() if not cell]
        if lacking:
            raise UserError(f"{path}, line {line}: the column {lacking[0]} is empty; fill it in")
        place = os.path.realpath(path.parent / expanded(row["path"]))
        if place in before:
            listed = f"{row['path']} is listed in line {before[place]} as well"
            raise UserError(f"{path}, line {line}: {listed}; remove one of the two rows")
        before[place] = line
        rows.append(row)
    if not rows:
        raise UserError(f"{path} lists no pictures; expected a row for each")
    return rows


def _delimiter(header: str) -> str:
    """Return the delimiter that gives the columns path and label; where none or several do, the most frequent one."""

    def fits(mark: str) -> tuple[bool, int]:
        cells = {cell.strip(' "\r').lower() for cell in header.split(mark)}
        return {"path", "label"} <= cells, header.count(mark)

    return max(",;\t", key=fits)


def _class_names(labels: set[str]) -> tuple[str, ...]:
    """Return labels in sorted order: by number if all are integers, 3 or 3.0, else as text.

    Raises:
        UserError: A label is not printable.
    """
    unprintable = [label for label in labels if not label.isprintable()]
    if unprintable:
        raise UserError(f"label {unprintable[0]!a} is not printable; rename it")
    numbers = all(INTEGER.fullmatch(label) for label in labels)
    return tuple(sorted(labels, key=lambda label: (float(label), label))) if numbers else tuple(sorted(labels))


def _alike(labels: Collection[str]) -> list[str]:
    """Return a warning for each pair of labels that differ only in case, or in how a number is written."""
    seen: dict[str, str] = {}
    lines = []
    for label in labels:
        plain = f"{float(label):g}" if INTEGER.fullmatch(label) else label.casefold()
        if plain in seen:
            lines.append(f"warning: {seen[plain]!r} and {label!r} are two classes; write them alike if they are one")
        seen.setdefault(plain, label)
    return lines


def _read_rows(
    table: Path, rows: Sequence[Mapping[str, str]], class_names: tuple[str, ...], wanted: Reading, notes: Notes
) -> SplitPart:
    """Read the pictures of rows.

    Raises:
        UserError: A label is not among the classes, or pictures are missing or not usable.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    paths, missing = [], {}
    for index, row in enumerate(rows):
        if row["label"] not in label_of:
            raise UserError(
                f"{table}: {row['path']} has the label {row['label']!r}, which no picture of train has; correct it, or "
                "add pictures of it to train"
            )
        place = table.parent / expanded(row["path"])
        if not place.is_file():
            place = table.parent / row["path"].replace("\\", "/")  # of a table that was made on Windows
        if not place.is_file():
            missing[index] = UserError(f"{table}: no picture {place}; correct its path or remove its row")
        paths.append(place)
    if missing:
        raise refusal(missing, len(rows))
    source_ids = [row["path"] for row in rows]
    images, digests = open_pictures(paths, source_ids, table.parent, wanted, notes)
    labels = np.array([label_of[row["label"]] for row in rows], np.int64)
    groups = np.array([row["group"] for row in rows]) if rows and "group" in rows[0] else None
    return SplitPart(images, labels, np.array(source_ids), groups, digests)
