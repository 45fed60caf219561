"""`python -m tfigkd.pareto --output x.html`: accuracy against latency and size as an interactive page."""

from collections.abc import Sequence

from plotly import graph_objects as go

from tfigkd.report.charts import PALETTE, SYMBOLS, Chart, cost_axis, label, make
from tfigkd.report.page import render
from tfigkd.report.pareto import KINDS, Point, front
from tfigkd.runtime.text import percent

COSTS = {
    "milliseconds": ("latency", "latency, batch 1, one thread, ms", 1.0, "ms"),
    "bytes": ("size", "size of the file, kB", 1e3, "kB"),
}


def page(points: Sequence[Point], accuracy: str = "test accuracy") -> str:
    """Return the page of some points; equal points give an equal page.

    Args:
        points: At least one.
        accuracy: What their accuracy is called.
    """
    charts = [one for name in COSTS if (one := chart(points, name, accuracy))]
    return render("pareto.html", points=points, charts=charts)


def chart(points: Sequence[Point], cost: str, accuracy: str) -> Chart | None:
    """Draw accuracy, by this name, against one cost, with the front; None where no point has it."""
    name, axis, unit, words = COSTS[cost]
    shown = [point for point in points if getattr(point, cost) is not None]
    if not shown:
        return None
    costs = {id(point): getattr(point, cost) / unit for point in shown}
    best = [shown[index] for index in front([costs[id(p)] for p in shown], [p.accuracy for p in shown])]
    traces = [
        go.Scatter(
            x=[costs[id(point)] for point in best],
            y=[100 * point.accuracy for point in best],
            mode="lines",
            line={"color": PALETTE[5], "shape": "hv", "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
        )
    ]
    for number, format in enumerate(KINDS):
        own = [point for point in shown if point.format == format]
        if own:
            traces.append(
                go.Scatter(
                    x=[costs[id(point)] for point in own],
                    y=[100 * point.accuracy for point in own],
                    error_y={"type": "data", "array": [100 * (point.deviation or 0) for point in own], "width": 4},
                    mode="markers",
                    marker={"size": 10, "color": PALETTE[number], "symbol": SYMBOLS[format]},
                    name=format,
                    text=[f"{label(point.model, 60)}, {point.format} (n = {point.n})" for point in own],
                    hovertemplate=f"%{{text}}<br>%{{x:,.3~f}} {words}<br>%{{y:.2f}} %<extra></extra>",
                )
            )
    lines = [
        [
            f"{point.model}, {point.format}",
            f"{costs[id(point)]:,.3f}",
            f"{100 * point.accuracy:.2f}",
            "" if point.deviation is None else f"{100 * point.deviation:.2f}",
            str(point.n),
            "yes" if point in best else "",
        ]
        for point in shown
    ]
    figure = make(
        traces,
        xaxis=cost_axis(list(costs.values()), axis),
        yaxis={"title": {"text": f"{accuracy}, %"}},
        hovermode="closest",
        margin={"b": 90},
    )
    header = ["file", f"{name}, {words}", f"{accuracy}, %", "sd", "n", "on the front"]
    ends = [f"{p.model} {p.format} ({costs[id(p)]:,.2f} {words}, {percent(p.accuracy)})" for p in (best[0], best[-1])]
    says = {"front": len(best), "files": len(shown), "first": ends[0], "last": ends[1]}
    return Chart(name, figure, (header, lines), height=440, says=says)
