"""Cut squares: gray in the image and in what the teacher sees, zero in the map, at places that are drawn evenly."""

import numpy as np
import pytest

from tfigkd.batches import augment
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import override, read_experiment, smoke
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.stages import teacher, training_setup
from tfigkd.stages.data import dataset
from tfigkd.stages.workdir import Workdir
from tfigkd.training.fit import Training

COUNT, SIDE = 600, 9
IDS = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
IMAGES = np.random.default_rng(0).integers(130, 256, (COUNT, SIDE, SIDE, 3), np.uint8)  # none as dark as the gray
MAPS = np.full((COUNT, SIDE, SIDE), 200, np.uint8)
ONES = np.ones(COUNT, np.float32)


def batch(cutout, augment, **options):
    examples = Examples(IDS, IMAGES, np.arange(COUNT) % 4, IDS)
    stream = TrainingBatches(examples, TrainingConfig(batch_size=COUNT, cutout=cutout), augment, seed=3, **options)
    return next(stream(0))


def squares(images):
    """Return for each image the rows and columns that are gray."""
    gray = np.isclose(images, augment.GRAY / 255).all(axis=-1)
    return gray.any(axis=2), gray.any(axis=1), gray


def test_a_square_is_gray_and_all_else_as_without_it():
    plain, _ = batch(0, AugmentConfig(2))
    images, _ = batch(4, AugmentConfig(2))
    rows, columns, gray = squares(images)
    np.testing.assert_array_equal(gray, rows[:, :, None] & columns[:, None, :])
    np.testing.assert_array_equal(np.where(gray[..., None], 0, images), np.where(gray[..., None], 0, plain))
    # centers on all 9 rows: those of 5 rows leave 4 rows of the square inside, the others 2, 3, 3 and 2
    counts = np.bincount(rows.sum(axis=1), minlength=5)
    np.testing.assert_allclose(counts[2:] / COUNT, [1 / 9, 2 / 9, 6 / 9], atol=0.06)
    assert abs(np.corrcoef(rows.argmax(axis=1), columns.argmax(axis=1))[0, 1]) < 0.15


def test_the_teacher_sees_the_same_square_and_the_map_is_zero_there():
    knowledge = Knowledge(np.zeros((COUNT, 4), np.float32), MAPS, ONES, 0 * ONES, ONES > 0)
    images, targets = batch(
        4,
        AugmentConfig(0, False),
        targets=TeacherTargets(knowledge),
        overlay=OverlayConfig(probability=0.5),
        wanted={"teacher_inputs", "teacher_map"},
    )
    _, _, gray = squares(targets["teacher_inputs"])
    assert gray.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(targets["teacher_map"], np.where(gray, 0, 200))
    laid = (images != targets["teacher_inputs"]).any(axis=(1, 2, 3))
    assert 0.4 < laid.mean() < 0.6
    np.testing.assert_allclose(images[laid][gray[laid]], augment.GRAY / 255 / 2, atol=1e-6)  # overlaid with nothing


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_both_stages_cut_as_their_own_recipe_says(side, tmp_path, monkeypatch):
    changes = {"data.limit": 40, "teacher.drop_blocks": 16, "teacher.width": 0.25, "losses.kd.weight": 0.0}
    changes |= {"overlay.probability": 0.0, ("teacher." if side == "teacher" else "") + "training.cutout": 4}
    config = smoke(override(read_experiment("quickstart")[1], changes))
    drawn = []
    monkeypatch.setattr(Training, "run", lambda training: drawn.append(next(training.stream(0))) or [])
    teacher._train(config, dataset(config.data), tmp_path)
    drawn.append(next(training_setup.training_stream(config, Workdir(tmp_path, tmp_path))(0)))
    cut = [squares(images)[2].any() for images, *_ in drawn]
    assert cut == [side == "teacher", side == "student"]
