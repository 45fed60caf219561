"""Classes that come in steps: what each step sees and keeps, its rows, what is done before, and what is refused."""

import csv
import shutil
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest

from tfigkd.config.experiment import override, read_experiment
from tfigkd.incremental import __main__ as command
from tfigkd.incremental import steps
from tfigkd.models.convnet import is_whitening
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import outputs_of, read_manifest, write_manifest
from tfigkd.stages import training_setup
from tfigkd.stages.data import dataset, training_examples
from tfigkd.stages.runner import Run, print_estimate, run
from tfigkd.stages.workdir import Workdir
from tfigkd.training.fit import Training

TINY = {
    "data.name": "digits",
    "data.limit": 150,
    "tensorboard.pictures": 0,
    "data.train_split": "train",
    "augment.crop_padding": 1,
    "student.model": "convnet",
    "student.widths": (8,),
    "student.depth": 1,
    "student.normalization": "none",
    "incremental.steps": 2,
    "incremental.memory": 20,
    "incremental.compression_epochs": 1,
    "training.epochs": 2,
    "training.batch_size": 32,
    "training.precision": "float32",
}


def tiny(**changes):
    return override(read_experiment("cifar10_foster")[1], TINY | changes)


def method(config, name, root, **options):
    said = {"experiment": "cifar10_foster", "smoke": False, "command": "python"}
    return steps.run_method(config, name, root, 0, **said | options)


@pytest.fixture(scope="module")
def foster(tmp_path_factory):
    root = tmp_path_factory.mktemp("incremental")
    return root, method(tiny(), "foster", root)


def test_a_step_sees_its_classes_and_the_memory_alone(foster):
    root, rows = foster
    examples = training_examples(tiny().data)
    first, second = (read_manifest(root / folder) for folder in ("first", "foster/step_2"))
    assert [(row["step"], row["classes"], row["n_memory"]) for row in rows] == [(1, 5, 0), (2, 10, 20)]
    old = int((examples.labels < 5).sum())
    assert [row["n_train"] for row in rows] == [old, len(examples) - old + 20]
    labels = dict(zip(examples.ids, examples.labels, strict=True))
    for manifest, share, classes in ((first, 4, 5), (second, 2, 10)):
        assert [len(ids) for ids in manifest["memory"].values()] == [share] * classes
        assert all(labels[one] == int(label) for label, ids in manifest["memory"].items() for one in ids)
    for label, ids in first["memory"].items():
        assert second["memory"][label] == ids[:2]  # the first ones of those chosen before


def test_a_step_is_whitened_by_images_of_its_classes(tmp_path):
    """The stem of a convnet never trains: made of all images, it would know the classes to come."""
    config = tiny()
    data, later = dataset(config.data), dataset(config.data).train.labels >= 5

    def stem(pictures):
        known = replace(data, train=replace(data.train, images=pictures))
        step = steps.Step(config, known, 0, tmp_path, "0", 0, 5, known.train.take(~later))
        (layer,) = (layer for layer in step.make().layers if is_whitening(layer))
        return layer.get_weights()

    other = data.train.images.copy()
    other[later] = 255 - other[later, ::-1]
    for one, two in zip(stem(data.train.images), stem(other), strict=True):
        np.testing.assert_array_equal(one, two)
    other[~later] //= 2
    assert any((one != two).any() for one, two in zip(stem(data.train.images), stem(other), strict=True))


def test_the_student_of_a_step_is_a_plain_network_and_its_accuracies_are_those_of_its_file(foster):
    root, rows = foster
    data = dataset(tiny().data)
    student = keras.saving.load_model(root / "foster/step_2/student.keras")
    assert student.count_params() == training_setup.untrained_student(tiny(), data).count_params()
    right = student(data.test.images[:] / np.float32(255)).numpy().argmax(axis=1) == data.test.labels
    known = data.test.labels < 5
    found = [rows[1][f"{name}_accuracy"] for name in ("student", "known", "new")]
    np.testing.assert_allclose(found, [right.mean(), right[known].mean(), right[~known].mean()])
    assert (rows[0]["known_accuracy"], rows[0]["joint_accuracy"]) == ("", "")
    assert 0 <= rows[1]["joint_accuracy"] <= 1
    assert not list(root.glob("**/*.ckpt"))


def test_finished_steps_are_skipped_and_the_controls_share_the_first(foster, tmp_path, monkeypatch, capsys):
    root, rows = foster
    first = (root / "first/student.keras").stat().st_mtime_ns
    trained = []
    real = Training.run
    monkeypatch.setattr(Training, "run", lambda training: trained.append(training) or real(training))
    assert method(tiny(), "foster", root)[1]["student_accuracy"] == rows[1]["student_accuracy"]
    assert trained == []
    method(tiny(), "kd", root)
    flags = [word for name, value in TINY.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    arguments = ["--experiment", "cifar10_foster", "--method", "finetune", "--workdir", str(root), *flags]
    assert command.main(arguments) == 0
    assert [training.title for training in trained] == ["10 classes, kd", "10 classes, finetune"]
    assert [training.config.epochs for training in trained] == [3, 3]  # as many as the two phases of foster
    assert (root / "first/student.keras").stat().st_mtime_ns == first
    said = capsys.readouterr().out
    for name in steps.METHODS:
        with open(root / name / "rows.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        scores = [100 * float(line["student_accuracy"]) for line in lines]
        assert [line["arm"] for line in lines] == [name] * 2
        assert " ".join(next(line for line in said.splitlines() if name in line.split()).split()) == (
            f"{name} {scores[0]:.2f} {scores[1]:.2f} {np.mean(scores):.2f}"
        )
    manifest = read_manifest(root / "first")
    kept = outputs_of(manifest)
    for data, message in (("another", "was measured on other test pictures"), (kept["data"], None)):
        write_manifest(root / "first", manifest["fingerprint"], files=manifest["files"], **kept | {"data": data})
        if message:
            with pytest.raises(UserError, match=message):
                method(tiny(), "foster", root)
    with pytest.raises(UserError, match="holds a step of other settings; choose another --workdir"):
        method(tiny(**{"incremental.temperature": 3.0}), "foster", root)


def test_methods_of_other_settings_are_left_out_of_the_table(foster, tmp_path, capsys):
    """They may have more epochs, or another weight: a comparison with them would say nothing."""
    root = shutil.copytree(foster[0], tmp_path / "root")
    shutil.rmtree(root / "kd", ignore_errors=True)
    method(tiny(**{"incremental.compression_epochs": 2}), "kd", root)
    rows, others = steps.finished_rows(root, tiny(), 0)
    assert "foster" in rows and "kd" not in rows and others == ["kd"]
    flags = [word for name, value in TINY.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    arguments = ["--experiment", "cifar10_foster", "--method", "foster", "--workdir", str(root), *flags]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"note: kd is left out, as {root / 'kd'} has other settings; to compare it, delete that folder" in said
    assert [line.split()[0] for line in said.splitlines() if line.split()[:1] in (["kd"], ["foster"])] == ["foster"]

    manifest = read_manifest(root / "foster/step_2")
    kept = outputs_of(manifest)
    changed = kept | {"data": "of other test pictures"}
    write_manifest(root / "foster/step_2", manifest["fingerprint"], files=manifest["files"], **changed)
    assert "foster" in steps.finished_rows(root, tiny(), 0)[1]


@pytest.mark.slow  # four trainings; the checkpoints of a phase are those that tests/faults kills
def test_a_step_that_is_interrupted_between_its_phases_ends_with_the_same_network(foster, tmp_path, monkeypatch):
    real = Training.run

    def stop(training):
        if training.title == "10 classes, compression":
            raise KeyboardInterrupt
        return real(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            method(tiny(), "foster", tmp_path)
    method(tiny(), "foster", tmp_path)
    students = [keras.saving.load_model(folder / "foster/step_2/student.keras") for folder in (foster[0], tmp_path)]
    for left, right in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"incremental.steps": 11}, r"incremental\.steps must be at most the number of classes, 10, got 11"),
        ({"incremental.steps": 0}, r"has no steps; set --incremental\.steps 5"),
        ({"losses.kd.weight": 0.5}, "has no teacher but its own earlier network"),
        ({"losses.osakd.weight": 0.5}, r"losses of its own; set losses\.osakd\.weight to 0"),
        ({"training.mixup": 1.0}, r"needs training\.mixup at its default 0\.0"),
        ({"training.devices": "all"}, r"needs training\.devices at its default one"),
        ({"code.weight": 0.1}, r"needs code\.weight at its default 0\.0"),
        ({"compress.method": "prune"}, r"needs compress\.method at its default none"),
    ],
)
def test_an_experiment_that_does_not_fit_is_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        method(tiny(**changes), "kd", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_network_of_another_end_is_refused_before_it_trains(tmp_path):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Dense(10, name="end")(keras.layers.Flatten()(inputs))).save(tmp_path / "m.keras")
    unset = {"student.widths": (64, 256, 256), "student.depth": 2, "student.normalization": "none"}
    config = tiny(**unset, **{"student.model": str(tmp_path / "m.keras")})
    with pytest.raises(UserError, match="needs a network whose last layer is dense and named 'logits', got 'end'"):
        steps.check(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 1), ("memory", -1), ("temperature", 0.0), ("known_weight", -1.0), ("boosting_beta", 1.0)],
)
def test_a_field_out_of_range_is_refused(field, value):
    with pytest.raises(UserError, match=rf"incremental\.{field} must"):
        tiny(**{f"incremental.{field}": value})


def test_the_other_command_is_named(tmp_path, capsys):
    config = tiny()
    chosen = Run("cifar10_foster", config, Workdir(tmp_path, tmp_path))
    for refused in (run, partial(print_estimate, workers=1)):
        with pytest.raises(UserError, match=r"python -m tfigkd\.incremental --experiment cifar10_foster"):
            refused(chosen)
    assert command.main(["--method", "kd"]) == 1
    assert "--experiment is missing; cifar10_foster is the shipped one" in capsys.readouterr().err
