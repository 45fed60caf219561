"""The figures of a run by role: as lines of a table, as the sentences of caution, and as `report.md`."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tfigkd.config.export_fields import FORMATS
from tfigkd.measure.statistics import wilson
from tfigkd.report.facts import Facts, Roles
from tfigkd.runtime.text import counted, markdown_table, percent

ROLES = ("teacher", "student", "compressed")

GOOD = "Nothing wrong was found with this run"
"""The verdict of a run without remarks."""


def interval(accuracy: float, n_test: int) -> str:
    """Return Wilson's 95 % interval of an accuracy on `n_test` images."""
    low, high = wilson(accuracy, n_test)
    return f"{100 * low:.2f} to {percent(high)}"


def _plain(*values: float) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def lines(roles: Roles, n_test: int) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the table: a title, then a cell for each role; what no role has is left out."""
    order = [role for role in ROLES if role in roles]

    def line(title: str, show: Callable[..., str], *keys: str) -> list[str] | None:
        known = [[roles[role].get(key) for key in keys] for role in order]
        cells = ["" if None in values else show(*values) for values in known]
        return [title, *cells] if any(cells) else None

    explained = [f"attribution_{name}" for name in ("rank_correlation", "cosine", "top_overlap")]
    found = [
        line("parameters", lambda value: f"{value:,}", "parameters"),
        line("multiply-adds", lambda value: f"{value / 1e6:,.2f} M", "multiply_adds"),
        line("test accuracy", percent, "accuracy"),
        line(f"95 % interval ({counted(n_test, 'test image')})", lambda value: interval(value, n_test), "accuracy"),
        line("top-5 test accuracy", percent, "top5_accuracy"),
        line("with the mirror image averaged", percent, "mirrored_accuracy"),
        line("balanced accuracy", percent, "balanced_accuracy"),
        line("calibration error (ECE)", percent, "ece"),
        line("agreement with the teacher", percent, "agreement"),
        line("KL to the teacher, nats", _plain, "kl"),
        line("similarity to the teacher's maps: rank / cosine / top", _plain, *explained),
        line("similarity to maps of other images (chance)", _plain, *(f"{name}_chance" for name in explained)),
        line("insertion / deletion AUC", _plain, "attribution_insertion", "attribution_deletion"),
    ]
    if "teacher" in roles:
        factors = [roles["teacher"]["parameters"] / roles[role]["parameters"] for role in order]
        found.insert(1, ["compression factor", *(f"{factor:.2f}" for factor in factors)])
    for format in FORMATS:
        found.append(line(f"{format} LiteRT file", lambda value: f"{value / 1e3:,.1f} kB", f"{format}_bytes"))
        found.append(line(f"{format} test accuracy", percent, f"{format}_accuracy"))
        found.append(line(f"{format} latency, batch 1", lambda value: f"{value:.3f} ms", f"{format}_ms"))
        found.append(line(f"{format} agreement with Keras", percent, f"{format}_parity"))
    return ["", *order], [cells for cells in found if cells]


TEACHER_SAW = {
    True: " The teacher was also trained on the validation images.",
    "unknown": " The teacher was taken as it is: if it was trained on validation or test images of this run, its "
    "figures are too high.",
}
"""What a row's `teacher_saw_validation` means for the figures."""


def caveats(row: Mapping[str, Any]) -> str:
    """Return what a reader must know about a run's figures."""
    return (
        "This is one run (n = 1), so it has no spread over seeds and supports no comparison. The intervals are the "
        "uncertainty from the number of test images, not from the seed. The student was trained on "
        f"{counted(row['n_train'], 'example')} in {row['train_seconds']:,.0f} s and is kept as it is after the last "
        "epoch; nothing was chosen on the test split."
        + (" The validation images were part of the student's training set." if row["saw_validation"] else "")
        + TEACHER_SAW.get(row["teacher_saw_validation"], "")
        + (" SMOKE RUN: a few steps on a slice of the data, not a result." if row["smoke"] else "")
    )


def markdown(facts: Facts) -> str:
    """Return the text of `report.md`, which opens with the sentences of the verdict."""
    config, row = facts.config, facts.row
    header, found = lines(facts.roles, facts.evaluated["n_test"])
    text = [
        f"# {row['experiment']}, seed {row['seed']}",
        "",
        f"{config['description']}." if config["description"] else "",
        "",
        *([f"- **{one}**" for one in facts.verdict] or [f"{GOOD}."]),
        "",
        *markdown_table(header, found, right=len(header) - 1),
        "",
        caveats(row),
        "",
        f"- repeat: `{facts.command}`",
        f"- hardware: {row['hardware']}",
        f"- versions: {row['versions']}",
        f"- commit: {row['commit'] or 'not a checkout'}",
        f"- config {row['config']}:",
        "",
        "```json",
        json.dumps(config, indent=1),
        "```",
    ]
    return "\n".join(text) + "\n"
