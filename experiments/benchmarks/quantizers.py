"""Int8 files of two quantizers: TensorFlow's converter, and ai-edge-quantizer, whole and without its worst layers.

    python experiments/benchmarks/quantizers.py --data-dir DIR --weights DIR

Appends a row for each network and kind of file to experiments/results/quantizers.csv: the saved students of
`lowdata_kd` (ResNet-20, three seeds) and the papers' student with its published weights. Accuracy is that on the 10,000
test images, agreement is with the float32 Keras model on them. All files of a network are calibrated on the same 256
validation images and timed in one run, in alternation, with one thread; `ratio_1t` is the latency of the float32 file
divided by that of the file. int16 layers use kernels that are many times slower.

`--job files` makes and scores the files, `--job rows` times them; existing files in --workdir are kept.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import keras

from tfigkd import benchmark, data, models
from tfigkd.config.export_fields import ExportConfig
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.edge.litert import litert_predictor
from tfigkd.edge.parity import export_file
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.runtime.rows import append_row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results" / "quantizers.csv"
KEEP = 3
FILES = {
    "float32": ExportConfig(),
    "converter": ExportConfig(),
    "ai-edge": ExportConfig(quantizer="ai-edge"),
    f"ai-edge, {KEEP} layers in float32": ExportConfig(quantizer="ai-edge", keep=KEEP),
    f"ai-edge, {KEEP} layers in int16": ExportConfig(quantizer="ai-edge", keep=KEEP, keep_in="int16"),
}


def networks(weights: Path) -> Iterator[tuple[str, keras.Model]]:
    """Yield the trained networks by name."""
    for seed in range(3):
        path = ROOT / "saved_models" / "lowdata_kd" / str(seed) / "student.keras"
        yield f"lowdata_kd_{seed}", keras.saving.load_model(path, compile=False)
    model = models.mobilenet_v2(drop_blocks=5)
    models.load_torch_weights(model, weights / "student_drop5_student.npz")
    yield "student_drop5_student", model


def write_files(options: argparse.Namespace) -> None:
    """Write and score the files that are missing, with their columns beside them."""
    cifar10 = data.load("cifar10", directory=options.data_dir, download=False)
    options.workdir.mkdir(parents=True, exist_ok=True)
    for name, fused in networks(options.weights):
        model, logits = with_stock_batch_norm(fused), {}
        for kind, config in FILES.items():
            path = options.workdir / f"{name}.{kind.replace(', ', '.').replace(' ', '_')}.tflite"
            if path.with_suffix(".columns").is_file():
                continue
            logits = logits or {
                part: predict_logits(model, getattr(cifar10, part).images) for part in ("validation", "test")
            }
            format = "float32" if kind == "float32" else "int8"
            report = export_file(path, model, format, cifar10, config, reference=logits["validation"])
            found = litert_predictor(path)(cifar10.test.images)
            expected, labels = logits["test"], cifar10.test.labels
            kept = json.loads(path.with_suffix(".json").read_text()).get("kept", {"layers": []})["layers"]
            columns = {"model": name, "file": kind, "kept": " ".join(kept), "calibration": config.calibration_examples}
            columns |= {"keras_accuracy": accuracy(expected, labels), "accuracy": accuracy(found, labels)}
            columns |= {"agreement": accuracy(found, expected.argmax(axis=1)), "n_test": len(labels)}
            columns |= {"validation_agreement": report["agreement"], "validation_kl": report["kl"]}
            path.with_suffix(".columns").write_text(json.dumps(columns))
            print(*columns.values(), flush=True)


def write_rows(options: argparse.Namespace) -> None:
    """Time the files of each network together and append their rows."""
    command = shlex.join(["python", "experiments/benchmarks/quantizers.py", *sys.argv[1:]])
    found = [(path, json.loads(path.read_text())) for path in options.workdir.glob("*.columns")]
    for name in sorted({columns["model"] for _, columns in found}):
        own = [(path, columns) for path, columns in found if columns["model"] == name]
        own.sort(key=lambda one: [*FILES].index(one[1]["file"]))
        named = {path.with_suffix(".tflite"): columns for path, columns in own}
        config = BenchmarkConfig(options.runs, options.warmup, (1,))
        for row in benchmark.rows(named, config, command, repeat=options.repeat):
            append_row(options.rows, row)
            print(row["model"], row["file"], row["bytes"], row["ms_p50_1t"], row["ratio_1t"], row["accuracy"])


def main() -> None:
    """Make, score and time the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--job", choices=("files", "rows", "all"), default="all")
    parser.add_argument("--workdir", type=Path, default=Path("runs/quantizers"), help="folder of the files")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="the .csv to append to")
    parser.add_argument("--runs", type=int, default=60, help="timed inferences of each file, in each repetition")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of the whole timing")
    options = parser.parse_args()
    if options.job != "rows":
        write_files(options)
    if options.job != "files":
        write_rows(options)


if __name__ == "__main__":
    main()
