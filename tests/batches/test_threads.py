"""Batches that several threads make: the same ones, in the same order; what goes wrong in one of them is told."""

import itertools
import os
import threading
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tests.training.test_fit import noise
from tfigkd.batches.stream import TrainingBatches
from tfigkd.batches.threads import done_in_order
from tfigkd.config.data_fields import Reading
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import disk, load
from tfigkd.data.disk import DiskPictures
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.runtime.errors import UserError


@pytest.fixture
def examples():
    return noise(8)


@pytest.fixture
def knowledge(examples):
    count = len(examples)
    ones = np.ones(count, np.float32)
    return Knowledge(np.eye(count, 4, dtype=np.float32), examples.images[..., 0].copy(), ones, 0 * ones, ones > 0)


def batches(examples, count, *, skip=0, threads=1, **options):
    recipe = TrainingConfig(batch_size=16, batch_threads=threads, **options.pop("recipe", {}))
    stream = TrainingBatches(examples, recipe, options.pop("augment", AugmentConfig(2)), seed=2, **options)
    return list(itertools.islice(stream(0, skip=skip), count))


def equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlay": OverlayConfig(probability=0.5), "wanted": {"teacher_map", "teacher_inputs"}},
        {"augment": AugmentConfig(0, crop_area=(0.3, 1.0)), "recipe": {"mixup": 1.0, "cutmix": 1.0, "cutout": 3}},
    ],
)
def test_they_are_those_of_one_thread(examples, knowledge, options, threads):
    given = {"targets": TeacherTargets(knowledge), **options}
    equal(batches(examples, 9, **given), batches(examples, 9, threads=threads, **given))


def test_the_generator_of_randaugment_is_used_by_one_thread_at_a_time(examples):
    """Its state is set for each batch: two threads at it would give one batch the operations of the other."""
    recipe = TrainingConfig(batch_size=16, batch_threads=4, randaugment=2)
    stream = TrainingBatches(examples, recipe, AugmentConfig(2), seed=2)
    several = [list(itertools.islice(stream(0), 12)) for _ in range(3)]
    stream.threads = 1
    alone = list(itertools.islice(stream(0), 12))
    for each in several:
        equal(alone, each)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("skip", [1, 3])
def test_batches_that_are_left_out_at_the_beginning(examples, threads, skip):
    """An epoch has 3 of 17 and 16; the epoch after it is whole."""
    equal(batches(examples, 9)[skip:], batches(examples, 9 - skip, skip=skip, threads=threads))


def test_pictures_on_disk(tmp_path, monkeypatch):
    """All threads read one file; those that open it at the same time close it again, but for one."""
    images = np.random.default_rng(0).integers(0, 256, (60, 9, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=np.arange(60) % 3, x_test=images[:6], y_test=[0, 1, 2] * 2)
    data = load(str(tmp_path / "data.npz"), Reading(resident="disk"))
    assert isinstance(data.train.images, DiskPictures)
    memory = load(str(tmp_path / "data.npz"), Reading(resident="memory"))
    opening, opened = threading.Barrier(8), []

    def together(path, flags):
        opening.wait()
        opened.append(os.open(path, flags))
        return opened[-1]

    monkeypatch.setattr(disk, "os", SimpleNamespace(**{**vars(os), "open": together}))
    equal(batches(memory.train, 12), batches(data.train, 12, threads=8))
    assert len(opened) == 8
    (kept,) = data.train.images._files._open.values()
    for descriptor in opened:
        if descriptor != kept:
            with pytest.raises(OSError):
                os.fstat(descriptor)


def test_an_error_comes_at_its_place():
    def broken():
        raise UserError("the shard is damaged")

    made = done_in_order(iter([lambda: 1, lambda: 2, broken, lambda: 4]), 3)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(UserError, match="the shard is damaged"):
        next(made)


def test_few_are_made_ahead_and_none_after_the_end():
    started = []

    def tasks():
        for number in itertools.count():
            yield lambda number=number: started.append(number) or number

    before = set(threading.enumerate())  # of other tests, which may end meanwhile
    made = done_in_order(tasks(), 4)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 3 + 4
    made.close()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    assert list(done_in_order(iter([lambda: 1, lambda: 2]), 4)) == [1, 2]
