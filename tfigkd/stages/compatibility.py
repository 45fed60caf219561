"""Compatibility: runs, teachers and stores of earlier versions are found under the fingerprints of those versions."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tfigkd.batches.stream import evens_out
from tfigkd.config.experiment import Config
from tfigkd.config.fields import DataConfig
from tfigkd.stages.data import dataset, training_examples

T = TypeVar("T")


def first_known(candidates: Sequence[T], exists: Callable[[T], bool]) -> T:
    """Return the first of several fingerprints under which something was written; if there is none, the first.

    Args:
        candidates: Fingerprints, folders or identities: today's, then those of earlier versions.
        exists: Whether something was written under one of them.
    """
    return next((candidate for candidate in candidates if exists(candidate)), candidates[0])


def data_fingerprints(config: DataConfig) -> tuple[str, str]:
    """Return today's fingerprint of the data that training depends on, and that of earlier versions.

    Today's is of train and validation; earlier versions took all three splits.
    """
    data = dataset(config)
    return data.training_fingerprint, data.fingerprint


def corrections(config: Config) -> list[str]:
    """Return names of faults, since corrected, that made earlier versions train another student with these settings.

    The manifest of a student holds it, so that rows from before and after are not averaged.
    """
    losses = config.losses
    maps = config.overlay.probability > 0 or losses.use("map")
    marks = {
        # earlier, the other image's map decided whether an image could carry an overlay
        "usable by its own map": config.control.maps == "shuffled" and maps,
        # earlier, an example could find itself in the queue
        "no neighbor of itself": losses.osakd.weight > 0 and losses.osakd.space == "student",
    }
    return [mark for mark, holds in marks.items() if holds]


def student_marks(config: Config, *, crops_of_views: bool) -> list[str]:
    """Return what a student's fingerprint holds of settings with which earlier versions trained other weights.

    Args:
        config: The run's.
        crops_of_views: Whether the student sees the crops of stored views without a teacher that would store them.
    """
    losses, student = config.losses, config.student
    marks = {
        "crops of the views": crops_of_views,  # earlier, a student without a teacher got other crops
        "even batches": evens_out(len(training_examples(config.data)), config.training.batch_size),
        # earlier, nothing of a frozen teacher was pruned
        "pruned teacher": bool(losses.r2kd.weight and losses.r2kd.pruned),
        # earlier, it got the head of a MobileNet
        "head of a convnet": student.init == "teacher" and config.teacher.model == "convnet",
    }
    return [*(mark for mark, holds in marks.items() if holds), *corrections(config)]
