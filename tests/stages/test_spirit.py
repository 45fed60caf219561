"""Spirit distillation: the front learns features without labels, then the head, then all of it; and what is refused."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from tfigkd.config.experiment import early_phases, override, read_experiment, smoke
from tfigkd.models.taps import cut_at, frozen
from tfigkd.runtime.errors import UserError
from tfigkd.stages import distill, teacher, training_setup
from tfigkd.stages.data import dataset, training_examples
from tfigkd.stages.preflight import check_networks
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir

CHANGES = {
    "data.name": "digits",
    "data.limit": 96,
    "tensorboard.pictures": 0,
    "data.train_split": "train",
    "data.train_fraction": 0.25,
    "augment.crop_padding": 1,
    "teacher.widths": (12, 8, 8),
    "teacher.depth": 1,
    "teacher.training.epochs": 1,
    "teacher.training.precision": "float32",
    "student.widths": (8, 8),
    "student.depth": 1,
    "training.epochs": 1,
    "training.batch_size": 32,
    "training.precision": "float32",
    "features.epochs": 2,
    "features.head_epochs": 1,
    "features.student_layer": "block_01",
    "features.teacher_layer": "block_01",
}
BEHIND = ("block_02", "logits")


@pytest.fixture(scope="module")
def config():
    return override(read_experiment("cifar10_front_spirit")[1], CHANGES)


@pytest.fixture(scope="module")
def teachers(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spirit")
    run(Run("front", config, Workdir(folder / "teacher", folder), ("data", "teacher")))
    return folder


def behind(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights if w.path.startswith(BEHIND)}


def front(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights if not w.path.startswith(BEHIND)}


def same(left, right):
    return {name for name in left if np.array_equal(left[name], right[name])}


def trained_alike(left, right):
    """Return the kernels that are the same, but for those that never train."""
    return {name for name in same(left, right) if "kernel" in name and not name.startswith(("norm", "whit"))}


def test_each_phase_trains_its_part(config, teachers, tmp_path, monkeypatch):
    seen, made = [], distill.make_distiller

    def look(phase, workdir, student):
        seen.append((front(student), behind(student), len(training_examples(phase.data))))
        return made(phase, workdir, student)

    monkeypatch.setattr(distill, "make_distiller", look)
    straight = Workdir(tmp_path / "straight", teachers)
    distill.distill(config, straight)
    start, learned, headed = seen
    assert [count for *_, count in seen] == [4 * headed[2], headed[2], headed[2]]  # a quarter has labels
    assert trained_alike(start[0], learned[0]) == set()
    assert same(start[1], learned[1]) == set(start[1])  # normalization behind the cut included
    assert same(learned[0], headed[0]) == set(start[0])
    assert trained_alike(learned[1], headed[1]) == set()
    student = keras.saving.load_model(straight.stage("distill") / "student.keras")
    assert trained_alike(headed[0], front(student)) == set()
    assert student.count_params() == training_setup.untrained_student(config, dataset(config.data)).count_params()
    assert [layer.name for layer in student.layers if not layer.trainable] == ["normalization", "whitening"]
    assert not list(straight.run.glob("**/*.ckpt"))


@pytest.mark.slow  # six trainings; the checkpoints of a phase are those that tests/faults kills
def test_a_run_that_is_interrupted_between_phases_gives_the_same_student(config, teachers, tmp_path, monkeypatch):
    made = distill.make_distiller
    straight, broken = (Workdir(tmp_path / name, teachers) for name in ("straight", "broken"))

    def stop(phase, workdir, student):
        if phase is config:
            raise KeyboardInterrupt
        return made(phase, workdir, student)

    distill.distill(config, straight)
    with monkeypatch.context() as patch:
        patch.setattr(distill, "make_distiller", stop)
        with pytest.raises(KeyboardInterrupt):
            distill.distill(config, broken)
    distill.distill(config, broken)
    students = [keras.saving.load_model(one.stage("distill") / "student.keras") for one in (straight, broken)]
    for left, right in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_step_of_the_features_phase_is_one_of_regression_and_labels_have_no_part_in_it(config):
    data, phase = dataset(config.data), early_phases(config)["features"]
    taught = teacher.build_teacher(config, data)
    images = np.random.default_rng(0).random((6, 8, 8, 3)).astype(np.float32)
    found = []
    for labels in (np.zeros(6, int), np.arange(6)):
        keras.utils.set_random_seed(1)
        student = training_setup.untrained_student(config, data)
        with frozen(cut_at(student, "block_01")[1]):
            model = training_setup.distiller_with(phase, student, taught)
            model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
            model.train_on_batch(images, {"label": labels})
        found.append([*student.get_weights(), *model.projectors[0].get_weights()])
    for left, right in zip(*found, strict=True):
        np.testing.assert_array_equal(left, right)

    keras.utils.set_random_seed(1)  # the same by Keras alone, with the projector as a layer
    student = training_setup.untrained_student(config, data)
    output = keras.layers.Conv2D(model.projectors[0].filters, 1)(student.get_layer("block_01").output)
    plain = keras.Model(student.input, output)
    features = keras.Model(taught.input, taught.get_layer("block_01").output)(images, training=False)
    plain.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    plain.train_on_batch(images, features)
    for left, right in zip(plain.get_weights(), [*front(model.student).values(), *found[0][-2:]], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_the_phases_are_experiments_and_without_epochs_there_are_none():
    config = read_experiment("cifar10_spirit")[1]
    few = override(config, {"data.train_fraction": 0.05, "training.class_weight": "balanced"})
    features, head = early_phases(few).values()
    assert (features.data.train_fraction, head.data.train_fraction) == (1.0, 0.05)
    assert early_phases(override(few, {"features.pictures": "labeled"}))["features"].data.train_fraction == 0.05
    assert features.losses.active().keys() == {"hint"}
    assert (features.training.hard_weight, features.training.class_weight, features.training.epochs) == (0.0, None, 10)
    assert head == replace(few, features=head.features, training=replace(few.training, epochs=2))
    assert early_phases(override(few, {"features.epochs": 0})) == early_phases(features) == {}
    assert config.needs_teacher and not config.needs_live_teacher
    assert early_phases(smoke(config))["features"].training.epochs == 1


def test_what_is_not_used_does_not_change_the_student(tmp_path):
    student = read_experiment("cifar10_student")[1]
    changes = {"data.name": "digits", "features.head_epochs": 7, "features.student_layer": "block_03"}
    places = Workdir(tmp_path, tmp_path)
    off, on = override(student, changes), override(student, changes | {"features.epochs": 1})
    plain = distill.student_fingerprint(override(student, {"data.name": "digits"}), places)
    assert distill.student_fingerprint(off, places) == plain != distill.student_fingerprint(on, places)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.epochs": -1}, r"features\.epochs must not be negative, got -1"),
        ({"features.epochs": 1, "code.weight": 1e-3}, r"code\.weight must be 0 with features\.epochs, .* got 0\.001"),
        ({"features.head_epochs": -1}, r"features\.head_epochs must not be negative"),
        (
            {"student.init": "teacher", "student.drop_blocks": 3},
            r"features\.epochs must be 0 with student\.init = teac",
        ),
        (
            {"features.student_layer": "logits"},
            r"features\.student_layer: .* behind its layer 'logits'; choose another",
        ),
        ({"features.student_layer": "blok_01"}, r"features\.student_layer: .*'blok_01'"),
        ({"features.teacher_layer": "block_17"}, r"no layer 'block_17'"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_in_one_line(config, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        check_networks(override(config, changes))
    assert "\n" not in str(caught.value)


def test_layers_frozen_before_stay_frozen():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="first", trainable=False)(inputs)
    x = keras.layers.Dense(3, name="cut")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x))
    before, after = cut_at(model, "cut")
    assert [layer.name for layer in before if layer.weights] == ["cut"]
    assert [layer.name for layer in after] == ["last"]
    with frozen(before):
        assert [w.path for w in model.trainable_weights] == ["last/kernel", "last/bias"]
    assert [layer.trainable for layer in model.layers[1:]] == [False, True, True]
