"""One way to be a command: errors in one line, Ctrl-C, SIGTERM and a closed pipe alike everywhere. Needs no package."""

import contextlib
import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from tfigkd.runtime.errors import UserError, system_line

FAILED, INTERRUPTED = 1, 130

Main = Callable[[list[str]], int | None]


def command(stopped: str = "stopped") -> Callable[[Main], Callable[..., int]]:
    """Turn a function of the arguments into the `main` of a module.

    Args:
        stopped: What to say after Ctrl-C or SIGTERM; `{arguments}` stands for the command's own arguments.

    Returns:
        A decorator. The decorated `main(arguments=None)` takes `sys.argv` where no arguments are given and returns the
        exit status: that of the function, 1 after an error of the user or the system, 130 after an interruption.
    """

    def decorate(function: Main) -> Callable[..., int]:
        @functools.wraps(function)
        def main(arguments: Sequence[str] | None = None) -> int:
            given = list(sys.argv[1:] if arguments is None else arguments)
            with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
                signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                return function(given) or 0
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return FAILED
            except BrokenPipeError:  # the reader of the output has gone, as in `--help | head`
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
