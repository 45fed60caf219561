"""Stage `teacher`: train it once, or take it from weights, a .keras file or saved_models; arms and seeds share it."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfigkd import models
from tfigkd.attribution import make_baseline
from tfigkd.attribution.examples import baseline_color
from tfigkd.batches.stream import TrainingBatches, evens_out
from tfigkd.config.experiment import Config, experiments_folder
from tfigkd.data import Dataset, Examples, to_model_input
from tfigkd.data.spaces import RANGES, UNIT
from tfigkd.measure.chance import (
    ORDER_GAIN,
    examples_of_each_class,
    near_chance,
    probe_examples,
    suggest_fix,
    suggest_order,
)
from tfigkd.measure.metrics import accuracy, balanced_accuracy, predict_logits
from tfigkd.models.batch_norm import with_fused_batch_norm, with_stock_batch_norm
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console, hosts
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, atomic, checksum, finished, locked, write_manifest, write_text
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.text import percent
from tfigkd.stages.compatibility import data_fingerprints, first_known
from tfigkd.stages.data import (
    all_training_examples,
    class_weights,
    dataset,
    holds_out_validation,
    shard,
    teacher_choice,
)
from tfigkd.stages.networks import build_network, network_values, weights_path, whiten
from tfigkd.stages.workdir import HISTORY, TEACHER_FILE, Workdir, written_reading
from tfigkd.training import checkpoint
from tfigkd.training.devices import device_count, on_devices
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
from tfigkd.training.tensorboard import Watched

SEEDS = 2**32  # students have the seeds below it


def build_teacher(config: Config, data: Dataset) -> keras.Model:
    """Return the teacher of a config before its training; several are one model."""
    networks = [build_network(config.teacher, data) for _ in range(config.teacher.count)]
    return networks[0] if len(networks) == 1 else _joined(networks, config)


def _joined(networks: Sequence[keras.Model], config: Config) -> keras.Model:
    """Return several teachers as one model, which sees no labels."""
    return models.ensemble(networks, weighting=_weighting(config))


def _weighting(config: Config) -> Literal["mean", "confidence"]:
    return "confidence" if config.teacher.weighting == "confidence" else "mean"


def teacher_examples(config: Config) -> Examples:
    """Return what the teacher of a config is trained on: all that may train, as several teachers are, or its part."""
    teacher, examples = config.teacher, all_training_examples(config.data)
    return examples if teacher.count > 1 else shard(examples, teacher.shards, teacher.seed % teacher.shards)


def members(config: Config) -> list[Config]:
    """Return a config for each of several teachers; each is a teacher in its own right, that other runs may share."""
    teacher = config.teacher
    seeds = range(teacher.seed, teacher.seed + teacher.count)
    return [replace(config, teacher=replace(teacher, count=1, seed=seed)) for seed in seeds]


def teacher_fingerprint(config: Config, data: str | None = None) -> str:
    """Return the hash of everything the teacher's weights depend on.

    Args:
        config: The run's.
        data: One of `data_fingerprints`; None is the first, today's.
    """
    teacher, data = config.teacher, data or data_fingerprints(config.data)[0]
    if teacher.count > 1:
        each = [teacher_fingerprint(member, data) for member in members(config)]
        return fingerprint("teachers", _weighting(config), each)
    network = network_values(teacher, dataset(config.data))
    published = checksum(weights_path(teacher.weights)) if teacher.weights else None
    recipe = [teacher.training, _draws(config), config.augment, config.data.train_split] if teacher.trained else []
    recipe += teacher_choice(config.data) if teacher.trained else []
    if teacher.shards > 1:
        recipe.append(["shard", teacher.seed % teacher.shards, teacher.shards])
    if teacher.trained and evens_out(len(teacher_examples(config)), teacher.training.batch_size):
        recipe.append("even batches")
    return fingerprint("teacher", data, network, published, *recipe)


def _draws(config: Config) -> int:
    """Return the seed of the order and crops that a teacher trains on: never that of a student or of stored views."""
    return config.teacher.seed + SEEDS


def teacher_folder(config: Config, workdir: Workdir) -> Path:
    """Return where this config's teacher lies, or will lie."""
    folders = [workdir.teachers / teacher_fingerprint(config, data) for data in data_fingerprints(config.data)]
    return first_known(folders, Path.is_dir)


def require_teacher(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Return the manifest of a finished teacher stage.

    Raises:
        UserError: the stage has not run, or its file is damaged.
    """
    folder = teacher_folder(config, workdir)
    manifest = finished(folder, folder.name)
    if manifest is None:
        raise UserError(f"stage 'teacher' has not run for this config (no {folder / MANIFEST}); add it to --stages")
    return manifest


def load_teacher(config: Config, workdir: Workdir) -> keras.Model:
    """Return the teacher of a finished teacher stage, frozen.

    Raises:
        UserError: the stage has not run, or its file is damaged.
    """
    require_teacher(config, workdir)
    model = open_teacher(teacher_folder(config, workdir) / TEACHER_FILE, dataset(config.data))
    model.trainable = False
    return model


def open_teacher(path: Path, data: Dataset) -> keras.Model:
    """Return the teacher of a file that this package wrote, for images and classes of a data set.

    Raises:
        UserError: The file is damaged or does not fit.
    """
    return models.load_own_classifier(path, num_classes=data.num_classes, input_shape=data.image_shape)


def _train_members(config: Config, workdir: Workdir) -> keras.Model:
    """Train several teachers, as far as they are not there, and return them as one model."""
    networks = []
    for member in members(config):
        console.status(f"teacher of seed {member.teacher.seed}")
        train_teacher(member, workdir)
        hosts.meet("the end of a teacher")
        networks.append(load_teacher(member, workdir))
    return with_stock_batch_norm(_joined(networks, config))


def watched(config: Config) -> Watched:
    """Return what TensorBoard shows of a training with this config: validation, and maps from its baseline."""
    data = dataset(config.data)
    plain = Watched(data.validation, holds_out_validation(config.data), data.class_names, config.tensorboard)
    images = to_model_input(plain.shown.images[:])
    color = baseline_color(config.attribution, data.train)
    return replace(plain, baseline=make_baseline(config.attribution.baseline, images, mean_color=color))


def _train(config: Config, data: Dataset, folder: Path) -> tuple[keras.Model, list]:
    recipe = config.teacher.training
    keras.utils.set_random_seed(config.teacher.seed)
    model = with_fused_batch_norm(build_network(config.teacher, data))
    model = models.with_precision(model, recipe.precision)
    examples = teacher_examples(config)
    if config.teacher.shards > 1:  # nor does the stem see other images
        whiten(model, examples, config.teacher.own_shape(data.image_shape))
    stream = TrainingBatches(
        examples,
        recipe,
        config.augment,
        seed=_draws(config),
        num_classes=data.num_classes,
        class_weights=class_weights(recipe, examples, data.class_names),
        devices=device_count(recipe.devices),
    )
    training = Training(
        Distiller(model, label_smoothing=recipe.label_smoothing, hard_weight=recipe.hard_weight),
        stream,
        examples=len(examples),
        config=recipe,
        folder=folder,
        fingerprint=folder.name,
        tensorboard=folder / "tensorboard",
        title="teacher",
        validation=data.validation if holds_out_validation(config.data) else None,
        watched=watched(config),
    )
    return model, training.run()


def saved_teacher(config: Config) -> Path | None:
    """Return the file of this config's teacher in the checkout's saved_models/teachers, None if it is not there."""
    names = [teacher_fingerprint(config, data) for data in data_fingerprints(config.data)]
    for folder in sorted((experiments_folder().parent / "saved_models/teachers").glob("*/")):
        if any(finished(folder, name) for name in names):
            return folder / TEACHER_FILE
    return None


def _check_given(config: Config, data: Dataset, model: keras.Model) -> None:
    """Refuse a given teacher that is no better than guessing, or clearly better with another range or class order.

    Raises:
        UserError: It is, and `teacher.accept_chance` is not set.
    """
    teacher, examples = config.teacher, probe_examples(data)
    logits = predict_logits(model, examples.images)
    what = teacher.weights or teacher.model
    shown = models.input_range_of(teacher.model) if teacher.own_file else None
    low, high = teacher.input_range or shown or UNIT
    console.status(f"taken as it is: {what}, for pixels from {low:g} to {high:g}")
    guesses = near_chance(logits, examples.labels)

    def in_range(other: tuple[float, float]) -> np.ndarray:
        return predict_logits(build_network(replace(teacher, input_range=other), data), examples.images)

    others = {}
    if teacher.own_file and not teacher.accept_chance and (guesses or teacher.input_range is None):
        ranges = [other for other in RANGES if other != (low, high)]
        others = {f"--teacher.input_range {a:g} {b:g}": partial(in_range, (a, b)) for a, b in ranges}
    fix = suggest_fix(logits, examples.labels, data.class_names, others)
    covered = len(np.unique(examples.labels)) == data.num_classes
    if fix is None and not covered and balanced_accuracy(logits, examples.labels) < 1 - ORDER_GAIN:
        more = examples_of_each_class(data)
        fix = suggest_order(predict_logits(model, more.images), more.labels, data.class_names)
    if not guesses and fix is None:
        return
    recall = 100 * balanced_accuracy(logits, examples.labels)
    score = f"{what} has a balanced accuracy of {recall:.1f} % on {len(examples)} images of {data.num_classes} classes"
    if guesses:
        score += ", about what guessing gives"
    if teacher.accept_chance:
        console.status(score)
        return
    other = "the values of its pixels (--teacher.input_range 0 255)" if others else "--teacher.normalization"
    advice = fix or f"look at {other} and at the order of its classes"
    raise UserError(f"{score}; {advice}; to use it all the same: --teacher.accept_chance")


def train_teacher(config: Config, workdir: Workdir) -> None:
    """Stage `teacher`: train, load or take over the teacher, once for all runs that share it.

    Several hosts train it together; the first one writes it.
    """
    data, folder = dataset(config.data), teacher_folder(config, workdir)
    with locked(folder, wait=True) if hosts.is_first_process() else contextlib.nullcontext():
        if hosts.from_first(finished(folder, folder.name) is not None):
            if hosts.is_first_process():
                checkpoint.remove(folder)  # a kill right after the manifest leaves them
            console.status(f"already done: {folder}")
            return
        history: list = []
        trained = config.teacher.trained
        saved = saved_teacher(config)
        if saved is not None:
            console.status(f"taken from {saved}")
            model = open_teacher(saved, data)
        elif config.teacher.count > 1:
            model = _train_members(config, workdir)
        elif trained:
            with on_devices(config.teacher.training.devices):
                network, history = _train(config, data, folder)
            model = with_stock_batch_norm(models.with_precision(network, "float32"))
        else:
            model = build_network(config.teacher, data)
            if config.teacher.weights and not config.teacher.application:
                models.load_torch_weights(model, weights_path(config.teacher.weights))
            model = with_stock_batch_norm(model)
            _check_given(config, data, model)
        if not hosts.is_first_process():
            return
        held_out = data.validation
        score = accuracy(predict_logits(model, held_out.images), held_out.labels)
        with atomic(folder / TEACHER_FILE) as temporary:
            model.save(temporary)
        files = {TEACHER_FILE: checksum(folder / TEACHER_FILE)}
        if history:
            write_text(folder / HISTORY, json.dumps(history, indent=0) + "\n")
            files[HISTORY] = checksum(folder / HISTORY)
        write_manifest(
            folder,
            folder.name,
            files=files,
            weights=weights_fingerprint(model),
            data=data.fingerprint,
            trained_here=trained and saved is None,
            taken_as_it_is=config.teacher.own_file and not trained,
            saw_validation=not (trained and holds_out_validation(config.data)),
            n_train=len(teacher_examples(config)) if trained else None,
            validation_accuracy=score,
            reading=written_reading(config.data),
        )
        checkpoint.remove(folder)
        console.status(f"validation accuracy {percent(score)}  ({folder})")
