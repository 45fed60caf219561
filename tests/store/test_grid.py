"""Maps on a coarser grid: means of cells in the store, cells spread over their pixels where maps are used."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfigkd import OverlayStore
from tfigkd.batches.augment import overlay
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import override, read_experiment
from tfigkd.config.fields import AttributionConfig, OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples, identify
from tfigkd.data.grid import cell_means, spread
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.losses.features import pool_to
from tfigkd.measure.examples import Shown
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages import overlays, training_setup
from tfigkd.stages.data import stored_examples
from tfigkd.stages.evaluate import make_gallery
from tfigkd.stages.preflight import check_networks
from tfigkd.stages.teacher import train_teacher
from tfigkd.stages.workdir import Workdir
from tfigkd.store.maps import store_identity

SETTINGS = {"n_steps": 8, "tolerance": 10.0, "shard_size": 16}


@pytest.fixture
def maps():
    return np.random.default_rng(0).gamma(0.5, size=(5, 12, 8)).astype(np.float32)


def test_cells_have_the_means_that_pillow_computes(maps):
    expected = [np.asarray(Image.fromarray(one).resize((4, 4), Image.Resampling.BOX)) for one in maps]
    np.testing.assert_allclose(cell_means(maps, 4), expected, rtol=1e-5)
    assert cell_means(maps, None) is maps


def test_spread_maps_are_those_of_nearest_neighbors_and_pool_as_the_pixels_do(maps):
    coarse = cell_means(maps, 4)
    wide = spread(coarse, (12, 8))
    expected = [np.asarray(Image.fromarray(one).resize((8, 12), Image.Resampling.NEAREST)) for one in coarse]
    np.testing.assert_array_equal(wide, expected)
    assert spread(maps, (12, 8)) is maps
    # a loss that compares maps on a grid sees no difference
    by_pixels, by_cells = (keras.ops.convert_to_numpy(pool_to(one[..., None], 2, 2)) for one in (maps, wide))
    np.testing.assert_allclose(by_cells, by_pixels, rtol=1e-5)


def test_a_grid_that_cuts_pixels_is_one_line(maps):
    with pytest.raises(UserError, match=r"attribution.grid must divide the size of the images \(8x12\), got 3"):
        cell_means(maps, 3)
    with pytest.raises(ValueError, match="no multiple of maps"):
        spread(maps, (16, 16))


def test_a_store_without_a_grid_has_the_name_that_it_had():
    config = AttributionConfig()
    # both are of the version before the field
    assert fingerprint(config) == "2bf7130e6b2cb1be" != fingerprint(replace(config, grid=4))
    assert fingerprint(store_identity("weights", "data", config)) == "45a5a05c20691f95"


def test_batches_overlay_and_match_the_cells():
    side, count = 8, 30
    rng = np.random.default_rng(1)
    images, coarse = (
        rng.integers(0, 256, (count, side, side, 3), np.uint8),
        rng.integers(0, 256, (count, 4, 4), np.uint8),
    )
    examples: Examples = identify(images, np.arange(count))
    ones = np.ones(count, np.float32)

    def first(maps):
        known = Knowledge(np.zeros((count, 4), np.float32), maps, ones, 0 * ones, ones > 0)
        laid = OverlayConfig(probability=0.5)
        wanted = {"teacher_map", "teacher_inputs"}
        options = {"seed": 3, "targets": TeacherTargets(known), "overlay": laid, "wanted": wanted}
        recipe = TrainingConfig(batch_size=count, cutout=3)
        return next(TrainingBatches(examples, recipe, AugmentConfig(2), **options)(0))

    (left, by_cells), (right, by_pixels) = first(coarse), first(coarse.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(by_cells["teacher_map"], by_pixels["teacher_map"])
    assert (left != by_cells["teacher_inputs"]).any(axis=(1, 2, 3)).sum() > 5


def test_the_library_joins_cells_and_verifies_them(tmp_path):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation="relu"), layers.Flatten(), layers.Dense(4)]
    teacher = keras.Sequential([layers.Input((8, 8, 3)), *stack])
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), rng.integers(0, 4, 40)
    full, coarse = (OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS, **grid) for grid in ({}, {"grid": 2}))
    assert coarse.folder != full.folder
    assert coarse.knowledge.maps.shape == (40, 2, 2)
    scaled = [one.knowledge.maps * (one.knowledge.scales[:, None, None] / 255) for one in (full, coarse)]
    tolerance = full.knowledge.scales.max() / 255
    np.testing.assert_allclose(scaled[0].reshape(40, 2, 4, 2, 4).mean(axis=(2, 4)), scaled[1], atol=tolerance)
    assert coarse.verify(teacher, arrays)["maps"] < 1e-2
    joined = coarse.join(tf.data.Dataset.from_tensor_slices(arrays))
    assert joined.element_spec[0].shape == (8, 8, 4)
    pixels = next(iter(joined.batch(40)))[0].numpy()
    assert (pixels[:, 1, 3, 3] == pixels[:, 2, 0, 3]).all()  # of one cell
    images = overlay(pixels[..., :3] / np.float32(255), pixels[..., 3], np.ones(40))
    assert images.shape == (40, 8, 8, 3)
    with pytest.raises(UserError, match=r"must divide the size of the images \(8x8\), got 3"):
        OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS, grid=3)


def test_stages_store_verify_train_on_and_show_the_cells(tmp_path):
    changes = {
        "data.limit": 40,
        "teacher.model": "convnet",
        "teacher.drop_blocks": 0,
        "teacher.width": 1.0,
        "teacher.widths": (24,),
        "teacher.training.epochs": 1,
        "attribution.max_steps": 8,
        "attribution.tolerance": 10.0,
        "overlay.probability": 1.0,
        "attribution.grid": 4,
    }
    config = override(read_experiment("quickstart")[1], changes)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers", seed=0)
    train_teacher(config, workdir)
    overlays.build_overlays(config, workdir)
    examples = stored_examples(config.data)
    assert overlays.load_knowledge(config, workdir, examples).maps.shape == (80, 4, 4)
    assert overlays.verify(overlays.store_folder(config, workdir), sample=10)["maps"] < 1e-2
    images, _ = next(training_setup.training_stream(config, workdir)(0))
    assert images.shape[1:] == (8, 8, 3)
    shown = Shown(examples.take(np.arange(6)), dict.fromkeys(("student", "teacher"), np.zeros(6, np.int64)))
    own = np.random.default_rng(0).random((6, 8, 8)), np.zeros(6)
    gallery = make_gallery(config, workdir, shown, {"student": own, "teacher": own})
    assert gallery.teacher_maps.shape == (6, 8, 8)
    np.testing.assert_array_equal(
        gallery.teacher_maps[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2), gallery.teacher_maps
    )
    assert gallery.overlays.shape == (6, 8, 8, 3)
    assert overlays.stored_maps(config, workdir, examples).shape == (80, 8, 8)
    with pytest.raises(UserError, match=r"attribution.grid must divide"):
        check_networks(override(config, {"attribution.grid": 5}))
