"""How long a run will take, before it starts: a few steps of each kind, timed on this machine.

A run of a few minutes is estimated only from multiply-adds, since the trial steps take half a minute themselves.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import models
from tfigkd.attribution import attribute
from tfigkd.attribution.examples import attribute_examples, baseline_color
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config, early_phases
from tfigkd.config.fields import AttributionConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Dataset, Examples, to_model_input
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.models.cost import multiply_adds
from tfigkd.models.precision import on_cpu
from tfigkd.runtime.files import read_manifest
from tfigkd.stages.data import dataset, holds_out_validation, stored_examples, training_examples
from tfigkd.stages.networks import build_network
from tfigkd.stages.teacher import (
    build_teacher,
    load_teacher,
    members,
    open_teacher,
    saved_teacher,
    teacher_examples,
    teacher_folder,
)
from tfigkd.stages.training_setup import distiller_with, live_teacher, trainable_student
from tfigkd.stages.workdir import Workdir
from tfigkd.training import checkpoint
from tfigkd.training.devices import epoch_sizes
from tfigkd.training.distiller import Distiller
from tfigkd.training.speed import shortest_seconds, trial_step
from tfigkd.training.tensorboard import MAP_STEPS

# Share of the matrix-product rate that small convolutional networks reach, measured on a 2-core AVX-512 machine with
# MobileNet-V2 and fused batch normalization: training is bound by memory traffic, not by arithmetic.
TRAINING_EFFICIENCY = 0.19
GRADIENT_EFFICIENCY = 0.35
BACKWARD = 3  # forward, gradient of the input, gradient of the weights
TYPICAL_STEPS = 40  # gradient evaluations an image until the completeness error is met
MAPS = 64
"""Maps that are computed to measure their time."""
MEASURED_FROM = 180  # seconds by the rough estimate
STAGE_SECONDS = 10  # imports, conversion, writing


def matrix_rate() -> float:
    """Return the multiply-adds a second of a float32 matrix product on this machine, best of three."""
    side = 1024
    left = np.ones((side, side), np.float32)
    return side**3 / shortest_seconds([lambda: left @ left])[0]


def typical_gradients(settings: AttributionConfig) -> int:
    """Return the gradients of a map: fixed, or as many as are usual."""
    return settings.n_steps or min(TYPICAL_STEPS, settings.max_steps)


def estimate(config: Config, workdir: Workdir, stages: list[str]) -> timedelta:
    """Return the estimated time of the stages that have yet to run, on a machine that does nothing else.

    Its errors are in experiments/README.md, "Estimating time, memory and disk". Below `MEASURED_FROM` expect a factor
    of two on a CPU.
    """
    seconds = _rough_seconds(config, workdir, stages)
    if seconds >= MEASURED_FROM:
        seconds = sum(seconds_of_stages(config, workdir, stages).values())
    return timedelta(seconds=round(seconds))


def _done(workdir: Workdir, stage: str) -> bool:
    return read_manifest(workdir.stage(stage)) is not None


def _must_train_teacher(config: Config, folder: Path) -> bool:
    """Return whether the teacher is still to be trained: it is neither finished in its folder nor in saved_models."""
    return config.teacher.trained and read_manifest(folder) is None and saved_teacher(config) is None


def _rough_seconds(config: Config, workdir: Workdir, stages: list[str]) -> float:
    data, rate = dataset(config.data), matrix_rate()
    seconds = float(STAGE_SECONDS * sum(not _done(workdir, stage) for stage in stages))
    if config.needs_teacher and {"teacher", "overlays"} & {*stages}:
        folder, macs = teacher_folder(config, workdir), multiply_adds(build_teacher(config, data))
        if "teacher" in stages and _must_train_teacher(config, folder):
            epochs = config.teacher.training.epochs * config.teacher.count
            work = macs * BACKWARD * len(teacher_examples(members(config)[0])) * epochs
            seconds += work / (rate * TRAINING_EFFICIENCY)
        if "overlays" in stages and not list(folder.glob("overlays/*/manifest.json")):
            gradients = typical_gradients(config.attribution) * len(stored_examples(config.data))
            seconds += macs * 2 * gradients / (rate * GRADIENT_EFFICIENCY)
    if "distill" in stages and not _done(workdir, "distill"):
        phases = [config, *early_phases(config).values()]
        seen = sum(len(training_examples(phase.data)) * phase.training.epochs for phase in phases)
        work = multiply_adds(build_network(config.student, data)) * BACKWARD * seen
        seconds += work / (rate * TRAINING_EFFICIENCY)
    if "compress" in stages and not _done(workdir, "compress"):
        # the teacher only runs forward
        work = multiply_adds(build_network(config.student, data)) * (BACKWARD + 1)
        seconds += work * config.compress.batch_size * config.compress.steps / (rate * TRAINING_EFFICIENCY)
    return seconds


def seconds_of_stages(config: Config, workdir: Workdir, stages: list[str]) -> dict[str, float]:
    """Return the seconds of each stage on this machine, from trial steps of its networks; 0 where it is done.

    The first one reads the data, unless this process has.
    """
    begun = time.perf_counter()
    data = dataset(config.data)
    read = time.perf_counter() - begun
    seconds = {stage: 0.0 if _done(workdir, stage) else float(STAGE_SECONDS) for stage in stages}
    if any(seconds.values()):
        seconds[next(stage for stage in seconds if seconds[stage])] += read
    folder = teacher_folder(config, workdir) if config.needs_teacher else None
    if folder is not None and "teacher" in seconds and _must_train_teacher(config, folder):
        seconds["teacher"] += _with_trial(partial(_teacher_training, config, data, workdir))
    if folder is not None and "overlays" in seconds and config.needs_stored:
        seconds["overlays"] += _with_trial(partial(_stores, config, data, workdir))
    if "distill" in seconds and not _done(workdir, "distill"):
        seconds["distill"] += _with_trial(partial(_distillation, config, data, workdir))
    if "compress" in seconds and not _done(workdir, "compress"):
        seconds["compress"] += _with_trial(partial(_compression, config, data))
    if "evaluate" in seconds and not _done(workdir, "evaluate"):
        networks = [build_network(config.student, data)] + ([build_teacher(config, data)] if folder else [])
        seconds["evaluate"] += sum(_with_trial(partial(_evaluation, config, data, network)) for network in networks)
    return seconds


def _with_trial(measure: Callable[[], float]) -> float:
    """Return the seconds that a function returns and those of its trial steps: the run compiles the same ones."""
    begun = time.perf_counter()
    return measure() + time.perf_counter() - begun


def _training_seconds(
    network: keras.Model,
    step: float,
    config: Config,
    recipe: TrainingConfig,
    examples: Examples,
    epochs: int,
) -> float:
    """Return the seconds of a training: of its epochs, of validation after each, and of TensorBoard's pictures.

    Args:
        network: What is trained.
        step: Seconds of a step of it.
        config: Of the run.
        recipe: Of the training.
        examples: What trains.
        epochs: How many are left.
    """
    epoch = _epoch_seconds(step, examples, recipe, config.augment)
    validation, pictures = dataset(config.data).validation, min(config.tensorboard.pictures, epochs)
    forward = _forward_seconds(network, validation) * len(validation) if holds_out_validation(config.data) else 0.0
    shown = min(config.tensorboard.examples, len(validation))
    maps = shown * MAP_STEPS * _gradient_seconds(network, validation, shown * MAP_STEPS) if pictures else 0.0
    return epochs * (epoch + forward) + pictures * (maps + forward)


def _epoch_seconds(step: float, examples: Examples, recipe: TrainingConfig, augment: AugmentConfig) -> float:
    """Return the seconds of an epoch: its steps, and its batches, which a training on the CPU makes between them."""
    batches = TrainingBatches(examples, recipe, augment, seed=0)
    stream, count = batches(0), batches.threads
    for _ in range(count):  # those that were made before they were asked for
        next(stream)
    batch = shortest_seconds([lambda: [next(stream) for _ in range(count)]])[0] / count
    both = step + batch if on_cpu() else max(step, batch)
    return len(epoch_sizes(len(examples), recipe)) * both


def _teacher_training(config: Config, data: Dataset, workdir: Workdir) -> float:
    """Return the seconds of training the teacher, of several those that are not finished."""
    recipe, examples = config.teacher.training, teacher_examples(members(config)[0])
    folders = [teacher_folder(member, workdir) for member in members(config)]
    left = sum(recipe.epochs - checkpoint.epochs_done(one) for one in folders if read_manifest(one) is None)
    if not left:
        return 0.0
    network = models.with_precision(with_fused_batch_norm(build_network(config.teacher, data)), recipe.precision)
    (step,) = shortest_seconds([trial_step(Distiller(network), recipe)])
    return _training_seconds(build_network(config.teacher, data), step, config, recipe, examples, left)


def _stores(config: Config, data: Dataset, workdir: Workdir) -> float:
    """Return the seconds of the maps and of the stored views, whichever a training reads."""
    folder, examples = teacher_folder(config, workdir), stored_examples(config.data)
    saved = saved_teacher(config)
    if read_manifest(folder) is not None:
        teacher, known = load_teacher(config, workdir), True
    elif saved is not None:
        teacher, known = open_teacher(saved, data), True
    else:
        teacher, known = build_teacher(config, data), config.teacher.own_file and not config.teacher.trained
    seconds = 0.0
    if config.needs_store and not list(folder.glob("overlays/*/manifest.json")):
        measure = _map_seconds if known else _typical_map_seconds
        seconds += measure(teacher, examples, data, config.attribution) * len(examples)
    passes = [config.view.views] if config.needs_views else []
    if config.needs_attention:
        passes.append(1 if config.view.attention == "moved" else config.view.views)
    if len(list(folder.glob("views/*/manifest.json"))) < len(passes):
        seconds += _forward_seconds(teacher, examples) * sum(passes) * len(examples)
    return seconds


def _map_seconds(model: keras.Model, examples: Examples, data: Dataset, settings: AttributionConfig) -> float:
    """Return the seconds of a map, of which each takes as many gradients as the tolerance asks for."""
    few, color = examples.take(slice(MAPS)), baseline_color(settings, data.train)
    attribute_examples(model, few.take(slice(8)), settings, color)  # which compiles
    return shortest_seconds([lambda: attribute_examples(model, few, settings, color)], rounds=1)[0] / len(few)


def _typical_map_seconds(model: keras.Model, examples: Examples, data: Dataset, settings: AttributionConfig) -> float:
    """Return the same for a teacher that has yet to be trained, whose maps say nothing about those to come."""
    return _gradient_seconds(model, examples, settings.batch_size) * typical_gradients(settings)


def _gradient_seconds(model: keras.Model, examples: Examples, batch_size: int) -> float:
    """Return the seconds of a gradient with respect to one image."""
    few = examples.take(slice(max(1, min(batch_size // 4, len(examples)))))
    images, steps = to_model_input(few.images[:]), 8

    def run() -> Any:
        return attribute(model, images, few.labels, n_steps=steps, batch_size=batch_size)

    run()
    return shortest_seconds([run], rounds=2)[0] / (steps * len(few))


def _forward_seconds(model: keras.Model, examples: Examples) -> float:
    """Return the seconds of a forward pass of one image."""
    few = examples.take(slice(512))
    predict_logits(model, few.images)
    return shortest_seconds([lambda: predict_logits(model, few.images)], rounds=2)[0] / len(few)


def _student_step(config: Config, data: Dataset) -> float:
    """Return the seconds of a training step of the student, with the live teacher where there is one."""
    student = trainable_student(build_network(config.student, data), config)
    teacher = live_teacher(build_teacher(config, data), config) if config.needs_live_teacher else None
    count, known = config.training.batch_size, {}
    if config.needs_views or not config.needs_live_teacher:
        known["teacher_logits"] = np.zeros((count, data.num_classes), np.float32)
    if config.losses.use("map"):
        known["teacher_map"] = np.ones((count, *data.image_shape[:2]), np.float32)
    try:
        model = distiller_with(config, student, teacher)
        return shortest_seconds([trial_step(model, config.training, known)])[0]
    except ValueError:  # it reads stored features, which cost next to nothing beside the student
        return shortest_seconds([trial_step(Distiller(student), config.training)])[0]


def _distillation(config: Config, data: Dataset, workdir: Workdir) -> float:
    seconds, folder = 0.0, workdir.stage("distill")
    for name, phase in {"": config, **early_phases(config)}.items():
        left = phase.training.epochs - checkpoint.epochs_done(folder / name)
        if not left:
            continue
        step, examples = _student_step(phase, data), training_examples(phase.data)
        if phase.ledger.every:  # a gradient of each term
            entries = 1 + left * len(examples) // phase.training.batch_size // phase.ledger.every
            seconds += entries * step * (1 + len(phase.losses.active()))
        student = build_network(config.student, data)
        seconds += _training_seconds(student, step, phase, phase.training, examples, left)
    return seconds


def _compression(config: Config, data: Dataset) -> float:
    """Return the seconds of the steps in which the student is fine-tuned."""
    image = _student_step(config, data) / config.training.batch_size
    return image * config.compress.batch_size * config.compress.steps


def _evaluation(config: Config, data: Dataset, model: keras.Model) -> float:
    """Return the seconds of the metrics of one model on validation and test, with its attributions."""
    images = len(data.validation) + len(data.test)
    settings = config.evaluation
    gradients = settings.attribution_examples * TYPICAL_STEPS
    forward = _forward_seconds(model, data.test) * (images + 4 * settings.attribution_examples * settings.curve_steps)
    return forward + gradients * _gradient_seconds(model, data.test, config.attribution.batch_size)
