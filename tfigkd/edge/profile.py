"""The profile of a file: each operation with its time, bytes and multiply-adds, and its difference from float32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.edge.event_matching import operation_times
from tfigkd.edge.latency import latencies
from tfigkd.edge.layer_differences import Comparison
from tfigkd.edge.litert_profiler import Event, record
from tfigkd.edge.operations import Operation, read_operations
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import counted, shortened

XNNPACK, LITERT, FUSED, UNKNOWN = "XNNPACK", "LiteRT", "fused", ""
NAMED = 3
"""Layers that a sentence names."""


@dataclass(frozen=True)
class Profile:
    """What one inference of a file spends its time on.

    Attributes:
        operations: All of the file.
        milliseconds: Median of one inference without the profiler.
        threads: Of the interpreter.
        profiled: Interquartile mean of one inference with the profiler on; None without a profiler.
        runs: Number of profiled inferences.
        times: Operation's index to milliseconds.
        builtin: Indices of the operations that LiteRT's own kernels run, not XNNPACK.
        groups: Number of groups that XNNPACK runs.
        unmatched: Operators of XNNPACK that fit no operation of the file.
        reason: Why there are no times; empty where there are.
    """

    operations: tuple[Operation, ...]
    milliseconds: float
    threads: int
    profiled: float | None = None
    runs: int = 0
    times: dict[int, float] | None = None
    builtin: frozenset[int] = frozenset()
    groups: int = 0
    unmatched: tuple[Event, ...] = ()
    reason: str = ""

    @property
    def inside(self) -> float:
        """Milliseconds inside operations; the rest of `profiled` is between them, and below a microsecond each."""
        return sum((self.times or {}).values()) + sum(event.milliseconds for event in self.unmatched)

    def runs_on(self, operation: Operation) -> str:
        """Return what runs an operation."""
        if self.times is None:
            return UNKNOWN
        if operation.index in self.builtin:
            return LITERT
        if operation.index in self.times:
            return XNNPACK
        return FUSED if not self.unmatched else UNKNOWN


def profile(path: Path, config: BenchmarkConfig) -> Profile:
    """Profile a file with the first number of threads of a config; without a profiler only the whole is timed.

    Raises:
        UserError: it is no classifier of images.
    """
    threads = config.threads[0]
    operations = tuple(read_operations(path))
    timed = latencies([path], BenchmarkConfig(config.runs, config.warmup, (threads,)))[path][threads]
    try:
        recorded = record(path, runs=config.runs, warmup=config.warmup, threads=threads)
    except UserError as error:
        return Profile(operations, timed["p50"], threads, reason=str(error))
    found = operation_times(operations, recorded.events)
    return Profile(
        operations,
        timed["p50"],
        threads,
        profiled=recorded.milliseconds,
        runs=recorded.runs,
        times=found.milliseconds,
        builtin=found.builtin,
        groups=found.groups,
        unmatched=found.unmatched,
    )


def rows(profiled: Profile, compared: Comparison | None = None) -> list[dict[str, Any]]:
    """Return a row for each operation; what is not known is None.

    Args:
        profiled: Of the file.
        compared: The file with its float32 file, if it is an int8 file.

    Returns:
        Rows with `index`, `operation`, `layer`, `name`, `shape`, `dtype`, `runs_on`, `weight_bytes`,
        `activation_bytes`, `multiply_adds`, `milliseconds`, `share` of the time inside operations, `cosine`,
        `sqnr_db`, `added_noise` and `saturated`.
    """
    differences = {} if compared is None else {one.operation.index: one for one in compared.differences}
    made = []
    for operation in profiled.operations:
        time = None if profiled.times is None else profiled.times.get(operation.index)
        one = differences.get(operation.index)
        made.append(
            {
                "index": operation.index,
                "operation": operation.kind,
                "layer": operation.layer,
                "name": operation.name,
                "shape": "x".join(map(str, operation.shape[1:] or operation.shape)),
                "dtype": operation.dtype,
                "runs_on": profiled.runs_on(operation),
                "weight_bytes": operation.weight_bytes,
                "activation_bytes": operation.activation_bytes,
                "multiply_adds": operation.multiply_adds,
                "milliseconds": None if time is None else round(time, 6),
                "share": None if time is None else round(time / profiled.inside, 6) if profiled.inside else 0.0,
                "cosine": None if one is None else round(one.cosine, 7),
                "sqnr_db": None if one is None or not math.isfinite(one.sqnr) else round(one.sqnr, 3),
                "added_noise": None if one is None or not math.isfinite(one.added) else round(one.added, 7),
                "saturated": None if one is None else round(one.saturated, 7),
            }
        )
    return made


def about_times(profiled: Profile) -> list[str]:
    """Return sentences on where the time goes."""
    threads = counted(profiled.threads, "thread")
    whole = f"{profiled.milliseconds:.3f} ms an image with {threads}"
    if profiled.times is None or profiled.profiled is None:
        return [whole, f"no times of operations: {profiled.reason}"]
    share = min(profiled.inside / profiled.profiled, 1.0) if profiled.profiled else 0.0
    said = [
        f"{whole}; {profiled.profiled:.3f} ms while profiled (means of the middle half of {profiled.runs} inferences), "
        f"{100 * share:.0f} % of it inside operations, the rest between them and in fractions of a microsecond, which "
        "LiteRT does not count"
    ]
    outside = [one for one in profiled.operations if one.index in profiled.builtin]
    if outside:
        kinds = sorted({one.kind for one in outside})
        left = ", ".join(f"{sum(one.kind == kind for one in outside)} {kind}" for kind in kinds)
        spent = sum(profiled.times.get(one.index, 0.0) for one in outside)
        part = spent / profiled.inside if profiled.inside else 0.0
        said.append(
            f"XNNPACK does not take {left}: {100 * part:.0f} % of the time is in LiteRT's own kernels, and XNNPACK "
            f"runs the rest in {counted(profiled.groups, 'group')}"
        )
    if profiled.unmatched:
        names = shortened([f"{event.tag} {event.milliseconds:.3f} ms" for event in profiled.unmatched])
        said.append(f"{len(profiled.unmatched)} of XNNPACK's operators fit no operation of the file: {names}")
    return said


def about_layers(compared: Comparison) -> list[str]:
    """Return sentences on the layers of an integer file that differ most from its float32 file."""
    said = []
    worst = compared.worst(NAMED)
    if worst:
        named = ", ".join(f"{one.operation.layer} (#{one.operation.index}, {one.sqnr:.1f} dB)" for one in worst)
        said.append(f"most noise is added by {named}")
    clipped = sorted((one for one in compared.differences if one.saturated), key=lambda one: -one.saturated)[:NAMED]
    if clipped:
        parts = ", ".join(f"{one.operation.layer} {100 * one.saturated:.2g} %" for one in clipped)
        said.append(f"values beyond the range of their integers: {parts}")
    if compared.unmatched:
        kinds = shortened([f"#{one.index} {one.kind}" for one in compared.unmatched])
        total = len(compared.unmatched) + len(compared.differences)
        said.append(f"{len(compared.unmatched)} of {total} operations have no counterpart in the float32 file: {kinds}")
    return said


def slowest(made: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the rows with the longest times, or all in the order of the file where the count is 0."""
    if not count:
        return list(made)
    timed = sorted(made, key=lambda row: -(row["milliseconds"] or 0.0))
    return timed[:count]


def noisiest(made: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the rows that add most noise, or all compared rows in the order of the file where the count is 0."""
    compared = [row for row in made if row["cosine"] is not None]
    return sorted(compared, key=lambda row: -(row["added_noise"] or 0.0))[:count] if count else compared
