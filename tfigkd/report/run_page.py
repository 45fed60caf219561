"""`report.html` of one run: what its template shows, prepared from the facts; nothing is read or measured here."""

import json
from collections.abc import Mapping
from typing import Any

from tfigkd.report.charts import Table, accuracies, latencies, title_of, trade_off
from tfigkd.report.class_charts import agreement, confusions, recalls
from tfigkd.report.facts import Facts
from tfigkd.report.page import render
from tfigkd.report.pictures import examples
from tfigkd.report.table import GOOD, ROLES, caveats, interval, lines
from tfigkd.report.training_charts import accuracy_curves, completeness, ledger, loss_curves, rates
from tfigkd.runtime.text import percent

LISTED = 12
"""Operations of a profile that the page lists."""


def page(facts: Facts) -> str:
    """Return the page of a run; equal facts give an equal page."""
    evaluated, timed, store, student = facts.evaluated, facts.timed, facts.store, facts.histories.get("student")
    n_test, classes = evaluated["n_test"], evaluated["class_names"]
    return render(
        "run.html",
        facts=facts,
        good=GOOD,
        n_test=n_test,
        best="compressed" if "compressed" in facts.roles else "student",
        caveats=caveats(facts.row),
        intervals={role: interval(values["accuracy"], n_test) for role, values in facts.roles.items()},
        figures=lines(facts.roles, n_test),
        config_text=json.dumps(facts.config, indent=1),
        accuracies=accuracies(evaluated["results"], n_test),
        costs=trade_off(evaluated["results"], timed["results"], n_test, timed["threads"]) if timed else [],
        curves=accuracy_curves(facts.histories) if facts.histories else None,
        losses=loss_curves(student) if student else None,
        rates=rates(facts.histories) if student else None,
        ledger=ledger(facts.ledger) if facts.ledger else None,
        examples=examples(facts.gallery, classes) if facts.gallery else [],
        disagreements=[
            (role, agreement(counts, role, n_test), confusions(counts, classes, role))
            for role, counts in evaluated.get("disagreement", {}).items()
        ],
        recalls=recalls({role: values for role, values in evaluated["per_class"].items() if role in ROLES}, classes),
        completeness=completeness(facts.errors, store["identity"]["attribution"]["tolerance"])
        if store and len(facts.errors)
        else None,
        parity=_parity(facts),
        latencies=latencies(timed["results"], timed["threads"]) if timed else None,
        profiles=[_profile(name, one) for name, one in (timed or {}).get("profiles", {}).items()],
    )


def _profile(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a file's profile: sentences and two tables; the second is None without float32."""
    operations = found["operations"]
    times = [
        [
            f"{row['index']} {row['layer']}",
            row["operation"],
            row["runs_on"],
            "" if row["milliseconds"] is None else f"{1e3 * row['milliseconds']:.1f}",
            "" if row["share"] is None else percent(row["share"]),
            f"{row['multiply_adds'] / 1e6:,.2f}" if row["multiply_adds"] else "",
            f"{row['weight_bytes'] / 1e3:,.1f}",
            f"{row['activation_bytes'] / 1e3:,.1f}",
        ]
        for row in sorted(operations, key=lambda row: -(row["milliseconds"] or 0.0))[:LISTED]
    ]
    compared = [row for row in operations if row["cosine"] is not None]
    layers = [
        [
            f"{row['index']} {row['layer']}",
            row["operation"],
            f"{row['cosine']:.5f}",
            "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            "" if row["added_noise"] is None else f"{100 * row['added_noise']:.3f}",
            f"{100 * row['saturated']:.2g}",
        ]
        for row in sorted(compared, key=lambda row: -(row["added_noise"] or 0.0))[:LISTED]
    ]
    by_time = [
        "layer",
        "operation",
        "runs on",
        "µs",
        "share of the time",
        "M multiply-adds",
        "kB weights",
        "kB in, out",
    ]
    by_noise = ["layer", "operation", "cosine", "SQNR, dB", "noise added, %", "saturated, %"]
    return {
        "title": title_of(name),
        "times": (by_time, times),
        "layers": (by_noise, layers) if layers else None,
        "said": [*found["times"], *found["layers"]],
        "images": found["images"],
        "listed": LISTED,
    }


def _parity(facts: Facts) -> Table | None:
    if not facts.exported:
        return None
    header = ["file", "agreement with Keras", "accuracy, file", "accuracy, Keras", "KL, nats", "largest difference"]
    return header, [
        [
            title_of(name),
            percent(report["agreement"]),
            percent(report["accuracy"]),
            percent(report["keras_accuracy"]),
            f"{report['kl']:.2g}",
            f"{report['max_difference']:.2g}",
        ]
        for name, report in facts.exported["parity"].items()
    ]
