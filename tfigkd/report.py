"""Stage `report`: one row of results, a table on screen and `report.md`; every figure comes from a manifest."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from tfigkd import console
from tfigkd.config import fingerprint, to_mapping
from tfigkd.exporting import file_name
from tfigkd.fields import FORMATS, Config
from tfigkd.provenance import commit, hardware, versions
from tfigkd.teacher import require_teacher
from tfigkd.workdir import Workdir, read_manifest, require, sealed, write_text

ROLES = ("teacher", "student", "compressed")


def _figures(config: Config, workdir: Workdir) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Roles to what is known of them, and the distill stage's manifest."""
    results = require(workdir.stage("evaluate"), "evaluate")["results"]
    roles = {role: dict(results[role]) for role in ROLES if role in results}
    # benchmarks and exports are not needed for a report; what is missing is left out
    timed = read_manifest(workdir.stage("benchmark"))
    exported = read_manifest(workdir.stage("export"))
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
    return roles, require(workdir.stage("distill"), "distill")


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _plain(*values: float) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _lines(roles: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's lines: what, then a cell for each role."""
    order = [role for role in ROLES if role in roles]

    def line(title: str, show: Callable[..., str], *keys: str) -> list[str] | None:
        known = [[roles[role].get(key) for key in keys] for role in order]
        cells = ["" if None in values else show(*values) for values in known]
        return [title, *cells] if any(cells) else None

    explained = [f"attribution_{name}" for name in ("rank_correlation", "cosine", "top_overlap")]
    lines = [
        line("parameters", lambda value: f"{value:,}", "parameters"),
        line("multiply-adds", lambda value: f"{value / 1e6:,.2f} M", "multiply_adds"),
        line("test accuracy", _percent, "accuracy"),
        line("balanced accuracy", _percent, "balanced_accuracy"),
        line("calibration error (ECE)", _percent, "ece"),
        line("agreement with the teacher", _percent, "agreement"),
        line("KL to the teacher, nats", _plain, "kl"),
        line("maps like the teacher's: rank / cosine / top", _plain, *explained),
        line("the same, another image's map", _plain, *(f"{name}_chance" for name in explained)),
        line("insertion / deletion AUC", _plain, "attribution_insertion", "attribution_deletion"),
    ]
    if "teacher" in roles:
        factors = [roles["teacher"]["parameters"] / roles[role]["parameters"] for role in order]
        lines.insert(1, ["compression factor", *(f"{factor:.2f}" for factor in factors)])
    for format in FORMATS:
        lines.append(line(f"{format} LiteRT file", lambda value: f"{value / 1e3:,.1f} kB", f"{format}_bytes"))
        lines.append(line(f"{format} test accuracy", _percent, f"{format}_accuracy"))
        lines.append(line(f"{format} latency, batch 1", lambda value: f"{value:.2f} ms", f"{format}_ms"))
        lines.append(line(f"{format} agreement with Keras", _percent, f"{format}_parity"))
    return [cells for cells in lines if cells]


def _row(config: Config, workdir: Workdir, roles: dict[str, dict[str, Any]], trained: dict[str, Any]) -> dict[str, Any]:
    """The run as one flat row; metrics are prefixed by their role."""
    run = json.loads((workdir.run / "config.json").read_text(encoding="utf-8"))
    teacher = require_teacher(config, workdir) if config.needs_teacher else None
    compressed = read_manifest(workdir.stage("compress")) if config.compress.method != "none" else None
    row = {
        "experiment": run["experiment"],
        "arm": run["experiment"],
        "seed": workdir.seed,
        "smoke": run["smoke"],
        "config": fingerprint(config),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_train": trained["n_train"],
        "train_fraction": config.data.train_fraction,
        "subset_seed": config.data.subset_seed,
        "saw_validation": trained["saw_validation"],
        "teacher_saw_validation": teacher["saw_validation"] if teacher else "",
        "train_seconds": round(trained["seconds"], 1),
        "validation_accuracy": trained["validation_accuracy"],
    }
    if compressed:
        names = ("method", "sparsity", "prunable_sparsity", "nonzero_parameters", "validation_accuracy")
        row |= {f"compressed_{name}": compressed[name] for name in names}
    return row | {f"{role}_{name}": value for role, values in roles.items() for name, value in values.items()}


def report(config: Config, workdir: Workdir) -> None:
    """Stage `report`: write `rows.csv` and `report.md`, and show the table."""
    roles, trained = _figures(config, workdir)
    lines = _lines(roles)
    header = ["", *(role for role in ROLES if role in roles)]
    row = _row(config, workdir, roles, trained)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, sealed(row))
    writer.writeheader()
    writer.writerow(sealed(row))
    write_text(workdir.run / "rows.csv", buffer.getvalue())

    markdown = [
        f"# {row['experiment']}, seed {row['seed']}",
        "",
        f"{config.description}." if config.description else "",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(cells) + " |" for cells in lines),
        "",
        f"One run (n = 1), so no spread and no comparison. Trained on {row['n_train']:,} examples in "
        f"{row['train_seconds']:,.0f} s; the student's last epoch, nothing chosen on the test split."
        + (" Validation was part of the training set." if row["saw_validation"] else "")
        + (" The teacher was trained on validation as well." if row["teacher_saw_validation"] else "")
        + (" SMOKE RUN: a few steps on a slice, not a result." if row["smoke"] else ""),
        "",
        f"- hardware: {row['hardware']}",
        f"- versions: {row['versions']}",
        f"- commit: {row['commit'] or 'not a checkout'}",
        f"- config {row['config']}:",
        "",
        "```json",
        json.dumps(to_mapping(config), indent=1),
        "```",
    ]
    write_text(workdir.run / "report.md", "\n".join(markdown) + "\n")
    table = Table(title=f"{row['experiment']}, seed {row['seed']}", title_justify="left")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for cells in lines:
        table.add_row(*cells)
    console.show(table)
