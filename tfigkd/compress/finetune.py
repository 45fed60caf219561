"""Fine-tuning of a compressed student: short, distilled, with the checkpoints of any training."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from tfigkd.batches.stream import Batch
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.config.fields import TrainingConfig
from tfigkd.training import checkpoint
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import fit

CHECKPOINT_STEPS = 100
"""An epoch of fine-tuning is about as long; an interruption costs one at most."""

PRUNING_SHARE = 2 / 3
PRUNING_FREQUENCY = 10

Stream = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class Lessons:
    """What fine-tuning needs beside a student and its recipe.

    Attributes:
        distiller: Gives a student its losses and teacher.
        stream: As from `training_batches`, in batches of the recipe's size.
        folder: Where checkpoints go; they are removed at the end.
        fingerprint: Of everything the weights depend on.
        tensorboard: Folder of the event files.
    """

    distiller: Callable[[keras.Model], Distiller]
    stream: Stream
    folder: Path
    fingerprint: str
    tensorboard: Path


def recipe(config: CompressConfig) -> TrainingConfig:
    """The training recipe of `config.steps` steps, in epochs of about CHECKPOINT_STEPS."""
    return TrainingConfig(
        epochs=max(1, round(config.steps / CHECKPOINT_STEPS)),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cosine",
    )


def steps_an_epoch(config: CompressConfig) -> int:
    """Steps of each epoch of the recipe."""
    return math.ceil(config.steps / recipe(config).epochs)


def pruning_times(config: CompressConfig) -> tuple[int, int]:
    """The step at which pruning has cut all it will, and the steps between two cuts, of which that is a multiple.

    The last third of the steps trains what is left.
    """
    end = max(1, round(PRUNING_SHARE * steps_an_epoch(config) * recipe(config).epochs))
    frequency = min(PRUNING_FREQUENCY, end)
    return end - end % frequency, frequency


def shortened(stream: Stream, steps: int) -> Stream:
    """The first `steps` batches of every epoch of a stream, so that a resumed run meets the same batches.

    A stream whose own epochs are shorter runs on into its next ones.
    """

    def short(epoch: int) -> Iterator[Batch]:
        for number in itertools.count(epoch):
            yield from itertools.islice(stream(number), steps)

    return short


def fine_tune(
    student: keras.Model,
    config: CompressConfig,
    lessons: Lessons,
    *,
    title: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.Model:
    """Train a student for `config.steps` steps, going on from a checkpoint where there is one.

    Args:
        student: Images to logits; its weights are those of the result.
        config: Steps and learning rate.
        lessons: What it is taught.
        title: For the progress bar.
        callbacks: Further callbacks, such as `MagnitudePruning`.

    Returns:
        The student.
    """
    steps = steps_an_epoch(config)
    fit(
        lessons.distiller(student),
        shortened(lessons.stream, steps),
        examples=steps * config.batch_size,
        config=recipe(config),
        folder=lessons.folder,
        fingerprint=lessons.fingerprint,
        tensorboard=lessons.tensorboard,
        title=title,
        callbacks=callbacks,
    )
    checkpoint.remove(lessons.folder)
    return student
