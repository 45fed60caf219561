"""RandAugment by Keras's layer: the same pictures whenever the same epoch comes again, and maps that stay in place."""

import itertools

import keras
import numpy as np
import pytest

from tests.children import ROOT, run
from tests.test_jax import NEEDS_JAX, QUICK_TO_COMPILE
from tfigkd.batches.augment import OPERATION, example_keys, uniform
from tfigkd.batches.randaugment import rand_augment
from tfigkd.batches.stream import Knowledge, training_batches
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data import Examples

COUNT = 40
IDS = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
IMAGES = np.random.default_rng(1).integers(40, 200, (COUNT, 8, 8, 3), dtype=np.uint8)
EXAMPLES = Examples(IDS, IMAGES, np.arange(COUNT) % 4, IDS)
OPTIONS = {"augment": AugmentConfig(1), "batch_size": 20, "seed": 3}


@pytest.fixture(scope="module")
def change():
    return rand_augment(1, 0.5)


def test_an_epoch_that_is_repeated_has_the_same_pictures(change):
    batches = [
        images for images, _ in itertools.islice(training_batches(EXAMPLES, **OPTIONS, randaugment=change)(0), 4)
    ]
    again = training_batches(EXAMPLES, **OPTIONS, randaugment=rand_augment(1, 0.5))(1)
    for images, repeated in zip(batches[2:], again, strict=False):
        np.testing.assert_array_equal(images, repeated[0])
    plain = [images for images, _ in itertools.islice(training_batches(EXAMPLES, **OPTIONS)(0), 2)]
    changed = np.abs(np.subtract(batches[:2], plain)).max(axis=(2, 3, 4)) > 1e-3
    assert changed.mean() > 0.7
    assert 0 <= np.min(batches) <= np.max(batches) <= 1


def test_a_picture_gets_the_operation_of_its_id_as_keras_computes_it(change):
    images, keys = (IMAGES / 255).astype(np.float32), example_keys(IDS)
    operation = (uniform(keys, seed=5, epoch=2, purpose=OPERATION) * 11).astype(int)
    changed = change(images, keys=keys, seed=5, epoch=2)
    chosen = operation == 9  # the only one that has no strength and does not look at other pictures
    assert chosen.any()
    expected = keras.layers.AutoContrast(value_range=(0, 1))(images[chosen])
    np.testing.assert_allclose(changed[chosen], expected, atol=1e-6)
    assert len({*operation}) > 6


def test_the_overlay_is_laid_on_the_changed_picture_where_the_map_was(change):
    ones = np.ones(COUNT, np.float32)
    knowledge = Knowledge(np.zeros((COUNT, 4), np.float32), IMAGES[..., 0].copy(), ones, 0 * ones, ones > 0)
    overlay = OverlayConfig(probability=1.0, min_exponent=1.0, max_exponent=1.0)
    options = OPTIONS | {"knowledge": knowledge, "overlay": overlay, "wanted": ("teacher_inputs", "teacher_map")}
    images, targets = next(training_batches(EXAMPLES, **options, randaugment=change)(0))
    _, without = next(training_batches(EXAMPLES, **options)(0))
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
    (tmp_path / "repeated.py").write_text(REPEATED)
    environment = {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_TO_COMPILE}
    assert run(tmp_path, "repeated", environment=environment).stdout == "True False False\n"
