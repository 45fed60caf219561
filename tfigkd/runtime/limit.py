"""A time limit of a command: at its end the command stops as at Ctrl-C, and the same command continues."""

import contextlib
import signal
from collections.abc import Iterator

from tfigkd.runtime.command import interrupt
from tfigkd.runtime.errors import UserError

MOST = 10_000_000
"""More than any command takes, and what a timer can count."""


def require_minutes(minutes: float | None) -> None:
    """Refuse a limit that is not positive, or more than a timer can count; None is no limit.

    Raises:
        UserError: as said.
    """
    if minutes is not None and not 0 < minutes < MOST:
        raise UserError(f"--minutes must be positive and below {MOST:,}, got {minutes}")


@contextlib.contextmanager
def stop_after(minutes: float | None) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread when the minutes have passed; None sets no limit.

    Raises:
        UserError: the minutes are not positive.
    """
    require_minutes(minutes)
    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
