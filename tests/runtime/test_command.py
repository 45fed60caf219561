"""The decorator of the commands: what an interruption prints and returns."""

import signal
import subprocess
import sys

import pytest

from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError

HALF_MADE = """
import os, signal, sys
from tfigkd.runtime.command import command

signal.signal(signal.SIGINT, signal.default_int_handler)

class Function:  # as TensorFlow's: it cannot be freed before its constructor has ended
    def __init__(self, number):
        os.kill(os.getpid(), number)
        self.graph = None

    def __del__(self):
        self.graph

@command("stopped; go on with {arguments}")
def main(arguments):
    Function(int(arguments[0]))

sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_an_interruption_leaves_half_made_prints_nothing(number):
    done = subprocess.run([sys.executable, "-c", HALF_MADE, str(int(number))], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == f"\nstopped; go on with {int(number)}\n"


@pytest.mark.parametrize("error", [TypeError, UserError, OSError])
def test_an_interruption_that_becomes_another_error_is_one(error, capsys):
    """TensorFlow's C++ code raises a TypeError where a signal arrives while it flattens arguments."""

    @command("stopped. Go on with: {arguments}")
    def interrupted(arguments):
        if not arguments:
            raise error("of its own")
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error from None

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        assert interrupted(["--all"]) == 130
        assert capsys.readouterr().err == "\nstopped. Go on with: --all\n"
        if error is TypeError:  # a later command in this process is not taken for interrupted
            with pytest.raises(TypeError, match="of its own"):
                interrupted([])
        else:
            assert interrupted([]) == 1
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        sys.unraisablehook = before[2]
