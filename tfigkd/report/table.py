"""The figures of a run, role by role, as lines of words, as one flat row and as Markdown."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tfigkd.config.fields import FORMATS
from tfigkd.measure.statistics import wilson

ROLES = ("teacher", "student", "compressed")

Roles = dict[str, dict[str, Any]]


def percent(value: float) -> str:
    """A share in words."""
    return f"{100 * value:.2f} %"


def interval(accuracy: float, n_test: int) -> str:
    """Wilson's 95 % interval of an accuracy on so many images, in words."""
    low, high = wilson(accuracy, n_test)
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def _plain(*values: float) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def lines(roles: Roles, n_test: int) -> list[list[str]]:
    """The table's lines: what, then a cell for each role."""
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
        line(f"its 95 % interval, {n_test:,} images", lambda value: interval(value, n_test), "accuracy"),
        line("balanced accuracy", percent, "balanced_accuracy"),
        line("calibration error (ECE)", percent, "ece"),
        line("agreement with the teacher", percent, "agreement"),
        line("KL to the teacher, nats", _plain, "kl"),
        line("maps like the teacher's: rank / cosine / top", _plain, *explained),
        line("the same, another image's map", _plain, *(f"{name}_chance" for name in explained)),
        line("insertion / deletion AUC", _plain, "attribution_insertion", "attribution_deletion"),
    ]
    if "teacher" in roles:
        factors = [roles["teacher"]["parameters"] / roles[role]["parameters"] for role in order]
        found.insert(1, ["compression factor", *(f"{factor:.2f}" for factor in factors)])
    for format in FORMATS:
        found.append(line(f"{format} LiteRT file", lambda value: f"{value / 1e3:,.1f} kB", f"{format}_bytes"))
        found.append(line(f"{format} test accuracy", percent, f"{format}_accuracy"))
        found.append(line(f"{format} latency, batch 1", lambda value: f"{value:.2f} ms", f"{format}_ms"))
        found.append(line(f"{format} agreement with Keras", percent, f"{format}_parity"))
    return [cells for cells in found if cells]


def caveats(row: Mapping[str, Any]) -> str:
    """What must be known of a run's figures."""
    return (
        "One run (n = 1), so no spread over seeds and no comparison: the intervals say how far the test images "
        f"pin an accuracy down, not how far another seed would lie. Trained on {row['n_train']:,} examples in "
        f"{row['train_seconds']:,.0f} s; the student's last epoch, nothing chosen on the test split."
        + (" Validation was part of the training set." if row["saw_validation"] else "")
        + (" The teacher was trained on validation as well." if row["teacher_saw_validation"] else "")
        + (" SMOKE RUN: a few steps on a slice, not a result." if row["smoke"] else "")
    )


def markdown(
    config: Mapping[str, Any], row: Mapping[str, Any], header: list[str], found: list[list[str]], command: str
) -> str:
    """`report.md`."""
    text = [
        f"# {row['experiment']}, seed {row['seed']}",
        "",
        f"{config['description']}." if config["description"] else "",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(cells) + " |" for cells in found),
        "",
        caveats(row),
        "",
        f"- repeat: `{command}`",
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
