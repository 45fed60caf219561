"""The charts of a training: curves, the loss ledger, and the completeness of the maps."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from plotly import graph_objects as go

from tfigkd.report.charts import COLORS, PALETTE, Chart, Table, label, make
from tfigkd.report.table import ROLES
from tfigkd.runtime.text import counted
from tfigkd.training.ledger import INERT, inert_terms

BINS = 48
"""Bars of the histogram of completeness errors, about."""


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[int], list[float]]:
    known = [(epoch, entry[name]) for epoch, entry in enumerate(history, start=1) if name in entry]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _line(name: str, x: Sequence[float], y: Sequence[float], color: str, dash: str, show: str) -> go.Scatter:
    few = "lines+markers" if len(x) < 3 else "lines"
    return go.Scatter(
        x=list(x),
        y=list(y),
        name=label(name),
        mode=few,
        line={"color": color, "dash": dash, "width": 2},
        hovertemplate=show,
    )


def _epochs(traces: Sequence[go.Scatter], title: str, **axis: Any) -> go.Figure:
    return make(
        traces,
        xaxis={"title": {"text": "epoch"}, "rangemode": "tozero"},
        yaxis={"title": {"text": title}, **axis},
        hovermode="x unified",
        margin={"b": 70},
    )


def accuracy_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    """Draw training and validation accuracy over the epochs."""
    traces, last, columns = [], [], {}
    for role in (role for role in ROLES if role in histories):
        for name, split, dash in (("accuracy", "training", "dot"), ("val_accuracy", "validation", "solid")):
            epochs, values = _series(histories[role], name)
            if not epochs:
                continue
            percents = [100 * value for value in values]
            traces.append(_line(f"{role}, {split}", epochs, percents, COLORS[role], dash, "%{y:.2f} %"))
            last.append(f"{role}, {split} {percents[-1]:.2f} %")
            columns[f"{role}, {split}, %"] = dict(zip(epochs, (f"{one:.2f}" for one in percents), strict=True))
    figure = _epochs(traces, "accuracy, %")
    return Chart("accuracy-curves", figure, _columns(columns), says={"last": last})


def _columns(columns: Mapping[str, Mapping[int, str]], first: str = "epoch") -> Table:
    """Return series as columns of a table; where one has no value its cell is empty."""
    places = sorted({place for column in columns.values() for place in column})
    lines = [[str(place), *(column.get(place, "") for column in columns.values())] for place in places]
    return [first, *columns], lines


def loss_curves(history: Sequence[Mapping[str, float]]) -> Chart:
    """Draw the student's loss terms over the epochs."""
    names = [name for name in history[0] if name.endswith("loss") and not name.startswith("val_")]
    names += ["val_loss"] if "val_loss" in history[0] else []
    traces, words, columns = [], [], {}
    for number, name in enumerate(names):
        epochs, values = _series(history, name)
        title = {"loss": "total", "val_loss": "hard, validation"}.get(name, name.removesuffix("_loss"))
        dash = "solid" if name == "loss" else "dot" if name == "val_loss" else "dash"
        traces.append(_line(title, epochs, values, PALETTE[number % len(PALETTE)], dash, "%{y:.4f}"))
        words.append(f"{title} from {values[0]:.3f} to {values[-1]:.3f}")
        columns[title] = dict(zip(epochs, (f"{one:.4f}" for one in values), strict=True))
    return Chart("loss-curves", _epochs(traces, "loss"), _columns(columns), says={"changes": words})


def rates(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    """Draw the learning rate over the epochs."""
    traces, words, columns = [], [], {}
    for role in (role for role in ROLES if role in histories):
        epochs, values = _series(histories[role], "learning_rate")
        seconds = _series(histories[role], "seconds")[1]
        traces.append(_line(role, epochs, values, COLORS[role], "solid", "%{y:.2e}"))
        words.append(f"{role}: {counted(len(epochs), 'epoch')} of {np.median(seconds):.1f} s (median)")
        columns[f"{role}, learning rate"] = dict(zip(epochs, (f"{rate:.3g}" for rate in values), strict=True))
        columns[f"{role}, seconds"] = dict(zip(epochs, (f"{one:.1f}" for one in seconds), strict=True))
    return Chart(
        "rates",
        _epochs(traces, "learning rate", rangemode="tozero", tickformat=".1e"),
        _columns(columns),
        says={"epochs": words},
    )


def ledger(entries: list[dict[str, Any]]) -> Chart:
    """Draw each loss term's share of the gradient over the steps."""
    names = list(entries[0]["terms"])
    steps = [entry["step"] for entry in entries]
    shares = {name: [100 * entry["terms"][name]["share"] for entry in entries] for name in names}
    traces = [
        _line(name.removesuffix("_loss"), steps, shares[name], PALETTE[number % len(PALETTE)], "solid", "%{y:.2f} %")
        for number, name in enumerate(names)
    ]
    words = [f"{name.removesuffix('_loss')} {shares[name][0]:.1f} to {shares[name][-1]:.1f} %" for name in names]
    figure = make(
        traces,
        xaxis={"title": {"text": "step"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "share of the gradient, %"}, "range": [0, 102]},
        hovermode="x unified",
        margin={"b": 70},
        shapes=[{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * INERT, "y1": 100 * INERT}],
        annotations=[
            {"xref": "paper", "x": 1, "xanchor": "right", "y": 100 * INERT, "yanchor": "bottom", "showarrow": False}
            | {"text": f"{100 * INERT:g} %: below it a term has no effect"}
        ],
    )
    figure.update_shapes(line={"dash": "dot", "width": 1})
    columns = {
        name.removesuffix("_loss"): dict(zip(steps, (f"{one:.2f} %" for one in shares[name]), strict=True))
        for name in names
    }
    says = {
        "changes": words,
        "inert": [name.removesuffix("_loss") for name in inert_terms(entries)],
        "limit": 100 * INERT,
    }
    return Chart("ledger", figure, _columns(columns, "step"), says=says)


def completeness(errors: np.ndarray, tolerance: float) -> Chart:
    """Draw a histogram of the maps' completeness errors; the last bar counts all larger ones."""
    # the tolerance is an edge, so that no bar lies on both sides
    end = min(max(1.6 * tolerance, float(np.quantile(errors, 0.99))), BINS * tolerance)
    width = tolerance / max(1, int(BINS * tolerance / end))
    edges = width * np.arange(int(np.ceil(end / width)) + 1)
    counts = np.histogram(np.minimum(errors, edges[-1]), edges)[0]
    above = int((~(errors <= tolerance)).sum())
    middle = (edges[1:] + edges[:-1]) / 2
    spans = [f"{low:.4f} to {high:.4f}" for low, high in pairwise(edges)]
    spans[-1] = f"{edges[-2]:.4f} and more"
    bars = go.Bar(
        x=middle,
        y=counts,
        width=width,
        marker={"color": [COLORS["student"] if one <= tolerance else COLORS["teacher"] for one in middle]},
        customdata=spans,
        hovertemplate="%{customdata}<br>%{y:,} maps<extra></extra>",
    )
    figure = make(
        [bars],
        xaxis={"title": {"text": "completeness error"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "maps"}},
        bargap=0.04,
        showlegend=False,
        shapes=[{"type": "line", "x0": tolerance, "x1": tolerance, "yref": "paper", "y0": 0, "y1": 1}],
        annotations=[
            {"x": tolerance, "y": 1, "yref": "paper", "yanchor": "bottom", "text": "tolerance", "showarrow": False}
        ],
    )
    figure.update_shapes(line={"dash": "dot", "width": 1.5})
    lines = [[span, f"{count:,}"] for span, count in zip(spans, counts, strict=True) if count]
    half, most = np.quantile(errors, (0.5, 0.9))
    says = {"maps": len(errors), "above": above, "tolerance": tolerance}
    says |= {"median": half, "p90": most, "largest": errors.max()}
    return Chart("completeness", figure, (["error", "maps"], lines), says=says)
