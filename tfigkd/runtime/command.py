"""The decorator of every command: errors in one line, one way to handle Ctrl-C, SIGTERM and a closed pipe; a parser.

It needs no package outside the standard library.
"""

import argparse
import contextlib
import functools
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tfigkd.runtime.errors import UserError, misspelled, system_line
from tfigkd.runtime.files import expanded
from tfigkd.runtime.machine import limit_threads_to_container

FAILED, INTERRUPTED = 1, 130
STOPPING = threading.Event()
"""Set by `interrupt`: C++ code of TensorFlow may turn the interruption into an error of another type."""

Main = Callable[[list[str]], int | None]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the other commands: one line, status 1."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options, with ~ in paths expanded; what is misspelled is named before what is missing.

        Raises:
            UserError: the arguments are refused.
        """
        wrong = misspelled(sys.argv[1:] if args is None else args, self._option_string_actions, short=True)
        if wrong:
            raise UserError(wrong)
        options = super().parse_args(args, namespace)
        for name, value in vars(options).items():
            if isinstance(value, Path):
                setattr(options, name, expanded(str(value)))
        return options

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; --help shows all options")


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal that stops the command.

    What the interruption leaves half made, a function of TensorFlow for example, may fail when it is freed. Python
    would print these errors with their tracebacks.

    Raises:
        KeyboardInterrupt: always.
    """
    sys.unraisablehook = lambda _: None
    STOPPING.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _keeps_interruption() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of an error that an interruption has become."""
    try:
        yield
    except Exception as error:
        if STOPPING.is_set():
            raise KeyboardInterrupt from error
        raise


def command(stopped: str = "stopped") -> Callable[[Main], Callable[..., int]]:
    """Turn a function of the command-line arguments into the `main` of a module.

    Args:
        stopped: Message after Ctrl-C or SIGTERM; `{arguments}` is replaced by the arguments of the command.

    Returns:
        A decorator. The decorated `main(arguments=None)` reads `sys.argv` if no arguments are given and returns the
        exit status: that of the function, 1 after an error of the user or the system, 130 after an interruption.
    """

    def decorate(function: Main) -> Callable[..., int]:
        @functools.wraps(function)
        def main(arguments: Sequence[str] | None = None) -> int:
            given = list(sys.argv[1:] if arguments is None else arguments)
            for stream in (sys.stdout, sys.stderr):  # a console of another encoding shows an escape, and no traceback
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
            with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
                signal.signal(signal.SIGTERM, interrupt)
                if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job may ignore it
                    signal.signal(signal.SIGINT, interrupt)
            limit_threads_to_container()
            STOPPING.clear()
            try:
                with _keeps_interruption():
                    return function(given) or 0
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return FAILED
            except BrokenPipeError:  # the reader of the output has exited, as in `--help | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return FAILED
            except OSError as error:
                print(f"error: {system_line(error)}", file=sys.stderr)
                return FAILED
            except KeyboardInterrupt:
                print(f"\n{stopped.replace('{arguments}', shlex.join(given))}", file=sys.stderr)
                return INTERRUPTED

        return main

    return decorate
