"""Accuracy, size and latency of a run's models and files as charts: pure functions, each with its words and numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from tfigkd.measure.statistics import wilson
from tfigkd.report.page import Chart
from tfigkd.report.table import ROLES, interval, percent

COLORS = {"teacher": "#d97706", "student": "#2f7de1", "compressed": "#0d9f75"}
"""At least 3:1 against both the light and the dark page."""
PALETTE = ("#2f7de1", "#d97706", "#0d9f75", "#b455c8", "#d64550", "#7a8794", "#8a7a00", "#0e93a8")
SYMBOLS = {"Keras": "star", "float32": "circle", "float16": "square", "dynamic": "diamond", "int8": "triangle-up"}
SYMBOLS |= {"int16x8": "cross"}


def make(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """A figure without a template: the page dresses it for its color scheme."""
    return go.Figure(traces, go.Layout(template="none", **layout))


def rows_axis(count: int) -> dict[str, Any]:
    """An axis of that many categories, the first on top."""
    return {"type": "category", "range": [count - 0.4, -0.6]}


def cost_axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """An axis over positive values: from zero, or logarithmic where the largest is ten times the smallest."""
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


def role_of(name: str) -> str:
    """Whose a model or file is: student.int8.tflite is the student's."""
    return name.partition(".")[0]


def format_of(name: str) -> str:
    """The format of a file, "Keras" for a model."""
    return name.split(".")[1] if "." in name else "Keras"


def title_of(name: str) -> str:
    """A model or file in words."""
    return f"{role_of(name)}, {format_of(name)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _errors(accuracies: Sequence[float], n_test: int) -> dict[str, Any]:
    """Wilson's intervals as the bars of a trace in percent."""
    bounds = [wilson(value, n_test) for value in accuracies]
    above = [100 * (high - value) for value, (_, high) in zip(accuracies, bounds, strict=True)]
    below = [100 * (value - low) for value, (low, _) in zip(accuracies, bounds, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4, "width": 4}


def accuracies(results: Mapping[str, Mapping[str, float]], n_test: int) -> Chart:
    """Test accuracy of models and files with Wilson's intervals."""
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
    known = [f"{name} {percent(results[name]['accuracy'])}" for name in names if "." not in name]
    return Chart(
        "accuracies",
        "Test accuracy with 95 % intervals",
        f"Keras models: {', '.join(known)}. Bars are Wilson's intervals on {n_test:,} test images: of this one run, "
        "not over seeds.",
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
    """Accuracy against the size of the files, and against their latency."""
    names = sorted((name for name in timed if name in results), key=lambda name: (ROLES.index(role_of(name)), name))
    if not names:
        return []
    first = str(threads[0])
    sizes = {name: timed[name]["bytes"] / 1e3 for name in names}
    times = {name: timed[name]["milliseconds"][first]["p50"] for name in names}
    return [
        _cost("size", "Accuracy against size", "size of the file, kB", sizes, "kB", results, n_test),
        _cost(
            "latency",
            "Accuracy against latency",
            f"median latency, batch 1, {_threads(threads[0])}, ms",
            times,
            "ms",
            results,
            n_test,
        ),
    ]


def _cost(
    name: str,
    title: str,
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
    ordered = sorted(costs, key=costs.__getitem__)
    least, most = ordered[0], ordered[-1]
    scores = {file: percent(results[file]["accuracy"]) for file in costs}
    lines = [[title_of(file), f"{cost:,.{digits}f} {unit}", scores[file]] for file, cost in costs.items()]
    return Chart(
        name,
        title,
        f"From {title_of(least)} with {costs[least]:,.{digits}f} {unit} at {scores[least]} to "
        f"{title_of(most)} with {costs[most]:,.{digits}f} {unit} at {scores[most]}: "
        f"{costs[most] / costs[least]:.2f} times the {'size' if unit == 'kB' else 'time'}.",
        make(
            traces,
            xaxis=cost_axis(list(costs.values()), axis),
            yaxis={"title": {"text": "test accuracy, %"}},
            hovermode="closest",
            margin={"b": 44, "r": 30},
        ),
        (["file", axis.partition(",")[0], "test accuracy"], lines),
    )


def latencies(timed: Mapping[str, Mapping[str, Any]], threads: Sequence[int]) -> Chart:
    """Median, 90th and 99th percentile of the time of one inference."""
    names = sorted(timed, key=lambda name: (ROLES.index(role_of(name)), name))
    traces, lines = [], []
    for number, count in enumerate(threads):
        values = [timed[name]["milliseconds"][str(count)] for name in names]
        traces.append(
            go.Bar(
                y=[title_of(name) for name in names],
                x=[one["p50"] for one in values],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [one["p90"] - one["p50"] for one in values],
                    "arrayminus": [0.0] * len(values),
                    "color": PALETTE[5],
                    "thickness": 1.4,
                    "width": 4,
                },
                orientation="h",
                name=_threads(count),
                marker={"color": ("#2f7de1", "#0d9f75", "#b455c8", "#7a8794")[number % 4]},
                customdata=[[one["p90"], one["p99"]] for one in values],
                hovertemplate="median %{x:.3f} ms, p90 %{customdata[0]:.3f}, p99 %{customdata[1]:.3f}",
            )
        )
        lines += [
            [f"{title_of(name)}, {_threads(count)}", *(f"{one[p]:.3f}" for p in ("p50", "p90", "p99"))]
            for name, one in zip(names, values, strict=True)
        ]
    first = {name: timed[name]["milliseconds"][str(threads[0])]["p50"] for name in names}
    fastest = min(first, key=first.__getitem__)
    return Chart(
        "latencies",
        "Latency of one image",
        f"Fastest with {_threads(threads[0])}: {title_of(fastest)}, {first[fastest]:.3f} ms "
        "(median). Bars are medians, their whiskers reach to the 90th percentile.",
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
    )
