"""Words and Markdown tables."""

from collections.abc import Iterable, Sequence


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1, such as `1 row` and `1,200 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


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
