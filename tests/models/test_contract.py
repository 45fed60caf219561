"""A model file is a contract: what is rebuilt of it is the function that plain Keras opens, or one line says why."""

import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.edge.convert import convert
from tfigkd.models import batch_norm, copies, equivalence
from tfigkd.models.precision import with_precision
from tfigkd.runtime.errors import UserError

L = keras.layers
IMAGES = np.random.default_rng(0).random((6, 12, 12, 3)).astype("float32")


def shaken(model: keras.Model) -> keras.Model:
    """The model with statistics of batch normalization as after training."""
    generator = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if type(layer) is L.BatchNormalization:
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def classifier(build: Callable = lambda x: x, activation: str | None = "softmax", pool: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = build(inputs)
    x = L.GlobalAveragePooling2D()(x) if pool else x
    return shaken(keras.Model(inputs, L.Dense(4, activation=activation)(x)))


def normalized(x):
    norm = L.Normalization(name="adapted")
    norm.adapt(0.3 + 0.5 * np.random.default_rng(2).random((50, 12, 12, 3)))
    return L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, use_bias=False)(norm(x))))


def nested(x):
    inner = keras.Input((12, 12, 3))
    backbone = keras.Model(inner, normalized(inner), name="backbone")
    backbone.trainable = False
    return backbone(x, training=False)


def looked_up(x):
    lookup = L.IntegerLookup(output_mode="int", name="lookup")
    lookup.adapt(np.array([3, 1, 3, 2, 1, 3]))
    steps = L.Discretization(bin_boundaries=[0.25, 0.5, 0.75], name="steps")
    return L.Rescaling(0.3)(lookup(steps(x)))


def in_time(x):
    x = L.TimeDistributed(L.BatchNormalization())(L.Reshape((2, 6, 12, 3))(x))
    return L.BatchNormalization()(L.Conv2D(4, 3)(L.Reshape((12, 12, 3))(x)))


def sequence_inside(x):
    inner = keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(8, 3), L.BatchNormalization(), L.ReLU()])
    inner.compile("adam", "mse")
    return inner(L.Rescaling(2.0, offset=-1.0)(x))


BUILDS = {
    "adapted Normalization": normalized,
    "nested and frozen": nested,
    "vocabulary": looked_up,
    "TimeDistributed": in_time,
    "compiled inside": sequence_inside,
    "given Normalization": lambda x: L.Conv2D(4, 3)(L.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)),
    "spectral": lambda x: L.BatchNormalization()(L.SpectralNormalization(L.Conv2D(4, 3))(x)),
    "random": lambda x: L.GaussianNoise(0.1)(L.BatchNormalization()(L.Conv2D(4, 3)(L.RandomFlip()(x)))),
}


def probabilities(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.softmax(model(IMAGES, training=False)))


@pytest.mark.parametrize("name", BUILDS)
def test_every_rebuilt_model_is_the_file_as_plain_keras_opens_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    model = classifier(BUILDS[name])
    model.save(path)
    # Keras itself does not open a file with a compiled model inside that was never fitted
    expected = (model if name == "compiled inside" else keras.saving.load_model(path))(IMAGES, training=False)
    assert np.ptp(expected, axis=0).max() > 1e-3  # a function of the images
    own = models.load_classifier(path)
    rebuilt = {
        "loaded": own,
        "plain": models.ReferenceClassifier(path),
        "folded": models.fold_batch_norm(own),
        "stock": batch_norm.with_stock_batch_norm(own),
        "fused": batch_norm.with_fused_batch_norm(batch_norm.with_stock_batch_norm(own)),
        "copy": copies.verified_copy(own),
    }
    for what, model in rebuilt.items():
        np.testing.assert_allclose(probabilities(model), expected, atol=1e-5, err_msg=what)
    batch_norm.with_stock_batch_norm(own).save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(probabilities(again), expected, atol=1e-5)


def test_a_compiled_model_can_be_wrapped(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(8, 3), L.GlobalAveragePooling2D(), L.Dense(4)])
    inner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inner.fit(255 * IMAGES, np.arange(6) % 4, epochs=1, verbose=0)
    wraps = {
        "scaling": keras.Sequential([keras.Input((12, 12, 3)), L.Rescaling(255.0), inner]),
        "softmax": keras.Sequential([keras.Input((12, 12, 3)), inner, L.Softmax()]),
    }
    for name, outer in wraps.items():
        path = tmp_path / f"{name}.keras"
        outer.save(path)
        expected = np.asarray(keras.saving.load_model(path)(IMAGES))
        found = models.load_classifier(path)(IMAGES)
        np.testing.assert_allclose(keras.ops.softmax(found) if name == "softmax" else found, expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "off"), [("mixed_float16", 5e-3), ("float16", 5e-3), ("float64", 1e-6)])
def test_any_precision_becomes_single_precision(tmp_path: Path, precision: str, off: float) -> None:
    keras.config.set_dtype_policy(precision)
    try:
        model = classifier(lambda x: L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(x))))
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    own = models.load_classifier(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in own.layers} == {"float32"}
    np.testing.assert_allclose(probabilities(own), model(IMAGES), atol=off)


def test_what_is_lost_is_an_error_that_names_the_layer() -> None:
    model = classifier(nested, None)
    copy = copies.with_new_layers(model)
    copy.set_weights(model.get_weights())  # all weights, but not the state that the adapted layer computes with
    with pytest.raises(UserError, match="first layer that differs is 'backbone/adapted'") as caught:
        equivalence.check_same(copy, model)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="first layer that differs is 'backbone/adapted'"):
        batch_norm.with_stock_batch_norm(_without_state(batch_norm.with_fused_batch_norm(model), "backbone", "adapted"))


def _without_state(model: keras.Model, inside: str, name: str) -> keras.Model:
    """The model with a layer whose state no method of Keras writes or reads."""
    layer = model.get_layer(inside).get_layer(name)
    layer.save_own_variables = lambda store: None
    return model


def test_rounding_is_no_difference() -> None:
    """Gains of a thousand a layer amplify rounding to more than the tolerance; that is the same function."""
    model = classifier(lambda x: L.BatchNormalization()(L.Conv2D(4, 3)(x)), None)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([np.full(4, 1e4), np.zeros(4), np.full(4, 0.1), np.full(4, 1e-4)])
    folded = models.fold_batch_norm(model)
    expected = np.asarray(model(IMAGES))
    np.testing.assert_allclose(folded(IMAGES), expected, atol=1e-2 * np.abs(expected).max())
    other = copies.verified_copy(model)
    other.layers[-1].bias.assign_add(np.full(4, 0.01 * np.abs(expected).max(), "float32"))
    with pytest.raises(UserError, match="does not give the model's outputs"):
        equivalence.check_same(other, model)


def test_augmentation_inside_a_model_is_no_difference() -> None:
    """Also where layers are compared one by one, as in a network that amplifies rounding."""
    inputs = keras.Input((12, 12, 3))
    x = L.RandomRotation(0.2)(L.RandomFlip()(inputs))
    model = shaken(keras.Model(inputs, L.Dense(4)(L.Flatten()(L.Conv2D(8, 3)(x)))))
    copy = copies.verified_copy(model)
    place, outputs = equivalence.first_difference(copy, model, [IMAGES])
    assert place is None
    np.testing.assert_allclose(outputs[0], model(IMAGES, training=False), atol=1e-5)


def test_shared_layers_frozen_layers_and_generators_survive() -> None:
    conv, norm, noise = L.Conv2D(3, 3, padding="same"), L.BatchNormalization(), L.Dropout(0.5)
    inputs = keras.Input((12, 12, 3))
    norm.trainable = False
    x = L.Add()([norm(conv(inputs)), norm(conv(noise(inputs)))])
    model = shaken(keras.Model(inputs, L.GlobalAveragePooling2D()(x)))
    noise.seed_generator.next()
    copy = copies.verified_copy(model)
    assert len(copy.weights) == len(model.weights)
    assert [weight.path for weight in copy.trainable_weights] == [weight.path for weight in model.trainable_weights]
    states = [one.get_layer(noise.name).seed_generator.state for one in (copy, model)]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, states))
    np.testing.assert_allclose(copy(IMAGES, training=True), model(IMAGES, training=True), atol=1e-6)


def test_precision_keeps_state_and_frozen_layers() -> None:
    model = classifier(normalized, None)
    model.get_layer("adapted").trainable = False
    half = with_precision(model, "mixed_bfloat16")
    np.testing.assert_allclose(half(IMAGES), model(IMAGES), atol=0.1 * np.abs(model(IMAGES)).max())
    back = with_precision(half, "float32")
    np.testing.assert_allclose(back(IMAGES), model(IMAGES), atol=1e-5)
    assert not back.get_layer("adapted").trainable


def test_a_layer_quantized_by_keras_is_not_folded(tmp_path: Path) -> None:
    inputs = keras.Input((12, 12, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3)(inputs))
    model = shaken(keras.Model(inputs, L.Dense(4)(L.ReLU()(L.BatchNormalization()(L.Dense(16)(x))))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras speaks of each layer that it leaves alone
        model.quantize("int8")
    model.save(tmp_path / "quantized.keras")
    expected = keras.saving.load_model(tmp_path / "quantized.keras")(IMAGES)
    own = models.load_classifier(tmp_path / "quantized.keras")
    np.testing.assert_allclose(own(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(models.fold_batch_norm(own)(IMAGES), expected, atol=1e-5)
    with pytest.raises(
        UserError, match=r"Keras has quantized layer .* \(model.quantize\), .*; export the model as it was"
    ):
        convert(own, "float32")
