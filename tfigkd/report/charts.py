"""What a chart is, and the charts of accuracy, size and latency of a run's models and files.

A chart is drawn here; the sentences about it are in the page's template.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plotly import graph_objects as go

from tfigkd.config.export_fields import format_of, role_of
from tfigkd.measure.statistics import wilson
from tfigkd.report.table import ROLES, interval
from tfigkd.runtime.text import counted, percent

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and lines of a table; cells are text."""

COLORS = {"teacher": "#d97706", "student": "#2f7de1", "compressed": "#0d9f75"}
"""At least 3:1 against both the light and the dark page."""
PALETTE = ("#2f7de1", "#d97706", "#0d9f75", "#b455c8", "#d64550", "#7a8794", "#8a7a00", "#0e93a8")
SYMBOLS = {"Keras": "star", "float32": "circle", "float16": "square", "dynamic": "diamond", "int8": "triangle-up"}
SYMBOLS |= {"int16x8": "cross", "unknown": "x"}


@dataclass(frozen=True)
class Chart:
    """A figure and the numbers behind it.

    Attributes:
        name: Short and unique in its page; letters and hyphens.
        figure: Traces and layout, as a Plotly figure; text from users went through `label`.
        table: The numbers, for readers who do not see the figure.
        height: In CSS pixels.
        says: Values that the template's sentence about the chart uses.
    """

    name: str
    figure: go.Figure
    table: Table
    height: int = 340
    says: Mapping[str, Any] = field(default_factory=dict)


def label(text: object, longest: int = 28) -> str:
    """Return text as a label in a figure, cut off where it is too long.

    Plotly reads a few HTML tags in labels, so this escapes them; the page itself is escaped by its template.
    """
    text = " ".join(str(text).split())
    return html.escape(text if len(text) <= longest else f"{text[: longest - 1]}…", quote=False)


def labels(texts: Sequence[object], longest: int = 28, numbers: Sequence[int] | None = None) -> list[str]:
    """Return one label for each text; where cut ones are equal, their number follows, as Plotly joins equal labels.

    Args:
        texts: In the order of the figure.
        longest: Number of characters that are kept.
        numbers: One for each text, such as the number of a class. Default: from 1 on.
    """
    cut = [label(text, longest) for text in texts]
    counted = range(1, len(cut) + 1) if numbers is None else numbers
    return [f"{one} ({number})" if cut.count(one) > 1 else one for one, number in zip(cut, counted, strict=True)]


def make(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """Return a figure without Plotly's default template; `page.js` sets fonts and colors for the color scheme."""
    return go.Figure(traces, go.Layout(template="none", **layout))


def rows_axis(count: int) -> dict[str, Any]:
    """Return an axis of `count` categories, the first on top."""
    return {"type": "category", "range": [count - 0.4, -0.6]}


def cost_axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """Return an axis over positive values: from zero, or logarithmic where the largest is ten times the smallest."""
    if max(values) < 10 * min(values):
        return {"title": {"text": title}, "range": [0, 1.15 * max(values)], "nticks": 6}
    low, high = math.log10(min(values)), math.log10(max(values))
    space = 0.08 * (high - low) + 0.05
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return {
        "type": "log",
        "title": {"text": title},
        "range": [low - space, high + space],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks],
    }


def title_of(name: str) -> str:
    """Return the title of a model or file, such as "student, int8"."""
    return f"{role_of(name)}, {format_of(name)}"


def error_bars(above: Sequence[float], below: Sequence[float], **style: Any) -> dict[str, Any]:
    """Return the error bars of a trace from their lengths above and below its values."""
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}


def _errors(accuracies: Sequence[float], n_test: int) -> dict[str, Any]:
    """Return Wilson's intervals as the error bars of a trace in percent."""
    bounds = [wilson(value, n_test) for value in accuracies]
    above = [100 * (high - value) for value, (_, high) in zip(accuracies, bounds, strict=True)]
    below = [100 * (value - low) for value, (low, _) in zip(accuracies, bounds, strict=True)]
    return error_bars(above, below, thickness=1.4, width=4)


def accuracies(results: Mapping[str, Mapping[str, float]], n_test: int) -> Chart:
    """Draw the test accuracy of models and files with Wilson's intervals."""
    names = sorted(results, key=lambda name: (ROLES.index(role_of(name)), "." in name))
    traces = []
    for role in dict.fromkeys(map(role_of, names)):
        own = [name for name in names if role_of(name) == role]
        values = [results[name]["accuracy"] for name in own]
        traces.append(
            go.Scatter(
                x=[100 * value for value in values],
                y=[title_of(name) for name in own],
                error_x=_errors(values, n_test),
                mode="markers",
                marker={"size": 10, "color": COLORS[role]},
                name=role,
                text=[interval(value, n_test) for value in values],
                hovertemplate="%{y}<br>%{x:.2f} %<br>%{text}<extra></extra>",
            )
        )
    return Chart(
        "accuracies",
        make(
            traces,
            xaxis={"title": {"text": "test accuracy, %"}},
            yaxis=rows_axis(len(names)),
            showlegend=False,
            hovermode="closest",
        ),
        (
            ["", "test accuracy", "95 % interval"],
            [
                [title_of(name), percent(results[name]["accuracy"]), interval(results[name]["accuracy"], n_test)]
                for name in names
            ],
        ),
        height=110 + 34 * len(names),
    )


def trade_off(
    results: Mapping[str, Mapping[str, float]],
    timed: Mapping[str, Mapping[str, Any]],
    n_test: int,
    threads: Sequence[int],
) -> list[Chart]:
    """Draw accuracy against the size of the files, and against their latency; nothing where no file has both."""
    names = sorted((name for name in timed if name in results), key=lambda name: (ROLES.index(role_of(name)), name))
    if not names:
        return []
    first = str(threads[0])
    sizes = {name: timed[name]["bytes"] / 1e3 for name in names}
    times = {name: timed[name]["milliseconds"][first]["p50"] for name in names}
    return [
        _cost("size", "size of the file, kB", sizes, "kB", results, n_test),
        _cost("latency", f"median latency, batch 1, {counted(threads[0], 'thread')}, ms", times, "ms", results, n_test),
    ]


def _cost(
    name: str,
    axis: str,
    costs: Mapping[str, float],
    unit: str,
    results: Mapping[str, Mapping[str, float]],
    n_test: int,
) -> Chart:
    digits = 1 if unit == "kB" else 3
    traces = []
    for role in dict.fromkeys(map(role_of, costs)):
        own = [file for file in costs if role_of(file) == role]
        values = [results[file]["accuracy"] for file in own]
        traces.append(
            go.Scatter(
                x=[costs[file] for file in own],
                y=[100 * value for value in values],
                error_y=_errors(values, n_test),
                mode="markers+text",
                marker={"size": 11, "color": COLORS[role], "symbol": [SYMBOLS[format_of(file)] for file in own]},
                text=[format_of(file) for file in own],
                textposition="top right",
                textfont={"size": 11},
                cliponaxis=False,
                name=role,
                customdata=[interval(value, n_test) for value in values],
                hovertemplate=f"{role}, %{{text}}<br>%{{x:,.{digits}f}} {unit}<br>%{{y:.2f}} %<br>%{{customdata}}"
                "<extra></extra>",
            )
        )
    lines = [
        [title_of(file), f"{cost:,.{digits}f} {unit}", percent(results[file]["accuracy"])]
        for file, cost in costs.items()
    ]
    ordered = sorted(range(len(costs)), key=list(costs.values()).__getitem__)
    return Chart(
        name,
        make(
            traces,
            xaxis=cost_axis(list(costs.values()), axis),
            yaxis={"title": {"text": "test accuracy, %"}},
            hovermode="closest",
            margin={"b": 44, "r": 30},
        ),
        (["file", axis.partition(",")[0], "test accuracy"], lines),
        says={
            "least": lines[ordered[0]],
            "most": lines[ordered[-1]],
            "times": max(costs.values()) / min(costs.values()),
        },
    )


def latencies(timed: Mapping[str, Mapping[str, Any]], threads: Sequence[int]) -> Chart:
    """Draw the median, 90th and 99th percentile of the time of one inference."""
    names = sorted(timed, key=lambda name: (ROLES.index(role_of(name)), name))
    traces, lines = [], []
    for number, count in enumerate(threads):
        values = [timed[name]["milliseconds"][str(count)] for name in names]
        traces.append(
            go.Bar(
                y=[title_of(name) for name in names],
                x=[one["p50"] for one in values],
                error_x=error_bars(
                    [one["p90"] - one["p50"] for one in values],
                    [0.0] * len(values),
                    color=PALETTE[5],
                    thickness=1.4,
                    width=4,
                ),
                orientation="h",
                name=counted(count, "thread"),
                marker={"color": (PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[5])[number % 4]},
                customdata=[[one["p90"], one["p99"]] for one in values],
                hovertemplate="median %{x:.3f} ms, p90 %{customdata[0]:.3f}, p99 %{customdata[1]:.3f}",
            )
        )
        lines += [
            [f"{title_of(name)}, {counted(count, 'thread')}", *(f"{one[p]:.3f}" for p in ("p50", "p90", "p99"))]
            for name, one in zip(names, values, strict=True)
        ]
    first = {name: timed[name]["milliseconds"][str(threads[0])]["p50"] for name in names}
    fastest = min(first, key=first.__getitem__)
    return Chart(
        "latencies",
        make(
            traces,
            xaxis={"title": {"text": "ms"}, "rangemode": "tozero"},
            yaxis=rows_axis(len(names)),
            hovermode="y unified",
            barmode="group",
            margin={"b": 70},
        ),
        (["file and threads", "median, ms", "p90, ms", "p99, ms"], lines),
        height=130 + 26 * len(names) * len(threads),
        says={"fastest": title_of(fastest), "milliseconds": first[fastest], "threads": threads[0]},
    )
