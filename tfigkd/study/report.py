"""`python -m tfigkd.study report`: tables, plots and pages of the studies, written from their rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import experiments_folder
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import make_folder, write_text
from tfigkd.study.collect import read_rows
from tfigkd.study.page import page
from tfigkd.study.plan import Study, read_study
from tfigkd.study.tables import Row, command_of, compare, forest_plot, runs_of, section

BEGIN, END = "<!-- studies: written by `python -m tfigkd.study report` -->", "<!-- end of studies -->"


@dataclass(frozen=True)
class Options:
    """Write the studies' part of experiments/README.md, forest plots and pages from experiments/results/*.csv."""

    into: Path | None = None
    """The checkout to write to. Default: the one that contains this package."""


def report(checkout: Path) -> str:
    """Write forest plots and pages, and return the studies' part of experiments/README.md."""
    results, studies = checkout / "experiments" / "results", checkout / "experiments" / "studies"
    papers = read_rows(results / "papers.csv")
    lines, left = [], []
    for path in sorted(studies.glob("*.toml")):
        described = read_study(str(path))
        table = results / f"{path.stem}.csv"
        rows = read_rows(table)
        if any(row.get("study") != path.stem for row in rows):
            raise UserError(f"{table} has rows of another study than {path.stem}; rename the table")
        _write_page(described, rows, papers, checkout)
        left.append(_left(described, rows))
        if rows:
            lines += section(described, rows, papers)
            title = described.description.partition(";")[0]
            forest_plot(compare(described, runs_of(rows)), title, table.with_suffix(".svg"))
    missing: list[Any] = [one for one in left if one]
    if missing:
        lines += ["Still to be run:", "", *missing, ""]
    return "\n".join(lines)


def _write_page(study: Study, rows: Sequence[Row], papers: Sequence[Row], checkout: Path) -> None:
    """Write a study's report.html beside its runs, if the study has rows or published results."""
    if rows or any(row["study"] == study.name for row in papers):
        path = make_folder(checkout / "runs" / "studies" / study.name) / "report.html"
        write_text(path, page(study, rows, papers))
        console.say(f"written: {path}")


def write_report(options: Options) -> None:
    """Write the studies' part of experiments/README.md, plots and pages.

    Raises:
        UserError: the README lacks the two lines between which the text is written.
    """
    checkout = options.into or experiments_folder().parent
    path = checkout / "experiments" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{path}: expected the lines {BEGIN!r} and {END!r} exactly once; add them where the studies go")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(path, f"{before}{BEGIN}\n\n{report(checkout)}\n{END}{after}")
    console.say(f"written: {path}")


def _left(study: Study, rows: Sequence[Row]) -> str | None:
    """Return a line on how many runs of a study have no row yet and the command for them; None if all have one."""
    total, done = study.seeds * len(study.arms) * len(study.sizes), len(rows)
    if done >= total:
        return None
    return f"- {study.name}: {done} of {total} runs have a row; `{command_of(study)}`"
