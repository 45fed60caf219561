"""`python -m tfigkd.pareto ROWS.csv…`: what accuracy costs in latency and size, as one table and one picture.

python -m tfigkd.pareto experiments/results/edge.csv --output pareto.png --table pareto.md
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfigkd.report.pareto import Point, plot, read_points, table
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import write_text


def _draw(points: Sequence[Point], path: Path) -> None:
    if path.suffix != ".html":
        plot(points, path)
        return
    from tfigkd.report.pareto_page import page

    write_text(path, page(points))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tfigkd.pareto", description="What accuracy costs in latency and size."
    )
    parser.add_argument("rows", type=Path, nargs="+", help="rows of tfigkd.benchmark, or of runs")
    parser.add_argument("--output", type=Path, help="the picture: .png, .svg, .pdf, or .html to zoom into")
    parser.add_argument("--table", type=Path, help="the table, in Markdown; printed where it is not given")
    options = parser.parse_args(arguments)
    try:
        points = read_points(options.rows)
        if options.output:
            if options.output.suffix not in (".png", ".svg", ".pdf", ".html"):
                raise UserError(f"--output must end in .png, .svg, .pdf or .html, got {options.output}")
            _draw(points, options.output)
        if options.table:
            write_text(options.table, table(points))
        else:
            console.say(table(points).rstrip())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
