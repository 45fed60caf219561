"""RandAugment by Keras's layer: the same pictures whenever the same epoch comes again, and maps that stay in place."""

import itertools

import keras
import numpy as np
import pytest

from tests.children import on_jax
from tests.test_jax import NEEDS_JAX
from tfigkd.batches.augment import Purpose, example_keys, uniform
from tfigkd.batches.randaugment import rand_augment
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets

COUNT = 40
IDS = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
IMAGES = np.random.default_rng(1).integers(40, 200, (COUNT, 8, 8, 3), dtype=np.uint8)
EXAMPLES = Examples(IDS, IMAGES, np.arange(COUNT) % 4, IDS)
PLAIN, CHANGED = TrainingConfig(batch_size=20), TrainingConfig(batch_size=20, randaugment=1)


def batches_of(recipe, **options):
    return TrainingBatches(EXAMPLES, recipe, AugmentConfig(1), seed=3, **options)


def test_an_epoch_that_is_repeated_has_the_same_pictures():
    batches = [images for images, _ in itertools.islice(batches_of(CHANGED)(0), 4)]
    again = batches_of(CHANGED)(1)
    for images, repeated in zip(batches[2:], again, strict=False):
        np.testing.assert_array_equal(images, repeated[0])
    plain = [images for images, _ in itertools.islice(batches_of(PLAIN)(0), 2)]
    changed = np.abs(np.subtract(batches[:2], plain)).max(axis=(2, 3, 4)) > 1e-3
    assert changed.mean() > 0.7
    assert 0 <= np.min(batches) <= np.max(batches) <= 1


def test_a_picture_gets_the_operation_of_its_id_as_keras_computes_it():
    images, keys = (IMAGES / 255).astype(np.float32), example_keys(IDS)
    operation = (uniform(keys, seed=5, epoch=2, purpose=Purpose.OPERATION) * 11).astype(int)
    changed = rand_augment(1, 0.5)(images, keys=keys, seed=5, epoch=2)
    chosen = operation == 9  # the only one that has no strength and does not look at other pictures
    assert chosen.any()
    expected = keras.layers.AutoContrast(value_range=(0, 1))(images[chosen])
    np.testing.assert_allclose(changed[chosen], expected, atol=1e-6)
    assert len({*operation}) > 6


def test_the_overlay_is_laid_on_the_changed_picture_where_the_map_was():
    ones = np.ones(COUNT, np.float32)
    knowledge = Knowledge(np.zeros((COUNT, 4), np.float32), IMAGES[..., 0].copy(), ones, 0 * ones, ones > 0)
    overlay = OverlayConfig(probability=1.0, min_exponent=1.0, max_exponent=1.0)
    options = {"targets": TeacherTargets(knowledge), "overlay": overlay, "wanted": ("teacher_inputs", "teacher_map")}
    images, targets = next(batches_of(CHANGED, **options)(0))
    _, without = next(batches_of(PLAIN, **options)(0))
    np.testing.assert_array_equal(targets["teacher_map"], without["teacher_map"])
    maps = targets["teacher_map"]
    least, most = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (np.min, np.max))
    scaled = ((maps - least) / (most - least))[..., None]
    np.testing.assert_allclose(images, 0.5 * targets["teacher_inputs"] + 0.5 * scaled, atol=1e-5)


REPEATED = """
import numpy as np
from tfigkd.batches.randaugment import rand_augment
images, keys = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32), np.arange(4, dtype=np.uint64)
change = rand_augment(1, 0.5)
first, other, again = (change(images, keys=keys, seed=0, epoch=epoch) for epoch in (0, 1, 0))
print(np.array_equal(first, again), np.array_equal(first, other), np.array_equal(first, images))
"""


@NEEDS_JAX
@pytest.mark.slow  # XLA compiles for a minute
def test_jax_repeats_its_pictures(tmp_path):
    assert on_jax(tmp_path, REPEATED) == "True False False\n"
