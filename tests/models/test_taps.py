"""Taps inside models inside: the same numbers as the inner model alone, one forward pass, the model's own weights."""

import keras
import numpy as np
import pytest

from tfigkd.models.taps import tap_outputs

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((4, *SHAPE), np.float32)


def backbone() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = keras.layers.ReLU(name="block_01")(x)
    return keras.Model(inputs, keras.layers.Conv2D(5, 3, name="last")(x), name="backbone")


def nested(base: keras.Model, **call: bool) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = base(keras.layers.Rescaling(2.0, -1.0)(inputs), **call)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D(name="pool")(x)), name="own")


def test_a_layer_of_a_model_inside(images: np.ndarray) -> None:
    base = backbone()
    model = nested(base)
    logits, inner, pooled = tap_outputs(model, ["backbone/block_01", "pool"])(images, training=False)
    np.testing.assert_allclose(logits, model(images, training=False), atol=1e-6)
    alone = keras.Model(base.input, base.get_layer("block_01").output)
    np.testing.assert_allclose(inner, alone(2 * images - 1, training=False), atol=1e-6)
    np.testing.assert_allclose(pooled, np.mean(base(2 * images - 1, training=False), axis=(1, 2)), atol=1e-5)


def test_it_runs_once_in_training_and_trains_the_model(images: np.ndarray) -> None:
    """The moving mean follows one batch once: 0.5 of its mean; twice would be 0.75."""
    base = backbone()
    model = nested(base)
    tapped = tap_outputs(model, ["backbone/block_01"])
    tapped(images, training=True)
    mean = np.mean(base.get_layer("first")(2 * images - 1), axis=(0, 1, 2))
    np.testing.assert_allclose(base.get_layer("norm").moving_mean, 0.5 * mean, atol=1e-5)
    assert {id(weight) for weight in tapped.trainable_variables} == {id(weight) for weight in model.trainable_variables}


@pytest.mark.parametrize("training", [None, True])
def test_the_mode_of_a_model_inside_is_as_in_the_model_itself(images: np.ndarray, training: bool | None) -> None:
    """base(x, training=False), as transfer learning has it: Keras's own model is the measure."""
    base = backbone()
    model = nested(base, training=False)
    tapped = tap_outputs(model, ["backbone/block_01"])
    before = model.get_weights()
    model(images, training=training)
    expected = np.array(base.get_layer("norm").moving_mean)
    model.set_weights(before)
    tapped(images, training=training)
    np.testing.assert_allclose(base.get_layer("norm").moving_mean, expected, atol=1e-6)


def test_sequential_and_deeper(images: np.ndarray) -> None:
    base = backbone()
    middle = keras.Sequential([keras.Input(SHAPE), base, keras.layers.ReLU(name="relu")], name="middle")
    model = keras.Sequential([keras.Input(SHAPE), middle, keras.layers.Flatten(), keras.layers.Dense(3)])
    _, deep, outer = tap_outputs(model, ["middle/backbone/first", "middle/relu"])(images)
    np.testing.assert_allclose(deep, base.get_layer("first")(images), atol=1e-6)
    np.testing.assert_allclose(outer, middle(images), atol=1e-6)
    np.testing.assert_allclose(tap_outputs(model, ["middle"])(images)[1], middle(images), atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.dense = keras.layers.Dense(3)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return self.dense(keras.ops.mean(x, axis=(1, 2)))


def test_what_has_no_layers_to_look_into(images: np.ndarray) -> None:
    subclassed = Subclassed()
    subclassed(images)
    with pytest.raises(ValueError, match="mine is a subclassed model, so its layers cannot be looked into"):
        tap_outputs(subclassed, ["dense"])
    with pytest.raises(ValueError, match="is not built"):
        tap_outputs(keras.Sequential([keras.layers.Dense(3, name="dense")]), ["dense"])
    with pytest.raises(ValueError, match="own has no layer 'block_01'; its nearest: backbone/block_01"):
        tap_outputs(nested(backbone()), ["block_01"])
