"""The batches of fine-tuning: which epochs of the data each of its epochs takes, and which a resumed run sees."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from tfigkd.batches.stream import TrainingBatches
from tfigkd.compress.finetune import FineTuning, in_epochs_of
from tfigkd.compress.methods import prune
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import identify

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)


def stream() -> TrainingBatches:
    """Return batches of 8 of 20 examples, three an epoch."""
    examples = identify(PIXELS, np.arange(20) % 4)
    return TrainingBatches(examples, TrainingConfig(batch_size=8), AugmentConfig(0, False), seed=0)


def images(batches, count: int) -> list[bytes]:
    return [images.tobytes() for images, _ in itertools.islice(batches, count)]


@pytest.mark.parametrize(("steps", "epochs"), [(2, 1), (3, 1), (4, 2), (7, 3)])
def test_epochs_of_fine_tuning_follow_one_another_in_the_data(steps, epochs):
    """Each takes the first `steps` batches from an epoch of the data on, behind all that the one before has taken."""
    every = images(stream()(0), 3 * 3 * epochs)
    wanted = [batch for start in range(3) for batch in every[3 * epochs * start :][:steps]]
    assert images(in_epochs_of(stream(), steps)(0), 3 * steps) == wanted
    assert len(set(wanted)) == 3 * steps  # no batch is taken twice
    for resumed in (1, 2):
        assert images(in_epochs_of(stream(), steps)(resumed), steps) == wanted[resumed * steps :][:steps]


def test_a_function_is_a_stream_of_long_epochs():
    batches = images(in_epochs_of(lambda epoch: stream()(epoch), 2)(0), 4)
    every = images(stream()(0), 6)
    assert batches == every[:2] + every[3:5]


def test_the_cuts_of_a_run_are_counted_from_its_first_step(monkeypatch):
    """So that a run that is resumed in another process makes those that are left."""
    given = []
    monkeypatch.setattr("tfigkd.compress.methods.fine_tune", lambda *_, callbacks, **__: given.extend(callbacks))
    monkeypatch.setattr("tfigkd.compress.methods.with_fused_batch_norm", lambda student: student)
    tuning = FineTuning(lambda model: model, stream(), Path("here"), "f", Path("there"))
    prune(None, CompressConfig(method="prune", steps=30), tuning)
    assert [callback.begin for callback in given] == [0]
