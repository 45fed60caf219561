"""Every arm and control trains; arms of one seed share everything but the treatment; lost alignment is seen."""

import csv
import itertools

import keras
import numpy as np
import pytest

from tfigkd.batches.controls import apply_control
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import experiments_folder, override, read_experiment
from tfigkd.config.fields import ControlConfig, OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.models.cost import count_parameters
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir
from tfigkd.training.distiller import Distiller

ARMS = sorted(
    path.stem
    for path in experiments_folder().glob("*.toml")
    if not path.stem.startswith(("quickstart", "lowdata", "cifar10"))
    # a student that is compressed afterwards is an arm's own student before
    and read_experiment(path.stem)[1].compress.method == "none"
)
TINY = {
    "data.name": "digits",
    "teacher.training.precision": "float32",
    "data.limit": 96,
    "augment.crop_padding": 1,
    "augment.flip": False,
    "teacher.drop_blocks": 14,
    "teacher.width": 0.25,
    "teacher.training.epochs": 1,
    "teacher.training.batch_size": 32,
    "student.drop_blocks": 16,
    "student.width": 0.25,
    "attribution.max_steps": 8,
    "training.epochs": 2,
    "training.batch_size": 32,
    "losses.at.student_layer": "block_02",
    "losses.at.teacher_layer": "block_03",
    "features.student_layer": "block_02",
    "features.teacher_layer": "block_02",
}
STAGES = ("data", "teacher", "overlays", "distill", "evaluate", "report")
MEASURED = ("ig_kd", "kd_at", "kd_init_teacher", "spirit", "student")
"""Arms of each kind that evaluation and report see: maps, taps, a teacher's blocks, phases, no teacher."""


def train(name, folder, teachers=None, *, measured=True, **changes):
    """Run an arm, shrunk, and return its student's weights and what is recorded of it.

    That is the row of its run or, if it is not `measured`, the manifest of its training.
    """
    if name != "ig_kd":  # maps of students are measured and drawn alike in all arms
        drawn = ("evaluation.attribution_examples", "evaluation.gallery_examples", "tensorboard.pictures")
        changes = {**dict.fromkeys(drawn, 0), **changes}
    config = override(read_experiment(name)[1], TINY | changes)
    # a student that starts from its teacher's blocks keeps two of five
    if config.student.init == "teacher":
        config = override(config, {"student.drop_blocks": 3})
    if config.features.epochs:
        config = override(config, {"features.epochs": 1, "features.head_epochs": 1})
    workdir = Workdir(folder / "runs" / name, teachers or folder / "teachers")
    run(Run(name, config, workdir, STAGES if measured else STAGES[: STAGES.index("distill") + 1]))
    weights = keras.saving.load_model(workdir.stage("distill") / "student.keras").get_weights()
    if not measured:
        return weights, read_manifest(workdir.stage("distill"))
    with open(workdir.run / "rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return weights, row


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Return the folder of the teachers that arms share, as runs do: each is trained once."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teachers):
    """Return a mapping from arm to its student's weights and its record; an arm is trained when it is first read."""
    folder = tmp_path_factory.mktemp("arms")

    class Trained(dict):
        def __missing__(self, name):
            self[name] = train(name, folder, teachers, measured=name in MEASURED)
            return self[name]

    return Trained()


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def distance(left, right):
    return sum(np.square(a - b).sum() for a, b in zip(left, right, strict=True)) ** 0.5


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_and_leaves_a_record(trained, name):
    weights, record = trained[name]
    assert all(np.isfinite(weight).all() for weight in weights)
    if name in MEASURED:
        assert record["experiment"] == name
        assert 0 <= float(record["student_accuracy"]) <= 1
    assert float(record["extra_parameters"]) == 0
    assert 0 < float(record["step_ms"]) < 1e3 * float(record["train_seconds" if name in MEASURED else "seconds"])


def test_no_two_arms_are_the_same_treatment(trained):
    for left, right in itertools.combinations(ARMS, 2):
        a, b = trained[left][0], trained[right][0]
        assert len(a) != len(b) or not same(a, b), f"{left} and {right} give the same student"


def test_every_arm_fits_on_a_page():
    for path in experiments_folder().glob("*.toml"):
        assert len(path.read_text().splitlines()) <= 40


def test_the_views_of_the_teacher_are_three_treatments(teachers, tmp_path):
    students = []
    for kind in ("plain", "views", "live"):
        changes = {"view.kind": kind, "view.views": 3, "losses.kd.weight": 0.5}
        students.append(train("ig_kd", tmp_path / kind, teachers, measured=False, **changes)[0])
    for left, right in itertools.combinations(students, 2):
        assert not same(left, right)


def test_the_placebo_of_a_live_teacher_is_a_treatment_of_its_own(teachers, tmp_path):
    live = {"view.kind": "live", "losses.kd.weight": 0.5}
    own, shuffled = (train(name, tmp_path, teachers, measured=False, **live)[0] for name in ("kd", "kd_shuffled"))
    assert not same(own, shuffled)


@pytest.mark.parametrize("attention", ["views", "moved"])
def test_stored_attention_trains_without_a_live_teacher(attention, teachers, tmp_path):
    changes = {"losses.at.weight": 10.0, "view.views": 3, "view.attention": attention, "ledger.every": 2}
    changes |= {"view.kind": "views" if attention == "views" else "plain"}
    assert not override(read_experiment("kd_at")[1], changes).needs_live_teacher

    def weights(name, **more):
        return train("kd_at", tmp_path / name, teachers, measured=False, **changes | more)[0]

    live, stored = weights("live", **{"view.attention": "live"}), weights("stored")
    assert not same(live, stored)  # float16, or moved
    if attention == "views":  # the same but for rounding, which is small beside what attention teaches
        assert distance(live, stored) < 0.05 * distance(live, weights("without", **{"losses.at.weight": 0.0}))


def test_several_teachers_teach_as_one(tmp_path):
    """Each is trained once and shared: the second run finds the teachers of the first."""
    several = {"teacher.count": 2, "losses.kd.weight": 0.5}
    places = {"teachers": tmp_path / "teachers"}
    alone, _ = train("kd", tmp_path, **places, measured=False, **several | {"teacher.count": 1})
    mean, row = train("kd", tmp_path / "mean", **places, **several)
    weighted = several | {"teacher.weighting": "confidence"}
    confident, _ = train("kd", tmp_path / "confident", **places, measured=False, **weighted)
    histories = list(tmp_path.glob("teachers/*/history.json"))
    assert len(histories) == 2
    networks = [keras.saving.load_model(path.with_name("teacher.keras")) for path in histories]
    assert int(row["teacher_parameters"]) == sum(map(count_parameters, networks))  # both are evaluated, as one
    for left, right in itertools.combinations([alone, mean, confident], 2):
        assert not same(left, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.count": 0}, "teacher.count must be at least 1"),
        ({"teacher.count": 2, "teacher.weights": "some.npz"}, "models.ensemble"),
        ({"teacher.count": 2, "student.init": "teacher"}, "a single teacher"),
        ({"losses.at.weight": -1.0}, "must not be negative"),
    ],
)
def test_teachers_that_cannot_teach_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        override(read_experiment("kd_at")[1], changes)


@pytest.mark.parametrize("name", ["rkd", "hint", "ig_match"])
def test_a_loss_of_its_own_table_changes_the_student(name, trained, teachers, tmp_path):
    """Of relations, of taps with a layer that trains, and of stored maps; no shipped arm above has them."""
    taps = {f"losses.hint.{side}_layer": "block_02" for side in ("student", "teacher")}
    changes = {f"losses.{name}.weight": 1.0} | taps
    weights, record = train("student", tmp_path, teachers, measured=False, **changes)
    assert all(np.isfinite(weight).all() for weight in weights)
    assert not same(weights, trained["student"][0])
    assert (record["extra_parameters"] > 0) == (name == "hint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses.at.student_layer": "block_99", "losses.at.weight": 1.0}, "no layer 'block_99'"),
        ({"losses.at.teacher_layer": "blok_01", "losses.at.weight": 1.0}, "no layer 'blok_01'"),
    ],
)
def test_an_unknown_tap_is_one_line_before_any_training(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train("student", tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/teacher.keras"))


def test_without_weight_and_overlay_the_arm_is_plain_supervised_training(trained, tmp_path):
    """Bit for bit: the machinery of distillation costs a student without a teacher nothing."""
    off = {"losses.kd.weight": 0.0, "overlay.probability": 0.0}
    weights, _ = train("ig_kd", tmp_path, measured=False, **off)
    assert same(weights, trained["student"][0])


# A problem in which only the map carries the label: images are noise, the bright quadrant of the map is the class.

COUNT = 256


def quadrants(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % 4
    maps = rng.integers(0, 60, (COUNT, 8, 8), dtype=np.uint8)
    for index, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        maps[index, top : top + 4, left : left + 4] += 190
    ids = np.array([f"{(index + seed * COUNT) * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
    examples = Examples(ids, rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8), labels, ids)
    ones = np.ones(COUNT, np.float32)
    return examples, Knowledge(np.zeros((COUNT, 4), np.float32), maps, ones, 0 * ones, ones > 0)


def accuracy_on_overlaid(control):
    """Train on overlaid images under a control, measure on held-out images with their own maps overlaid."""
    examples, knowledge = quadrants(0)
    still = AugmentConfig(crop_padding=0, flip=False)
    always = OverlayConfig(probability=1.0)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(inputs))
    model = Distiller(keras.Model(inputs, keras.layers.Dense(4)(hidden)))
    model.compile(keras.optimizers.Adam(3e-3), metrics=["accuracy"], jit_compile=False)
    how = TrainingConfig(batch_size=32), still
    given = TeacherTargets(apply_control(knowledge, control))
    stream = TrainingBatches(examples, *how, seed=0, targets=given, overlay=always)(0)
    model.fit(stream, steps_per_epoch=8, epochs=12, shuffle=False, verbose=0)
    held_out, own = quadrants(1)
    stream = TrainingBatches(held_out, *how, seed=1, targets=TeacherTargets(own), overlay=always)(0)
    images, targets = zip(*itertools.islice(stream, 8), strict=True)
    labels = np.concatenate([target["label"] for target in targets])
    return model.evaluate(np.concatenate(images), labels, verbose=0, return_dict=True)["accuracy"]


def test_matched_maps_teach_what_shuffled_maps_cannot():
    assert accuracy_on_overlaid(ControlConfig()) > 0.9
    assert accuracy_on_overlaid(ControlConfig(maps="shuffled")) < 0.5
