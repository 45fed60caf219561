"""The decorator of the commands: what an interruption prints and returns."""

import signal
import subprocess
import sys

import pytest

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
