"""`report.html` of a study: what its template shows, prepared from the rows; every figure comes from a row."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plotly import graph_objects as go

from tfigkd.measure.statistics import LEVEL, Summary
from tfigkd.report.charts import PALETTE, Chart, Table, cost_axis, error_bars, label, labels, make, rows_axis
from tfigkd.report.page import render
from tfigkd.study.commands import command_of
from tfigkd.study.plan import PROG, Options, Study, title_of, words_of
from tfigkd.study.protocol import Row
from tfigkd.study.quality import TITLE, quality_lines
from tfigkd.study.tables import (
    Compared,
    Runs,
    arms_lines,
    compare,
    comparisons_lines,
    done_runs,
    provenance,
    runs_of,
    sentences,
    summarize,
)
from tfigkd.study.verdict import study_verdict


def page(
    study: Study,
    rows: Sequence[Row],
    papers: Sequence[Row],
    workdir: Path = Options.workdir,
    teachers: Path = Options.teachers,
) -> str:
    """Return the page of a study; equal rows give an equal page.

    Args:
        study: What was planned.
        rows: One for each finished run; none where it has not begun.
        papers: What the papers' code says of its own runs, of any study.
        workdir: Folder of the studies' runs, for the command that goes on with them.
        teachers: Folder of their teachers.
    """
    published = [row for row in papers if row["study"] == study.name]
    compared = compare(study, runs_of(rows, study.judged_on)) if rows else []
    header, lines, remarks = arms_lines(study, rows, papers)
    counted, *said = sentences(compared)
    return render(
        "study.html",
        study=study,
        total=study.seeds * len(study.arms) * len(study.sizes),
        done=done_runs(study, rows),
        others=len({(row["size"], row["arm"], row["seed"]) for row in rows}) - done_runs(study, rows),
        verdict=study_verdict(study, rows),
        provenance=provenance(rows),
        remarks=remarks,
        arms=(header, lines),
        quality=quality_lines(study, rows),
        quality_title=TITLE,
        arms_chart=arms_chart("arms", study, runs_of(rows, study.judged_on)),
        comparisons=comparisons_lines(compared) if compared else None,
        counted=counted,
        sentences=said,
        forest=forest_chart(compared),
        size_chart=size_chart(study, rows),
        published=_published(published),
        published_chart=_published_chart(study, published),
        left=_remaining_table(study, rows),
        command=command_of(study, workdir, rows, teachers),
        after=f"{PROG} report {words_of(study, workdir)}",
        collect=f"{PROG} collect {words_of(study, workdir, teachers)}",
        commands=list(dict.fromkeys(row["command"] for row in rows if row.get("command"))),
    )


def arms_chart(name: str, study: Study, runs: Runs) -> Chart | None:
    """Draw every run as a dot, and the mean of each arm with its 95 % interval where it has three runs or more.

    None where no arm of the study has a run, as where its arms were renamed.
    """
    order = [(size, arm) for size in study.sizes for arm in study.arms if (size, arm) in runs]
    if not order:
        return None
    summaries = {key: summarize(list(runs[key].values())) for key in order}
    names = dict(zip(order, labels([title_of(arm, size) for size, arm in order]), strict=True))
    dots = go.Scatter(
        x=[value for key in order for value in runs[key].values()],
        y=[names[key] for key in order for _ in runs[key]],
        mode="markers",
        marker={"size": 7, "color": PALETTE[5], "opacity": 0.65},
        name="one run",
        text=[f"seed {seed}" for key in order for seed in runs[key]],
        hovertemplate="%{y}, %{text}<br>%{x:.2f} %<extra></extra>",
    )
    known = [summaries[key] for key in order]
    means = go.Scatter(
        x=[one.mean for one in known],
        y=[names[key] for key in order],
        error_x=_bars(known, thickness=1.8, width=5),
        mode="markers",
        marker={"size": 11, "color": PALETTE[0], "symbol": "diamond"},
        name="mean, 95 % interval",
        text=[_words(one) for one in known],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )
    best = max(order, key=lambda key: summaries[key].mean)
    lines = [[title_of(arm, size), *_columns(summaries[size, arm])] for size, arm in order]
    return Chart(
        name,
        make(
            [dots, means],
            xaxis={"title": {"text": f"{study.judged_on} accuracy, %"}},
            yaxis=rows_axis(len(order)),
            hovermode="closest",
            margin={"b": 70},
        ),
        (["arm", "n", "mean, %", "sd", "95 % interval"], lines),
        height=140 + 26 * len(order),
        says={"arms": len(order), "best": title_of(best[1], best[0]), "mean": _words(summaries[best])},
    )


def _bars(summaries: Iterable[Summary], **style: float) -> dict[str, Any]:
    """Return the intervals of means as error bars; fewer than three runs have none."""
    halves = [(0, 0) if math.isnan(one.low) else (one.high - one.mean, one.mean - one.low) for one in summaries]
    above, below = zip(*halves, strict=True)
    return error_bars(above, below, **style)


def _words(summary: Summary) -> str:
    if math.isnan(summary.low):
        return f"{summary.mean:.2f} % (n = {summary.n})"
    return f"{summary.mean:.2f} %, {summary.low:.2f} to {summary.high:.2f} (n = {summary.n})"


def _columns(summary: Summary) -> list[str]:
    deviation = "–" if math.isnan(summary.deviation) else f"{summary.deviation:.2f}"
    interval = "–" if math.isnan(summary.low) else f"{summary.low:.2f} to {summary.high:.2f}"
    return [str(summary.n), f"{summary.mean:.2f}", deviation, interval]


def forest_chart(compared: Sequence[Compared]) -> Chart | None:
    """Draw the differences with their 95 % intervals, significant ones filled; None where no difference was tested."""
    drawn = [one for one in compared if one.leading.tested]
    if not drawn:
        return None
    beyond = [one.adjusted < LEVEL for one in drawn]
    marks = go.Scatter(
        x=[one.leading.difference for one in drawn],
        y=labels([one.title for one in drawn], 40),
        error_x=error_bars(
            [one.leading.high - one.leading.difference for one in drawn],
            [one.leading.difference - one.leading.low for one in drawn],
            thickness=1.8,
            width=5,
        ),
        mode="markers",
        marker={
            "size": 11,
            "color": PALETTE[0],
            "symbol": ["circle" if one else "circle-open" for one in beyond],
            "line": {"width": 2},
        },
        customdata=[
            [one.leading.low, one.leading.high, f"{one.adjusted:.3g}", f"n {one.leading.n[0]} and {one.leading.n[1]}"]
            for one in drawn
        ],
        hovertemplate="%{y}<br>%{x:+.2f} points, %{customdata[0]:+.2f} to %{customdata[1]:+.2f}<br>"
        "p after Holm %{customdata[2]}, %{customdata[3]}<extra></extra>",
    )
    lines = [
        [
            one.title,
            f"{one.leading.difference:+.2f}",
            f"{one.leading.low:+.2f} to {one.leading.high:+.2f}",
            f"{one.adjusted:.3g}",
        ]
        for one in drawn
    ]
    return Chart(
        "forest",
        make(
            [marks],
            xaxis={"title": {"text": "points, with 95 % interval"}, "zeroline": True, "zerolinewidth": 2},
            yaxis=rows_axis(len(drawn)),
            showlegend=False,
            hovermode="closest",
        ),
        (["comparison", "difference, points", "95 % interval", "p after Holm"], lines),
        height=110 + 34 * len(drawn),
        says={"beyond": sum(beyond), "drawn": len(drawn)},
    )


def size_chart(study: Study, rows: Sequence[Row]) -> Chart | None:
    """Draw the mean accuracy of each arm against the student's parameters; None where all have as many."""
    counts = f"{study.role}_parameters"
    known_rows = [row for row in rows if row.get(counts)]
    parameters = {(row["size"], row["arm"]): int(row[counts]) for row in known_rows}
    smallest = {size: min(count for key, count in parameters.items() if key[0] == size) for size, _ in parameters}
    if len({*smallest.values()}) < 2:
        return None
    runs = runs_of(known_rows, study.judged_on)
    sizes = sorted(smallest, key=smallest.__getitem__)
    traces, lines = [], []
    for number, arm in enumerate(study.arms):
        known = {size: summarize(list(runs[size, arm].values())) for size in sizes if (size, arm) in runs}
        if not known:
            continue
        traces.append(
            go.Scatter(
                x=[parameters[size, arm] for size in known],
                y=[one.mean for one in known.values()],
                error_y=_bars(known.values(), width=4),
                mode="lines+markers",
                line={"color": PALETTE[number % len(PALETTE)]},
                name=label(arm),
                text=[f"{size}: {_words(one)}" for size, one in known.items()],
                hovertemplate="%{text}",
            )
        )
        lines += [[title_of(arm, size), f"{parameters[size, arm]:,}", *_columns(one)] for size, one in known.items()]
    figure = make(
        traces,
        xaxis=cost_axis(list(parameters.values()), "parameters of the student"),
        yaxis={"title": {"text": f"{study.judged_on} accuracy, %"}},
        margin={"b": 80},
    )
    header = ["arm", "parameters", "n", "mean, %", "sd", "95 % interval"]
    says = {"sizes": len(sizes), "least": min(parameters.values()), "most": max(parameters.values())}
    return Chart("size", figure, (header, lines), height=420, says=says)


def _published(papers: Sequence[Row]) -> Table:
    header = ["arm", "n", "mean, %", "sd", "source"]
    return header, [
        [title_of(row["arm"], row["size"]), row["n"] or "–", row["mean"], row["deviation"] or "–", row["source"]]
        for row in papers
    ]


def _published_chart(study: Study, papers: Sequence[Row]) -> Chart | None:
    runs: Runs = {
        (row["size"], row["arm"]): {number: float(value) for number, value in enumerate(row["runs"].split())}
        for row in papers
        if row["runs"] and row["size"] in study.sizes and row["arm"] in study.arms
    }
    return arms_chart("published-arms", study, runs)


def _remaining_table(study: Study, rows: Sequence[Row]) -> Table:
    """Return the arms that have runs left, with the number of finished runs and of those still to do."""
    done = Counter((row["size"], row["arm"]) for row in rows if int(row["seed"]) < study.seeds)
    every = [(size, arm, done[size, arm]) for size in study.sizes for arm in study.arms]
    return ["arm", "finished runs", "runs to do"], [
        [title_of(arm, size), str(n), str(study.seeds - n)] for size, arm, n in every if n < study.seeds
    ]
