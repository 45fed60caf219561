"""Which images carry an overlay in an arm and in its placebo, with the teacher and the store of study `cifar10`.

    python experiments/benchmarks/placebo_gate.py --teachers runs/teachers

Appends a row to experiments/results/placebo.csv. Maps over the completeness gate are never overlaid. Up to commit
0634a47 the shuffled placebo took the gate along with the map of the other image, so that other images than in the arm
could carry an overlay; now it is that of an image's own map.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

from tfigkd.batches.controls import apply_control, derangement
from tfigkd.config.experiment import override, read_experiment
from tfigkd.runtime import provenance
from tfigkd.runtime.rows import append_row
from tfigkd.stages.data import training_examples
from tfigkd.stages.overlays import load_knowledge
from tfigkd.stages.workdir import Workdir

RESULTS = Path(__file__).parents[1] / "results" / "placebo.csv"


def main() -> None:
    """Count the images and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teachers", type=Path, required=True, help="where the study has kept its teacher and store")
    arguments = parser.parse_args()
    config = override(read_experiment("cifar10_ig_kd_shuffled")[1], {"teacher.training.precision": "mixed_bfloat16"})
    examples = training_examples(config.data)
    knowledge = load_knowledge(config, Workdir(Path(), arguments.teachers), examples)
    usable = knowledge.usable
    before = usable[derangement(len(usable), config.control.seed)]
    now = apply_control(knowledge, config.control).usable
    rates = {
        f"overlaid_{end}_class_{name}": config.overlay.probability * find(_by_class(values, examples.labels))
        for name, values in (("arm", usable), ("placebo_before", before), ("placebo", now))
        for end, find in (("least", min), ("most", max))
    }
    row = {
        "experiment": "cifar10_ig_kd_shuffled",
        "images": len(usable),
        "over_the_gate": int((~usable).sum()),
        "differ_before": int((before != usable).sum()),
        "differ": int((now != usable).sum()),
        **rates,
        **provenance.origin(shlex.join(["python", "experiments/benchmarks/placebo_gate.py", *sys.argv[1:]])),
    }
    append_row(RESULTS, row)
    print(row)


def _by_class(values: np.ndarray, labels: np.ndarray) -> list[float]:
    return [float(values[labels == label].mean()) for label in np.unique(labels)]


if __name__ == "__main__":
    main()
