"""The methods beside the papers', as shipped for CIFAR-10: their networks, taps and fields fit; off is the control."""

from dataclasses import replace

import pytest

from tfigkd.config.experiment import fine_tuning, override, read_experiment
from tfigkd.runtime.errors import UserError
from tfigkd.stages import distill, teacher
from tfigkd.stages.data import dataset

DIGITS = {"data.name": "digits", "data.limit": 64, "teacher.widths": (24, 24, 24)}
OFF = {
    "cifar10_skt": {"losses.skt.weight": 0.0},
    "cifar10_skt_adjacent": {"losses.skt.weight": 0.0},
    "cifar10_e2kd": {"losses.e2kd.weight": 0.0},
    "cifar10_e2kd_shuffled": {"losses.e2kd.weight": 0.0, "control.maps": "own"},  # which nothing reads then
    "cifar10_power": {"training.power": 1.0},
    "cifar10_power_l1": {"training.l1": 0.0, "training.weight_decay": 5e-3},
}
"""Experiment to the fields that switch its method off."""


def networks(name):
    """Return the config of an experiment on digits, its student and its teacher."""
    config = override(read_experiment(name)[1], DIGITS)
    data = dataset(config.data)
    return config, distill.untrained_student(config, data), teacher.build_teacher(config, data)


@pytest.mark.parametrize("name", OFF)
def test_the_networks_and_taps_of_a_method_fit(name):
    distill.check(override(read_experiment(name)[1], DIGITS))


@pytest.mark.parametrize("name", OFF)
def test_a_method_that_is_switched_off_is_the_arm_that_it_is_compared_with(name):
    kd, method = read_experiment("cifar10_kd")[1], read_experiment(name)[1]
    assert method != kd
    off = override(method, OFF[name])
    assert off.losses.active() == kd.losses.active()
    assert replace(off, description="", losses=kd.losses) == replace(kd, description="")


def test_the_control_of_explanations_reaches_the_loss():
    for name, shuffled in (("cifar10_e2kd", False), ("cifar10_e2kd_shuffled", True)):
        model = distill.assemble(*networks(name))
        assert model.distillation_losses["e2kd"].shuffled == shuffled


def test_explanations_that_are_drawn_are_refused():
    with pytest.raises(UserError, match=r"control\.maps must be own or shuffled with losses\.e2kd, got 'noise'"):
        override(read_experiment("cifar10_e2kd")[1], {"control.maps": "noise"})


def test_a_loss_of_several_taps_needs_as_many_of_both():
    with pytest.raises(UserError, match="as many of the student as of the teacher"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.student_layer": ["block_01", "block_02"]})
    with pytest.raises(UserError, match="nor both zero"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.intra": 0.0, "losses.skt.inter": 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.power": 0.5}, r"training\.power must be at least 1, got 0\.5"),
        ({"training.l1": -1.0}, r"training\.l1 must not be negative"),
        ({"teacher.training.power": 2.0}, r"teacher\.training\.power must be 1\.0, it is of the student alone"),
    ],
)
def test_powerpropagation_out_of_range_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(read_experiment("cifar10_power")[1], changes)
    assert "\n" not in str(caught.value)


def test_pruning_after_powerpropagation_trains_the_kernels_themselves():
    assert fine_tuning(read_experiment("cifar10_power")[1]).training.power == 1.0
    assert fine_tuning(read_experiment("cifar10_power_l1")[1]).training.l1 == 0.0
