"""The methods beside the papers', as shipped for CIFAR-10: their networks, taps and fields fit; off is the control."""

from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import fine_tuning, override, read_experiment, smoke
from tfigkd.config.training_fields import AugmentConfig, FeaturesConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.losses import kl_divergence
from tfigkd.runtime.errors import UserError
from tfigkd.stages import teacher, training_setup
from tfigkd.stages.data import dataset, training_examples
from tfigkd.stages.preflight import check_networks
from tfigkd.study.plan import Options, plan, read_study

DIGITS = {"data.name": "digits", "data.limit": 96, "data.image_size": 24, "teacher.widths": (24, 24, 24)}
PHASES = {
    "losses.regression.weight": 0.0,
    "losses.kd.weight": 0.9,
    "training.hard_weight": None,
    "training.finetune_epochs": 0,
}
CHAIN = {"training.chain": 0, "losses.opdf.weight": 0.0}
BASES = {"cifar10_dot": "cifar10_sgd", "cifar10_power": "cifar10_sgd", "cifar10_opdf": "cifar10_opdf_kd"}
"""Beginning of a name to the arm that is compared with; of all others it is cifar10_kd."""
ONE_TEACHER = {"teacher.count": 1, "teacher.shards": 1, "teacher.weighting": "mean"}
TERM = {"losses.kd.weight": 0.9, "losses.kd.temperature": 4.0}
OFF = {
    "cifar10_sp": {"losses.sp.weight": 0.0},
    "cifar10_pkt": {"losses.pkt.weight": 0.0},
    "cifar10_dkd": {"losses.dkd.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_dist": {"losses.dist.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_skt": {"losses.skt.weight": 0.0},
    "cifar10_skt_adjacent": {"losses.skt.weight": 0.0},
    "cifar10_e2kd": {"losses.e2kd.weight": 0.0},
    "cifar10_e2kd_shuffled": {"losses.e2kd.weight": 0.0, "control.maps": "own"},  # which nothing reads then
    "cifar10_reviewkd": {"losses.reviewkd.weight": 0.0},
    "cifar10_reviewkd_alone": {"losses.reviewkd.weight": 0.0},
    "cifar10_power": {"training.power": 1.0},
    "cifar10_power_l1": {"training.l1": 0.0, "training.weight_decay": 5e-3},
    "cifar10_dot": {"training.dot": 0.0},
    "cifar10_dagfm": PHASES,
    "cifar10_dagfm_whole": PHASES,
    "cifar10_r2kd": {"view.kind": "views", "losses.r2kd.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_r2kd_one": {"view.kind": "views", "losses.r2kd.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_rtk": {"losses.rtk.weight": 0.0},
    "cifar10_rtk_uniform": {"losses.rtk.weight": 0.0},
    "cifar10_opdf": CHAIN,
    "cifar10_opdf_permuted": CHAIN,
    "cifar10_opdf_chain": CHAIN,
    "cifar10_osakd": {"losses.osakd.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_spirit": {"losses.kd.weight": 0.9, "training.epochs": 30, "features": asdict(FeaturesConfig())},
    "cifar10_osakd_teacher": {"losses.osakd.weight": 0.0, "losses.kd.weight": 0.9},
    "cifar10_shards": ONE_TEACHER,
    "cifar10_shards_mean": ONE_TEACHER,
    "cifar10_function": {"training.mixup": 0.0, "view.kind": "views", **TERM},
    "cifar10_function_fixed": {"view.kind": "views", **TERM},
}
"""Experiment to the fields that switch its method off."""


def on_digits(name):
    """Return the config of an experiment on digits; a student of the teacher's kind has the teacher's channels."""
    config = override(read_experiment(name)[1], DIGITS)
    return override(config, {"student.widths": (24, 24, 24)}) if config.student.model == "convnet" else config


def networks(name):
    """Return the config of an experiment on digits, its student and its teacher."""
    config = on_digits(name)
    data = dataset(config.data)
    return config, training_setup.untrained_student(config, data), teacher.build_teacher(config, data)


@pytest.mark.parametrize("name", [name for name in OFF if name.count("_") == 1])
def test_the_networks_and_taps_of_a_method_fit(name):
    """Its variants, such as cifar10_skt_adjacent, have the same ones."""
    check_networks(on_digits(name))


@pytest.mark.parametrize("name", OFF)
def test_a_method_that_is_switched_off_is_the_arm_that_it_is_compared_with(name):
    base = next((base for start, base in BASES.items() if name.startswith(start)), "cifar10_kd")
    kd, method = read_experiment(base)[1], read_experiment(name)[1]
    assert method != kd
    off = override(method, OFF[name])
    assert off.losses.active() == kd.losses.active()
    assert replace(off, description="", losses=kd.losses) == replace(kd, description="")


def test_the_control_of_explanations_reaches_the_loss():
    for name, shuffled in (("cifar10_e2kd", False), ("cifar10_e2kd_shuffled", True)):
        terms, _ = training_setup.losses_of(read_experiment(name)[1])
        assert terms["e2kd"].shuffled == shuffled


def test_explanations_that_are_drawn_are_refused():
    with pytest.raises(UserError, match=r"control\.maps must be own or shuffled with losses\.e2kd, got 'noise'"):
        override(read_experiment("cifar10_e2kd")[1], {"control.maps": "noise"})


def test_a_placebo_without_maps_is_refused_where_maps_are_matched():
    with pytest.raises(UserError, match=r"control\.maps must be own, shuffled or noise with losses\.ig_match"):
        override(read_experiment("cifar10_kd")[1], {"losses.ig_match.weight": 1.0, "control.maps": "none"})


def test_a_loss_of_several_taps_needs_as_many_of_both():
    with pytest.raises(UserError, match="must be lists of equal length, two taps or more"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.student_layer": ["block_01", "block_02"]})
    with pytest.raises(UserError, match="nor both zero"):
        override(read_experiment("cifar10_skt")[1], {"losses.skt.intra": 0.0, "losses.skt.inter": 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.power": 0.5}, r"training\.power must be at least 1, got 0\.5"),
        ({"training.l1": -1.0}, r"training\.l1 must not be negative"),
        ({"teacher.training.power": 2.0}, r"teacher\.training\.power must be 1\.0, it applies to the student only"),
    ],
)
def test_powerpropagation_out_of_range_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(read_experiment("cifar10_power")[1], changes)
    assert "\n" not in str(caught.value)


def test_pruning_after_powerpropagation_trains_the_kernels_themselves():
    assert fine_tuning(read_experiment("cifar10_power")[1]).training.power == 1.0
    assert fine_tuning(read_experiment("cifar10_power_l1")[1]).training.l1 == 0.0


def test_function_matching_has_no_hard_label_and_its_teacher_sees_what_the_student_sees():
    config, student, taught = networks("cifar10_function")
    model = training_setup.distiller_with(config, student, taught)
    assert model.term_weights == {"hard": 0.0, "kd": 1.0}
    recipe = TrainingConfig(batch_size=8, mixup=1.0)
    stream = TrainingBatches(training_examples(config.data), recipe, config.augment, seed=0)
    images, targets = next(stream(0))
    assert "teacher_inputs" not in targets  # the student's own images, mixed
    losses = []
    for labels in (targets["label"], 9 - targets["label"]):
        seen = {"label": labels, "label_probabilities": targets["label_probabilities"]}
        terms, _ = model.compute_terms(images, seen, training=True)
        losses.append(float(terms["loss"]))
    teacher_logits = taught(images, training=False)
    expected = kl_divergence(teacher_logits, student(images, training=True), temperature=1.0).numpy().mean()
    np.testing.assert_allclose(losses, [expected, expected], rtol=1e-4)
    assert read_experiment("cifar10_function_fixed")[1].needs_store


def test_the_phases_of_a_schedule_are_counted_in_steps():
    config, student, taught = networks("cifar10_dagfm")
    examples = len(training_examples(config.data))
    assert config.training.finetune_epochs == 5
    assert training_setup.distiller_with(config, student, taught).finetune_from == 25 * -(-examples // 128)
    with pytest.raises(UserError, match=r"training\.finetune_epochs must not be negative, and below epochs"):
        override(config, {"training.finetune_epochs": 30})
    with pytest.raises(UserError, match=r"training\.dot must be 0 with finetune_epochs"):
        override(config, {"training.optimizer": "sgd", "training.dot": 0.05})


def test_every_method_and_control_is_an_arm_of_the_study():
    study = read_study("methods")
    controls = {"cifar10_kd", "cifar10_student", "cifar10_label_smoothing", *BASES.values()}
    assert {*study.arms.values()} == controls | {*OFF}
    jobs = plan(study, Options("methods"))
    assert len(jobs) == study.seeds * len(study.arms)
    configs = [replace(job.run.config, description="") for job in jobs[: len(study.arms)]]
    assert all(a != b for index, a in enumerate(configs) for b in configs[:index])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.mixup": 0.2}, r"training\.mixup and cutmix must be 0 with losses\.osakd"),
        (
            {"training.mixup": 0.2, "losses.osakd.weight": 0.0, "losses.dkd.weight": 1.0, "view.kind": "live"},
            r"training\.mixup and cutmix must be 0 with losses\.dkd",
        ),
        ({"losses.osakd.queue": 64}, r"losses\.osakd\.queue must be at least training\.batch_size, got 64"),
        ({"losses.osakd.queue": 8}, r"losses\.osakd\.queue must not be smaller than neighbors, got 8"),
        ({"losses.osakd.neighbors": 0}, r"losses\.osakd\.neighbors must be positive"),
    ],
)
def test_self_acquired_labels_that_cannot_be_are_refused_in_one_line(changes, message):
    config = read_experiment("cifar10_osakd")[1]
    assert not config.needs_teacher
    with pytest.raises(UserError, match=message) as caught:
        override(config, changes)
    assert "\n" not in str(caught.value)


def test_a_smoke_run_has_both_phases():
    small = smoke(read_experiment("cifar10_dagfm")[1])
    assert (small.training.epochs, small.training.finetune_epochs) == (2, 1)


def test_a_pruned_teacher_has_to_see_what_the_student_sees():
    with pytest.raises(UserError, match=r"losses\.r2kd\.pruned must be 0 unless view\.kind = live"):
        override(read_experiment("cifar10_r2kd")[1], {"view.kind": "plain"})
    with pytest.raises(UserError, match=r"losses\.r2kd\.pruned must be in \[0, 1\), got 1\.0"):
        override(read_experiment("cifar10_r2kd")[1], {"losses.r2kd.pruned": 1.0})
    assert not override(read_experiment("cifar10_r2kd_one")[1], {"view.kind": "plain"}).needs_live_teacher


def test_more_keys_than_taps_are_refused():
    with pytest.raises(UserError, match=r"losses\.rtk\.keys must be from 1 to the number of .*, got 4"):
        override(read_experiment("cifar10_rtk")[1], {"losses.rtk.keys": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.chain": 4}, r"training\.chain must be 0, or odd and at least 3, got 4"),
        ({"training.power": 2.0}, r"training\.power must be 1 with chain, got 2\.0"),
        ({"training.chain": 0}, r"losses\.opdf\.weight must be 0 without training\.chain"),
        (
            {"teacher.training.chain": 3, "teacher.training.weight_decay_form": "decoupled"},
            r"teacher\.training\.chain must be 0, it applies to the student only",
        ),
        ({"compress.losses.opdf.weight": 1.0}, r"compress\.losses\.opdf\.weight must be 0"),
        (
            {"training.optimizer": "sgd", "training.weight_decay_form": "coupled"},
            r"training\.weight_decay_form must be decoupled with chain",
        ),
    ],
)
def test_chains_that_cannot_be_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(read_experiment("cifar10_opdf")[1], changes)
    assert "\n" not in str(caught.value)


def test_the_tensor_loss_needs_kernels_of_the_teachers_shapes():
    with pytest.raises(UserError, match=r"losses: no kernel of the student .* has the shape of one of the teacher"):
        check_networks(
            override(read_experiment("cifar10_opdf")[1], {**DIGITS, "student.model": "resnet8", "student.depth": 2})
        )
    config = override(read_experiment("cifar10_opdf")[1], {"losses.opdf.weight": 0.0})
    assert not config.needs_live_teacher and config.needs_views
    assert fine_tuning(config).training.chain == 0


def test_neighbors_are_told_which_examples_they_are():
    """Else the queue would give an example its own label, from the epoch before."""
    for name, told in (("cifar10_osakd", True), ("cifar10_osakd_teacher", False), ("cifar10_kd", False)):
        assert ("example" in training_setup._wanted(read_experiment(name)[1])) == told
    images = np.zeros((8, 4, 4, 3), np.uint8)
    examples = Examples(np.array([f"{index:016x}" for index in range(8)]), images, np.arange(8) % 2, np.arange(8))
    recipe = replace(read_experiment("cifar10_osakd")[1].training, batch_size=4)
    stream = TrainingBatches(examples, recipe, AugmentConfig(), seed=0, wanted={"example"})(0)
    for _, targets, *_ in islice(stream, 4):
        np.testing.assert_array_equal(targets["label"], examples.labels[targets["example"]])
