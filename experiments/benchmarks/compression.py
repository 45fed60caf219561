"""The published networks made smaller: every method of `tfigkd.compress`, fine-tuned, converted, measured on CIFAR-10.

    python experiments/benchmarks/compression.py train --data-dir DIR --weights DIR --methods qat prune-0.5
    python experiments/benchmarks/compression.py latency --data-dir DIR --weights DIR
    python experiments/benchmarks/compression.py rows --data-dir DIR --weights DIR

`train` leaves a model and its files in --workdir and goes on where it was stopped; `latency` times all files of a
network in one runtime, taking turns; `rows` reads test, once for each file, and appends to
experiments/results/compression.csv. The published networks have seen all of train, validation included.
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
import numpy as np

from tfigkd import data, models, provenance
from tfigkd.batches import training_batches
from tfigkd.benchmark import latencies
from tfigkd.compress import methods
from tfigkd.compress.fields import CompressConfig
from tfigkd.compress.pruning import sparsity
from tfigkd.convert import convert
from tfigkd.distiller import Distiller
from tfigkd.fields import AugmentConfig, BenchmarkConfig
from tfigkd.layers import with_fused_layers, with_stock_layers
from tfigkd.litert import litert_predictor
from tfigkd.losses import KLDivergence
from tfigkd.metrics import accuracy, comparison, predict_logits
from tfigkd.models.cost import count_parameters, multiply_adds

RESULTS = Path(__file__).parents[1] / "results" / "compression.csv"
IMAGENET = (models.IMAGENET_MEAN, models.IMAGENET_STD)
NETWORKS = {
    "student_drop5_student": lambda: models.mobilenet_v2(drop_blocks=5),
    "resnet20": lambda: models.resnet(20, normalization=IMAGENET),
    "resnet56": lambda: models.resnet(56, normalization=IMAGENET),
}
CALIBRATION = 256


def setting(name: str, options: argparse.Namespace) -> CompressConfig:
    """The recipe of a method given as NAME or NAME-SPARSITY."""
    method, _, share = name.partition("-")
    config = CompressConfig(method=method, steps=options.steps, learning_rate=options.learning_rate)
    return CompressConfig(**{**vars(config), "sparsity": float(share)}) if share else config


def network(name: str, weights: Path) -> keras.Model:
    """A published network of stock layers."""
    model = NETWORKS[name]()
    models.load_torch_weights(model, weights / f"{name}.npz")
    return with_stock_layers(model)


def train(name: str, method: str, cifar10: data.Dataset, options: argparse.Namespace) -> None:
    """Compress one network by one method, distilled live from its own float logits or from those of a network."""
    folder = options.workdir / name / method
    if (folder / "note.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config, student = setting(method, options), network(name, options.weights)
    own = options.teacher == "student"
    teacher = models.fold_batch_norm(student if own else network(options.teacher, options.weights))
    kd = config.losses.kd

    def distiller(model: keras.Model) -> Distiller:
        loss = {"kd": KLDivergence(kd.temperature)}
        return Distiller(model, losses=loss, loss_weights={"kd": kd.weight}, teacher=teacher)

    keras.utils.set_random_seed(options.seed)
    stream = training_batches(cifar10.train, augment=AugmentConfig(), batch_size=config.batch_size, seed=options.seed)
    identity = provenance_key(config, options)
    started = time.monotonic()
    lessons = methods.Lessons(distiller, stream, folder, identity, folder / "tensorboard")
    model = methods.compress_student(student, config, lessons)
    model.save(folder / "student.keras")
    note = {"method": config.method, "sparsity_asked": config.sparsity if "prune" in method or method == "pqat" else ""}
    note |= {"teacher": options.teacher, "steps": config.steps, "learning_rate": config.learning_rate}
    note |= {"kd_weight": kd.weight, "temperature": kd.temperature, "batch_size": config.batch_size}
    note |= {"seed": options.seed, "n_train": len(cifar10.train), "train_seconds": round(time.monotonic() - started)}
    score = accuracy(predict_logits(model, cifar10.validation.images), cifar10.validation.labels)
    print(name, method, f"validation {100 * score:.2f} %", flush=True)
    (folder / "note.json").write_text(json.dumps(note))


def provenance_key(config: CompressConfig, options: argparse.Namespace) -> str:
    """What a checkpoint depends on."""
    return f"{config} {options.teacher} {options.seed}"


def main() -> None:
    """Train, time, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("job", choices=("train", "latency", "rows"))
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/compression"), help="models and files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=["qat"], help="METHOD or METHOD-SPARSITY, for train")
    parser.add_argument("--teacher", default="student", help="student, its own float logits; or one of the networks")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cifar10 = data.load("cifar10", directory=options.data_dir, download=False)
    for name in options.networks:
        if options.job == "train":
            for method in options.methods:
                train(name, method, cifar10, options)


if __name__ == "__main__":
    main()
