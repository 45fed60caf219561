"""A share of the training set: stratified, drawn by id, and of no effect on teacher, validation and test."""

import numpy as np
import pytest

from tfigkd.config.experiment import Config, override, read_experiment
from tfigkd.runtime.errors import UserError
from tfigkd.stages.data import (
    all_training_examples,
    dataset,
    stored_examples,
    stored_fingerprint,
    stratified_share,
    training_examples,
)
from tfigkd.stages.distill import student_fingerprint
from tfigkd.stages.networks import weights_path
from tfigkd.stages.teacher import teacher_fingerprint
from tfigkd.stages.workdir import Workdir

DIGITS = override(Config(), {"data.name": "digits"})
TENTH = override(DIGITS, {"data.train_fraction": 0.1})


def test_each_class_gives_its_share():
    whole, part = training_examples(DIGITS.data), training_examples(TENTH.data)
    expected = [round(0.1 * count) for count in np.bincount(whole.labels)]
    assert list(np.bincount(part.labels)) == expected
    assert list(part.ids) == sorted(part.ids)
    assert set(part.ids) < set(whole.ids)


def test_validation_test_and_the_teachers_examples_stay_whole():
    assert dataset(TENTH.data) is dataset(DIGITS.data)
    assert len(all_training_examples(TENTH.data)) == len(training_examples(DIGITS.data))
    assert teacher_fingerprint(TENTH) == teacher_fingerprint(DIGITS)
    everything = override(TENTH, {"data.train_split": "train+validation"})
    assert len(all_training_examples(everything.data)) > len(all_training_examples(TENTH.data))


def test_the_draw_depends_on_seed_and_id_and_on_nothing_else():
    whole = training_examples(DIGITS.data)
    part = set(stratified_share(whole, 0.2, 5).ids)
    order = np.random.default_rng(0).permutation(len(whole))
    assert set(stratified_share(whole.take(order), 0.2, 5).ids) == part
    assert set(stratified_share(whole, 0.2, 6).ids) != part
    assert part < set(stratified_share(whole, 0.5, 5).ids)
    assert stratified_share(whole, 1.0, 5) is whole


def test_a_class_is_never_left_empty():
    assert set(stratified_share(training_examples(DIGITS.data), 1e-6, 0).labels) == set(range(10))


def test_two_draws_overlap_as_chance_has_it():
    whole = training_examples(DIGITS.data)
    one, other = (set(stratified_share(whole, 0.5, seed).ids) for seed in (0, 1))
    assert 0.45 < len(one & other) / len(one) < 0.55


def test_the_students_fingerprint_follows_the_subset(tmp_path):
    workdir = Workdir(tmp_path, tmp_path)
    changes: list[dict] = [{}, {"data.train_fraction": 0.5}, {"data.train_fraction": 0.5, "data.subset_seed": 1}]
    found = [student_fingerprint(override(DIGITS, change), workdir) for change in changes]
    assert len(set(found)) == 3
    # of the whole there is nothing to draw
    assert student_fingerprint(override(DIGITS, {"data.subset_seed": 1}), workdir) == found[0]


def _stored(config: Config) -> str:
    return stored_fingerprint(config.data, dataset(config.data).training_fingerprint)


def test_a_store_covers_everything_or_what_trains():
    small = override(TENTH, {"data.stored": "training"})
    assert list(stored_examples(small.data).ids) == list(training_examples(TENTH.data).ids)
    assert len(stored_examples(TENTH.data)) == len(dataset(TENTH.data).train) + len(dataset(TENTH.data).validation)
    assert _stored(TENTH) == _stored(DIGITS)
    other = override(small, {"data.subset_seed": 3})
    assert len({_stored(config) for config in (TENTH, small, other)}) == 3


@pytest.mark.slow  # reading CIFAR-10 takes a while
def test_lowdata_trains_on_five_thousand_real_images(cifar10_dir):
    config = override(read_experiment("lowdata_kd")[1], {"data.dir": str(cifar10_dir)})
    assert list(np.bincount(training_examples(config.data).labels)) == [500] * 10


def test_weights_are_found_in_the_named_folder(tmp_path, monkeypatch):
    (tmp_path / "net.npz").write_bytes(b"")
    monkeypatch.setenv("TFIGKD_WEIGHTS_DIR", str(tmp_path))
    assert weights_path("net.npz") == tmp_path / "net.npz"
    monkeypatch.delenv("TFIGKD_WEIGHTS_DIR")
    with pytest.raises(UserError, match=r"no file net\.npz; give the path of a local file or set TFIGKD_WEIGHTS_DIR"):
        weights_path("net.npz")


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_share_is_between_nothing_and_all(fraction):
    with pytest.raises(UserError, match=r"data.train_fraction must be in \(0, 1\]"):
        override(DIGITS, {"data.train_fraction": fraction})
