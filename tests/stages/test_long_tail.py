"""Classes of falling size: their counts, nested draws, what they are part of, and what they leave alone."""

import numpy as np
import pytest

from tfigkd.config.experiment import Config, override, read_experiment
from tfigkd.runtime.errors import UserError
from tfigkd.stages import training_setup
from tfigkd.stages.data import all_training_examples, dataset, long_tailed, training_examples
from tfigkd.stages.distill import student_fingerprint
from tfigkd.stages.preflight import check_networks
from tfigkd.stages.teacher import build_teacher, teacher_fingerprint
from tfigkd.stages.workdir import Workdir
from tfigkd.study.plan import Options, plan, read_study

DIGITS = override(Config(), {"data.name": "digits"})
TAIL = override(DIGITS, {"data.imbalance": 8.0})


def test_the_counts_fall_by_one_factor_from_class_to_class():
    whole, tail = all_training_examples(DIGITS.data), all_training_examples(TAIL.data)
    before, after = np.bincount(whole.labels), np.bincount(tail.labels)
    assert list(after) == [round(count * 8 ** (-label / 9)) for label, count in enumerate(before)]
    assert (after[0], after[9]) == (before[0], round(before[9] / 8))
    assert list(training_examples(TAIL.data).ids) == list(tail.ids) == sorted(tail.ids)
    steeper = long_tailed(whole, 10, 20.0, 0)
    assert set(steeper.ids) < set(tail.ids) < set(whole.ids)
    assert long_tailed(whole, 10, 1.0, 0) is whole
    assert dataset(TAIL.data) is dataset(DIGITS.data)  # validation and test stay whole


def test_a_share_of_it_is_a_share_of_each_class():
    half = training_examples(override(TAIL, {"data.train_fraction": 0.5}).data)
    expected = [round(0.5 * count) for count in np.bincount(all_training_examples(TAIL.data).labels)]
    assert list(np.bincount(half.labels)) == expected


def test_teacher_and_student_are_others_and_without_imbalance_the_same(tmp_path):
    places, same = Workdir(tmp_path, tmp_path), override(DIGITS, {"data.imbalance": 1.0})
    assert teacher_fingerprint(same) == teacher_fingerprint(DIGITS) != teacher_fingerprint(TAIL)
    assert student_fingerprint(same, places) == student_fingerprint(DIGITS, places) != student_fingerprint(TAIL, places)
    other = override(TAIL, {"data.subset_seed": 1})
    assert teacher_fingerprint(other) != teacher_fingerprint(TAIL)
    assert teacher_fingerprint(override(DIGITS, {"data.subset_seed": 1})) == teacher_fingerprint(DIGITS)


def test_the_loss_counts_what_the_student_trains_on():
    small = {"data.name": "digits", "data.image_size": 24, "teacher.widths": (24, 24, 24), "data.imbalance": 8.0}
    config = override(read_experiment("cifar10_bkd")[1], small)
    check_networks(config)
    data = dataset(config.data)
    model = training_setup.distiller_with(
        config, training_setup.untrained_student(config, data), build_teacher(config, data)
    )
    assert model.distillation_losses["bkd"].counts == list(np.bincount(training_examples(config.data).labels))
    assert model.term_weights == {"hard": 0.1, "bkd": 0.9}
    off = override(config, {"losses.bkd.weight": 0.0, "losses.kd.weight": 0.9, "training.hard_weight": None})
    assert off.losses.active() == read_experiment("cifar10_kd")[1].losses.active()


def test_every_arm_of_the_study_has_the_same_data():
    configs = [job.run.config for job in plan(read_study("longtail"), Options("longtail", seeds=1))]
    assert [config.data.imbalance for config in configs] == [100.0] * 4
    assert len({repr(config.data) for config in configs}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.imbalance": 0.5}, r"data\.imbalance must be at least 1, got 0\.5"),
        ({"losses.bkd.beta": 1.0}, r"losses\.bkd\.beta must be in \[0, 1\), got 1\.0"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(DIGITS, changes)
    assert "\n" not in str(caught.value)
