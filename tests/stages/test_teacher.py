"""The teacher: draws of its own, and a saved one that is taken only whole."""

import shutil

import numpy as np
import pytest

from tfigkd.config.experiment import override, read_experiment, smoke
from tfigkd.runtime.errors import UserError
from tfigkd.stages import estimate, precision, teacher
from tfigkd.stages.data import dataset
from tfigkd.stages.estimate import STAGE_SECONDS, seconds_of_stages
from tfigkd.stages.training_setup import training_stream
from tfigkd.stages.workdir import TEACHER_FILE, Workdir
from tfigkd.training.fit import Training

CHANGES = {"data.limit": 40, "teacher.drop_blocks": 16, "teacher.width": 0.25, "teacher.training.epochs": 1}


@pytest.fixture
def config():
    return smoke(override(read_experiment("quickstart")[1], CHANGES))


def test_it_sees_other_crops_than_the_student_of_its_seed(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Training, "run", lambda training: drawn.append(next(training.stream(0))) or [])
    teacher._train(config, dataset(config.data), tmp_path)
    alone = override(config, {"losses.kd.weight": 0.0, "overlay.probability": 0.0})
    alone = override(alone, {"training.batch_size": config.teacher.training.batch_size})
    (images, targets), (others, others_targets) = drawn[0], next(training_stream(alone, Workdir(tmp_path, tmp_path))(0))
    assert images.shape == others.shape
    assert (targets["label"] != others_targets["label"]).any()
    assert not np.array_equal(images, others)


def test_a_trained_convnet_keeps_the_whitening_of_its_training_images(config, tmp_path):
    config = override(config, {"teacher.model": "convnet", "teacher.drop_blocks": 0, "teacher.width": 1.0})
    config = override(config, {"teacher.widths": (4, 4), "teacher.normalization": "none"})
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    teacher.train_teacher(config, workdir)
    whitening = teacher.load_teacher(config, workdir).get_layer("whitening")
    images = dataset(config.data).train.images.astype(np.float64) / 255
    rows, columns = images.shape[1] - 1, images.shape[2] - 1
    patches = [images[:, y : y + rows, x : x + columns] for y in (0, 1) for x in (0, 1)]
    patches = np.concatenate(patches, axis=-1).reshape(-1, 12)
    # with filters F/sqrt(value + epsilon), the second moments of the outputs are value / (value + epsilon)
    filters = whitening.get_weights()[0].reshape(12, -1)[:, :12]
    moments = filters.T @ (patches.T @ patches / len(patches)) @ filters
    values = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    np.testing.assert_allclose(np.sort(np.diag(moments)), values.clip(0) / (values.clip(0) + 5e-4), atol=1e-3)
    np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-3)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Trains the teacher of a config in the folder first, and copies it to the saved models."""

    def save(config):
        first = Workdir(tmp_path / "run", tmp_path / "first")
        teacher.train_teacher(config, first)
        trained = teacher.teacher_folder(config, first)
        monkeypatch.setattr(teacher, "experiments_folder", lambda: tmp_path / "checkout/experiments")
        return first, shutil.copytree(trained, tmp_path / "checkout/saved_models/teachers/mobilenet_v2")

    return save


def test_with_auto_and_in_an_estimate_a_saved_teacher_counts_as_trained(config, saved, tmp_path, monkeypatch):
    saved(override(config, {"teacher.training.precision": "mixed_bfloat16"}))
    auto = override(config, {"teacher.training.precision": "auto"})
    assert precision.with_assumed_precisions(auto).teacher.training.precision == "mixed_bfloat16"
    monkeypatch.setattr(
        precision, "compare_precisions", lambda network, recipe: {"float32": 1.0, "mixed_bfloat16": 2.0}
    )
    workdir = Workdir(tmp_path / "run", tmp_path / "second")
    resolved = precision.resolve(auto, workdir)
    assert resolved.teacher.training.precision == "mixed_bfloat16"
    assert precision.resolve(auto, workdir) == resolved
    monkeypatch.setattr(estimate, "_with_trial", lambda measure: 1000.0)
    epochs = override(resolved, {"teacher.training.epochs": 2})
    costs = [seconds_of_stages(one, workdir, ["teacher"])["teacher"] for one in (resolved, epochs)]
    assert costs == [pytest.approx(STAGE_SECONDS, rel=0.01), pytest.approx(STAGE_SECONDS + 1000, rel=0.01)]
    other = precision.resolve(
        override(epochs, {"teacher.training.precision": "auto"}), Workdir(tmp_path / "other", tmp_path)
    )
    assert other.teacher.training.precision == "float32"  # nobody has saved this one, so it is measured


def test_a_saved_teacher_is_taken_over_and_a_damaged_one_is_refused(config, saved, tmp_path):
    first, folder = saved(config)
    second = Workdir(tmp_path / "run", tmp_path / "second")
    teacher.train_teacher(config, second)
    assert not teacher.require_teacher(config, second)["trained_here"]
    weights = [teacher.require_teacher(config, workdir)["weights"] for workdir in (first, second)]
    assert weights[0] == weights[1]

    content = bytearray((folder / TEACHER_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / TEACHER_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"teacher\.keras"):
        teacher.train_teacher(config, Workdir(tmp_path / "run", tmp_path / "third"))
