"""Maps and views that stay in the shards: indexed as arrays, and the same batches as from memory."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tfigkd import models
from tfigkd.config.experiment import Config, override
from tfigkd.data.disk import pick
from tfigkd.data.stored import StoredArrays, masked
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import tfrecord
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, write_manifest
from tfigkd.stages import overlays, training_setup
from tfigkd.stages.data import dataset, stored_examples, training_examples
from tfigkd.stages.teacher import teacher_folder
from tfigkd.stages.workdir import TEACHER_FILE, Workdir

COUNT = 11
ARRAYS = np.random.default_rng(0).integers(1, 256, (COUNT, 3, 4), np.uint8)
ARMS = {
    "overlays": {"overlay.probability": 0.5, "losses.ig_match.weight": 1.0},
    "shuffled": {"overlay.probability": 0.5, "control.maps": "shuffled"},
    "noise": {"overlay.probability": 0.5, "control.maps": "noise"},
    "cells": {"overlay.probability": 0.5, "attribution.grid": 4},
    "views": {"view.kind": "views", "view.views": 3},
    "shuffled views": {"view.kind": "views", "view.views": 3, "control.logits": "shuffled"},
    "moved": {"view.attention": "moved", "losses.at.weight": 1.0},
    "attention": {"view.attention": "views", "view.kind": "views", "view.views": 3, "losses.at.weight": 1.0},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return the arrays of two files whose records are in another order."""
    folder = tmp_path_factory.mktemp("stored")
    order, files, places = np.random.default_rng(1).permutation(COUNT), [], np.empty((COUNT, 2), np.int64)
    for which, members in enumerate((order[:4], order[4:])):
        files.append(folder / f"{which}.tfrecord")
        tfrecord.write_records(files[-1], (ARRAYS[index].tobytes() for index in members))
        for index, (offset, _) in zip(members, tfrecord.read_placed(files[-1]), strict=True):
            places[index] = which, offset
    return StoredArrays(files, places, lambda raw: np.frombuffer(raw, np.uint8).reshape(3, 4))


indices = st.one_of(
    st.integers(-COUNT, COUNT - 1),
    st.slices(COUNT),
    st.lists(st.integers(-COUNT, COUNT - 1), min_size=1).map(np.array),
    st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(np.array),
)


@settings(deadline=None, max_examples=80)
@given(key=indices)
def test_they_are_indexed_as_arrays_are(stored, key):
    assert (stored.shape, stored.dtype, len(stored)) == (ARRAYS.shape, ARRAYS.dtype, COUNT)
    np.testing.assert_array_equal(stored[key], ARRAYS[key])


def test_pairs_of_indices_and_masks_and_orders(stored):
    rows, columns = np.array([3, 3, 0, 10]), np.array([0, 2, 1, 1])
    np.testing.assert_array_equal(stored[rows, columns], ARRAYS[rows, columns])
    np.testing.assert_array_equal(stored[rows, 1], ARRAYS[rows, 1])
    shown, order = np.arange(COUNT) % 3 > 0, np.random.default_rng(2).permutation(COUNT)
    for arrays in (stored, ARRAYS):
        np.testing.assert_array_equal(masked(arrays, shown)[:], np.where(shown[:, None, None], ARRAYS, 0))
        np.testing.assert_array_equal(pick(arrays, order)[:], ARRAYS[order])
        np.testing.assert_array_equal(masked(pick(arrays, order), shown)[4], ARRAYS[order[4]] * shown[4])
    np.testing.assert_array_equal(np.asarray(stored), ARRAYS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return an .npz file of digits and a workdir; one teacher serves all arms."""
    folder = tmp_path_factory.mktemp("digits")
    images = np.round(load_digits().images[:150] * 255 / 16).astype(np.uint8)
    x, y = {"train": images[:110], "test": images[110:]}, load_digits().target
    np.savez(folder / "digits.npz", x_train=x["train"], y_train=y[:110], x_test=x["test"], y_test=y[110:150])
    return folder


def arm(digits, changes, resident):
    """Return the config of an arm and its workdir, with a teacher."""
    plain = {
        "data.name": str(digits / "digits.npz"),
        "data.resident": resident,
        "augment.crop_padding": 2,
        "teacher.drop_blocks": 14,
        "teacher.width": 0.25,
        "losses.at.teacher_layer": "block_04",
        "losses.kd.weight": 0.5,
        "attribution.max_steps": 16,
        "attribution.shard_size": 40,
    }
    config, workdir = override(Config(), plain | changes), Workdir(digits / "run", digits / "teachers")
    folder = teacher_folder(config, workdir)
    if not folder.exists():
        keras.utils.set_random_seed(0)
        teacher = models.mobilenet_v2(dataset(config.data).num_classes, 14, input_shape=(8, 8, 3), width=0.25)
        folder.mkdir(parents=True)
        teacher.save(folder / TEACHER_FILE)
        write_manifest(
            folder,
            folder.name,
            files={TEACHER_FILE: checksum(folder / TEACHER_FILE)},
            weights=weights_fingerprint(teacher),
        )
    return config, workdir


@pytest.mark.parametrize("name", ARMS)
def test_batches_are_those_of_memory_bit_by_bit(digits, name):
    config, workdir = arm(digits, ARMS[name], "memory")
    overlays.store_knowledge(config, workdir)
    from_memory = itertools.islice(training_setup.training_stream(config, workdir)(0), 6)
    on_disk, _ = arm(digits, ARMS[name], "disk")
    from_disk = itertools.islice(training_setup.training_stream(on_disk, workdir)(0), 6)
    for (images, targets), (again, targets_again) in zip(from_memory, from_disk, strict=True):
        np.testing.assert_array_equal(images, again)
        assert str(targets.keys()) == str(targets_again.keys())
        for left, right in zip(keras.tree.flatten(targets), keras.tree.flatten(targets_again), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def test_maps_and_views_are_left_in_the_shards(digits):
    config, workdir = arm(digits, ARMS["attention"], "disk")
    overlays.store_knowledge(config, workdir)
    examples = training_examples(config.data)
    assert isinstance(overlays.load_views(config, workdir, examples), StoredArrays)
    assert isinstance(overlays.load_views(config, workdir, examples, "block_04"), StoredArrays)
    config, _ = arm(digits, ARMS["overlays"], "disk")
    overlays.store_knowledge(config, workdir)
    known = overlays.load_knowledge(config, workdir, examples)
    assert isinstance(known.maps, StoredArrays) and isinstance(known.logits, np.ndarray)
    in_memory, _ = arm(digits, ARMS["overlays"], "memory")
    everything = stored_examples(in_memory.data)
    np.testing.assert_array_equal(
        overlays.stored_maps(config, workdir, stored_examples(config.data)),
        overlays.load_knowledge(in_memory, workdir, everything).maps,
    )


def test_a_shard_that_is_damaged_while_it_is_read_is_one_line(digits):
    config, workdir = arm(digits, {**ARMS["overlays"], "attribution.max_steps": 8}, "disk")
    overlays.store_knowledge(config, workdir)
    known = overlays.load_knowledge(config, workdir, training_examples(config.data))
    shard = max(overlays.store_folder(config, workdir).glob("*.tfrecord"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
    with pytest.raises(UserError, match=r"record at \d+ is damaged") as caught:
        known.maps[:]
    assert "\n" not in str(caught.value)
