"""Fine-tuning of a compressed student: a short distillation with the usual checkpoints."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from tfigkd.batches.stream import Batch, TrainingBatches, batch_sizes
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training

CHECKPOINT_STEPS = 100
"""Approximate steps in one epoch of fine-tuning; an interruption loses at most one epoch."""

PRUNING_SHARE = 2 / 3
PRUNING_FREQUENCY = 10

Stream = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class FineTuning:
    """Inputs of fine-tuning besides a student and its recipe.

    Attributes:
        distiller: Returns a Distiller with losses and teacher for a student.
        stream: Batches of the recipe's size, as from `TrainingBatches`.
        folder: Folder of the checkpoints; `compress_student` removes them when the result is written.
        fingerprint: Identifies everything that the weights depend on.
        tensorboard: Folder of the event files.
    """

    distiller: Callable[[keras.Model], Distiller]
    stream: Stream
    folder: Path
    fingerprint: str
    tensorboard: Path


def recipe(config: CompressConfig) -> TrainingConfig:
    """Return the training recipe of `config.steps` steps, in epochs of about CHECKPOINT_STEPS."""
    return TrainingConfig(
        epochs=max(1, round(config.steps / CHECKPOINT_STEPS)),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cosine",
    )


def steps_an_epoch(config: CompressConfig) -> int:
    """Return the number of steps in each epoch of the recipe."""
    return math.ceil(config.steps / recipe(config).epochs)


def pruning_times(config: CompressConfig) -> tuple[int, int]:
    """Return the step of the last cut, and the number of steps between two cuts; the first is a multiple of the second.

    The last third of the steps trains the remaining weights.
    """
    end = max(1, round(PRUNING_SHARE * steps_an_epoch(config) * recipe(config).epochs))
    frequency = min(PRUNING_FREQUENCY, end)
    return end - end % frequency, frequency


def in_epochs_of(stream: Stream, steps: int) -> Stream:
    """Return a stream whose epochs have `steps` batches, so that a resumed run sees the same batches.

    An epoch of the result is the first `steps` batches of an epoch of the data. Where the data have fewer batches, one
    epoch of the result uses several epochs of the data, and the next one starts after these.

    Args:
        stream: From first epoch to endless batches; one that is no `TrainingBatches` has at least `steps` an epoch.
        steps: Batches of an epoch of the result.
    """
    epochs = 1
    if isinstance(stream, TrainingBatches):
        sizes = batch_sizes(len(stream.examples), stream.recipe.batch_size, stream.devices)
        epochs = math.ceil(steps / len(sizes))

    def short(epoch: int) -> Iterator[Batch]:
        for number in itertools.count(epoch):
            yield from itertools.islice(stream(number * epochs), steps)

    return short


def fine_tune(
    student: keras.Model,
    config: CompressConfig,
    tuning: FineTuning,
    *,
    title: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.Model:
    """Train a student for `config.steps` steps, starting from a checkpoint if one exists.

    Args:
        student: Images [B,H,W,C] to logits [B,K]; it is trained in place.
        config: Steps and learning rate.
        tuning: Losses, teacher, batches and folders.
        title: For the progress bar.
        callbacks: Further callbacks, such as `MagnitudePruning`.

    Returns:
        The student.
    """
    steps = steps_an_epoch(config)
    training = Training(
        tuning.distiller(student),
        in_epochs_of(tuning.stream, steps),
        examples=steps * config.batch_size,
        config=recipe(config),
        folder=tuning.folder,
        fingerprint=tuning.fingerprint,
        tensorboard=tuning.tensorboard,
        title=title,
        callbacks=callbacks,
    )
    training.run()
    return student
