"""Accuracy against latency and size: read points from rows, find the Pareto front, write table and plot."""

import csv
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

from tfigkd.config.export_fields import FORMATS
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic
from tfigkd.runtime.text import counted, markdown_table, shortened

MARKERS = "osD^v<>Pphd8X*"
KINDS = (*FORMATS, "unknown")
"""Formats of points; a file of another tool, which has no contract, is of unknown format."""
NAMED = 5
"""Models that a sentence on what was left out names."""
WHERE = ("data", "hardware")
"""Fields of `Key` that say where a model was measured."""


class Key(NamedTuple):
    """What the rows of one point have in common; `kind` is the config of a run, and all but the first two may be ""."""

    model: str
    format: str
    kind: str
    parameters: str
    data: str
    hardware: str


@dataclass(frozen=True)
class Point:
    """One model in one format.

    Attributes:
        model: What the rows call it.
        format: One of `KINDS`.
        accuracy: Mean over the rows, 0 to 1.
        deviation: Standard deviation of accuracy over the rows; None for a single one.
        n: Files with an accuracy; rows that measure one file again count once.
        milliseconds: Median latency; None where no row has one.
        bytes: Size of the file.
        parameters: Learned parameters; None where no row has them.
    """

    model: str
    format: str
    accuracy: float
    deviation: float | None
    n: int
    milliseconds: float | None
    bytes: float
    parameters: int | None


def long_rows(row: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Return a row of `tfigkd.benchmark` as it is, a row of a run (`rows.csv`) as one row for each student file."""
    if "format" in row:
        format = row["format"] if row["format"] in FORMATS else "unknown"
        milliseconds = row.get("ms_p50_1t", "")
        # latencies of two machines are not of one point; an accuracy is the same on all of them
        timed_on = milliseconds and row.get("hardware", "")
        yield {**row, "model": row["model"], "format": format, "ms": milliseconds, "timed_on": timed_on}
        return
    for role, format in itertools.product(("student", "compressed"), FORMATS):
        if row.get(f"{role}_{format}_bytes"):
            own = {name: row.get(f"{role}_{format}_{name}", "") for name in ("accuracy", "bytes", "ms")}
            own |= {"format": format, "parameters": row.get(f"{role}_parameters", "")}
            arm = " ".join(filter(None, (row["arm"], row.get("size", ""))))
            name = arm if role == "student" else f"{arm}, {row.get('compressed_method') or role}"
            # runs of other configs are separate points, not further seeds of this one
            kinds = [row.get("protocol") or row.get("config", "")]
            kinds += [row.get("compressed_settings", "")] * (role == "compressed")
            timed_on = row.get("timed_on") or row.get("hardware", "")  # earlier versions did not write it
            own |= {"timed_on": own["ms"] and timed_on, "data": row.get("data_fingerprint", "")}
            own["file"] = " ".join(filter(None, (row.get("seed", ""), row.get("time", ""))))
            yield own | {"model": name, "kind": " ".join(filter(None, kinds))}


def read_points(paths: Sequence[Path]) -> tuple[list[Point], list[str]]:
    """Read the points of CSV files; rows of one model, format, config and data set are one point, also from many files.

    Models of one name that differ in config or number of parameters are points of their own, named by what differs; so
    are models on several data sets, and files timed on several machines. Rows with only a latency count for each data
    set, rows with only an accuracy for each machine.

    Accuracies measured on a part of the test images (`n_test` below the largest of their data) are left out: their
    error could decide what is on the front.

    Returns:
        The points, and sentences on what was left out and on what does not compare.

    Raises:
        UserError: a file cannot be read, or no model has an accuracy and a size.
    """
    read: list[dict[str, str]] = []
    smoke = 0
    for path in paths:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
                for row in csv.DictReader(file):
                    if row.get("smoke") == "True":
                        smoke += 1
                    else:
                        read += long_rows(row)
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
            raise UserError(f"cannot read rows from {path}: {error}; expected a .csv of tfigkd.benchmark") from error
    data = {row["data_fingerprint"]: row["data"] for row in read if row.get("data_fingerprint")}  # of benchmark
    # runs of earlier versions do not say their data, which are those of all runs of their config
    known = {(one["model"], one["kind"]): one["data"] for one in read if one.get("kind") and one["data"]}
    groups: dict[Key, list[dict[str, str]]] = {}
    for one in read:
        given = one.get("data") or known.get((one["model"], one.get("kind", "")), "")
        one["data"] = data.get(given, given)
        others = (one.get(name) or "" for name in ("kind", "parameters", "data", "timed_on"))
        groups.setdefault(Key(one["model"], one["format"], *others), []).append(one)
    files = ", ".join(map(str, paths))
    try:
        points, remarks = _points(_shared(_shared(groups, "data", "accuracy"), "hardware", "ms"))
    except ValueError as error:
        raise UserError(f"cannot read rows of {files}: {error}; expected numbers such as 0.95") from error
    remarks += [f"left out, smoke runs: {counted(smoke, 'row')}"] if smoke else []
    if not points:
        raise UserError(f"{files}: no model has both an accuracy and a size; measure with tfigkd.benchmark --data")
    return sorted(points, key=lambda point: (-(point.parameters or 0), point.model, KINDS.index(point.format))), remarks


def _shared(groups: Mapping[Key, list[dict[str, str]]], field: str, measured: str) -> dict[Key, list[dict[str, str]]]:
    """Return the groups with rows that lack a measure in each group that has it, whatever its `field` is.

    Args:
        groups: Rows by what they have in common.
        field: Of the key, as "data".
        measured: What belongs to it, as "accuracy": rows without it are the same for any data.
    """
    found = {key: list(rows) for key, rows in groups.items()}
    for key, rows in groups.items():
        others = [one for one in groups if getattr(one, field) and one._replace(**{field: ""}) == key]
        if others:
            without = [row for row in rows if not row.get(measured)]
            for other in others:
                found[other] += without
            found[key] = [row for row in rows if row.get(measured)]
    return {key: rows for key, rows in found.items() if rows}


def _scores(rows: Sequence[dict[str, str]]) -> list[float]:
    """Return the accuracies of rows, one for each file: one that is measured again has the same accuracy and bytes."""
    files = {}
    for number, row in enumerate(rows):
        if row.get("accuracy"):
            content = row.get("gzip_bytes") or row.get("file") or str(number)
            files[row["accuracy"], row.get("bytes"), content] = float(row["accuracy"])
    return list(files.values())


def _points(groups: Mapping[Key, Sequence[dict[str, str]]]) -> tuple[list[Point], list[str]]:
    """Return a point for each group that has an accuracy and a size, and sentences on the others."""
    points, left_out, several = [], defaultdict(list), []
    largest: dict[str, int] = {}
    for key, rows in groups.items():
        counts = [int(row["n_test"]) for row in rows if row.get("n_test")]
        largest[key.data] = max(largest.get(key.data, 0), *counts, 0)
    names = _names(groups)
    for key, rows in groups.items():
        whole = [row for row in rows if not row.get("n_test") or int(row["n_test"]) == largest[key.data]]
        scores = _scores(whole)
        times, sizes, parameters = (
            [float(row[name]) for row in rows if row.get(name)] for name in ("ms", "bytes", "parameters")
        )
        if any(row.get("accuracy") and row not in whole for row in rows):
            left_out[f"fewer than the {largest[key.data]:,} test images of others"].append(key)
        elif not scores:
            left_out["no accuracy"].append(key)
        elif not sizes:
            left_out["no size"].append(key)
        if scores and sizes:
            spread = stdev(scores) if len(scores) > 1 else None
            milliseconds = median(times) if times else None
            count = int(parameters[0]) if parameters else None
            facts = fmean(scores), spread, len(scores), milliseconds, median(sizes), count
            points.append(Point(names[key], key.format, *facts))
            if len(scores) > 1 and not key.kind:
                several.append(f"{names[key]} {key.format}")
    remarks = []
    for reason, keys in left_out.items():
        remarks.append(f"left out, {reason}: {shortened([f'{names[key]} {key.format}' for key in keys], NAMED)}")
    if several:
        named = shortened(several, NAMED)
        remarks.append(f"taken for seeds of one model, as several files have this name: {named}")
    data = sorted({key.data for key in groups if key.data})
    if len(data) > 1:
        remarks.append(f"accuracies on {', '.join(data)} do not compare; give the rows of only one data set")
    machines = sorted({key.hardware for key in groups if key.hardware})
    if len(machines) > 1:
        remarks.append(f"latencies on {'; '.join(machines)} do not compare; give the rows of only one machine")
    return points, remarks


def _names(keys: Collection[Key]) -> dict[Key, str]:
    """Return the name to show for each group; with its data where there are several data sets, machines alike."""
    same: dict[tuple[str, str], list[Key]] = {}
    for key in keys:
        same.setdefault((key.model, key.format), []).append(key)
    several = {name: len({getattr(key, name) for key in keys} - {""}) > 1 for name in WHERE}
    names = {}
    for alike in same.values():
        for key in alike:
            about = [key.kind] * (len({one.kind for one in alike}) > 1)
            about += [f"{key.parameters} parameters"] * (len({one.parameters for one in alike}) > 1)
            about += [getattr(key, name) for name in WHERE if several[name]]
            names[key] = f"{key.model} ({', '.join(one for one in about if one)})" if any(about) else key.model
    return names


def front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Return the indices of the Pareto front, by cost: no other point is at most as costly and at least as accurate.

    Of equal points the first is kept.
    """
    kept: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -accuracies[index], index)):
        if not kept or accuracies[index] > accuracies[kept[-1]]:
            kept.append(index)
    return kept


def table(points: Sequence[Point]) -> str:
    """Return the points as a Markdown table; a star marks the Pareto fronts of latency and of size."""
    timed = [point for point in points if point.milliseconds is not None]
    fast = [timed[index] for index in front([p.milliseconds or 0 for p in timed], [p.accuracy for p in timed])]
    small = [points[index] for index in front([p.bytes for p in points], [p.accuracy for p in points])]
    header, lines = ["model", "format", "parameters", "accuracy", "n", "latency", "size"], []
    for point in points:
        spread = "" if point.deviation is None else f" ± {100 * point.deviation:.2f}"
        latency = "" if point.milliseconds is None else f"{point.milliseconds:.2f} ms{' *' * (point in fast)}"
        parameters = "" if point.parameters is None else f"{point.parameters:,}"
        size = f"{point.bytes / 1e3:,.1f} kB{' *' * (point in small)}"
        accuracy = f"{100 * point.accuracy:.2f}{spread} %"
        lines.append((point.model, point.format, parameters, accuracy, point.n, latency, size))
    return "\n".join(markdown_table(header, lines, right=5)) + "\n"


def plot(points: Sequence[Point], path: Path) -> None:
    """Write a picture: accuracy against latency and against size, each with its Pareto front."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    models = list(dict.fromkeys(point.model for point in points))
    panels = {"latency, batch 1, one thread [ms]": "milliseconds", "size of the file [kB]": "bytes"}
    for axes, (title, name) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        shown = [point for point in points if getattr(point, name) is not None]
        scale = 1e3 if name == "bytes" else 1
        costs = [getattr(point, name) / scale for point in shown]
        accuracies = [100 * point.accuracy for point in shown]
        for cost, accuracy, point in zip(costs, accuracies, shown, strict=True):
            axes.errorbar(
                cost,
                accuracy,
                yerr=None if point.deviation is None else 100 * point.deviation,
                marker=MARKERS[models.index(point.model) % len(MARKERS)],
                color=f"C{KINDS.index(point.format)}",
                linestyle="",
            )
        best = front(costs, accuracies)
        axes.plot(
            [costs[i] for i in best], [accuracies[i] for i in best], color="gray", zorder=0, drawstyle="steps-post"
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy [%]")
    handles = [
        *(
            _handle(axes=figure.axes[0], label=one, color=f"C{i}", marker="s")
            for i, one in enumerate(KINDS)
            if one in {point.format for point in points}
        ),
        *(
            _handle(axes=figure.axes[0], label=one, color="gray", marker=MARKERS[i % len(MARKERS)])
            for i, one in enumerate(models)
        ),
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize="small", frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _handle(*, axes, label: str, color: str, marker: str):  # type: ignore[no-untyped-def]
    return axes.plot([], [], linestyle="", label=label, color=color, marker=marker)[0]
