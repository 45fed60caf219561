"""The footprint of a LiteRT file: bytes, weights, multiply-adds and memory. This module does not need TensorFlow."""

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.edge.litert import TRIAL_SECONDS, open_litert
from tfigkd.edge.operations import kernel_tensors, operations_of
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.processes import call_module, last_line

RUNS = 5
"""Runs of a file in the process whose memory is measured."""


@dataclass(frozen=True)
class Footprint:
    """Size, weights, cost and memory of one file.

    Attributes:
        bytes: Size of the file.
        gzip_bytes: Size after gzip, as for a download; zero weights reduce only this size.
        weights: Values in kernels and biases; batch normalization is folded into them.
        nonzero_weights: Number of weights that are not zero.
        multiply_adds: For one image, in convolutions and dense layers.
        peak_memory: Peak bytes that loading and running the file with one thread adds to a new process; None if the
            system does not report it.
    """

    bytes: int
    gzip_bytes: int
    weights: int
    nonzero_weights: int
    multiply_adds: int
    peak_memory: int | None


def footprint(path: Path) -> Footprint:
    """Measure the footprint of a file; memory is measured in a child process.

    Raises:
        UserError: the file is not a LiteRT model.
    """
    weights, nonzero, multiply_adds = count_weights(path)
    content = path.read_bytes()
    packed = len(gzip.compress(content, compresslevel=9, mtime=0))
    return Footprint(len(content), packed, weights, nonzero, multiply_adds, peak_memory(path))


def count_weights(path: Path) -> tuple[int, int, int]:
    """Return the numbers of weights, nonzero weights and multiply-adds of a file, read from its operations.

    Each value of a kernel is used once at each output position. A kernel that two operations share counts once in the
    weights and twice in the multiply-adds.
    """
    interpreter = open_litert(path, delegates=False)
    operations = operations_of(interpreter)
    values = [interpreter.get_tensor(index) for index in sorted(kernel_tensors(operations, interpreter))]
    weights, nonzero = sum(value.size for value in values), sum(int(np.count_nonzero(value)) for value in values)
    return weights, nonzero, sum(operation.multiply_adds for operation in operations)


def peak_memory(path: Path) -> int | None:
    """Return the peak bytes that loading and running a file adds to a new process; None if the system does not say.

    Raises:
        UserError: the child process fails on the file, or takes longer than TRIAL_SECONDS.
    """
    if not Path("/proc/self/status").is_file():
        return None
    try:
        done = call_module("tfigkd.edge.footprint", path, seconds=TRIAL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"cannot measure the memory of {path}: it did not run {RUNS} times in {TRIAL_SECONDS} s; export it anew"
        ) from error
    if done.returncode:
        raise UserError(f"cannot measure the memory of {path}: {last_line(done)}")
    return json.loads(done.stdout)


def _status(field: str) -> int:
    """Return a memory size of this process in bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"/proc/self/status has no {field}")


def _child(path: Path) -> int:
    # libraries that every file needs are loaded before the measurement starts
    from ai_edge_litert.interpreter import Interpreter  # noqa: F401

    before = _status("VmRSS")
    interpreter: Any = open_litert(path, threads=1)
    for _ in range(RUNS):
        interpreter.invoke()
    # getrusage does not work here: its maximum is inherited from the parent process through fork and exec
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]))))
