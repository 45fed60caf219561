"""`report.html` of one run: from facts to HTML, nothing read and nothing measured here."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tfigkd.report.charts import accuracies, latencies, title_of, trade_off
from tfigkd.report.class_charts import agreement, confusions, recalls
from tfigkd.report.facts import Facts
from tfigkd.report.page import (
    Section,
    bullets,
    cards,
    charts,
    code,
    details,
    document,
    missing,
    paragraph,
    table,
)
from tfigkd.report.pictures import gallery
from tfigkd.report.table import ROLES, caveats, interval, lines, percent
from tfigkd.report.training_charts import completeness, curves, ledger


def page(facts: Facts) -> str:
    """The page of a run; equal facts give an equal page."""
    row = facts.row
    makers: dict[str, tuple[str, Callable[[Facts], str]]] = {
        "results": ("Results", _results),
        "run": ("What was run", _run),
        "cost": ("Accuracy against size and latency", _cost),
        "training": ("Training", _training),
        "gallery": ("Examples and their maps", _gallery),
        "disagreement": ("Where teacher and student disagree", _disagreement),
        "maps": ("How complete the maps are", _maps),
        "exports": ("Exported files", _exports),
        "repeat": ("Repeat it", _repeat),
    }
    sections = [Section(name, title, make(facts)) for name, (title, make) in makers.items()]
    marks = ["smoke run, not a result"] if row["smoke"] else []
    description = facts.config["description"]
    lead = f"{description}." if description else f"{row['experiment']}, one run."
    return document(f"{row['experiment']}, seed {row['seed']}", lead, sections, marks=marks)


def _results(facts: Facts) -> str:
    n_test = facts.evaluated["n_test"]
    teacher, best = facts.roles.get("teacher"), "compressed" if "compressed" in facts.roles else "student"
    values = facts.roles[best]
    shown = [(f"{best}'s test accuracy", percent(values["accuracy"]), interval(values["accuracy"], n_test))]
    if teacher:
        shown.append(("teacher's", percent(teacher["accuracy"]), interval(teacher["accuracy"], n_test)))
        factor = teacher["parameters"] / values["parameters"]
        shown.append(("fewer parameters", f"{factor:.2f}×", f"{values['parameters']:,} of {teacher['parameters']:,}"))
        shown.append(("same class as the teacher", percent(values["agreement"]), f"of {n_test:,} test images"))
    if "int8_bytes" in values:
        milliseconds = f"{values['int8_ms']:.2f} ms an image" if "int8_ms" in values else ""
        shown.append(("int8 file", f"{values['int8_bytes'] / 1e3:,.1f} kB", milliseconds))
    found = lines(facts.roles, n_test)
    header = ["", *(role for role in ROLES if role in facts.roles)]
    chart = accuracies(facts.evaluated["results"], n_test)
    return (
        f"{cards(shown)}{paragraph(caveats(facts.row))}{charts([chart])}{table((header, found), 'All figures by role')}"
    )


def _run(facts: Facts) -> str:
    config = facts.config
    told = []
    if facts.data:
        counts = facts.data["counts"]
        height, width, _ = facts.data["image_shape"]
        told.append(
            f"Data: {config['data']['name']}, {len(facts.data['class_names'])} classes, {height}×{width} pixels; "
            f"{counts['train']:,} training, {counts['validation']:,} validation and {counts['test']:,} test images"
            f" (fingerprint {facts.data['data']})"
            + (f"; {facts.data['test_train_overlap']:,} test images are in train as well" * bool(_overlap(facts)))
        )
    for role, part in (("teacher", config["teacher"]), ("student", config["student"])):
        if role in facts.roles:
            epochs = _epochs(facts, role, part)
            told.append(
                f"{role.capitalize()}: {_network(part)}, {facts.roles[role]['parameters']:,} parameters{epochs}"
            )
    losses = {name: term for name, term in config["losses"].items() if term["weight"]}
    if losses:
        told.append(f"Losses beside the hard labels: {'; '.join(_term(name, term) for name, term in losses.items())}")
    if config["overlay"]["probability"]:
        laid = config["overlay"]
        told.append(
            f"Overlays: {100 * laid['probability']:g} % of the training images carry a map, exponents "
            f"{laid['min_exponent']:g} to {laid['max_exponent']:g}"
        )
    placebo = {name: kind for name, kind in config["control"].items() if name != "seed" and kind != "own"}
    if placebo:
        told.append(f"Placebo: {'; '.join(f'{name} {kind}' for name, kind in placebo.items())}")
    if config["compress"]["method"] != "none":
        told.append(f"Compression after training: {config['compress']['method']}")
    return bullets(told) + details("Every field of the experiment", code(json.dumps(config, indent=1)))


def _overlap(facts: Facts) -> int:
    return facts.data["test_train_overlap"] if facts.data else 0


def _network(part: dict[str, Any]) -> str:
    dropped = f" without its last {part['drop_blocks']} blocks" if part["drop_blocks"] else ""
    wide = f", width {part['width']:g}" if part["width"] != 1 else ""
    return f"{part['model']}{dropped}{wide}"


def _epochs(facts: Facts, role: str, part: dict[str, Any]) -> str:
    history = facts.histories.get(role)
    if not history:
        return f", weights {part['weights']}" if part.get("weights") else ""
    recipe = part["training"] if role == "teacher" else facts.config["training"]
    seconds = sum(entry["seconds"] for entry in history)
    return f", {len(history)} epochs of {recipe['optimizer']} in {seconds:,.0f} s"


def _term(name: str, term: dict[str, Any]) -> str:
    settings = [f"{key} {value}" for key, value in term.items() if value not in (None, "", [], False)]
    return f"{name} ({', '.join(settings)})"


def _cost(facts: Facts) -> str:
    if not facts.timed:
        return missing("Sizes and latencies were not measured", "export,evaluate,benchmark,report")
    results, timed = facts.evaluated["results"], facts.timed
    made = trade_off(results, timed["results"], facts.evaluated["n_test"], timed["threads"])
    if not made:
        return missing("The files were not evaluated", "evaluate,report")
    text = f"Each mark is a file, run by LiteRT on {timed['hardware']}; bars are 95 % intervals on the test images. "
    return paragraph(text + "Drag over a figure to zoom in, double-click to go back.") + charts(made)


def _training(facts: Facts) -> str:
    made = curves(facts.histories) if facts.histories else []
    made += [ledger(facts.ledger)] if facts.ledger else []
    if not made:
        return missing("The curves are with the run that trained this student", "distill,report")
    losses = any(term["weight"] for term in facts.config["losses"].values())
    note = "" if facts.ledger or not losses else paragraph("No ledger: ledger.every is 0 in this experiment.")
    return charts(made) + note


def _gallery(facts: Facts) -> str:
    if facts.gallery is None:
        what = "No examples were kept (evaluation.gallery_examples)"
        return missing(what, "evaluate,report")
    seen = facts.row["saw_validation"]
    text = ["Validation images, which the student has trained on." if seen else "Validation images, never trained on."]
    has_teacher = len(facts.gallery.teacher_maps) > 0
    text.append("Maps are Integrated Gradients of the label's logit, each scaled by its own maximum, dark is nothing.")
    if has_teacher:
        mean = f"{float(np.mean(facts.gallery.alike)):.2f} on average here"
        text.append(
            f"Alike is Spearman's rank correlation of the two maps ({mean}), beside that with the teacher's map of "
            "another image. The last ones are images on which the two disagree, so this is no random sample."
        )
    control = facts.config["control"]["maps"]
    laid = {
        "own": "The image with its map laid over it",
        "shuffled": "The image with another image's map laid over it: the placebo",
        "noise": "The image with noise of its map's values and power spectrum laid over it: the placebo",
        "none": "The image dimmed as by an overlay, without a map: the placebo",
    }[control]
    if len(facts.gallery.overlays) and control != "own":
        text.append(f"{laid}.")
    return paragraph(*text) + gallery(facts.gallery, facts.evaluated["class_names"], laid)


def _disagreement(facts: Facts) -> str:
    evaluated, made = facts.evaluated, []
    classes, n_test = evaluated["class_names"], evaluated["n_test"]
    for role, counts in evaluated.get("disagreement", {}).items():
        made += [agreement(counts, role, n_test), confusions(counts, classes, role)]
    known = {role: values for role, values in evaluated["per_class"].items() if role in ROLES}
    note = ""
    if not facts.taught:
        note = paragraph("This student had no teacher, so only its recall is shown.")
    elif not made:
        note = missing("Counts need the teacher", "teacher,evaluate,report")
    return note + charts([*made, recalls(known, classes)])


def _maps(facts: Facts) -> str:
    if not facts.store or not len(facts.errors):
        if facts.config["overlay"]["probability"]:
            return missing("The overlay store is not here", "teacher,overlays,report")
        return paragraph("This run laid no maps over its images.")
    tolerance = facts.store["identity"]["attribution"]["tolerance"]
    text = (
        "Integrated Gradients promise that a map's pixels sum to the change of the logit from baseline to image. The "
        "error is what the quadrature missed, relative to that change; a map over the tolerance is never overlaid. "
        f"{facts.store['mean_steps']:.1f} steps a map on average."
    )
    return paragraph(text) + charts([completeness(facts.errors, tolerance)])


def _exports(facts: Facts) -> str:
    if not facts.exported:
        return missing("No file was exported", "export,evaluate,benchmark,report")
    header = ["file", "agreement with Keras", "accuracy, file", "accuracy, Keras", "KL, nats", "largest difference"]
    found = [
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
    held = paragraph("Each file was held against its Keras model on the validation images before it was kept.")
    timed = facts.timed
    shown = charts([latencies(timed["results"], timed["threads"])]) if timed else ""
    if not timed:
        shown = missing("Latencies were not measured", "benchmark,report")
    return f"{held}{table((header, found), 'Parity of the files with Keras')}{shown}"


def _repeat(facts: Facts) -> str:
    row = facts.row
    about = [
        f"Commit: {row['commit'] or 'not a checkout'}",
        f"Config: {row['config']}",
        f"Versions: {row['versions']}",
        f"Hardware: {row['hardware']}",
    ]
    text = paragraph("The run is repeated by:") + code(facts.command)
    if facts.toml:
        text += paragraph(f"The experiment is not a shipped one. Save this as {row['experiment']}.toml:")
        text += code(facts.toml)
    if facts.study:
        text += paragraph("It is one run of a study, which is repeated by:") + code(facts.study)
    return text + bullets(about)
