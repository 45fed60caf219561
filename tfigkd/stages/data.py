"""Stage `data`: find the data set of a config, state what it is, and hand it to the other stages."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfigkd.config.data_fields import Reading
from tfigkd.config.experiment import Config
from tfigkd.config.fields import DataConfig
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data import Dataset, Examples, load, train_and_validation
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError, closest
from tfigkd.runtime.files import make_folder, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages.workdir import Workdir


def dataset(config: DataConfig) -> Dataset:
    """Return the data set of a config, read once a process."""
    return _load(config.name, config.dir, config.limit, config.reading)


def forget_datasets() -> None:
    """Free the data sets that `dataset` keeps."""
    _load.cache_clear()


@functools.lru_cache(maxsize=2)
def _load(name: str, directory: str | None, limit: int | None, reading: Reading) -> Dataset:
    return load(name, reading, directory=directory, limit=limit)


def holds_out_validation(config: DataConfig) -> bool:
    """Return whether nothing is trained on the validation split."""
    return config.train_split == "train"


@functools.lru_cache(maxsize=2)
def all_training_examples(config: DataConfig) -> Examples:
    """Return all that may train, of each class a share where `data.imbalance` says so."""
    data = dataset(config)
    whole = data.train if holds_out_validation(config) else train_and_validation(data)
    return long_tailed(whole, data.num_classes, config.imbalance, config.subset_seed)


@functools.lru_cache(maxsize=2)
def training_examples(config: DataConfig) -> Examples:
    """Return what a student is trained on: all that may train, or a share of each class."""
    return stratified_share(all_training_examples(config), config.train_fraction, config.subset_seed)


def training_choice(config: DataConfig) -> list[Any]:
    """Return what decides which examples of a data set train the student, for fingerprints."""
    choice: list[Any] = [config.train_split]
    if config.train_fraction < 1:
        choice += [config.train_fraction, config.subset_seed]
    return [*choice, *teacher_choice(config)]


def teacher_choice(config: DataConfig) -> list[Any]:
    """Return what decides, beside `data.train_split`, which examples train the teacher, for fingerprints."""
    return ["imbalance", config.imbalance, config.subset_seed] if config.imbalance > 1 else []


def long_tailed(examples: Examples, num_classes: int, imbalance: float, seed: int) -> Examples:
    """Return all examples of the first class, and of class c a share of imbalance^(-c / (num_classes - 1))."""
    if imbalance <= 1:
        return examples
    return _share(examples, imbalance ** -(np.arange(num_classes) / max(num_classes - 1, 1)), seed)


def stratified_share(examples: Examples, fraction: float, seed: int) -> Examples:
    """Return a share of each class, at least one example, in the order of the examples.

    Each example's draw is a hash of (seed, id), so the share depends neither on the order of the source nor on what
    else is in it, and of one seed a smaller share is part of every larger one.
    """
    if fraction >= 1:
        return examples
    return _share(examples, np.full(examples.labels.max() + 1, fraction), seed)


def _share(examples: Examples, fractions: np.ndarray, seed: int) -> Examples:
    """Return a share of each class, at least one example; `fractions` [C] has that of each label."""
    draws = _draws(examples, f"subset {seed}")
    kept = np.zeros(len(examples), bool)
    for label in np.unique(examples.labels):
        members = np.flatnonzero(examples.labels == label)
        count = max(1, round(fractions[label] * len(members)))
        kept[members[np.argsort(draws[members], kind="stable")[:count]]] = True
    return examples.take(kept)


def _draws(examples: Examples, purpose: str) -> np.ndarray:
    """Return a draw for each example, a text by which they can be sorted."""
    return np.array([hashlib.sha256(f"{purpose} {id_}".encode()).hexdigest() for id_ in examples.ids])


def shard(examples: Examples, shards: int, which: int) -> Examples:
    """Return one of several parts of examples, which have nearly the same number of each class.

    Raises:
        UserError: A class has fewer examples than there are parts.
    """
    if shards == 1:
        return examples
    draws, kept = _draws(examples, "shard"), np.zeros(len(examples), bool)
    for label, count in zip(*np.unique(examples.labels, return_counts=True), strict=True):
        if count < shards:
            raise UserError(f"teacher.shards must be at most {count}, the training images of a class, got {shards}")
        members = np.flatnonzero(examples.labels == label)
        kept[members[np.argsort(draws[members], kind="stable")[which::shards]]] = True
    return examples.take(kept)


def class_weights(
    config: TrainingConfig, examples: Examples, class_names: Sequence[str], table: str = "training"
) -> np.ndarray | None:
    """Return the weight of each class in the loss of a training, float64 [C]; None without weights.

    Args:
        config: The recipe.
        examples: What is trained on.
        class_names: In the order of the labels.
        table: Of the recipe, for the message.

    Raises:
        UserError: The recipe names a class that does not exist.
    """
    chosen = config.class_weight
    if chosen is None:
        return None
    counts = np.bincount(examples.labels, minlength=len(class_names))
    if not isinstance(chosen, dict):
        present = counts > 0
        return np.where(present, len(examples) / (present.sum() * np.maximum(counts, 1)), 0.0)
    unknown = [name for name in chosen if name not in class_names]
    if unknown:
        raise UserError(
            f"{table}.class_weight: no class {unknown[0]!r} in the data; {closest(unknown[0], class_names)}"
        )
    return np.array([chosen.get(name, 1.0) for name in class_names])


def stored_examples(config: DataConfig) -> Examples:
    """Return what a store of the teacher's knowledge covers."""
    return train_and_validation(dataset(config)) if config.stored == "all" else training_examples(config)


def stored_fingerprint(config: DataConfig, data: str) -> str:
    """Return the fingerprint of what a store covers.

    Args:
        config: Says which part of the data is stored.
        data: The fingerprint of the whole data.
    """
    return data if config.stored == "all" else fingerprint("stored", data, *training_choice(config))


def prepare(config: Config, workdir: Workdir) -> None:
    """Stage `data`: read the examples and write down what they are."""
    data = dataset(config.data)
    counts = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    height, width, _ = data.image_shape
    console.status(
        f"{data.name}: {sizes}, {data.num_classes} classes, {width}x{height}, fingerprint {data.fingerprint}"
    )
    if config.data.imbalance > 1:
        counts_of = np.bincount(all_training_examples(config.data).labels)
        console.status(f"what trains has {counts_of.max():,} to {counts_of.min():,} examples a class")
    if config.data.train_fraction < 1:
        share = f"{100 * config.data.train_fraction:g} % of each class, subset seed {config.data.subset_seed}"
        console.status(f"the student trains on {len(training_examples(config.data)):,} examples: {share}")
    for note in data.notes:
        console.say(note if note.startswith("warning") else f"note: {note}")
    if data.test_train_overlap:
        console.say(f"  note: {data.test_train_overlap} test images are in train as well")
    write_manifest(
        make_folder(workdir.stage("data")),
        fingerprint("data", config.data, data.fingerprint),
        data=data.fingerprint,
        counts=counts,
        image_shape=list(data.image_shape),
        class_names=list(data.class_names),
        test_train_overlap=data.test_train_overlap,
        notes=list(data.notes),
    )
