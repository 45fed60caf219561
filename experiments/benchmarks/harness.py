"""The comparison of several sides in one run, in alternating blocks, and its result row.

A block is a function that does a piece of work and returns its seconds. Each round runs one block of every side, so
that a slower machine slows all sides down. A ratio is computed within each round; the row has the median of the ratios.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.runtime import provenance
from tfigkd.runtime.rows import append_row

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks.csv"
PEER = Path(__file__).with_name("peer.py")
Block = Callable[[], float]


@dataclass(frozen=True)
class Options:
    """The options of every benchmark.

    Attributes:
        data_dir: Folder in which tfds finds CIFAR-10.
        weights: Folder of the published .npz files.
        peers: Python of the peers' environment; with None, comparisons with peers are left out.
        pairs: Rounds of each comparison.
        networks: The published networks to explain.
        tiny: Shrink everything, for a quick test of the code; the numbers of such rows have no meaning.
        results: The CSV file to append to.
    """

    data_dir: Path
    weights: Path
    peers: Path | None
    pairs: int = 5
    networks: tuple[str, ...] = ("student_drop5_student", "resnet56")
    tiny: bool = False
    results: Path = RESULTS


class Peer:
    """A process in the peers' environment that runs blocks on request (`peer.py`)."""

    def __init__(self, python: Path):
        command = [str(python), str(PEER)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self.ask("hello", threads=len(os.sched_getaffinity(0)))["versions"]

    def ask(self, block: str, **options: Any) -> dict[str, Any]:
        """Run a block and wait for its answer.

        Raises:
            RuntimeError: the block failed, or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"block": block, **options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"peer, block {block!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def peer(options: Options) -> Iterator[Peer | None]:
    """Yield the peers' process and end it afterwards; yield None without a peers' environment."""
    if options.peers is None:
        yield None
        return
    process = Peer(options.peers)
    try:
        yield process
    finally:
        process.close()


def timed(work: Callable[[], Any]) -> Block:
    """Return a block that runs a function without arguments."""

    def block() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return block


def take_turns(sides: Mapping[str, Block], pairs: int) -> dict[str, np.ndarray]:
    """Return the seconds of each side's blocks, one block per side and round; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(pairs + 1):
        for name, block in sides.items():
            spent = block()
            if number:
                seconds[name].append(spent)
    return {name: np.array(values) for name, values in seconds.items()}


def describe(ratios: np.ndarray) -> dict[str, Any]:
    """Return median and range of the rounds' ratios as columns."""
    low, middle, high = np.percentile(ratios, [0, 50, 100])
    return {"ratio": f"{middle:.3f}", "lowest": f"{low:.3f}", "highest": f"{high:.3f}", "n": len(ratios)}


def record(
    options: Options,
    subject: str,
    against: str,
    ratios: np.ndarray,
    *,
    ours: float,
    theirs: float,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
    holds: bool = True,
    peer_versions: str = "",
    note: str = "",
) -> dict[str, Any]:
    """Append the row of one comparison to the results, and print it.

    Args:
        options: Its `results` is the file to append to.
        subject: Name of the measured work in the table.
        against: Name of the other side.
        ratios: Ratio of each round; with `at_least`, larger is better, with `at_most`, smaller.
        ours: Our median value, in `unit`.
        theirs: The median value of the other side, in `unit`.
        unit: Unit of both values.
        at_least: Target: lower bound of the median ratio.
        at_most: Target: upper bound of the median ratio.
        holds: Whether the other conditions of the target are met.
        peer_versions: Package versions of the other side, if it runs in its own environment.
        note: Explanation for the reader of the row.

    Returns:
        The row.
    """
    middle = float(np.median(ratios))
    target = "" if at_least is None and at_most is None else f">= {at_least}" if at_least else f"<= {at_most}"
    met = (at_least is None or middle >= at_least) and (at_most is None or middle <= at_most) and holds
    command = shlex.join(["python", "-m", "experiments.benchmarks", *sys.argv[1:]])
    row = {
        "subject": subject,
        "against": against,
        **describe(ratios),
        "target": target,
        "met": ("yes" if met else "no") if target else "",
        "ours": f"{ours:.4g}",
        "theirs": f"{theirs:.4g}",
        "unit": unit,
        "note": note,
        "peer_versions": peer_versions,
        **provenance.origin(command),
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    append_row(options.results, row)
    print(
        f"{subject} | {against} | {row['ratio']} ({row['lowest']} to {row['highest']}) {target} {row['met']}"
        f" | {row['ours']} and {row['theirs']} {unit}",
        flush=True,
    )
    return row


def faster(
    options: Options,
    subject: str,
    against: str,
    seconds: Mapping[str, np.ndarray],
    *,
    work: float,
    unit: str,
    **more: Any,
) -> dict[str, Any]:
    """Record how many times faster the side "ours" is than another; `work` is the number of units in one block."""
    ours, theirs = seconds["ours"], seconds[against]
    figures = {"ours": work / float(np.median(ours)), "theirs": work / float(np.median(theirs))}
    return record(options, subject, against, theirs / ours, unit=unit, **figures, **more)
