"""Models whose graph is not known, or not yet: subclassed ones, alone or inside others, and unbuilt Sequential ones."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfigkd import Distiller, integrated_gradients
from tfigkd.models import as_classifier
from tfigkd.models.adapt import graph_as_classifier, logits_of

SHAPE = (8, 8, 3)


def dense(units: int, activation: Any = None) -> keras.layers.Layer:
    """Of large weights, so that its probabilities are no even ones."""
    return keras.layers.Dense(units, activation=activation, kernel_initializer=keras.initializers.RandomNormal(0, 8))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def softmax(logits: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


@keras.saving.register_keras_serializable("test_subclassed")
class Subclassed(keras.Model):
    """A model without a graph: a linear map of the pixels, and an activation."""

    def __init__(self, units: int = 3, activation: Any = "softmax", **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.activation = units, activation
        self.flat, self.dense = keras.layers.Flatten(), dense(units, activation)

    def build(self, shape: Any) -> None:
        self.dense.build((None, int(np.prod(shape[1:]))))

    def call(self, inputs: Any) -> Any:
        return self.dense(self.flat(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "activation": self.activation}


def subclassed(units: int = 3, activation: Any = "softmax", scale: float = 0.1) -> keras.Model:
    model = Subclassed(units, activation)
    model.build((None, *SHAPE))
    model.dense.kernel.assign(scale * model.dense.kernel)
    return model


def test_the_maps_of_a_subclassed_softmax_are_those_of_the_logits_under_it(pixels: np.ndarray) -> None:
    """Of a linear map with black as baseline, Integrated Gradients are weight times pixel."""
    keras.utils.set_random_seed(0)
    model, images = subclassed(), pixels / np.float32(255)
    maps, _ = integrated_gradients(model, images, np.full(6, 1), n_steps=64)
    shares = keras.ops.convert_to_numpy(model(images))
    assert np.ptp(shares) > 0.2
    kernel = model.dense.get_weights()[0]
    # log softmax differs from the logits by what all classes share, so that differences of two classes tell
    others, _ = integrated_gradients(model, images, np.full(6, 2), n_steps=64)
    expected = images * (kernel[:, 1] - kernel[:, 2]).reshape(SHAPE)
    np.testing.assert_allclose(maps - others, expected, atol=1e-4)
    linear, _ = integrated_gradients(subclassed(activation=None), images, np.full(6, 1), n_steps=4)
    assert not np.allclose(linear, maps)
    single = subclassed(1, "sigmoid")
    with pytest.raises(ValueError, match="may be a probability or a logit; declare outputs"):
        integrated_gradients(single, images, np.full(6, 1), n_steps=4)
    second, _ = integrated_gradients(single, images, np.full(6, 1), n_steps=4, outputs="probabilities")
    np.testing.assert_allclose(second, images * single.dense.get_weights()[0].reshape(SHAPE) / 2, atol=1e-4)


def test_a_subclassed_model_that_gives_logits_stays_the_very_same(pixels: np.ndarray) -> None:
    model = subclassed(activation=None)
    assert as_classifier(model, images=pixels / np.float32(255)) is model is as_classifier(model)
    with pytest.raises(ValueError, match=r"whose input range cannot be changed; let its call scale the pixels"):
        as_classifier(model, input_range=(0, 255))


def test_a_subclassed_model_declared_to_give_probabilities_trains_by_its_logits(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    """As its twin does that ends in logits; it is the user's own model that trains."""
    images, labels = pixels / np.float32(255), np.arange(6) % 3
    mine, twin = subclassed(), subclassed(activation=None)
    twin.set_weights(mine.get_weights())
    wrapped = as_classifier(mine, outputs="probabilities")
    assert as_classifier(mine, outputs="probabilities") is wrapped is as_classifier(mine, images=images)
    np.testing.assert_allclose(softmax(wrapped(images)), mine(images), atol=1e-6)
    losses = []
    for student in (wrapped, twin):
        model = Distiller(student)
        model.compile(keras.optimizers.SGD(0.01), jit_compile=False)
        losses.append(model.fit(images, labels, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(mine.dense.get_weights()[0], twin.dense.get_weights()[0], atol=1e-5)
    wrapped.save(tmp_path / "wrapped.keras")
    opened = keras.saving.load_model(tmp_path / "wrapped.keras")
    np.testing.assert_allclose(opened(images), wrapped(images), atol=1e-6)
    mine.save_weights(tmp_path / "mine.weights.h5")  # as if it had never been wrapped
    again = subclassed()
    again.load_weights(tmp_path / "mine.weights.h5")
    np.testing.assert_array_equal(again.dense.get_weights()[0], mine.dense.get_weights()[0])


def test_a_subclassed_model_inside_that_cannot_be_copied_is_named() -> None:
    class Closed(Subclassed):
        def get_config(self) -> dict[str, Any]:
            raise NotImplementedError("several\nlines")

    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, Closed(name="closed")(inputs))
    with pytest.raises(
        ValueError, match="closed cannot be copied: its class Closed does not say its arguments"
    ) as said:
        as_classifier(model)
    assert "\n" not in str(said.value)


def test_a_sequential_model_that_is_not_built_is_refused_where_its_end_or_beginning_counts(pixels: np.ndarray) -> None:
    images = pixels / np.float32(255)

    def unbuilt(activation: Any) -> keras.Model:
        return keras.Sequential([keras.layers.Flatten(), dense(3, activation)])

    for use in (
        lambda: as_classifier(unbuilt(None)),
        lambda: graph_as_classifier(unbuilt("softmax")),
        lambda: integrated_gradients(unbuilt("softmax"), images, np.zeros(6, int)),
        lambda: Distiller(unbuilt("softmax")),
        lambda: Distiller(keras.Sequential()),
    ):
        with pytest.raises(ValueError, match=r"is not built.*: model.build\(\(None, H, W, C\)\), or begin") as caught:
            use()
        assert "\n" not in str(caught.value)
    values = images[:, 0, 0]
    np.testing.assert_array_equal(logits_of(unbuilt(None))(values), values)
    built = unbuilt("softmax")
    built.build((None, *SHAPE))
    np.testing.assert_allclose(softmax(as_classifier(built)(images)), built(images), atol=1e-5)


@pytest.mark.parametrize(("units", "activation"), [(3, "softmax"), (3, None), (1, "sigmoid")])
def test_a_functional_model_around_a_subclassed_one(units: int, activation: Any, pixels: np.ndarray) -> None:
    images, inside = pixels / np.float32(255), subclassed(units, activation)
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, inside(inputs))
    expected = keras.ops.convert_to_numpy(model(images))
    declared = "probabilities" if units == 1 else None
    if units == 1:
        for read in (as_classifier, logits_of):
            with pytest.raises(ValueError, match="may be a probability or a logit; declare outputs"):
                read(model)
    for _ in range(2):
        logits = keras.ops.convert_to_numpy(as_classifier(model, outputs=declared)(images))
        np.testing.assert_allclose(logits_of(model, declared)(expected), logits, atol=1e-5)
        if activation is None:
            np.testing.assert_allclose(logits, expected, atol=1e-5)
        else:
            shares = np.concatenate([1 - expected, expected], axis=1) if units == 1 else expected
            np.testing.assert_allclose(softmax(logits), shares, atol=1e-5)
        inside.dense.kernel.assign(0.5 * inside.dense.kernel)  # what was made of it before keeps up
        expected = keras.ops.convert_to_numpy(model(images))
