"""The charts of teacher and student by class: where they agree, where they disagree, and recall."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from tfigkd.report.charts import COLORS, Chart, labels, make, rows_axis
from tfigkd.report.table import ROLES
from tfigkd.runtime.text import percent

MOST_CLASSES = 24


def agreement(counts: Mapping[str, Any], role: str, n_test: int) -> Chart:
    """Draw how often teacher and student are right, together and alone."""
    parts = {
        "both right": counts["both_right"],
        "teacher only": counts["only_reference"],
        f"{role} only": counts["only_model"],
        "both wrong, same class": counts["both_wrong_alike"],
        "both wrong, two classes": counts["both_wrong_apart"],
    }
    colors = ("#0d9f75", COLORS["teacher"], COLORS["student"], "#7a8794", "#d64550")
    traces = [
        go.Bar(
            y=list(parts),
            x=list(parts.values()),
            orientation="h",
            marker={"color": colors},
            text=[f"{value:,}" for value in parts.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:,} images<extra></extra>",
        )
    ]
    return Chart(
        f"agreement-{role}",
        make(
            traces,
            xaxis={"title": {"text": "test images"}, "showticklabels": False},
            yaxis=rows_axis(len(parts)),
            showlegend=False,
            margin={"r": 44},
        ),
        (["", "images", "share"], [[name, f"{n:,}", percent(n / n_test)] for name, n in parts.items()]),
        height=300,
        says={**counts, "differ": sum(pair[2] for pair in counts["pairs"])},
    )


def confusions(counts: Mapping[str, Any], classes: Sequence[str], role: str) -> Chart | None:
    """Draw which classes teacher and student predict where they disagree; None where they never do."""
    pairs = counts["pairs"]
    if not pairs:
        return None
    weight: dict[int, int] = {}
    for first, second, number in pairs:
        for one in (first, second):
            weight[one] = weight.get(one, 0) + number
    kept = sorted(sorted(weight, key=lambda one: (-weight[one], one))[:MOST_CLASSES])
    grid: list[list[int | None]] = [[None] * len(kept) for _ in kept]
    for first, second, number in pairs:
        if first in kept and second in kept:
            grid[kept.index(first)][kept.index(second)] = number
    names = labels([classes[index] for index in kept], 14, kept)
    heat = go.Heatmap(
        x=names,
        y=names,
        z=grid,
        colorscale=[[0, "#9cc3f5"], [1, "#123f86"]],
        xgap=1,
        ygap=1,
        showscale=False,
        texttemplate="%{z}",
        hovertemplate=f"teacher: %{{y}}<br>{role}: %{{x}}<br>%{{z}} images<extra></extra>",
        hoverongaps=False,
    )
    first, second, number = pairs[0]
    axis = {"type": "category", "showgrid": True, "dtick": 1}
    return Chart(
        f"confusions-{role}",
        make(
            [heat],
            xaxis={**axis, "title": {"text": f"{role} predicts"}},
            yaxis={**axis, "title": {"text": "teacher predicts"}, "autorange": "reversed"},
        ),
        (
            ["teacher predicts", f"{role} predicts", "images"],
            [[classes[one], classes[two], str(times)] for one, two, times in pairs[:40]],
        ),
        height=max(380, 150 + 20 * len(kept)),
        says={"most": (number, classes[first], classes[second]), "drawn": len(kept), "all": len(kept) == len(weight)},
    )


def recalls(per_class: Mapping[str, Sequence[Mapping[str, Any]]], classes: Sequence[str]) -> Chart:
    """Draw the recall of each class, for teacher and student; of many classes those that differ most."""
    roles = [role for role in ROLES if role in per_class]

    def spread(index: int) -> float:
        values = [per_class[role][index]["recall"] for role in roles]
        return max(values) - min(values) if None not in values else -1.0

    shown = (per_class[roles[-1]][index]["recall"] for index in range(len(classes)))
    worst = {index: math.inf if recall is None else recall for index, recall in enumerate(shown)}
    kept = list(range(len(classes)))
    if len(kept) > MOST_CLASSES:
        key = spread if len(roles) > 1 else lambda index: -worst[index]
        kept = sorted(sorted(kept, key=lambda index: -key(index))[:MOST_CLASSES])
    names = labels([classes[index] for index in kept], 16, kept)
    traces = [
        go.Scatter(
            y=names,
            x=[None if (value := per_class[role][index]["recall"]) is None else 100 * value for index in kept],
            mode="markers",
            marker={"size": 9, "color": COLORS[role], "symbol": "circle" if role == "student" else "diamond-open"},
            name=role,
            hovertemplate="%{y}: %{x:.1f} %",
        )
        for role in roles
    ]
    tested = [index for index in range(len(classes)) if per_class[roles[-1]][index]["examples"]]
    low = min(tested, key=lambda index: worst[index])
    share = per_class[roles[-1]][low]
    header = ["class", "test images", *(f"{role}, recall" for role in roles)]
    lines = [
        [
            classes[index],
            str(per_class[roles[0]][index]["examples"]),
            *(_recall(per_class[role][index]["recall"]) for role in roles),
        ]
        for index in range(len(classes))
    ]
    return Chart(
        "recalls",
        make(
            traces,
            xaxis={"title": {"text": "recall, %"}},
            yaxis=rows_axis(len(kept)),
            hovermode="y unified",
            margin={"b": 70},
        ),
        (header, lines),
        height=150 + 20 * len(kept),
        says={
            "class": classes[low],
            "role": roles[-1],
            **share,
            "drawn": len(kept),
            "all": len(kept) == len(classes),
            "chosen": "that differ most" if len(roles) > 1 else "of the lowest recall",
        },
    )


def _recall(value: float | None) -> str:
    return "no images" if value is None else percent(value)
