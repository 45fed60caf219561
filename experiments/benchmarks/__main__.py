"""All benchmarks, one after another: `python -m experiments.benchmarks --peers .venv-peers/bin/python`.

Each benchmark compares two sides in one run, in alternating blocks, and appends rows to
experiments/results/benchmarks.csv.
"""

import argparse
import importlib
import os
from pathlib import Path

from experiments.benchmarks import table
from experiments.benchmarks.harness import RESULTS, Options
from tfigkd.runtime.quiet import quiet_stderr

SUBJECTS = (
    "machine",
    "startup",
    "overlay_store",
    "training_step",
    "precision_step",
    "processes_step",
    "small_step",
    "pictures",
    "disk_pictures",
    "large_pictures",
    "run_cost",
    "distillation_step",
    "input_pipeline",
    "attribution_speed",
)
"""Modules of this folder; each has `run(options)`."""


def main() -> None:
    """Measure, append rows and write the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment; default: no peers")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="benchmarks to run")
    parser.add_argument("--networks", nargs="+", default=Options.networks, help="published networks to explain")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV file to append rows to")
    parser.add_argument("--tiny", action="store_true", help="shrink everything, for a quick test of the code")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    names = ("data_dir", "weights", "peers", "pairs", "networks", "tiny", "results")
    options = Options(**{name: getattr(arguments, name) for name in names})
    for subject in arguments.only:
        with quiet_stderr():
            module = importlib.import_module(f"experiments.benchmarks.{subject}")
        module.run(options)
    if options.results == RESULTS:
        table.main()


if __name__ == "__main__":
    main()
