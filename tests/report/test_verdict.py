"""The verdict: each thing that can be wrong with a run is said with its flag, and nothing else is."""

import numpy as np

from tfigkd.config.experiment import override, read_experiment, to_mapping
from tfigkd.report.facts import Facts
from tfigkd.report.verdict import (
    below_student,
    far_files,
    few_images,
    idle_overlays,
    idle_terms,
    level,
    overfitting,
    sizes,
    verdict,
)


def network(accuracy=0.95, parameters=1000, multiply_adds=1000, **more):
    figures = {"accuracy": accuracy, "balanced_accuracy": accuracy, "parameters": parameters}
    return {**figures, "multiply_adds": multiply_adds, **more}


def kinds(remarks):
    return [remark.kind for remark in remarks]


def test_a_guess_is_at_chance_and_more_than_a_guess_is_not():
    def said(accuracy, counts=(100, 100, 100, 100), **figures):
        return kinds(level({"student": network(accuracy, **figures)}, counts, trained_teacher=True))

    # the deviation of a mean recall of 400 images is 2.17 %
    assert said(0.25) == ["at chance"]
    assert said(0.28) == ["at chance"]
    assert said(0.32) == ["hardly learned"]  # 9 % of the way
    assert said(0.60) == []
    # always the class of nine tenths of the images; and right on four fifths of the images of either class
    assert said(0.9, (900, 100), balanced_accuracy=0.5) == ["at chance"]
    assert said(0.8, (900, 100), balanced_accuracy=0.8) == []
    # few images: the deviation of 24 is 8.84 %
    assert said(10 / 24, (6, 6, 6, 6)) == ["at chance"]


def test_what_to_change_of_a_teacher_depends_on_whether_it_is_trained():
    for trained, flag in ((True, "--teacher.training.epochs"), (False, "the range of its inputs")):
        (remark,) = level({"teacher": network(0.1)}, [100] * 10, trained_teacher=trained)
        assert flag in remark.flag and "The teacher is at chance: 10.00 % of 1,000 test images" in remark.text


def test_whether_a_teacher_was_trained_follows_from_its_fields():
    for changes, trained in (
        ({"teacher.weights": None}, True),  # a network by name
        ({"teacher.weights": "resnet56.npz"}, False),  # published weights
        ({"teacher.weights": "own.h5", "teacher.model": "keras/MobileNetV2"}, True),  # where its training starts
        ({"teacher.weights": None, "teacher.model": "own.keras"}, False),
        ({"teacher.weights": None, "teacher.model": "own.keras", "teacher.train": True}, True),
    ):
        run = facts(config=changes, roles={"teacher": network(0.25, 9000, 9000), "student": network(0.95)})
        remark = next(remark for remark in verdict(run) if remark.kind == "at chance")
        assert ("--teacher.training.epochs" in remark.flag) == trained, changes


def test_a_teacher_is_worse_only_beyond_the_noise():
    roles = {"teacher": network(0.90), "student": network(0.95)}
    # 9 against 1 of 10 discordant images: exact two-sided p 22 / 1024; 8 against 2: 112 / 1024
    assert kinds(below_student(roles, {"student": {"only_model": 9, "only_reference": 1}})) == ["teacher worse"]
    assert below_student(roles, {"student": {"only_model": 8, "only_reference": 2}}) == []
    assert below_student(roles, {"student": {"only_model": 1, "only_reference": 9}}) == []
    assert below_student({"student": network()}, {}) == []


def test_a_student_that_is_larger_or_slower_than_its_teacher():
    small, large = network(parameters=1000, multiply_adds=500), network(parameters=6600, multiply_adds=900)
    (larger, slower) = sizes({"teacher": small, "student": large})
    assert "6,600 parameters against 1,000 (6.6 times)" in larger.text and "--student.drop_blocks" in larger.flag
    assert "900 against 500 multiply-adds" in slower.text
    assert sizes({"teacher": large, "student": small}) == []
    # the measured time counts more than the count of operations
    fast, slow = large | {"int8_ms": 0.1}, small | {"int8_ms": 0.2}
    assert kinds(sizes({"teacher": fast, "student": slow})) == ["slower student"]
    assert sizes({"teacher": fast | {"int8_ms": 0.3}, "student": slow}) == []
    # what counts is the model that is delivered
    assert sizes({"teacher": network(parameters=2000), "student": large, "compressed": small}) == []


def test_so_few_images_say_little():
    (remark,) = few_images("validation", 24, 18 / 24)
    # Wilson by hand: (0.75 + 1.92073 / 24 ± 1.95996 sqrt(0.1875 / 24 + 0.960365 / 576)) / 1.160061
    assert "There are only 24 validation images" in remark.text
    assert "75.00 % would have the 95 % interval 55.10 to 88.00 %" in remark.text
    assert few_images("test", 10_000, 0.9) == [] and few_images("validation", 0, 0.9) == []


def history(train, held_out, losses=(1.0, 0.9)):
    return [{"accuracy": train, "val_accuracy": held_out, "val_loss": loss} for loss in losses]


def test_overfitting_is_training_far_above_validation():
    (remark,) = overfitting(history(0.99, 0.70, (0.8, 0.5, 0.9)), 1000)
    assert "99.00 % of training images against 70.00 % of validation" in remark.text
    assert "lowest after epoch 2 of 3" in remark.text and "--training.epochs" in remark.flag
    assert overfitting(history(0.80, 0.75), 1000) == []
    # 80 % of 10 images is 49 to 94.3 %; of 1,000 it is 77.4 to 82.4 %
    assert overfitting(history(0.92, 0.80), 10) == [] and len(overfitting(history(0.92, 0.80), 1000)) == 1
    assert overfitting(history(0.99, 0.70), 0) == [] and overfitting([], 100) == []


def test_terms_and_overlays_without_effect():
    ledger = [{"step": n, "terms": {"hard_loss": {"share": 0.6}, "at_loss": {"share": 0.001}}} for n in (1, 2)]
    (remark,) = idle_terms(ledger, "--losses.kd.weight")
    assert "term at has no effect" in remark.text and remark.flag == "--losses.at.weight"
    for share, said in ((0.0, []), (0.001, ["--training.hard_weight"])):  # of weight 0, or idle
        ledger = [{"step": 1, "terms": {"hard_loss": {"share": share}, "kd_loss": {"share": 1 - share}}}]
        assert [remark.flag for remark in idle_terms(ledger, "--training.hard_weight")] == said
    (remark,) = idle_overlays([0.01, 0.2, 0.3, 0.4], 0.05)
    assert "25.00 % of 4 maps" in remark.text and "--attribution.max_steps" in remark.flag
    assert idle_overlays([0.01, 0.02, 0.3], 0.05) == [] and idle_overlays([], 0.05) == []


def test_a_quantized_file_that_is_another_model():
    far = {"agreement": 0.80, "accuracy": 0.75, "keras_accuracy": 0.93, "examples": 1000}
    parity = {
        "student.int8.tflite": far,
        "student.float32.tflite": far,  # export refuses it
        "teacher.int8.tflite": {"agreement": 0.99, "accuracy": 0.94, "keras_accuracy": 0.945, "examples": 1000},
    }
    (remark,) = far_files(parity)
    assert "80.00 % of 1,000 validation images" in remark.text
    # Wilson, by hand: 21 of 23 is 73.2 to 97.6 %, so 95 % is not excluded
    assert far_files({"student.int8.tflite": far | {"agreement": 21 / 23, "accuracy": 21 / 23, "examples": 23}}) == []
    assert "student.int8.tflite" in remark.text and "--compress.method qat" in remark.flag
    # 45 of 1,000 lost and 15 gained: 3.0 points, by McNemar's variance from 1.5 to 4.5, which has the bound of 2 in it
    few = {"agreement": 0.94, "accuracy": 0.87, "keras_accuracy": 0.90, "examples": 1000}
    assert far_files({"student.int8.tflite": few}) == []
    assert far_files({"student.int8.tflite": few | {"examples": 5000}})  # from 2.3 points on


def facts(**changes):
    """A run with which nothing is wrong, but for the changes."""
    config = override(read_experiment("ig_kd")[1], changes.pop("config", {}))
    close = {"agreement": 0.99, "accuracy": 0.95, "keras_accuracy": 0.95, "examples": 1000}
    known = {
        "config": to_mapping(config),
        "row": {"smoke": False, "saw_validation": False, "validation_accuracy": 0.95},
        "roles": {"teacher": network(0.97, 9000, 9000), "student": network(0.95)},
        "evaluated": {
            "n_test": 1000,
            "class_names": list("abcd"),
            "per_class": {"student": [{"examples": 250}] * 4},
            "disagreement": {"student": {"only_reference": 40, "only_model": 20}},
        },
        "data": {"counts": {"train": 8000, "validation": 1000, "test": 1000}},
        "exported": {"parity": {"student.int8.tflite": close}},
        "store": {"identity": {"attribution": {"tolerance": 0.05}}},
        "errors": np.full(10, 0.01),
        "histories": {"student": history(0.97, 0.95)},
        "ledger": [{"step": 1, "terms": {"hard_loss": {"share": 0.5}, "kd_loss": {"share": 0.5}}}],
    }
    return Facts(**known | {"command": ""} | changes)


def test_green_only_when_there_is_nothing_to_say():
    assert verdict(facts()) == []


def test_a_worthless_run_is_called_worthless():
    """240 photographs, 4 classes, teacher and student at chance, a student 6.6 times larger: what a new user met."""
    run = facts(
        roles={"teacher": network(0.25, 1000), "student": network(0.25, 6600)},
        evaluated=facts().evaluated | {"n_test": 24, "per_class": {"student": [{"examples": 6}] * 4}},
        data={"counts": {"train": 192, "validation": 24, "test": 24}},
        row={"smoke": False, "saw_validation": False, "validation_accuracy": 0.25},
        errors=np.full(10, 0.5),
    )
    said = kinds(verdict(run))
    assert said == [
        "at chance", "at chance", "larger student", "few test images", "few validation images", "idle overlays",
    ]  # fmt: skip


def test_nothing_is_said_of_what_a_run_has_not():
    assert verdict(facts(exported=None, store=None, errors=np.empty(0), ledger=[], histories={})) == []
    alone = facts().evaluated | {"disagreement": {}}
    assert verdict(facts(roles={"student": network(0.95)}, evaluated=alone, store=None)) == []
    # validation images that were trained on are no validation
    few = {"counts": {"train": 8000, "validation": 24, "test": 1000}}
    row = {"smoke": False, "saw_validation": True, "validation_accuracy": 1.0}
    assert verdict(facts(data=few, row=row)) == []


def test_a_smoke_run_is_not_judged():
    row = {"smoke": True, "saw_validation": False, "validation_accuracy": 0.1}
    assert kinds(verdict(facts(row=row, roles={"student": network(0.1)}))) == ["smoke run"]
