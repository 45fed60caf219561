"""The teacher: draws of its own, and a saved one that is taken only whole."""

import shutil

import numpy as np
import pytest

from tfigkd.config.experiment import override, read_experiment, smoke
from tfigkd.runtime.errors import UserError
from tfigkd.stages import teacher
from tfigkd.stages.data import dataset
from tfigkd.stages.distill import training_stream
from tfigkd.stages.workdir import Workdir

CHANGES = {"data.limit": 40, "teacher.drop_blocks": 16, "teacher.width": 0.25, "teacher.training.epochs": 1}


@pytest.fixture
def config():
    return smoke(override(read_experiment("quickstart")[1], CHANGES))


def test_it_sees_other_crops_than_the_student_of_its_seed(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(teacher, "fit", lambda model, stream, **options: drawn.append(next(stream(0))) or [])
    teacher._train(config, dataset(config.data), tmp_path)
    alone = override(config, {"losses.kd.weight": 0.0, "overlay.probability": 0.0})
    alone = override(alone, {"training.batch_size": config.teacher.training.batch_size})
    (images, targets), (others, others_targets) = drawn[0], next(training_stream(alone, Workdir(tmp_path, tmp_path))(0))
    assert images.shape == others.shape
    assert (targets["label"] != others_targets["label"]).any()
    assert not np.array_equal(images, others)


def test_a_saved_teacher_is_taken_over_and_a_damaged_one_is_refused(config, tmp_path, monkeypatch):
    first = Workdir(tmp_path / "run", tmp_path / "first")
    teacher.train_teacher(config, first)
    trained = teacher.teacher_folder(config, first)
    saved = shutil.copytree(trained, tmp_path / "checkout/saved_models/teacher")
    monkeypatch.setattr(teacher, "experiments_folder", lambda: tmp_path / "checkout/experiments")

    second = Workdir(tmp_path / "run", tmp_path / "second")
    teacher.train_teacher(config, second)
    assert not teacher.require_teacher(config, second)["trained_here"]
    weights = [teacher.require_teacher(config, workdir)["weights"] for workdir in (first, second)]
    assert weights[0] == weights[1]

    content = bytearray((saved / teacher.FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / teacher.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"teacher\.keras"):
        teacher.train_teacher(config, Workdir(tmp_path / "run", tmp_path / "third"))
