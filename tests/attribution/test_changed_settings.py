"""Attributions of a model that computes with other settings than at the call before, which no variable shows."""

import keras
import numpy as np
import pytest

from tfigkd.attribution import integrated_gradients
from tfigkd.models.trace_key import settings_of

IMAGES = np.random.default_rng(0).random((4, 6, 6, 3)).astype(np.float32)
TARGETS = np.arange(4)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(IMAGES)
    x = keras.layers.Conv2D(5, 3, activation="tanh", name="conv")(normalization(inputs))
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(keras.layers.Flatten()(x)))


def maps(model: keras.Model) -> np.ndarray:
    return integrated_gradients(model, IMAGES, TARGETS, n_steps=8, input_range=(0, 1))[0]


def adapted(model: keras.Model) -> None:
    model.get_layer("normalization").adapt(0.1 * IMAGES)


def activated(model: keras.Model) -> None:
    model.get_layer("conv").activation = keras.activations.sigmoid


CHANGES = {"adapted": adapted, "activated": activated}


def check(change) -> None:
    """Compare the maps after a change with those of a model that has had it before its first call."""
    model, fresh = network(), network()
    before = maps(model)
    np.testing.assert_array_equal(maps(model), before)
    change(model)
    change(fresh)
    expected = maps(fresh)
    assert np.abs(expected - before).max() > 1e-2 * np.abs(before).max()
    np.testing.assert_allclose(maps(model), expected, rtol=1e-4, atol=1e-6)


def check_changes() -> None:
    for change in CHANGES.values():
        check(change)


@pytest.mark.parametrize("change", CHANGES)
def test_maps_are_those_of_the_model_as_it_is_now(change):
    check(CHANGES[change])


def test_settings_are_told_from_what_training_changes():
    """Weights, and what `compile` and `fit` note, are none: a model that trains is not traced again."""
    model = network()
    maps(model)
    before = settings_of(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    model.fit(IMAGES, TARGETS, verbose=0)
    model.predict(IMAGES, verbose=0)
    assert settings_of(model) == before
    hash(before)
    for layer, name, value in (("conv", "strides", (2, 2)), ("logits", "units", 5), ("logits", "extra", np.ones(3))):
        setattr(model.get_layer(layer), name, value)
        assert settings_of(model) != before
        before = settings_of(model)
