"""`report.html` of one run: what its template shows, prepared from the facts; nothing is read or measured here."""

import json

from tfigkd.report.charts import Table, accuracies, latencies, title_of, trade_off
from tfigkd.report.class_charts import agreement, confusions, recalls
from tfigkd.report.facts import Facts
from tfigkd.report.page import render
from tfigkd.report.pictures import examples
from tfigkd.report.table import GOOD, ROLES, caveats, interval, lines, percent
from tfigkd.report.training_charts import accuracy_curves, completeness, ledger, loss_curves, rates


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
        figures=(["", *(role for role in ROLES if role in facts.roles)], lines(facts.roles, n_test)),
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
    )


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
