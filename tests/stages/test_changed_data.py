"""Data that change under an unchanged config: a finished student stays, and a test picture costs nothing."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd.config.experiment import override, read_experiment
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest
from tfigkd.stages import data
from tfigkd.stages.compatibility import data_fingerprints
from tfigkd.stages.distill import student_fingerprint
from tfigkd.stages.runner import Run, run
from tfigkd.stages.teacher import teacher_fingerprint
from tfigkd.stages.workdir import Workdir

SMALL = {
    "teacher.training.precision": "float32",
    "augment.crop_padding": 0,
    "student.model": "mobilenet_v2",
    "student.drop_blocks": 17,
    "student.width": 0.25,
    "teacher.normalization": "none",
    "training.epochs": 1,
    "training.batch_size": 32,
    "evaluation.attribution_examples": 0,
    "evaluation.gallery_examples": 0,
    "tensorboard.pictures": 0,
}


def add(root: Path, split: str, name: str, seed: int) -> None:
    folder = root / split / name
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / f"{seed}.png")


def another_process() -> None:
    """Forget the data, as a new process has not read them yet."""
    data._load.cache_clear()
    data.training_examples.cache_clear()
    data.all_training_examples.cache_clear()


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for index in range(40):
        add(root, "train" if index < 30 else "test", ("ant", "bee")[index % 2], index)
    another_process()
    yield root
    another_process()


def experiment(arm: str, root: Path, **changes):
    return override(read_experiment(arm)[1], SMALL | {"data.name": str(root)} | changes)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fingerprints_follow_what_a_stage_reads(pictures, tmp_path):
    config, workdir = experiment("student", pictures), Workdir(tmp_path / "w", tmp_path / "t")

    def found() -> tuple[str, ...]:
        another_process()
        return (
            teacher_fingerprint(config),
            data.stored_fingerprint(config.data, data.dataset(config.data).training_fingerprint),
            student_fingerprint(config, workdir),
            data.dataset(config.data).fingerprint,
        )

    before = found()
    add(pictures, "test", "ant", 100)
    tested = found()
    assert tested[:3] == before[:3] and tested[3] != before[3]
    add(pictures, "train", "ant", 101)
    assert not {*found()} & {*before}


def test_corrected_names_of_classes_reach_the_files(pictures, tmp_path):
    config = override(
        experiment("student", pictures), {"export.formats": ["float32"], "export.calibration_examples": 4}
    )
    workdir = Workdir(tmp_path / "w", tmp_path / "t")
    for wrong, right in (("", ""), ("bee", "bees")):
        if wrong:
            for split in ("train", "test"):
                (pictures / split / wrong).rename(pictures / split / right)
        another_process()
        run(Run("student", config, workdir, ("data", "distill", "export", "evaluate")))
        contract = json.loads((workdir.stage("export") / "student.float32.json").read_text())
        names = list(data.dataset(config.data).class_names)
        assert contract["class_names"] == read_manifest(workdir.stage("evaluate"))["class_names"] == names
        assert ("bees" in names) == bool(wrong)


def test_a_finished_student_is_not_overwritten_by_other_data(pictures, tmp_path, capsys):
    config, workdir = experiment("student", pictures), Workdir(tmp_path / "w", tmp_path / "t")
    run(Run("student", config, workdir, ("data", "distill", "evaluate")))
    student = workdir.stage("distill") / "student.keras"
    trained = digest(student)
    capsys.readouterr()

    another_process()
    add(pictures, "test", "ant", 100)
    run(Run("student", config, workdir, ("data", "distill", "evaluate")))
    output = capsys.readouterr().out
    assert f"already done: {workdir.stage('distill')}" in output  # and the larger test split is measured
    assert f"already done: {workdir.stage('evaluate')}" not in output

    another_process()
    add(pictures, "train", "bee", 101)
    for stages in (("data", "distill"), ("evaluate",)):
        with pytest.raises(
            UserError, match=r"trained on other data \(fingerprint \w+, now \w+; 30 examples, now 31\)"
        ) as caught:
            run(Run("student", config, workdir, stages))
        assert "choose another --workdir" in str(caught.value) and "\n" not in str(caught.value)
    run(Run("student", config, workdir, ("data",)))  # looking at the data costs nothing
    assert digest(student) == trained


def test_a_finished_student_is_not_overwritten_by_another_teacher(pictures, tmp_path, capsys):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    own = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    own.save(tmp_path / "own.keras")
    changes = {"teacher.model": str(tmp_path / "own.keras"), "teacher.train": False, "attribution.n_steps": 2}
    changes["teacher.accept_chance"] = True
    config = experiment("kd", pictures, **changes)
    workdir, stages = Workdir(tmp_path / "w", tmp_path / "t"), ("data", "teacher", "overlays", "distill")
    run(Run("kd", config, workdir, stages))
    trained = digest(workdir.stage("distill") / "student.keras")
    # the same file under another path is the same teacher, and one of other weights is not
    moved = override(config, {"teacher.model": str(tmp_path / "moved/same.keras")})
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "own.keras", tmp_path / "moved/same.keras")
    capsys.readouterr()
    run(Run("kd", moved, workdir, stages))
    assert f"already done: {workdir.stage('distill')}" in capsys.readouterr().out
    other = keras.models.clone_model(own)
    other.save(tmp_path / "moved/same.keras")
    with pytest.raises(UserError, match="holds a student of another teacher"):
        run(Run("kd", moved, workdir, stages))
    other.save(tmp_path / "third.keras")
    with pytest.raises(UserError, match=r"holds a run with other settings \(teacher\.model\)"):
        run(Run("kd", override(config, {"teacher.model": str(tmp_path / "third.keras")}), workdir, stages))
    run(Run("kd", config, workdir, stages))
    own.set_weights([one + 0.1 for one in own.get_weights()])
    own.save(tmp_path / "own.keras")
    with pytest.raises(UserError, match="holds a student of another teacher") as caught:
        run(Run("kd", config, workdir, stages))
    names = re.search(r"\((\w+), now (\w+)\)", str(caught.value)).groups()
    assert [path.name for path in (tmp_path / "t").iterdir() if path.name in names] == [names[0]]
    assert digest(workdir.stage("distill") / "student.keras") == trained


def test_what_earlier_versions_wrote_is_found_under_its_old_name(pictures, tmp_path):
    config, workdir = experiment("student", pictures), Workdir(tmp_path / "w", tmp_path / "t")
    new, whole = data_fingerprints(config.data)
    assert whole == data.dataset(config.data).fingerprint != new
    from tfigkd.stages.teacher import teacher_folder

    assert teacher_folder(config, workdir).name == teacher_fingerprint(config, new)
    (workdir.teachers / teacher_fingerprint(config, whole)).mkdir(parents=True)
    assert teacher_folder(config, workdir).name == teacher_fingerprint(config, whole)
