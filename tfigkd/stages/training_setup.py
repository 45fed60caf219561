"""What a student is and what it learns from: its network, its losses, and the batches with what the teacher knows."""

from contextlib import AbstractContextManager
from dataclasses import asdict

import keras
import numpy as np

from tfigkd import models
from tfigkd.batches.controls import apply_control, shuffle_views
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config
from tfigkd.data import Dataset, Examples
from tfigkd.data.knowledge import StoredAttention, TeacherTargets
from tfigkd.losses import LOSSES, Loss
from tfigkd.losses.osakd import EXAMPLE
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.models.taps import cut_at, frozen
from tfigkd.runtime.errors import UserError
from tfigkd.stages.data import (
    class_weights,
    dataset,
    training_examples,
)
from tfigkd.stages.networks import build_network, require_trainable
from tfigkd.stages.overlays import load_knowledge, load_views
from tfigkd.stages.posteriors import load_posteriors
from tfigkd.stages.teacher import build_teacher, load_teacher
from tfigkd.stages.workdir import Workdir
from tfigkd.training.devices import check_losses, device_count, epoch_sizes
from tfigkd.training.distiller import Distiller


def reparameterized(student: keras.Model, config: Config) -> keras.Model:
    """Return a student whose kernels are trained by other variables, where the recipe asks for it."""
    return models.with_chain(models.with_power(student, config.training.power), config.training.chain)


def trainable_student(student: keras.Model, config: Config) -> keras.Model:
    """Return a student as it is trained: fused layers, reparameterized kernels, its precision and coded features."""
    student = models.with_precision(reparameterized(with_fused_batch_norm(student), config), config.training.precision)
    return models.with_code(student, config.code.weight, config.code.step)


def trained_part(config: Config, student: keras.Model, phase: str) -> AbstractContextManager:
    """Return a context in which what a phase of `[features]` trains is all that trains.

    Raises:
        UserError: the student has no such layer.
    """
    try:
        front, behind = cut_at(student, config.features.student_layer)
    except ValueError as error:
        raise UserError(f"features.student_layer: {error}") from error
    return frozen(front if phase == "head" else behind)


def live_teacher(teacher: keras.Model, config: Config) -> keras.Model:
    """Return a teacher as it runs in every step; folded, unless a loss looks at its weights."""
    pruned = config.losses.r2kd.weight > 0 and config.losses.r2kd.pruned > 0
    if not config.losses.use("weights") and not pruned:  # folding changes them
        teacher = models.fold_batch_norm(teacher)
    return models.with_precision(teacher, config.training.precision)


def cut_from(teacher: keras.Model, config: Config, data: Dataset) -> keras.Model:
    """Return a student that begins as the first blocks of a teacher."""
    options = {"copy_weights": True, "keep_normalization": True}
    try:
        return models.truncate(teacher, config.student.drop_blocks, data.num_classes, **options)
    except ValueError as error:
        raise UserError(f"student.init = teacher: {error}") from error


def untrained_student(config: Config, data: Dataset, teacher: keras.Model | None = None) -> keras.Model:
    """Return a student of the architecture of a config, for checks before anything is trained.

    Args:
        config: The run's.
        data: Its data set.
        teacher: From `build_teacher`, where it is there already; needed only for `student.init = "teacher"`.
    """
    if config.student.init != "teacher":
        return build_network(config.student, data)
    return cut_from(build_teacher(config, data) if teacher is None else teacher, config, data)


def losses_of(config: Config) -> tuple[dict[str, Loss], dict[str, float]]:
    """Return the terms of a config: name to loss, name to weight."""
    terms, weights = {}, {}
    for name, term in config.losses.active().items():
        options = asdict(term)
        weights[name] = options.pop("weight")
        if name == "e2kd":
            options["shuffled"] = config.control.maps == "shuffled"
        if name == "bkd":
            classes = dataset(config.data).num_classes
            options["counts"] = np.bincount(training_examples(config.data).labels, minlength=classes)
        terms[name] = LOSSES[name](**options)
    return terms, weights


def make_distiller(config: Config, workdir: Workdir, student: keras.Model) -> Distiller:
    """Return `distiller_with` the run's own teacher, where one runs in every step."""
    teacher = live_teacher(load_teacher(config, workdir), config) if config.needs_live_teacher else None
    return distiller_with(config, student, teacher)


def distiller_with(config: Config, student: keras.Model, teacher: keras.Model | None) -> Distiller:
    """Return a Distiller of the student with the losses of a config and this live teacher, or none."""
    require_trainable(student, f"the student {config.student.model}")
    terms, weights = losses_of(config)
    recipe, finetune_from = config.training, None
    if recipe.finetune_epochs:
        count = len(training_examples(config.data))
        steps = len(epoch_sizes(count, recipe))
        finetune_from = (recipe.epochs - recipe.finetune_epochs) * steps
    check_losses(terms, recipe.devices)
    try:
        return Distiller(
            student,
            losses=terms,
            loss_weights=weights,
            hard_weight=config.training.hard_weight,
            teacher=teacher,
            label_smoothing=config.training.label_smoothing,
            finetune_from=finetune_from,
            l1=config.training.l1,
        )
    except ValueError as error:
        raise UserError(f"losses: {error}") from error


def _wanted(config: Config) -> set[str]:
    """Return what the losses compare beside the outputs of both networks."""
    wanted = {"teacher_map"} if config.losses.use("map") else set()
    if config.needs_live_teacher:
        wanted.add("teacher_inputs")
    if config.losses.osakd.weight and config.losses.osakd.space == "student":
        wanted.add(EXAMPLE)
    return wanted


def _stored(config: Config, workdir: Workdir, examples: Examples) -> TeacherTargets:
    """Return what the stores have of the teacher for the losses of a config, as its control gives it."""
    knowledge = views = attention = posteriors = None
    if config.needs_store:
        knowledge = apply_control(load_knowledge(config, workdir, examples), config.control)
    if config.needs_views:
        views = shuffle_views(load_views(config, workdir, examples), config.control)
    if config.needs_attention:
        tap = config.losses.at.teacher_layer
        attention = StoredAttention(tap, load_views(config, workdir, examples, tap))
    if config.losses.osakd.weight and config.losses.osakd.space == "teacher":
        posteriors = shuffle_views(load_posteriors(config, workdir, examples), config.control)[:]
    return TeacherTargets(knowledge, views, attention, posteriors)


def training_stream(config: Config, workdir: Workdir) -> TrainingBatches:
    """Return the batches of a student, with all that its losses compare."""
    examples, data = training_examples(config.data), dataset(config.data)
    return TrainingBatches(
        examples,
        config.training,
        config.augment,
        seed=workdir.seed,
        targets=_stored(config, workdir, examples),
        overlay=config.overlay,
        view=config.view,
        control=config.control,
        wanted=_wanted(config),
        num_classes=data.num_classes,
        class_weights=class_weights(config.training, examples, data.class_names),
        devices=device_count(config.training.devices),
    )
