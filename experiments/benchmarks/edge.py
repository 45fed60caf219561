"""Accuracy, size and latency of LiteRT files: the published networks in every format, and MobileNet-V2 in nine sizes.

    python experiments/benchmarks/edge.py --data-dir DIR --weights DIR

Appends one row for each network and format to experiments/results/edge.csv. Rows of the published networks have the
accuracy on the 10,000 test images, by Keras and by the file. MobileNet-V2, whole and with 3 to 17 blocks dropped, is
untrained: its rows have only latency and size, which do not depend on the weights. All latencies are measured in one
run, in alternation; `ratio_*` is the latency of the whole MobileNet-V2 in float32 divided by that of the file. The exit
status is 1 if float32 differs by more than 0.02 points from Keras on test, or int8 is more than 0.5 points below it.

int16x8 and dynamic use kernels that are many times slower than the others, so their accuracy is measured on the first
images by id, a random sample; `n_test` is their number.

`--job files` converts and scores, `--job rows` times; timing needs an otherwise idle machine. Existing files in
--workdir are kept. The published networks were trained on all of train, which includes the calibration images.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import benchmark, data, models
from tfigkd.config.export_fields import ExportConfig, Format
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.edge.convert import CALIBRATED, FORMATS, convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.edge.parity import export_file
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import count_parameters
from tfigkd.runtime.rows import append_row

RESULTS = Path(__file__).parents[1] / "results" / "edge.csv"
IMAGENET = (models.IMAGENET_MEAN, models.IMAGENET_STD)
PUBLISHED = {
    "student_drop5_student": lambda: models.mobilenet_v2(drop_blocks=5),
    "resnet20": lambda: models.resnet(20, normalization=IMAGENET),
    "resnet56": lambda: models.resnet(56, normalization=IMAGENET),
}
DROPPED = (0, 3, 5, 7, 9, 11, 13, 15, 17)  # the papers' nine sizes, 1x to 1122x
SAMPLE = {"dynamic": 1000, "int16x8": 250}
BOUNDS = {"float32": 0.0002, "int8": 0.005}
UNKNOWN = ("keras_accuracy", "accuracy", "agreement", "n_test")
PARTS = ("validation", "test")
PARITY = ("agreement", "kl", "max_difference", "mean_difference", "accuracy")


def networks(weights: Path, images: np.ndarray) -> Iterator[tuple[str, keras.Model, bool]]:
    """Yield name, network and whether it is trained."""
    for name, build in PUBLISHED.items():
        model = build()
        models.load_torch_weights(model, weights / f"{name}.npz")
        yield name, model, True
    keras.utils.set_random_seed(0)
    for drop_blocks in DROPPED:
        model = models.mobilenet_v2(drop_blocks=drop_blocks)
        for _ in range(10):  # sets the batch normalization statistics: integer formats need activations of normal size
            model(data.to_model_input(images), training=True)
        yield f"mobilenet_v2_drop{drop_blocks}", model, False


def write_files(options: argparse.Namespace) -> None:
    """Write the file of every network and format, and beside each its columns except the latencies."""
    cifar10 = data.load("cifar10", directory=options.data_dir, download=False)
    options.workdir.mkdir(parents=True, exist_ok=True)
    calibration = cifar10.validation.images[: ExportConfig().calibration_examples]
    for name, fused, trained in networks(options.weights, calibration[:64]):
        model, logits = with_stock_batch_norm(fused), {}
        for format in FORMATS:
            path = options.workdir / f"{name}.{format}.tflite"
            if path.with_suffix(".columns").is_file():
                continue
            columns: dict[str, Any] = {"model": name, "format": format, "trained": trained}
            columns |= {"parameters": count_parameters(model)} | dict.fromkeys(UNKNOWN, "")
            columns |= dict.fromkeys((f"validation_{key}" for key in PARITY), "")
            if trained:
                logits = logits or {part: predict_logits(model, getattr(cifar10, part).images) for part in PARTS}
                columns |= scores(path, model, format, cifar10, logits)
            else:
                path.write_bytes(convert(model, format, calibration if format in CALIBRATED else None))
            path.with_suffix(".columns").write_text(json.dumps(columns))
            print(*columns.values(), flush=True)


def scores(
    path: Path, model: keras.Model, format: Format, cifar10: data.Dataset, logits: dict[str, np.ndarray]
) -> dict[str, float | int]:
    """Export a trained network; return its parity on validation, and the accuracies of file and Keras model on test."""
    some = slice(SAMPLE.get(format))
    sample = replace(cifar10, **{part: getattr(cifar10, part).take(some) for part in PARTS})
    report = export_file(path, model, format, sample, ExportConfig(), reference=logits["validation"][some])
    expected, labels = logits["test"][some], sample.test.labels
    found = litert_predictor(path)(sample.test.images)
    columns = {"keras_accuracy": accuracy(expected, labels), "accuracy": accuracy(found, labels)}
    columns |= {"agreement": accuracy(found, expected.argmax(axis=1)), "n_test": len(labels)}
    return columns | {f"validation_{key}": report[key] for key in PARITY}


def write_rows(options: argparse.Namespace) -> list[str]:
    """Time all files, append rows, and return a line for each exceeded bound."""
    found = [json.loads(path.read_text()) for path in options.workdir.glob("*.columns")]
    order = [f"mobilenet_v2_drop{drop_blocks}" for drop_blocks in DROPPED] + [*PUBLISHED]
    found.sort(key=lambda columns: (order.index(columns["model"]), FORMATS.index(columns["format"])))
    named = {options.workdir / f"{one['model']}.{one['format']}.tflite": one for one in found}
    command = shlex.join(["python", "experiments/benchmarks/edge.py", *sys.argv[1:]])
    config = BenchmarkConfig(options.runs, options.warmup)
    broken = []
    for row in benchmark.rows(named, config, command, repeat=options.repeat):
        append_row(options.rows, row)
        print(row["model"], row["format"], row["bytes"], row["ms_p50_1t"], row["ratio_1t"], row["accuracy"])
        lost = (row["keras_accuracy"] or 0) - (row["accuracy"] or 0)
        lost = abs(lost) if row["format"] == "float32" else lost
        if lost > BOUNDS.get(row["format"], 1) + 1e-9:
            broken.append(f"{row['model']} {row['format']}: {100 * lost:.2f} points from Keras on test")
    return broken


def main() -> int:
    """Convert, score and time the files; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--job", choices=("files", "rows", "all"), default="all")
    parser.add_argument("--workdir", type=Path, default=Path("runs/edge"), help="folder of the files")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="the .csv to append to")
    parser.add_argument("--runs", type=int, default=60, help="timed inferences of each file, in each repetition")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of the whole timing")
    options = parser.parse_args()
    if options.job != "rows":
        write_files(options)
    broken = write_rows(options) if options.job != "files" else []
    print(*broken, sep="\n", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
