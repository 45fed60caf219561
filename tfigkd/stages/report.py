"""Stage `report`: one row of results, a table on screen, `report.md` and `report.html`; every figure of a manifest."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.table import Table
from rich.text import Text

from tfigkd.config.experiment import Config, to_mapping
from tfigkd.config.export_fields import FORMATS, file_name
from tfigkd.measure import gallery
from tfigkd.measure.gallery import Gallery
from tfigkd.report.facts import Facts, History, Roles
from tfigkd.report.table import ROLES, lines, markdown
from tfigkd.report.verdict import verdict
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest, require_stage, write_text
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.provenance import surroundings
from tfigkd.runtime.rows import as_csv, sealed
from tfigkd.stages.compress import require_compressed
from tfigkd.stages.evaluate import attribution_settings, check_measured
from tfigkd.stages.overlays import store_folder
from tfigkd.stages.repeat import own_file, repeat_command
from tfigkd.stages.teacher import require_teacher, teacher_folder
from tfigkd.stages.workdir import HISTORY, JOB_FILE, ROWS, VERDICT, Workdir, read_settings
from tfigkd.store.maps import parse_record
from tfigkd.store.shards import open_store, read_all
from tfigkd.training.fit import LEDGER
from tfigkd.training.ledger import read_ledger

T = TypeVar("T")


def report(config: Config, workdir: Workdir) -> None:
    """Stage `report`: write `rows.csv`, `report.md` and `report.html`, and show the table."""
    evaluated = require_stage(workdir.stage("evaluate"), "evaluate")
    check_measured(workdir, evaluated)
    roles = figures(workdir, evaluated["results"])
    trained = require_stage(workdir.stage("distill"), "distill")
    try:
        teacher = require_teacher(config, workdir) if config.needs_teacher else None
    except UserError:
        if not workdir.saved:  # a student of saved_models may stand without its teacher
            raise
        teacher = None
    settings, given = read_settings(workdir.run)
    row = row_of(config, workdir, settings, roles, trained, teacher)
    repeat = repeat_command(given, settings, workdir)
    if repeat[1]:
        write_text(own_file(settings["experiment"], workdir), repeat[1])
    facts = gather(config, workdir, row, roles, evaluated, repeat)
    remarks = verdict(facts)
    write_text(workdir.run / VERDICT, json.dumps([asdict(remark) for remark in remarks], indent=1) + "\n")
    facts = replace(facts, verdict=[remark.sentence for remark in remarks])
    write_text(workdir.run / "report.md", markdown(facts))
    _page(facts, workdir)
    write_text(workdir.run / ROWS, as_csv([sealed(row)]))  # last: a run with a row is finished
    header, found = lines(roles, evaluated["n_test"])
    table = Table(title=Text(f"{row['experiment']}, seed {row['seed']}"), title_justify="left")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for cells in found:
        table.add_row(*map(Text, cells))
    console.show(table)


def _page(facts: Facts, workdir: Workdir) -> None:
    try:
        from tfigkd.report.run_page import page
    except ImportError as error:  # an accelerator machine that has only JAX
        console.status(f"no report.html: {error}")
        return
    write_text(workdir.run / "report.html", page(facts))


def figures(workdir: Workdir, results: Mapping[str, Any]) -> Roles:
    """Return the figures of each role; what was not exported or timed is left out.

    Args:
        workdir: Where the run wrote.
        results: Of stage `evaluate`.
    """
    roles = {role: dict(results[role]) for role in ROLES if role in results}
    timed, exported = read_timed(workdir), read_manifest(workdir.stage("export"))
    for role, values in roles.items():
        for format in FORMATS:
            name = file_name(role, format)
            if timed and name in timed["results"]:
                values[f"{format}_bytes"] = timed["results"][name]["bytes"]
                milliseconds = timed["results"][name]["milliseconds"]
                values[f"{format}_ms"] = milliseconds[str(timed["threads"][0])]["p50"]
            if exported and name in exported["parity"]:
                values[f"{format}_parity"] = exported["parity"][name]["agreement"]
            values |= {f"{format}_{metric}": value for metric, value in results.get(name, {}).items()}
    return roles


def read_timed(workdir: Workdir) -> dict[str, Any] | None:
    """Return the manifest of stage `benchmark` without files that were exported anew since; None if none is left.

    Earlier versions did not write which files they timed; their figures are taken as they are.
    """
    timed, exported = read_manifest(workdir.stage("benchmark")), read_manifest(workdir.stage("export"))
    if timed is None or exported is None or "exported" not in timed:
        return timed
    same = {name for name, known in timed["exported"].items() if exported["files"].get(name) == known}
    kept = {part: {name: one for name, one in timed[part].items() if name in same} for part in ("results", "profiles")}
    return {**timed, **kept} if kept["results"] else None


def gather(
    config: Config,
    workdir: Workdir,
    row: dict[str, Any],
    roles: Roles,
    evaluated: dict[str, Any],
    repeat: tuple[str, str],
) -> Facts:
    """Read what a run has left.

    Args:
        config: The run's.
        workdir: Where it wrote.
        row: Its row of results.
        roles: From `figures`.
        evaluated: The manifest of stage `evaluate`.
        repeat: From `repeat_command`.

    Raises:
        UserError: a file is damaged.
    """
    folder = workdir.stage("evaluate")
    store, errors = _store(config, workdir)
    histories = {"student": _history(workdir.stage("distill"))}
    if config.needs_teacher:
        histories["teacher"] = _known(lambda: _history(teacher_folder(config, workdir)), [])
    return Facts(
        config=to_mapping(config),
        row=row,
        roles=roles,
        evaluated=evaluated,
        command=repeat[0],
        toml=repeat[1],
        study=_study(workdir.run / JOB_FILE),
        taught=config.needs_teacher,
        data=read_manifest(workdir.stage("data")),
        exported=read_manifest(workdir.stage("export")),
        timed=read_timed(workdir),
        store=store,
        errors=errors,
        histories={role: history for role, history in histories.items() if history},
        ledger=read_ledger(workdir.stage("distill") / LEDGER),
        gallery=Gallery.load(folder / gallery.FILE) if gallery.FILE in evaluated["files"] else None,
    )


def _known(read: Callable[[], T], otherwise: T) -> T:
    """Return what the teacher's folder tells, which may have been deleted since the training."""
    try:
        return read()
    except UserError:
        return otherwise


def _history(folder: Path) -> History:
    try:
        return json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / HISTORY} is damaged ({error}); delete it, or run the stage again") from error


def _store(config: Config, workdir: Workdir) -> tuple[dict[str, Any] | None, np.ndarray]:
    """Return the overlay store's manifest and the completeness error of each of its maps."""
    nothing = None, np.empty(0, np.float32)
    if not config.needs_store:
        return nothing
    folder = _known(lambda: store_folder(config, workdir), None)
    if folder is None or read_manifest(folder) is None:
        return nothing
    try:
        manifest = open_store(folder, {})
        errors = [record["error"] for record in read_all(folder, manifest["files"], parse_record)]
    except UserError as error:  # shards may go when training is over
        console.status(f"report without the maps' errors: {error}")
        return nothing
    return manifest, np.array(errors, np.float32)


def _study(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _saw_validation(teacher: Mapping[str, Any]) -> bool | str:
    """Return whether validation was trained on; of a user-provided file that is used as it is, nobody knows."""
    return "unknown" if teacher.get("taken_as_it_is") else teacher["saw_validation"]


def row_of(
    config: Config,
    workdir: Workdir,
    settings: Mapping[str, Any],
    roles: Roles,
    trained: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the run as one flat row; metrics are prefixed by their role.

    Args:
        config: The run's.
        workdir: Where it wrote.
        settings: What the settings file in its folder says.
        roles: From `figures`.
        trained: The manifest of stage `distill`; the row's versions, hardware and commit are those of its training.
        teacher: The manifest of stage `teacher`, where there is one.
    """
    compressed = None if config.compress.method == "none" else require_compressed(config, workdir)
    made = trained.get("origin") or surroundings()  # students of earlier versions do not say
    row = {
        "experiment": settings["experiment"],
        "arm": settings["experiment"],
        "seed": workdir.seed,
        "smoke": settings["smoke"],
        "config": fingerprint(config),
        "commit": made["commit"],
        "versions": made["versions"],
        "hardware": made["hardware"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_fingerprint": trained.get("data", ""),
        "n_train": trained["n_train"],
        "train_fraction": config.data.train_fraction,
        "subset_seed": config.data.subset_seed,
        "saw_validation": trained["saw_validation"],
        "teacher_saw_validation": _saw_validation(teacher) if teacher else "",
        "train_seconds": round(trained["seconds"], 1),
        "validation_accuracy": trained["validation_accuracy"],
        # students of earlier versions have neither
        "extra_parameters": trained.get("extra_parameters", ""),
        "step_ms": round(trained["step_ms"], 2) if "step_ms" in trained else "",
        "timed_on": (read_timed(workdir) or {}).get("hardware", ""),
        "evaluation": fingerprint("evaluation", config.evaluation, attribution_settings(config)),
    }
    if compressed:
        names = ("method", "sparsity", "prunable_sparsity", "nonzero_parameters", "validation_accuracy")
        row |= {f"compressed_{name}": compressed[name] for name in names}
        row["compressed_settings"] = fingerprint("compress", config.compress)
    return row | {f"{role}_{name}": value for role, values in roles.items() for name, value in values.items()}
