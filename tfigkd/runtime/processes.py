"""Child processes: runs that write to a log and end with the process that started them, and short calls of a module."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tfigkd.runtime.command import interrupt
from tfigkd.runtime.machine import THREADS, cores, limit_threads, memory

CONTEXT = multiprocessing.get_context("spawn")
MEMORY = 4 * 2**30
"""Bytes that a training process may need; CIFAR-10 with maps takes 2 to 3 GB."""
ACCELERATOR = Path("/dev/nvidia0")


def processes_that_fit() -> int:
    """Return how many training processes use this machine best: one for each core, as far as the memory allows.

    Small networks train faster in processes of one thread each than in one process of many threads. An accelerator gets
    one process.
    """
    if ACCELERATOR.exists():
        return 1
    return max(1, min(cores(), memory() // MEMORY))


def threads() -> int:
    """Return the number of threads that this process is given, as a run of a study is; otherwise one a core."""
    given = [os.environ.get(name, "") for name in THREADS]
    return min([int(one) for one in given if one.isascii() and one.isdigit() and int(one)] + [cores()])


def call_module(module: str, *arguments: object, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a module of this package in a child process, with the text that it prints.

    Args:
        module: Such as `tfigkd.export`; the child imports the package from where this process has it.
        arguments: Of its command line.
        seconds: Time after which it is killed; None waits.

    Raises:
        subprocess.TimeoutExpired: It was killed.
    """
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of the errors that a process printed, or its exit status."""
    return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]


def settle(log: Path, threads: int | None = None) -> None:
    """Set this process up as a child: write to a log, stop at SIGTERM as at Ctrl-C, end with the parent.

    Args:
        log: Where standard output and errors go.
        threads: At most so many of TensorFlow and NumPy, which must not be imported yet; None sets no limit.

    Raises:
        OSError: The log cannot be written.
    """
    if threads:
        limit_threads(threads)
    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    """Wait for the parent to end, then end this process.

    A killed parent cannot stop its children, and a child that continued would keep locks that the next call needs.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
