"""`report.html` of a study: what its rows can be said to show; every figure comes from a row."""

import math
from collections.abc import Mapping, Sequence

from plotly import graph_objects as go

from tfigkd.measure.statistics import LEVEL, Summary, summarize
from tfigkd.report.charts import PALETTE, cost_axis, make, rows_axis
from tfigkd.report.page import (
    Chart,
    Section,
    bullets,
    cards,
    charts,
    code,
    details,
    document,
    label,
    paragraph,
    table,
)
from tfigkd.study.plan import Study
from tfigkd.study.tables import (
    Compared,
    Row,
    Runs,
    arms_lines,
    command_of,
    compare,
    comparisons_lines,
    provenance,
    runs_of,
    sentences,
)

MOST_SENTENCES = 8


def page(study: Study, rows: Sequence[Row], papers: Sequence[Row]) -> str:
    """The page of a study; equal rows give an equal page.

    Args:
        study: What was planned.
        rows: One for each finished run; none where it has not begun.
        papers: What the papers' code says of its own runs, of any study.
    """
    published = [row for row in papers if row["study"] == study.name]
    sections = [Section("results", "Results", _results(study, rows, papers))]
    compared = compare(study, runs_of(rows)) if rows else []
    if compared:
        sections.append(Section("comparisons", "Planned comparisons", _comparisons(compared)))
    sizes = size_chart(study, rows)
    if sizes is not None:
        sections.append(Section("sizes", "Accuracy against size", charts([sizes])))
    if published:
        sections.append(Section("published", "What the papers' code says of its runs", _published(study, published)))
    sections.append(Section("left", "What is still to be run", _left(study, rows)))
    sections.append(Section("repeat", "Repeat it", _repeat(study, rows)))
    return document(f"Study: {study.name}", f"{study.description}.", sections)


def _total(study: Study) -> int:
    return study.seeds * len(study.arms) * len(study.sizes)


def _title(arm: str, size: str) -> str:
    return f"{arm} {size}".strip()


def _results(study: Study, rows: Sequence[Row], papers: Sequence[Row]) -> str:
    sizes = f" × {len(study.sizes)} sizes" if len(study.sizes) > 1 else ""
    planned = f"{len(study.arms)} arms{sizes} × {study.seeds} seeds"
    done = cards([("runs with a row", f"{len(rows)} of {_total(study)}", planned)])
    if not rows:
        return done + paragraph("No run of ours has a row yet.")
    header, found, remarks = arms_lines(study, rows, papers)
    caption = "Arms; bold only where one beats every other beyond the noise"
    shown = charts([arms_chart("arms", "Test accuracy by arm", study, runs_of(rows))])
    return done + paragraph(provenance(rows)) + paragraph(remarks) + shown + table((header, found), caption)


def arms_chart(name: str, title: str, study: Study, runs: Runs) -> Chart:
    """Every run as a dot; the mean of an arm and, of two runs and more, its 95 % interval."""
    order = [(size, arm) for size in study.sizes for arm in study.arms if (size, arm) in runs]
    summaries = {key: summarize(list(runs[key].values())) for key in order}
    names = {key: label(_title(key[1], key[0])) for key in order}
    dots = go.Scatter(
        x=[value for key in order for value in runs[key].values()],
        y=[names[key] for key in order for _ in runs[key]],
        mode="markers",
        marker={"size": 7, "color": "#7a8794", "opacity": 0.65},
        name="one run",
        text=[f"seed {seed}" for key in order for seed in runs[key]],
        hovertemplate="%{y}, %{text}<br>%{x:.2f} %<extra></extra>",
    )
    known = [summaries[key] for key in order]
    means = go.Scatter(
        x=[one.mean for one in known],
        y=[names[key] for key in order],
        error_x={"type": "data", "array": [_half(one) for one in known], "thickness": 1.8, "width": 5},
        mode="markers",
        marker={"size": 11, "color": PALETTE[0], "symbol": "diamond"},
        name="mean, 95 % interval",
        text=[_words(one) for one in known],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )
    best = max(order, key=lambda key: summaries[key].mean)
    lines = [[_title(arm, size), *_columns(summaries[size, arm])] for size, arm in order]
    return Chart(
        name,
        title,
        f"{len(order)} arms; the highest mean is that of {_title(best[1], best[0])}, {_words(summaries[best])}. "
        "An interval needs two runs.",
        make(
            [dots, means],
            xaxis={"title": {"text": "test accuracy, %"}},
            yaxis=rows_axis(len(order)),
            hovermode="closest",
            margin={"b": 70},
        ),
        (["arm", "n", "mean, %", "sd", "95 % interval"], lines),
        height=140 + 26 * len(order),
    )


def _half(summary: Summary) -> float:
    return 0.0 if math.isnan(summary.high) else summary.high - summary.mean


def _words(summary: Summary) -> str:
    if math.isnan(summary.low):
        return f"{summary.mean:.2f} % (n = {summary.n})"
    return f"{summary.mean:.2f} %, {summary.low:.2f} to {summary.high:.2f} (n = {summary.n})"


def _columns(summary: Summary) -> list[str]:
    alone = math.isnan(summary.low)
    spread = ["–", "–"] if alone else [f"{summary.deviation:.2f}", f"{summary.low:.2f} to {summary.high:.2f}"]
    return [str(summary.n), f"{summary.mean:.2f}", *spread]


def _comparisons(compared: Sequence[Compared]) -> str:
    said = sentences(compared).split("\n")
    listed = [line.removeprefix("- ") for line in said[1:] if line]
    forest = forest_chart(compared)
    lead = "They were chosen before any run. Runs of one seed are compared in pairs; p after Holm's correction."
    return (
        paragraph(lead, said[0])
        + charts([forest])
        + (bullets(listed) if len(listed) <= MOST_SENTENCES else details("Each in words", bullets(listed)))
        + table(comparisons_lines(compared), "Differences of mean test accuracy, in points")
    )


def forest_chart(compared: Sequence[Compared]) -> Chart | None:
    """Differences with their 95 % intervals; a filled mark is beyond the noise. None where no arm has two runs."""
    drawn = [one for one in compared if one.lead.tested]
    if not drawn:
        return None
    beyond = [one.adjusted < LEVEL for one in drawn]
    marks = go.Scatter(
        x=[one.lead.difference for one in drawn],
        y=[label(one.title, 40) for one in drawn],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [one.lead.high - one.lead.difference for one in drawn],
            "arrayminus": [one.lead.difference - one.lead.low for one in drawn],
            "thickness": 1.8,
            "width": 5,
        },
        mode="markers",
        marker={
            "size": 11,
            "color": PALETTE[0],
            "symbol": ["circle" if one else "circle-open" for one in beyond],
            "line": {"width": 2},
        },
        customdata=[
            [one.lead.low, one.lead.high, f"{one.adjusted:.3g}", f"n {one.lead.n[0]} and {one.lead.n[1]}"]
            for one in drawn
        ],
        hovertemplate="%{y}<br>%{x:+.2f} points, %{customdata[0]:+.2f} to %{customdata[1]:+.2f}<br>"
        "p after Holm %{customdata[2]}, %{customdata[3]}<extra></extra>",
    )
    lines = [
        [
            one.title,
            f"{one.lead.difference:+.2f}",
            f"{one.lead.low:+.2f} to {one.lead.high:+.2f}",
            f"{one.adjusted:.3g}",
        ]
        for one in drawn
    ]
    return Chart(
        "forest",
        "Differences of mean test accuracy",
        f"{sum(beyond)} of {len(drawn)} differences are beyond the noise (filled marks).",
        make(
            [marks],
            xaxis={"title": {"text": "points, with 95 % interval"}, "zeroline": True, "zerolinewidth": 2},
            yaxis=rows_axis(len(drawn)),
            showlegend=False,
            hovermode="closest",
        ),
        (["comparison", "difference, points", "95 % interval", "p after Holm"], lines),
        height=110 + 34 * len(drawn),
    )


def size_chart(study: Study, rows: Sequence[Row]) -> Chart | None:
    """Mean accuracy of each arm against the student's parameters; None where the study has one size."""
    parameters = {row["size"]: int(row["student_parameters"]) for row in rows if row.get("student_parameters")}
    if len(parameters) < 2:
        return None
    runs = runs_of(rows)
    sizes = sorted(parameters, key=parameters.__getitem__)
    traces, lines = [], []
    for number, arm in enumerate(study.arms):
        known = {size: summarize(list(runs[size, arm].values())) for size in sizes if (size, arm) in runs}
        traces.append(
            go.Scatter(
                x=[parameters[size] for size in known],
                y=[one.mean for one in known.values()],
                error_y={"type": "data", "array": [_half(one) for one in known.values()], "width": 4},
                mode="lines+markers",
                line={"color": PALETTE[number % len(PALETTE)]},
                name=label(arm),
                text=[f"{size}: {_words(one)}" for size, one in known.items()],
                hovertemplate="%{text}",
            )
        )
        lines += [[_title(arm, size), f"{parameters[size]:,}", *_columns(one)] for size, one in known.items()]
    figure = make(
        traces,
        xaxis=cost_axis(list(parameters.values()), "parameters of the student"),
        yaxis={"title": {"text": "test accuracy, %"}},
        margin={"b": 80},
    )
    text = f"{len(sizes)} sizes from {parameters[sizes[0]]:,} to {parameters[sizes[-1]]:,} parameters."
    header = ["arm", "parameters", "n", "mean, %", "sd", "95 % interval"]
    return Chart("size", "Accuracy against the student's size", text, figure, (header, lines), height=420)


def _published(study: Study, papers: Sequence[Row]) -> str:
    """Figures that are not ours: read from the papers' code."""
    header = ["arm", "n", "mean, %", "sd", "source"]
    lines = [
        [_title(row["arm"], row["size"]), row["n"] or "–", row["mean"], row["deviation"] or "–", row["source"]]
        for row in papers
    ]
    runs: Runs = {
        (row["size"], row["arm"]): {number: float(value) for number, value in enumerate(row["runs"].split())}
        for row in papers
        if row["runs"]
    }
    runs = {key: values for key, values in runs.items() if key[0] in study.sizes and key[1] in study.arms}
    drawn = [arms_chart("published-arms", "The papers' runs", study, runs)] if runs else []
    return (
        paragraph("Not measured here. That code gave every image another image's map and logits (see README.md).")
        + charts(drawn)
        + table((header, lines), "The papers' figures")
    )


def _left(study: Study, rows: Sequence[Row]) -> str:
    done = _counts(rows)
    missing = {
        (size, arm): study.seeds - done.get((size, arm), 0)
        for size in study.sizes
        for arm in study.arms
        if done.get((size, arm), 0) < study.seeds
    }
    if not missing:
        return paragraph("Nothing: every planned run has its row.")
    lines = [[_title(arm, size), str(done.get((size, arm), 0)), str(n)] for (size, arm), n in missing.items()]
    text = f"{sum(missing.values())} of {_total(study)} runs. The same command goes on with what is left."
    return (
        paragraph(text)
        + code(command_of(study))
        + table((["arm", "runs with a row", "still to be run"], lines), "Runs to do")
    )


def _counts(rows: Sequence[Row]) -> Mapping[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["size"], row["arm"]
        counts[key] = counts.get(key, 0) + 1
    return counts


def _repeat(study: Study, rows: Sequence[Row]) -> str:
    commands = list(dict.fromkeys(row["command"] for row in rows if row.get("command")))
    text = paragraph("The whole study:") + code(command_of(study))
    if commands:
        text += paragraph("The runs that have a row were started by:") + code("\n".join(commands))
    after = "python -m tfigkd.study collect && python -m tfigkd.study report"
    return text + paragraph("Then, to bring the rows into the checkout and write this page anew:") + code(after)
