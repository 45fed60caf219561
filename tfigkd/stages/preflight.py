"""Checks before the first step of what would otherwise fail, or be reported, only at the end."""

from collections.abc import Collection

import keras

from tfigkd.batches.stream import batch_sizes
from tfigkd.compress.methods import check_compressible, check_fine_tuning
from tfigkd.config.experiment import Config, fine_tuning
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.edge.convert import OperationError, check_convertible
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.graph import flatten_layers
from tfigkd.report.verdict import Remark, few_images, sizes
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import counted, percent
from tfigkd.stages.data import dataset, holds_out_validation, training_examples
from tfigkd.stages.networks import build_network
from tfigkd.stages.teacher import build_teacher
from tfigkd.stages.training_setup import distiller_with, untrained_student
from tfigkd.training.devices import device_count

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
        recipe, examples = config.training, len(training_examples(config.data))
        steps = len(batch_sizes(examples, recipe.batch_size, device_count(recipe.devices)))
        found += slow_averages(student, recipe.epochs * steps)
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


def check_ahead(config: Config, stages: Collection[str]) -> None:
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
