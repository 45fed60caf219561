"""Accuracy against the bits of an image's features: trained with a price on bits, or rounded afterwards.

    python -m tfigkd.run --experiment cifar10_kd                                # runs/cifar10_kd/0
    python -m tfigkd.run --experiment cifar10_code --workdir runs/code_low      # code.weight = 0.002
    python -m tfigkd.run --experiment cifar10_code --workdir runs/code_high --code.weight 0.0002
    python -m experiments.benchmarks.embedding_bits --plain runs/cifar10_kd/0 --low runs/code_low --high runs/code_high

Appends rows to experiments/results/embedding.csv: the two students in their own codes; the plain student rounded to as
many bits, which is their control; the plain student without a code; and the low rate lifted by a decoder that was
trained to give the high rate's features, classified by the high rate's classifier. Codes are fitted to the images that
trained, and measured on the test images: `ideal_bits` is the length of an ideal code of a single image, `packed_bits`
what zlib needs for all of them together, divided by their number.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments.benchmarks.feature_coder import Coder, packed_bits, split, step_for
from experiments.benchmarks.feature_enhancer import enhancer
from tfigkd.config.experiment import Config
from tfigkd.config.reading import from_mapping
from tfigkd.data import Examples
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.runtime import provenance
from tfigkd.runtime.rows import append_row
from tfigkd.stages.data import dataset, training_examples

RESULTS = Path(__file__).parents[1] / "results" / "embedding.csv"
FLOAT_BITS = 32


def rows_of(
    students: dict[str, keras.Model], steps: dict[str, float], train: Examples, test: Examples, *, epochs: int = 50
) -> Iterator[dict[str, Any]]:
    """Yield a row for each student and code.

    Args:
        students: "plain", "low" and "high" to networks with a dense last layer.
        steps: "low" and "high" to the steps of their codes.
        train: What codes and the enhancing decoder are fitted to.
        test: What is measured.
        epochs: Of the enhancing decoder.
    """
    parts = {name: split(with_fused_batch_norm(model)) for name, model in students.items()}
    seen, unseen = (
        {name: predict_logits(front, examples.images) for name, (front, _) in parts.items()}
        for examples in (train, test)
    )

    def row(
        code: str, classifier: str, features: np.ndarray, bits: float, packed: float, step: float
    ) -> dict[str, Any]:
        logits = parts[classifier][1].predict(features, batch_size=1000, verbose=0)
        sizes = {"step": step, "ideal_bits": round(bits, 2), "packed_bits": round(packed, 2)}
        return {"code": code, **sizes, "accuracy": accuracy(logits, test.labels), "n": len(test)}

    plain = unseen["plain"]
    whole = FLOAT_BITS * plain.shape[1]
    yield row("none, plain student in float32", "plain", plain, whole, whole, 0.0)
    decoded = {}
    for rate, step in steps.items():
        coder = Coder.fit(seen[rate], step)
        numbers = coder.encode(unseen[rate])
        bits = coder.ideal_bits(numbers)
        decoded[rate] = coder.decode(coder.encode(seen[rate])), coder.decode(numbers)
        yield row(f"{rate} rate", rate, decoded[rate][1], bits, packed_bits(numbers), step)
        if rate == "low":
            low_bits, low_packed = bits, packed_bits(numbers)
        rounding = Coder.fit(seen["plain"], step_for(seen["plain"], coder.ideal_bits(coder.encode(seen[rate]))))
        rounded = rounding.encode(plain)
        sizes = rounding.ideal_bits(rounded), packed_bits(rounded), rounding.step
        yield row(f"plain student rounded to the {rate} rate", "plain", rounding.decode(rounded), *sizes)
    lift = enhancer(decoded["low"][0], decoded["high"][0], epochs=epochs)
    lifted = lift.predict(decoded["low"][1], batch_size=1000, verbose=0)
    yield row("low rate, enhanced", "high", lifted, low_bits, low_packed, steps["low"])


def read_run(folder: Path) -> tuple[Config, keras.Model]:
    """Return the experiment of a finished run and its student."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    student = keras.saving.load_model(folder / "distill" / "student.keras", compile=False)
    return from_mapping(Config, settings["config"]), student


def main() -> None:
    """Measure three runs and append rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in ("plain", "low", "high"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="the .csv to append to")
    options = parser.parse_args()
    runs = {name: read_run(getattr(options, name)) for name in ("plain", "low", "high")}
    config = runs["plain"][0].data
    students = {name: student for name, (_, student) in runs.items()}
    steps = {name: runs[name][0].code.step for name in ("low", "high")}
    weights = {f"{name}_weight": runs[name][0].code.weight for name in steps}
    origin = provenance.origin(shlex.join(["python", "-m", "experiments.benchmarks.embedding_bits", *sys.argv[1:]]))
    for row in rows_of(students, steps, training_examples(config), dataset(config).test):
        print(*row.values(), sep="  ", flush=True)
        append_row(options.rows, row | weights | origin)


if __name__ == "__main__":
    main()
