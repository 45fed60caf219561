"""The methods beside the papers', as shipped for CIFAR-10: their networks, taps and fields fit; off is the control."""

from dataclasses import replace

import pytest

from tfigkd.config.experiment import override, read_experiment
from tfigkd.runtime.errors import UserError
from tfigkd.stages import distill

DIGITS = {"data.name": "digits", "data.limit": 64, "teacher.widths": (24, 24, 24)}
OFF = {
    "cifar10_skt": {"losses.skt": "weight"},
    "cifar10_skt_adjacent": {"losses.skt": "weight"},
    "cifar10_e2kd": {"losses.e2kd": "weight"},
    "cifar10_e2kd_shuffled": {"losses.e2kd": "weight"},
}
"""Experiment to the switch of its method: table to the field that is 0 without it."""


@pytest.mark.parametrize("name", OFF)
def test_the_networks_and_taps_of_a_method_fit(name):
    distill.check(override(read_experiment(name)[1], DIGITS))


@pytest.mark.parametrize("name", OFF)
def test_a_method_that_is_switched_off_is_the_arm_that_it_is_compared_with(name):
    kd, method = read_experiment("cifar10_kd")[1], read_experiment(name)[1]
    assert method != kd
    off = override(method, {f"{table}.{field}": 0.0 for table, field in OFF[name].items()})
    assert off.losses.active() == kd.losses.active()
    if name == "cifar10_e2kd_shuffled":
        assert distill._losses(method)[0]["e2kd"].shuffled
        off = override(off, {"control.maps": "own"})  # which nothing reads then
    assert replace(off, description="", losses=kd.losses) == replace(kd, description="")


def test_explanations_that_are_drawn_are_refused():
    with pytest.raises(UserError, match=r"control\.maps must be own or shuffled with losses\.e2kd, got 'noise'"):
        override(read_experiment("cifar10_e2kd")[1], {"control.maps": "noise"})


def test_a_loss_of_several_taps_needs_as_many_of_both():
    with pytest.raises(UserError, match="as many of the student as of the teacher"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.student_layer": ["block_01", "block_02"]})
    with pytest.raises(UserError, match="nor both zero"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.intra": 0.0, "losses.skt.inter": 0.0})
