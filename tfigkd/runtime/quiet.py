"""Suppression of what native code writes to standard error."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

from tfigkd.runtime.errors import UserError

_state = {"shown": False}


def show_native(shown: bool) -> None:
    """Set whether native code, and TensorFlow with its warnings, may write to standard error from now on."""
    _state["shown"] = shown
    # it warns of "retracing" where a run evaluates several networks one after the other
    logging.getLogger("tensorflow").setLevel(logging.NOTSET if shown else logging.ERROR)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error, and print it only if the block fails unexpectedly."""
    if _state["shown"]:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (UserError, OSError):  # the command reports these in one line
            raise
        except Exception:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Hold back what TensorFlow prints when it is imported and when it looks for a GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if _state["shown"] else "2")
    with quiet_stderr():
        yield
