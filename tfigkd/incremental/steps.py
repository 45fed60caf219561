"""Class-incremental training, step by step: each step's network, memory and accuracies in a folder of its own."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np

from tfigkd import models
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config, to_mapping
from tfigkd.config.incremental_fields import Method
from tfigkd.config.reading import value_at
from tfigkd.data import Dataset, Examples
from tfigkd.incremental import foster
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_fused_batch_norm, with_stock_batch_norm
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    atomic,
    checksum,
    finished,
    locked,
    make_folder,
    read_manifest,
    write_manifest,
    write_text,
)
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.rows import as_csv, read_rows
from tfigkd.stages.data import dataset, training_choice, training_examples
from tfigkd.stages.networks import build_network, network_values
from tfigkd.stages.workdir import ROWS, STUDENT_FILE
from tfigkd.training import checkpoint
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training

METHODS: tuple[Method, ...] = get_args(Method)
FIRST = "first"
"""Folder of the first step, which all methods share."""
PLAIN = (
    "training.mixup",
    "training.cutmix",
    "training.ema",
    "training.lookahead",
    "training.power",
    "training.chain",
    "training.devices",
    "training.l1",
    "training.class_weight",
    "training.finetune_epochs",
    "training.hard_weight",
    "training.label_smoothing",
    "training.randaugment",
    "code.weight",
    "compress.method",
)
"""Fields that class-incremental training takes only at their defaults."""


@dataclass(frozen=True)
class Step:
    """One step: what it trains on, and where it writes.

    Attributes:
        config: The experiment's.
        data: The data set with all classes.
        seed: Of weights, order and crops.
        folder: Of this step.
        identity: Fingerprint of everything that its network depends on.
        known: Classes before the step.
        total: Classes after it.
        examples: All images of the new classes, and those of the memory.
    """

    config: Config
    data: Dataset
    seed: int
    folder: Path
    identity: str
    known: int
    total: int
    examples: Examples

    @property
    def counts(self) -> list[int]:
        """Examples of each class."""
        return list(np.bincount(self.examples.labels, minlength=self.total))

    def make(self) -> keras.Model:
        """Return a fresh network of all classes so far, as it trains."""
        # the whitening of a convnet is of the images that it is made with: of those of this step
        narrow = replace(self.data, class_names=self.data.class_names[: self.total], train=self.examples)
        network = with_fused_batch_norm(build_network(self.config.student, narrow))
        return models.with_precision(network, self.config.training.precision)

    def train(self, model: Distiller, name: str, **changes: Any) -> float:
        """Train through one phase, going on from its checkpoint; return the seconds.

        Args:
            model: What to train.
            name: Of the phase.
            changes: Fields of the recipe that are other ones in this phase.
        """
        recipe = replace(self.config.training, **changes)
        training = Training(
            model,
            TrainingBatches(self.examples, recipe, self.config.augment, seed=self.seed),
            examples=len(self.examples),
            config=recipe,
            folder=make_folder(self.folder / name),
            fingerprint=self.identity,
            tensorboard=self.folder / "tensorboard" / name,
            title=f"{self.total} classes, {name}",
        )
        return sum(entry["seconds"] for entry in training.run())


def _learn(step: Step, method: Method, old: keras.Model | None) -> tuple[keras.Model, float, keras.Model | None]:
    """Train the network of a step; return it, the seconds, and the joint network where there is one."""
    config, chosen = step.config.training, step.config.incremental
    both = config.epochs + chosen.compression_epochs
    kept = {"known_weight": chosen.known_weight, "temperature": chosen.temperature}
    if old is None:
        model = Distiller(step.make())
        seconds = step.train(model, "plain")
    elif method == "finetune":
        model = foster.fine_tuning(old, step.make)
        seconds = step.train(model, "finetune", epochs=both)
    elif method == "kd":
        model = foster.distillation(old, step.make, **kept)
        seconds = step.train(model, "kd", epochs=both)
    else:
        model, joint = foster.boosting(old, step.make, step.counts, beta=chosen.boosting_beta, **kept)
        seconds = step.train(model, "boosting")
        options = {"beta": chosen.compression_beta, "temperature": chosen.temperature}
        model = foster.compression(old, joint, step.make, step.counts, **options)
        # without weight decay, as the authors have it
        seconds += step.train(model, "compression", epochs=chosen.compression_epochs, weight_decay=0.0)
        return model.student, seconds, joint
    return model.student, seconds, None


def check(config: Config) -> None:
    """Refuse an experiment that cannot be class-incremental, in one line.

    Raises:
        UserError: It has no steps or more than classes, a teacher or other losses, or a field that steps do not take.
    """
    steps, classes = config.incremental.steps, dataset(config.data).num_classes
    if not steps:
        raise UserError("the experiment has no steps; set --incremental.steps 5, or choose --experiment cifar10_foster")
    if steps > classes:
        raise UserError(f"incremental.steps must be at most the number of classes, {classes}, got {steps}")
    if config.needs_teacher:
        raise UserError(
            "class-incremental training has no teacher but its own earlier network; switch off losses, "
            "overlay.probability and features.epochs, as cifar10_foster does"
        )
    losses = [f"losses.{name}.weight" for name in config.losses.active()]
    if losses:
        raise UserError(f"class-incremental training has losses of its own; set {losses[0]} to 0")
    given, unset = to_mapping(config), to_mapping(Config())
    changed = [name for name in PLAIN if value_at(given, name) != value_at(unset, name)]
    if changed:
        default = value_at(unset, changed[0])
        raise UserError(f"class-incremental training needs {changed[0]} at its default {default}")
    foster.front_of(build_network(config.student, dataset(config.data)), "front")


def run_method(
    config: Config, method: Method, root: Path, seed: int, *, experiment: str, smoke: bool, command: str
) -> list[dict[str, Any]]:
    """Train a method through all steps, going on after the last finished one, and write its rows.

    Args:
        config: The experiment's, with a precision that is decided.
        method: How a step learns.
        root: Folder of all methods of this experiment and seed.
        seed: Of weights, order and crops.
        experiment: Its name, for the rows.
        smoke: Whether it was shrunk.
        command: That repeats it.

    Returns:
        A row for each step, which `root/METHOD/rows.csv` has too.

    Raises:
        UserError: The experiment does not fit, or a folder holds a step of other settings.
    """
    check(config)
    data, every = dataset(config.data), training_examples(config.data)
    parts = np.array_split(np.arange(data.num_classes), config.incremental.steps)
    common = {"experiment": experiment, "arm": method, "seed": seed, "smoke": smoke, "config": fingerprint(config)}
    old, known, rows = None, 0, []
    memory: dict[str, list[str]] = {}
    for number, part in enumerate(parts, 1):
        folder = root / (FIRST if number == 1 else f"{method}/step_{number}")
        total = known + len(part)
        examples = _of_step(every, range(known, total), memory)
        identity = _identity(config, method, seed, number)
        step = Step(config, data, seed, folder, identity, known, total, examples)
        with locked(folder, wait=True):
            found = _finish(step, method, old, memory, command)
        old = models.load_own_classifier(folder / STUDENT_FILE, num_classes=total, input_shape=data.image_shape)
        memory = found["memory"]
        rows.append(common | {"step": number} | found["row"])
        known = total
    write_text(make_folder(root / method) / ROWS, as_csv(rows))
    return rows


def _of_step(examples: Examples, classes: range, memory: dict[str, list[str]]) -> Examples:
    """Return all examples of new classes and those that the memory has of the others, sorted by id."""
    kept = np.array([one for ids in memory.values() for one in ids], examples.ids.dtype)
    return examples.take(np.isin(examples.labels, [*classes]) | np.isin(examples.ids, kept))


def _identity(config: Config, method: Method, seed: int, number: int) -> str:
    """Return the fingerprint of a step; the first one is that of all methods."""
    chosen = config.incremental if number > 1 else (config.incremental.steps, config.incremental.memory)
    data = [dataset(config.data).training_fingerprint, *training_choice(config.data)]
    network = network_values(config.student, dataset(config.data))
    parts = [network, config.training, config.augment, chosen]
    if config.student.model == "convnet":
        parts.append("whitened by the step's images")  # those of all classes in earlier versions
    return fingerprint("incremental", method if number > 1 else FIRST, number, seed, *data, *parts)


def _finish(
    step: Step, method: Method, old: keras.Model | None, memory: dict[str, list[str]], command: str
) -> dict[str, Any]:
    """Return the manifest of a step, which is trained first where it is not finished."""
    manifest = finished(step.folder, step.identity)
    if manifest is not None:
        _remove_checkpoints(step.folder)  # a kill right after the manifest leaves them
        if manifest.get("data", step.data.fingerprint) != step.data.fingerprint:  # its row is of other pictures
            raise UserError(f"{step.folder} was measured on other test pictures; choose another --workdir")
        console.status(f"already done: {step.folder}")
        return manifest
    if read_manifest(step.folder) is not None:
        raise UserError(f"{step.folder} holds a step of other settings; choose another --workdir")
    console.say(f"{method}: {step.total} classes, {len(step.examples):,} images")
    keras.utils.set_random_seed(step.seed)
    trained, seconds, joint = _learn(step, method, old)
    network = with_stock_batch_norm(models.with_precision(trained, "float32"))
    with atomic(step.folder / STUDENT_FILE) as temporary:
        network.save(temporary)
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": step.total,
        "n_train": len(step.examples),
        "n_memory": sum(map(len, memory.values())),
        "train_fraction": step.config.data.train_fraction,
        "train_seconds": round(seconds, 1),
        **_accuracies(network, step),
        "joint_accuracy": "" if joint is None else _accuracies(joint, step)["student_accuracy"],
        **origin(command),
    }
    files = {STUDENT_FILE: checksum(step.folder / STUDENT_FILE)}
    about = {"memory": _remember(network, step, memory), "data": step.data.fingerprint}
    write_manifest(step.folder, step.identity, files=files, row=row, **about)
    _remove_checkpoints(step.folder)
    return read_manifest(step.folder) or {}


def _remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of the phases of a finished step."""
    for path in folder.glob("*/"):
        checkpoint.remove(path)


def _accuracies(network: keras.Model, step: Step) -> dict[str, Any]:
    """Return the accuracies on the test images of all classes so far, of those known before, and of the new ones."""
    test = step.data.test.take(step.data.test.labels < step.total)
    logits, new = predict_logits(network, test.images), test.labels >= step.known
    return {
        "n_test": len(test),
        "student_accuracy": accuracy(logits, test.labels),
        "known_accuracy": accuracy(logits[~new], test.labels[~new]) if step.known else "",
        "new_accuracy": accuracy(logits[new], test.labels[new]),
    }


def _remember(network: keras.Model, step: Step, memory: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the ids to keep of each class: the first of those kept before, and herded ones of the new classes."""
    share, front = step.config.incremental.memory // step.total, foster.front_of(network, "front")
    kept = {label: ids[:share] for label, ids in memory.items()}
    for label in range(step.known, step.total):
        own = step.examples.take(step.examples.labels == label)
        chosen: list[int] = []  # a small part of the data may lack a class
        if len(own):
            chosen = list(foster.herded(predict_logits(front, own.images), share))
        kept[str(label)] = [str(own.ids[index]) for index in chosen]
    return kept


def finished_rows(root: Path, config: Config, seed: int) -> tuple[dict[str, list[dict[str, str]]], list[Method]]:
    """Return the rows of each method that has been through all steps in a folder, and the methods that are left out.

    The methods of one table have the same memory and as many epochs, so those of other settings or data have no rows.

    Args:
        root: Folder of all methods.
        config: Settings of the table, with a precision that is decided.
        seed: Of the table.

    Raises:
        UserError: a file of rows is no table, or a manifest is damaged.
    """
    found = {method: rows for method in METHODS if (rows := read_rows(root / method / ROWS))}
    number, data = config.incremental.steps, dataset(config.data).fingerprint
    others = []
    for method in found:
        manifest = read_manifest(root / f"{method}/step_{number}") or {}
        identity = _identity(config, method, seed, number)
        if (manifest.get("fingerprint"), manifest.get("data", data)) != (identity, data):
            others.append(method)
    return {method: rows for method, rows in found.items() if method not in others}, others


def table(rows: dict[str, list[dict[str, str]]]) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the accuracies over the steps, in percent; the last column is their mean."""
    header, lines = ["method"], []
    for method, steps in rows.items():
        scores = [100 * float(row["student_accuracy"]) for row in steps]
        header = ["method", *(f"{row['classes']} classes" for row in steps), "mean"]
        lines.append([method, *(f"{score:.2f}" for score in [*scores, float(np.mean(scores))])])
    return header, lines
