"""Words and Markdown tables."""

from collections.abc import Iterable, Sequence

WIDEST = 40
"""Largest width of a column of names; a longer one pushes what follows it aside."""


def counted(count: float, one: str, many: str = "") -> str:
    """Return a number with its noun, such as `1 row` and `1,200 rows`; `many` where an s does not make the plural."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def column_width(names: Iterable[str]) -> int:
    """Return the width of a column of names, in letters: that of the longest one, at most `WIDEST`."""
    return min(max(map(len, names)), WIDEST)


def shortened(items: Sequence[str], shown: int = 10, separator: str = ", ") -> str:
    """Return a list of words as text, such as `a, b and 3 more` where only two are shown."""
    hidden = len(items) - shown
    return separator.join(items[:shown]) + (f" and {hidden} more" if hidden > 0 else "")


def percent(share: float) -> str:
    """Return a share of 0 to 1 in percent, such as `93.85 %`."""
    return f"{100 * share:.2f} %"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[object]], *, right: int = 0) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        header: Names of the columns.
        lines: A cell for each column.
        right: Number of columns, the last ones, that are flush right.
    """
    rules = ["---"] * (len(header) - right) + ["---:"] * right
    rows = [header, rules, *([str(cell).replace("|", "\\|") for cell in cells] for cells in lines)]
    return ["| " + " | ".join(cells) + " |" for cells in rows]
