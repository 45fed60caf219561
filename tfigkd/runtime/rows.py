"""Rows of results in CSV files: written, sealed with their signature, appended, and read again."""

import csv
import errno
import fcntl
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import signature


def as_csv(rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    """Format rows as CSV, with the columns of the first row; all rows must have the same columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; a missing file has no rows.

    Raises:
        UserError: the file is not a CSV table.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table of results ({error}); restore the file") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{path}: row {number} has another number of cells than the header; restore the file")
    return rows


def sealed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for a CSV file with a last column added: the signature of the text of its cells."""
    return {**row, "checksum": signature({name: "" if value is None else str(value) for name, value in row.items()})}


def unsealed(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Check the signature of a row that was read from a CSV file, and return the row without it.

    A row of an earlier version has no signature and is returned as it is.

    Raises:
        UserError: The cells are not those that were written.
    """
    cells = dict(row)
    sound = None not in cells and all(
        isinstance(text, str) and text.isprintable() for text in [*cells, *cells.values()]
    )
    if sound and "checksum" in cells:
        sound = cells.pop("checksum") == signature(cells)
    if not sound:
        raise UserError(f"{path} is damaged (its checksum does not fit); delete it and run the stage again")
    return cells


def _header(path: Path) -> list[str]:
    """Return the columns of a CSV file that is not empty.

    Raises:
        UserError: Its last line has no end.
    """
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a process was killed within it
            raise UserError(f"{path}: the last line has no end; delete it, or end it with a line break if it is whole")
    with open(path, newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def require_columns(path: Path | None, wanted: Sequence[str], maybe: Sequence[str] = ()) -> None:
    """Check before the work that rows can be appended to a .csv file; None and a new or empty file take any.

    Args:
        path: The file.
        wanted: Columns of the rows, in order.
        maybe: Columns that the rows may have or not, which is not known yet.

    Raises:
        UserError: it has other columns, or its last line has no end.
    """
    if path is None or not path.exists() or not path.stat().st_size:
        return
    try:
        found = _header(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no .csv file; write to another --rows") from error
    header, wanted = ([name for name in names if name not in maybe] for names in (found, wanted))
    if header != wanted:
        apart = [name for name in (*wanted, *header) if (name in wanted) != (name in header)]
        differs = f"{', '.join(apart)} {'is' if len(apart) == 1 else 'are'} in one of both" if apart else "their order"
        raise UserError(f"{path} has other columns than these rows ({differs}); write to another --rows")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file; a new or empty file gets its header from this row. Several processes may append.

    Raises:
        UserError: The file has other columns, or its last line has no end.
    """
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file
        before = os.fstat(file.fileno()).st_size
        if before:
            header = _header(path)
            if header != list(row):
                raise UserError(f"{path} has the columns {header}, but the row has {list(row)}; write to another file")
        content = as_csv([row], header=not before).encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)  # a partial row would corrupt the next one
            raise
