"""Child processes: their output goes to a log, and they end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

CONTEXT = multiprocessing.get_context("spawn")


def settle(log: Path) -> None:
    """Set this process up as a child: write to a log, stop at SIGTERM as at Ctrl-C, end with the parent.

    Raises:
        OSError: The log cannot be written.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
