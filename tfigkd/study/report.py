"""`python -m tfigkd.study report`: tables, plots and pages of the studies, written from their rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tfigkd.config.experiment import experiments_folder
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import locked, make_folder, write_text
from tfigkd.runtime.rows import read_rows
from tfigkd.runtime.text import counted
from tfigkd.stages.workdir import TEACHERS
from tfigkd.study.collect import finished_runs
from tfigkd.study.commands import command_of
from tfigkd.study.page import page
from tfigkd.study.plan import Study, read_study
from tfigkd.study.protocol import Row
from tfigkd.study.tables import (
    METRICS,
    arms_lines,
    compare,
    done_runs,
    forest_plot,
    runs_of,
    section,
    sentences,
)
from tfigkd.study.verdict import study_verdict

BEGIN, END = "<!-- studies: written by `python -m tfigkd.study report` -->", "<!-- end of studies -->"
LOCK = ".report.lock"


@dataclass(frozen=True)
class Options:
    """Write the page of a study beside its runs; or, of all shipped studies, the tables, plots and pages of a checkout.

    Without --experiment, the studies' part of experiments/README.md is written from experiments/results/*.csv.
    """

    experiment: str | None = None
    """Name of a shipped study or a .toml file: show its results, and write WORKDIR/STUDY/report.html."""
    workdir: Path = Path("runs/studies")
    """Folder of the studies' runs."""
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
        left.append(_remaining_line(described, rows))
        if rows:
            lines += section(described, rows, papers)
            title = described.description.partition(";")[0]
            compared = compare(described, runs_of(rows, described.judged_on))
            forest_plot(compared, title, table.with_suffix(".svg"), described.judged_on)
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
    """Write the page of one study, or the studies' part of experiments/README.md, plots and pages.

    Raises:
        UserError: the README lacks the two lines between which the text is written.
    """
    if options.experiment is not None:
        described = read_study(options.experiment)
        if not show_results(described, options.workdir):
            where, command = options.workdir / described.name, command_of(described, options.workdir)
            raise UserError(f"no finished run of {described.name} in {where}; {command} runs it")
        return
    checkout = options.into or experiments_folder().parent
    path = checkout / "experiments" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{path}: expected the lines {BEGIN!r} and {END!r} exactly once; add them where the studies go")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(path, f"{before}{BEGIN}\n\n{report(checkout)}\n{END}{after}")
    console.say(f"written: {path}")


def show_results(study: Study, workdir: Path, teachers: Path = TEACHERS) -> bool:
    """Print the results of a study's finished runs, and write its page beside them.

    Args:
        study: The study.
        workdir: Folder of the studies' runs.
        teachers: Folder of their teachers, for the commands on the page.

    Returns:
        Whether there is a finished run with results.
    """
    rows = [row for _, row in finished_runs(workdir, study.name) if row.get(METRICS[study.judged_on])]
    if not rows:
        return False
    header, lines, remarks = arms_lines(study, rows, [])
    title = f"{study.name}: {study.judged_on} accuracy of {counted(len(rows), 'run')}"
    table = Table(title=Text(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for cells in lines:
        table.add_row(*(Text(cell.strip("*")) for cell in cells))
    console.show(table)
    compared = compare(study, runs_of(rows, study.judged_on))
    for line in [remarks, *(sentences(compared) if study.comparisons else [])]:
        console.say(line)
    for line in study_verdict(study, rows) or ["nothing wrong was found with the arms that have run"]:
        console.say(f"verdict: {line}", last=True)
    path = workdir / study.name / "report.html"
    with locked(path.parent, wait=True, name=LOCK):  # two commands of one study may end at once
        write_text(path, page(study, rows, [], workdir, teachers))
    console.say(f"report: {path}", last=True)
    return True


def _remaining_line(study: Study, rows: Sequence[Row]) -> str | None:
    """Return a line on how many runs of a study have no row yet and the command for them; None if all have one."""
    total, done = study.seeds * len(study.arms) * len(study.sizes), done_runs(study, rows)
    if done >= total:
        return None
    return f"- {study.name}: {done} of {total} runs have a row; `{command_of(study, rows=rows)}`"
