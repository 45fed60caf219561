"""Stage `report`: one row of results, a table on screen, `report.md` and `report.html`; every figure of a manifest."""

import json
from collections.abc import Callable

from rich.table import Table

from tfigkd.config.fields import Config
from tfigkd.report.facts import Facts, figures, gather
from tfigkd.report.table import ROLES, lines, markdown, row_of
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import Workdir, require, sealed, write_text
from tfigkd.runtime.provenance import as_csv
from tfigkd.stages.repeat import command
from tfigkd.stages.teacher import require_teacher


def report(config: Config, workdir: Workdir) -> None:
    """Stage `report`: write `rows.csv`, `report.md` and `report.html`, and show the table."""
    evaluated = require(workdir.stage("evaluate"), "evaluate")
    roles = figures(workdir, evaluated["results"])
    trained = require(workdir.stage("distill"), "distill")
    try:
        teacher = require_teacher(config, workdir) if config.needs_teacher else None
    except UserError:
        if not workdir.saved:  # a student of saved_models may stand without its teacher
            raise
        teacher = None
    found = lines(roles, evaluated["n_test"])
    header = ["", *(role for role in ROLES if role in roles)]
    row = row_of(config, workdir, roles, trained, teacher)
    write_text(workdir.run / "rows.csv", as_csv([sealed(row)]))

    settings = json.loads((workdir.run / "config.json").read_text(encoding="utf-8"))
    repeat = command(config, settings, workdir)
    write_text(workdir.run / "report.md", markdown(config, row, header, found, repeat[0]))
    _page(lambda: gather(config, workdir, row, roles, evaluated, repeat), workdir)
    table = Table(title=f"{row['experiment']}, seed {row['seed']}", title_justify="left")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for cells in found:
        table.add_row(*cells)
    console.show(table)


def _page(facts: Callable[[], Facts], workdir: Workdir) -> None:
    try:
        from tfigkd.report.run_page import page
    except ImportError as error:  # an accelerator machine with JAX alone
        console.say(f"  no report.html: {error}")
        return
    write_text(workdir.run / "report.html", page(facts()))
