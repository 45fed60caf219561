"""Checks before the first step of what would otherwise fail, or be reported, only at the end."""

from collections.abc import Collection

import keras

from tfigkd import models
from tfigkd.compress.methods import check_compressible, check_fine_tuning
from tfigkd.config.experiment import Config, early_phases, fine_tuning
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data.grid import check_grid
from tfigkd.data.top_logits import MOST_CLASSES
from tfigkd.edge.convert import OperationError, check_convertible
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.graph import flatten_layers
from tfigkd.report.verdict import Remark, few_images, sizes
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import counted, percent
from tfigkd.stages.data import class_weights, dataset, holds_out_validation, training_examples
from tfigkd.stages.networks import build_network, require_trainable
from tfigkd.stages.teacher import build_teacher, members, teacher_examples
from tfigkd.stages.training_setup import distiller_with, reparameterized, trained_part, untrained_student
from tfigkd.training.devices import check_devices, epoch_sizes

GOOD_ACCURACY = 0.97
"""The accuracy for which the width of an interval is stated before any accuracy is known."""
INITIAL_SHARE = 0.05
"""Share of the initial values in the averages of batch normalization above which inference is not what training saw."""


def early_remarks(config: Config) -> list[Remark]:
    """Return what is wrong with the sizes of networks and splits of a config, before anything is trained."""
    data, found = dataset(config.data), long_warmup(config.training, "training")
    if config.needs_teacher and config.teacher.trained:
        found += long_warmup(config.teacher.training, "teacher.training")
    compared = config.needs_teacher and config.student.init != "teacher"  # else it has the teacher's own blocks
    averaged = config.training.ema or config.training.lookahead  # statistics are then computed anew
    fresh = config.student.own_file and config.student.init == "random" and not averaged
    student = build_network(config.student, data) if compared or fresh else None
    if fresh:
        steps = len(epoch_sizes(len(training_examples(config.data)), config.training))
        found += slow_averages(student, config.training.epochs * steps)
    if compared:
        networks = {"teacher": build_teacher(config, data), "student": student}
        found += sizes(
            {
                role: {"parameters": count_parameters(model), "multiply_adds": multiply_adds(model)}
                for role, model in networks.items()
            }
        )
    found += few_images("test", len(data.test), GOOD_ACCURACY)
    held_out = len(data.validation) if holds_out_validation(config.data) else 0
    return found + few_images("validation", held_out, GOOD_ACCURACY)


def long_warmup(training: TrainingConfig, table: str) -> list[Remark]:
    """Return what is wrong with the warm-up of a training that ends before it.

    Args:
        training: The recipe.
        table: Its place in the config, such as `teacher.training`.
    """
    if training.warmup_epochs < training.epochs:
        return []
    text = (
        f"{table}.warmup_epochs = {training.warmup_epochs:g} is no shorter than the training of "
        f"{counted(training.epochs, 'epoch')}: the learning rate never reaches {training.learning_rate:g}."
    )
    return [Remark("long warm-up", text, f"--{table}.warmup_epochs, --{table}.epochs")]


def slow_averages(student: keras.Model, steps: int) -> list[Remark]:
    """Return what is wrong with the moving averages of a student with fresh weights.

    Args:
        student: With or without batch normalization.
        steps: Of its training.
    """
    norms = [layer for layer in flatten_layers(student) if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = max((layer.momentum for layer in norms if layer.trainable), default=0.0)
    if momentum**steps <= INITIAL_SHARE:
        return []
    text = (
        f"Batch normalization of the student has momentum {momentum:g}: after {steps:,} steps "
        f"{percent(momentum**steps)} of its averages are still the initial ones."
    )
    return [
        Remark("slow averages", text, "--training.ema 0.99, which computes them anew; or momentum=0.9 in the model")
    ]


def check_crops(config: Config) -> None:
    """Refuse crops that would miss the images."""
    height, width = dataset(config.data).image_shape[:2]
    if config.augment.crop_padding > min(height, width):
        raise UserError(
            f"augment.crop_padding must be at most the size of the images ({width}x{height}), else many crops are "
            f"empty, got {config.augment.crop_padding}; usual is an eighth of the size"
        )


def check_networks(config: Config) -> None:
    """Put the networks and losses of a config together, untrained, so that what cannot work fails before hours of work.

    Raises:
        UserError: a loss cannot be had with these networks, or a model does not fit the data or has nothing to train.
    """
    data = dataset(config.data)
    height, width = data.image_shape[:2]
    check_grid(config.attribution.grid, (height, width))
    if (config.view.top_logits or 0) > data.num_classes:
        raise UserError(
            f"view.top_logits must be at most the {data.num_classes} classes, got {config.view.top_logits}; leave it "
            "out to store all logits"
        )
    if config.view.top_logits and data.num_classes > MOST_CLASSES:
        raise UserError(
            f"view.top_logits stores at most {MOST_CLASSES:,} classes, the data have {data.num_classes:,}; leave it "
            "out to store all logits"
        )
    class_weights(config.training, training_examples(config.data), data.class_names)
    taught = teacher_examples(members(config)[0])
    class_weights(config.teacher.training, taught, data.class_names, "teacher.training")
    check_devices(config.training, len(training_examples(config.data)))
    if config.teacher.trained:
        check_devices(config.teacher.training, len(taught), "teacher.training")
    teacher = build_teacher(config, data)
    if config.teacher.trained:
        require_trainable(teacher, f"the teacher {config.teacher.model}")
    student = reparameterized(untrained_student(config, data, teacher), config)
    student = models.with_code(student, config.code.weight, config.code.step)
    for name, phase in early_phases(config).items():
        with trained_part(config, student, name):
            distiller_with(phase, student, teacher)
    distiller_with(config, student, teacher)


def check_compress_and_export(config: Config, stages: Collection[str]) -> None:
    """Check that the untrained student can be compressed and exported as a config asks.

    Whether a file is near enough to its model depends on the trained weights and is known only afterwards. The
    networks of this package convert to every format; only a user's own network is tried.

    Args:
        config: The run's.
        stages: Those that will run.

    Raises:
        UserError: the method does not support the student, or LiteRT lacks one of its operations.
    """
    compresses = "compress" in stages and config.compress.method != "none"
    network = config.teacher if config.student.init == "teacher" else config.student
    converts = "export" in stages and (network.own_file or network.application)
    if not (compresses or converts):
        return
    data = dataset(config.data)
    student = with_stock_batch_norm(untrained_student(config, data))
    if compresses:
        check_compressible(student, config.compress)
        own = config.compress.teacher == "student"
        teacher = fold_batch_norm(student) if own else build_teacher(config, data)
        distiller = distiller_with(fine_tuning(config), student, teacher)
        check_fine_tuning(config.compress, distiller.distillation_losses.values())
    if converts:
        try:
            check_convertible(student, config.export.formats)
        except OperationError as error:
            raise UserError(f"the student {network.model}: {error}; choose other --export.formats") from error
