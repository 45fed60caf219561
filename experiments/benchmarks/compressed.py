"""The published networks compressed by each method of `tfigkd.compress` and measured on CIFAR-10.

    python experiments/benchmarks/compressed.py train --data-dir DIR --weights DIR --methods qat prune-0.5
    python experiments/benchmarks/compressed.py latency --data-dir DIR --weights DIR
    python experiments/benchmarks/compressed.py rows --data-dir DIR --weights DIR

`train` writes a model and its LiteRT files to --workdir and continues after a stop. `latency` times all files of a
network in one runtime, in alternation, and appends to experiments/results/compressed_latency.csv. `rows` measures each
file once on test and appends to experiments/results/compressed.csv. The published networks were trained on all of
train, validation included, so validation is used only to measure how close a file is to its network.
"""

import argparse
import gzip
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import keras

from tfigkd import data, models
from tfigkd.batches.stream import TrainingBatches
from tfigkd.compress import methods
from tfigkd.compress.pruning import sparsity
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.edge.convert import convert
from tfigkd.edge.latency import latencies
from tfigkd.edge.litert import float_tensors, litert_predictor
from tfigkd.edge.parity import parity
from tfigkd.losses import KLDivergence
from tfigkd.measure.metrics import Predict, accuracy, predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fake_quant import is_fake_quantized
from tfigkd.runtime import provenance
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.rows import append_row
from tfigkd.training.distiller import Distiller

RESULTS = Path(__file__).parents[1] / "results" / "compressed.csv"
LATENCY = RESULTS.with_name("compressed_latency.csv")
IMAGENET = (models.IMAGENET_MEAN, models.IMAGENET_STD)
NETWORKS = {
    "student_drop5_student": lambda: models.mobilenet_v2(drop_blocks=5),
    "resnet20": lambda: models.resnet(20, normalization=IMAGENET),
    "resnet56": lambda: models.resnet(56, normalization=IMAGENET),
}
CALIBRATION = 256
MODEL = "student.keras"


def network(name: str, weights: Path) -> keras.Model:
    """Return a published network with stock layers."""
    model = NETWORKS[name]()
    models.load_torch_weights(model, weights / f"{name}.npz")
    return with_stock_batch_norm(model)


def setting(name: str, options: argparse.Namespace) -> CompressConfig:
    """Return the recipe of a method given as METHOD or METHOD-SPARSITY; "plain" means no compression."""
    method, _, share = name.partition("-")
    recipe = {"steps": options.steps, "learning_rate": options.learning_rate}
    if share:
        recipe["sparsity"] = float(share)
    return CompressConfig(method="none" if method == "plain" else method, **recipe)


def train(name: str, method: str, cifar10: data.Dataset, options: argparse.Namespace) -> None:
    """Compress one network by one method, distilled live from its own float logits or those of another network."""
    folder = options.workdir / name / (method + options.suffix)
    if (folder / "note.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config, student = setting(method, options), network(name, options.weights)
    teacher = student if options.teacher == "student" else network(options.teacher, options.weights)
    teacher, kd = models.fold_batch_norm(teacher), config.losses.kd

    def distiller(model: keras.Model) -> Distiller:
        loss = {"kd": KLDivergence(kd.temperature)}
        return Distiller(model, losses=loss, loss_weights={"kd": kd.weight}, teacher=teacher)

    keras.utils.set_random_seed(options.seed)
    recipe = TrainingConfig(batch_size=config.batch_size)
    stream = TrainingBatches(cifar10.train, recipe, AugmentConfig(), seed=options.seed)
    identity = fingerprint(config, options.teacher, options.seed)
    started = time.monotonic()
    tuning = methods.FineTuning(distiller, stream, folder, identity, folder / "tensorboard")
    model = methods.compress_student(student, config, tuning)
    seconds = round(time.monotonic() - started)
    model.save(folder / MODEL)
    quantized = is_fake_quantized(model)
    for format in ("int8",) if quantized else ("float32", "int8"):
        calibration = None if quantized else cifar10.validation.images[:CALIBRATION]
        (folder / f"{format}.tflite").write_bytes(convert(model, format, calibration))
    trained = config.method != "none"
    note = {"method": method, "teacher": options.teacher if trained else "", "steps": config.steps if trained else 0}
    note |= {"learning_rate": config.learning_rate, "kd_weight": kd.weight, "temperature": kd.temperature}
    note |= {"batch_size": config.batch_size, "seed": options.seed, "n_train": len(cifar10.train)}
    note |= {"train_seconds": seconds}
    logits = predict_logits(model, cifar10.validation.images)
    report = parity(folder / "int8.tflite", cifar10.validation, predict_logits(student, cifar10.validation.images))
    kept = " ".join(f"{key} {report[key]:.4f}" for key in ("accuracy", "agreement", "kl", "mean_difference"))
    score = accuracy(logits, cifar10.validation.labels)
    print(f"{folder}: Keras {100 * score:.2f} % of validation; int8 against the published network: {kept}", flush=True)
    (folder / "note.json").write_text(json.dumps(note))


def command() -> str:
    """Return this command with its arguments."""
    return shlex.join(["python", "experiments/benchmarks/compressed.py", *sys.argv[1:]])


def time_files(name: str, options: argparse.Namespace) -> None:
    """Time all files of a network in one run, and append a row for each file."""
    paths = sorted((options.workdir / name).glob("*/*.tflite"))
    for path, values in latencies(paths, BenchmarkConfig(runs=options.runs, threads=(1,))).items():
        row: dict[str, Any] = {"network": name, "method": path.parent.name, "format": path.stem}
        row |= {"bytes": path.stat().st_size, "threads": 1, "runs": options.runs}
        row |= {f"ms_{share}": f"{values[1][share]:.4f}" for share in ("p50", "p90", "p99")}
        append_row(LATENCY, row | provenance.origin(command()))
        print(path, f"{values[1]['p50']:.3f} ms", flush=True)


def rows(name: str, cifar10: data.Dataset, options: argparse.Namespace) -> None:
    """Append a row for each file that has none yet."""
    published = predict_logits(network(name, options.weights), cifar10.validation.images)
    for note_path in sorted((options.workdir / name).glob("*/note.json")):
        paths = [path for path in sorted(note_path.parent.glob("*.tflite")) if not path.with_suffix(".done").exists()]
        if not paths:
            continue
        model = keras.saving.load_model(note_path.with_name(MODEL), compile=False)
        columns = {"network": name, **json.loads(note_path.read_text()), "saw_validation": True}
        columns |= {"parameters": count_parameters(model), "multiply_adds": multiply_adds(model), **sparsity(model)}
        columns["keras_test_accuracy"] = test_accuracy(partial(predict_logits, model), cifar10)
        for path in paths:
            against = parity(path, cifar10.validation, published)
            own = parity(path, cifar10.validation, predict_logits(model, cifar10.validation.images))
            row: dict[str, Any] = columns | {"format": path.stem, "float_tensors": len(float_tensors(path))}
            packed = len(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))
            row |= {"bytes": path.stat().st_size, "gzip_bytes": packed}
            row |= {"test_accuracy": test_accuracy(litert_predictor(path), cifar10), "n_test": len(cifar10.test)}
            row |= {f"validation_{key}": own[key] for key in ("agreement", "max_difference", "mean_difference", "kl")}
            row |= {f"validation_published_{key}": against[key] for key in ("agreement", "kl")}
            append_row(RESULTS, row | provenance.origin(command()))
            print(name, columns["method"], path.stem, f"test {100 * row['test_accuracy']:.2f} %", flush=True)
            path.with_suffix(".done").touch()


def test_accuracy(predict: Predict, cifar10: data.Dataset) -> float:
    """Return the accuracy on the test split."""
    return accuracy(predict(cifar10.test.images), cifar10.test.labels)


def main() -> None:
    """Run one job: train, latency or rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("job", choices=("train", "latency", "rows"))
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/compressed"), help="folder of models and files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=["plain", "qat"], help="METHOD or METHOD-SPARSITY, for train")
    parser.add_argument("--suffix", default="", help="suffix of the folder name, to separate recipes")
    parser.add_argument("--teacher", default="student", help="student (its own float logits) or a network's name")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=200, help="timed inferences of each file")
    options = parser.parse_args()
    cifar10 = None if options.job == "latency" else data.load("cifar10", directory=options.data_dir, download=False)
    for name in options.networks:
        for method in options.methods if options.job == "train" else ():
            train(name, method, cifar10, options)
        if options.job == "latency":
            time_files(name, options)
        elif options.job == "rows":
            rows(name, cifar10, options)


if __name__ == "__main__":
    main()
