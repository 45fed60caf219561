"""Runs in processes of their own: what they print goes to a log, and none outlives the process that started it."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

CONTEXT = multiprocessing.get_context("spawn")


def settle(log: Path) -> None:
    """Make this process the child that it is: it writes to a log, stops at SIGTERM as at Ctrl-C, ends with its parent.

    Raises:
        OSError: the log cannot be written.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its children; one that went on would hold what the next call wants."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
