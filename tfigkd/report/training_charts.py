"""How a run was trained, as charts: curves, the loss ledger, and how complete the maps are."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from plotly import graph_objects as go

from tfigkd.report.charts import COLORS, PALETTE, make
from tfigkd.report.page import Chart, label
from tfigkd.report.table import ROLES
from tfigkd.training.ledger import INERT, inert_terms


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Chart]:
    """Accuracy, loss terms and learning rate over the epochs."""
    made = [_accuracy_curves(histories)]
    if histories.get("student"):
        made += [_loss_curves(histories["student"]), _rates(histories)]
    return made


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


def _accuracy_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
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
    text = f"After the last epoch: {'; '.join(last)}. Training is measured on augmented and overlaid images."
    return Chart("accuracy-curves", "Accuracy over the epochs", text, _epochs(traces, "accuracy, %"), _columns(columns))


def _columns(columns: Mapping[str, Mapping[int, str]], first: str = "epoch") -> tuple[list[str], list[list[str]]]:
    """Series side by side; where one has no value its cell is empty."""
    places = sorted({place for column in columns.values() for place in column})
    lines = [[str(place), *(column.get(place, "") for column in columns.values())] for place in places]
    return [first, *columns], lines


def _loss_curves(history: Sequence[Mapping[str, float]]) -> Chart:
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
    text = f"{'; '.join(words)}. Terms are shown before their weights."
    return Chart("loss-curves", "Loss terms of the student", text, _epochs(traces, "loss"), _columns(columns))


def _rates(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    traces, words, columns = [], [], {}
    for role in (role for role in ROLES if role in histories):
        epochs, rates = _series(histories[role], "learning_rate")
        seconds = _series(histories[role], "seconds")[1]
        traces.append(_line(role, epochs, rates, COLORS[role], "solid", "%{y:.2e}"))
        words.append(f"{role}: {len(epochs)} epochs of {np.median(seconds):.1f} s (median)")
        columns[f"{role}, learning rate"] = dict(zip(epochs, (f"{rate:.3g}" for rate in rates), strict=True))
        columns[f"{role}, seconds"] = dict(zip(epochs, (f"{one:.1f}" for one in seconds), strict=True))
    return Chart("rates", "Learning rate", f"{'; '.join(words)}.", _epochs(traces, "learning rate"), _columns(columns))


def ledger(entries: list[dict[str, Any]]) -> Chart:
    """The share of the gradient that each loss term has, over the steps."""
    names = list(entries[0]["terms"])
    steps = [entry["step"] for entry in entries]
    shares = {name: [100 * entry["terms"][name]["share"] for entry in entries] for name in names}
    traces = [
        _line(name.removesuffix("_loss"), steps, shares[name], PALETTE[number % len(PALETTE)], "solid", "%{y:.2f} %")
        for number, name in enumerate(names)
    ]
    words = [f"{name.removesuffix('_loss')} {shares[name][0]:.1f} to {shares[name][-1]:.1f} %" for name in names]
    inert = inert_terms(entries)
    warning = f" Never above {INERT:.0%}, so without effect: {', '.join(inert)}." if inert else ""
    figure = make(
        traces,
        xaxis={"title": {"text": "step"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "share of the gradient, %"}, "range": [0, 102]},
        hovermode="x unified",
        margin={"b": 70},
        shapes=[{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * INERT, "y1": 100 * INERT}],
        annotations=[
            {"xref": "paper", "x": 1, "xanchor": "right", "y": 100 * INERT, "yanchor": "bottom", "showarrow": False}
            | {"text": f"below {INERT:.0%} a term does nothing"}
        ],
    )
    figure.update_shapes(line={"dash": "dot", "width": 1})
    columns = {
        name.removesuffix("_loss"): dict(zip(steps, (f"{one:.2f} %" for one in shares[name]), strict=True))
        for name in names
    }
    text = f"From the first to the last measurement: {'; '.join(words)}.{warning}"
    return Chart("ledger", "What each loss term is worth", text, figure, _columns(columns, "step"))


def completeness(errors: np.ndarray, tolerance: float, bins: int = 48) -> Chart:
    """Histogram of the completeness errors of the maps; the last bar holds all that is further out."""
    # the tolerance is an edge, so that no bar lies on both sides
    end = min(max(1.6 * tolerance, float(np.quantile(errors, 0.99))), bins * tolerance)
    width = tolerance / max(1, int(bins * tolerance / end))
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
    text = (
        f"{len(errors):,} maps of the teacher: median {np.median(errors):.4f}, 90th percentile "
        f"{np.quantile(errors, 0.9):.4f}, largest {errors.max():.4f}. {above:,} are over the tolerance of "
        f"{tolerance:g} and never overlaid."
    )
    lines = [[span, f"{count:,}"] for span, count in zip(spans, counts, strict=True) if count]
    return Chart("completeness", "Completeness error of the maps", text, figure, (["error", "maps"], lines))
