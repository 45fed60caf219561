"""Insertion and deletion on models whose answer is known."""

from functools import partial

import keras
import numpy as np
import pytest
from scipy import special

from tfigkd.attribution import attribute, saliency_map
from tfigkd.attribution.faithfulness import deletion, insertion
from tfigkd.data import to_model_input
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.measure.metrics import predict_logits

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.4, 1, (6, 8, 8, 3)).astype(np.float32)
TARGETS = np.array([0, 0, 0, 1, 1, 1])
QUADRANT = np.zeros((6, 8, 8))
QUADRANT[:, :4, 4:] = 1
PIXEL = np.zeros((6, 8, 8))
PIXEL[:, 5, 2] = 1


def looks_at(maps, images):
    """Return logits for class 0 if the pixels of a map are bright, for class 1 if they are black."""
    seen = (images.mean(axis=-1) * maps[0]).sum(axis=(1, 2)) / maps[0].sum()
    return np.stack([200 * (seen - 0.2), np.zeros(len(images))], axis=1)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("maps", [QUADRANT, PIXEL], ids=["quadrant", "pixel"])
def test_a_model_that_looks_at_one_place(maps, kind):
    images = IMAGES if kind is np.float32 else np.round(255 * IMAGES).astype(np.uint8)

    def predict(given):
        assert given.dtype == kind
        return looks_at(maps, to_model_input(given) if kind is np.uint8 else given)

    targets = 0 * TARGETS
    curves = {
        (curve, sign): curve(predict, images, sign * maps, targets, baseline="black").auc
        for curve in (insertion, deletion)
        for sign in (1, -1)
    }
    assert (curves[insertion, 1] > 0.8).all() and (curves[insertion, -1] < 0.2).all()
    assert (curves[deletion, 1] < 0.2).all() and (curves[deletion, -1] > 0.8).all()
    if maps is PIXEL:
        assert (curves[insertion, 1] > 0.96).all() and (curves[deletion, 1] < 0.04).all()


def test_curves_by_hand():
    """Four pixels of probability 0.4, 0.3, 0.2 and 0.1, shown one at a time; trapezoids of width 1/4."""
    weights = np.array([0.4, 0.3, 0.2, 0.1])

    def predict(images):
        share = images.reshape(-1, 4) @ weights
        return np.log(np.abs(np.stack([1 - share, share], axis=1)) + 1e-300)

    images, maps = np.ones((1, 2, 2, 1)), weights.reshape(1, 2, 2)
    options = {"baseline": "black", "steps": 4}
    shown = insertion(predict, images, maps, [1], **options)
    np.testing.assert_allclose(shown.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(shown.scores, [[0, 0.4, 0.7, 0.9, 1]], atol=1e-12)
    np.testing.assert_allclose(shown.auc, [0.625])
    taken = deletion(predict, images, maps, [1], **options)
    np.testing.assert_allclose(taken.scores, [[1, 0.6, 0.3, 0.1, 0]], atol=1e-12)
    np.testing.assert_allclose(taken.auc, [0.375])
    np.testing.assert_allclose(
        insertion(predict, images, -maps, [1], **options).scores, [[0, 0.1, 0.3, 0.6, 1]], atol=1e-12
    )
    np.testing.assert_allclose(insertion(predict, images, maps, [0], **options).auc, [0.375])
    halves = insertion(predict, images, maps, [1], **{**options, "steps": 2})
    np.testing.assert_allclose(halves.auc, [(0 + 0.7) / 4 + (0.7 + 1) / 4])


def network():
    keras.utils.set_random_seed(0)
    wide = keras.initializers.RandomNormal(stddev=2)
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
    outputs = keras.layers.Dense(3, kernel_initializer=wide)(keras.layers.GlobalAveragePooling2D()(hidden))
    return keras.Model(inputs, outputs)


def test_ends_are_the_baseline_and_the_image():
    model, maps = network(), RNG.random((6, 8, 8))
    predict = model.predict_on_batch
    color = np.full((8, 8, 3), 0.3, np.float32)
    shown = insertion(predict, IMAGES, maps, TARGETS, baseline=color, steps=5)
    whole = special.softmax(predict(IMAGES), axis=1)[np.arange(6), TARGETS]
    empty = special.softmax(predict(color[None]), axis=1)[0, TARGETS]
    np.testing.assert_allclose(shown.scores[:, -1], whole, atol=1e-5)
    np.testing.assert_allclose(shown.scores[:, 0], empty, atol=1e-5)
    # deletion in the order of the map equals insertion in the reverse order
    taken = deletion(predict, IMAGES, -maps, TARGETS, baseline=color, steps=5)
    np.testing.assert_allclose(taken.scores[:, ::-1], shown.scores, atol=1e-5)


def test_nothing_depends_on_batches_scale_or_other_images():
    model, maps = network(), RNG.random((6, 8, 8))
    expected = insertion(model.predict_on_batch, IMAGES, maps, TARGETS, steps=4)
    for size in (1, 7, 12):
        scores = insertion(model.predict_on_batch, IMAGES, 1e-6 * maps, TARGETS, steps=4, batch_size=size).scores
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    alone = insertion(model.predict_on_batch, IMAGES[2:3], maps[2:3], TARGETS[2:3], steps=4)
    np.testing.assert_allclose(alone.scores, expected.scores[2:3], atol=1e-5)


def test_a_constant_map_takes_pixels_from_everywhere():
    def counts_rows(images):
        return np.log(images.mean(axis=(2, 3)) + 1e-300)

    flat = deletion(counts_rows, np.ones((1, 8, 8, 1)), np.ones((1, 8, 8)), [0], steps=2)
    last = deletion(counts_rows, np.ones((1, 8, 8, 1)), np.ones((1, 8, 8)), [7], steps=2)
    # half of the pixels are left, so that a row of which all are left has a quarter of the probability
    assert 0.01 < flat.scores[0, 1] < 0.24 and 0.01 < last.scores[0, 1] < 0.24


def test_a_file_is_measured_as_its_model(tmp_path):
    model, images = network(), np.round(255 * IMAGES).astype(np.uint8)
    (tmp_path / "model.tflite").write_bytes(convert(model, "float32"))
    maps = saliency_map(attribute(model, to_model_input(images), TARGETS, n_steps=8).attributions)
    for curve in (insertion, deletion):
        of_model = curve(partial(predict_logits, model), images, maps, TARGETS, steps=4)
        of_file = curve(litert_predictor(tmp_path / "model.tflite"), images, maps, TARGETS, steps=4)
        np.testing.assert_allclose(of_file.scores, of_model.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[0]}, r"\[B,H,W,C\]"),
        ({"images": IMAGES.astype(int)}, "int64"),
        ({"maps": QUADRANT[:, :4]}, "images' shape"),
        ({"maps": QUADRANT * np.nan}, "finite"),
        ({"targets": TARGETS[:2]}, "each of the 6 images"),
        ({"targets": TARGETS - 1}, "class index"),
        ({"targets": TARGETS + 1}, "number of classes, 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"baseline": "white"}, "black, mean, blur"),
        ({"predict": lambda images: images}, "one row of class scores"),
    ],
)
def test_misuse_is_refused(changes, message):
    arguments = {"predict": partial(looks_at, QUADRANT), "images": IMAGES, "maps": QUADRANT, "targets": TARGETS}
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
        insertion(**arguments | changes)


def test_targets_in_a_column_are_the_same_targets():
    predict = partial(looks_at, QUADRANT)
    for curve in (insertion, deletion):
        expected = curve(predict, IMAGES, QUADRANT, TARGETS).scores
        np.testing.assert_array_equal(curve(predict, IMAGES, QUADRANT, TARGETS[:, None]).scores, expected)
