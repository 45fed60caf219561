"""Start-up time of the command line, against the import of TensorFlow, which it avoids."""

import os
import subprocess
import sys

import numpy as np

from experiments.benchmarks.harness import Options, record, take_turns, timed


def run(options: Options) -> None:
    """Measure and append rows."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)

    sides = {
        "ours": timed(lambda: python("-m", "tfigkd.run", "--help")),
        "tensorflow": timed(lambda: python("-c", "import tensorflow")),
    }
    seconds = take_turns(sides, options.pairs)
    record(
        options,
        "python -m tfigkd.run --help",
        'python -c "import tensorflow" (its share of time)',
        seconds["ours"] / seconds["tensorflow"],
        ours=float(np.median(seconds["ours"])),
        theirs=float(np.median(seconds["tensorflow"])),
        unit="s",
        at_most=0.2,
    )
