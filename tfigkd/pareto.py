"""`python -m tfigkd.pareto ROWS.csv…`: what accuracy costs in latency and size, as one table and one picture.

python -m tfigkd.pareto experiments/results/edge.csv --output pareto.png --table pareto.md
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tfigkd.config.flags import read_all_options
from tfigkd.report.pareto import plot, read_points, table
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_folder_of, write_text

SUFFIXES = (".png", ".svg", ".pdf", ".html")


@dataclass(frozen=True)
class Options:
    """Show what accuracy costs in latency and size."""

    rows: Annotated[tuple[Path, ...], Positional, arg(metavar="ROWS.csv…")]
    """CSV files: rows of tfigkd.benchmark, or of runs."""
    output: Path | None = None
    """The picture: .png, .svg, .pdf, or .html to zoom into."""
    table: Path | None = None
    """The table, in Markdown; printed if not given."""


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.pareto`."""
    options = read_all_options(Options, arguments, prog="python -m tfigkd.pareto")
    if not options.rows:
        raise UserError("give at least one .csv of rows, such as experiments/results/edge.csv")
    require_folder_of(options.table, "--table")
    require_folder_of(options.output, "--output")
    points, remarks = read_points(options.rows)
    if options.output and options.output.suffix not in SUFFIXES:
        raise UserError(f"--output must end in .png, .svg, .pdf or .html, got {options.output}")
    if options.output and options.output.suffix == ".html":
        from tfigkd.report.pareto_page import page

        write_text(options.output, page(points))
    elif options.output:
        plot(points, options.output)
    if options.table:
        write_text(options.table, table(points))
    else:
        console.say(table(points) if remarks else table(points).rstrip())  # a line of text ends a table of Markdown
    for remark in remarks:
        console.say(remark, last=True)


if __name__ == "__main__":
    sys.exit(main())
