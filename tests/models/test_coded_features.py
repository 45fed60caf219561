"""The price on bits: the rate by hand and by SciPy, noise and rounding, its gradient, and the network without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import logistic

from experiments.benchmarks.feature_coder import Coder, split
from tfigkd import models
from tfigkd.config.experiment import override, read_experiment
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import IGMatching
from tfigkd.models.coded_features import CodedFeatures, rate_bits
from tfigkd.runtime.errors import UserError
from tfigkd.stages import distill, training_setup
from tfigkd.stages.data import dataset
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import make_optimizer

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 6)).astype(np.float32)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="image")
    features = keras.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(features))


def test_the_bits_are_those_of_the_interval_by_scipy():
    values = np.array([[0.0, 0.3, -2.0, 7.5]], np.float32)
    mean, width = np.array([0.0, 0.5, 1.0, 0.0]), np.array([1.0, 0.25, 2.0, 0.5])
    upper, lower = (logistic.cdf(values + half, loc=mean, scale=width) for half in (0.5, -0.5))
    found = rate_bits(values, mean.astype(np.float32), np.log(width).astype(np.float32))
    np.testing.assert_allclose(found, -np.log2(upper - lower), rtol=1e-4)
    integers = np.arange(-60, 61, dtype=np.float32)[:, None]
    found = rate_bits(integers, np.float32([0.2]), np.float32([0.7]))
    assert np.sum(2.0 ** -np.asarray(found)) == pytest.approx(1, abs=1e-4)  # a code of all integers


def test_the_gradient_is_that_of_differences_and_not_lost_far_out():
    values = tf.Variable([[0.3, -1.2, 400.0]])
    mean, log_width = tf.zeros(3), tf.constant([0.0, 0.5, -1.0])
    with tf.GradientTape() as tape:
        bits = rate_bits(values, mean, log_width)
    found = tape.gradient(bits, values).numpy()

    def exact(x):
        width = np.exp([0.0, 0.5])
        return -np.log2(logistic.cdf(x + 0.5, scale=width) - logistic.cdf(x - 0.5, scale=width))

    near = np.array([0.3, -1.2])
    np.testing.assert_allclose(found[0, :2], (exact(near + 1e-5) - exact(near - 1e-5)) / 2e-5, rtol=1e-3)
    assert found[0, 2] == pytest.approx(np.e / np.log(2), rel=1e-4)  # the tail falls as exp(-x / width)


def test_features_are_rounded_at_inference_and_get_noise_and_a_price_in_training():
    layer = CodedFeatures(weight=0.5, step=0.25)
    features = RNG.normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_allclose(layer(features, training=False), np.rint(features / 0.25) * 0.25, atol=1e-6)
    assert layer.losses == []
    noisy = layer(features, training=True).numpy()
    assert np.abs(noisy - features).max() <= 0.125 + 1e-5
    assert np.abs(noisy - features).max() > 0.11
    bits = rate_bits(noisy / 0.25, layer.mean, layer.log_width).numpy().sum(axis=1)
    np.testing.assert_allclose(layer.losses[0], 0.5 * bits.mean(), rtol=1e-4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (again.weight, again.step) == (0.5, 0.25)


def test_the_price_counts_beside_losses_that_run_the_student_again():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
    student = models.with_code(keras.Model(inputs, keras.layers.Dense(3, name="logits")(x)), 0.5, 0.25)
    loss = IGMatching(grid=None)
    model = Distiller(student, losses={"ig_match": loss}, loss_weights={"ig_match": 2.0})
    targets = {"label": np.arange(8) % 3, "teacher_map": np.ones((8, 6, 6), np.float32)}
    terms, _ = model.compute_terms(RNG.random((8, 6, 6, 3), np.float32), targets, training=True)
    price = terms["loss"] - terms["hard_loss"] - 2 * terms["ig_match_loss"]
    assert price > 1  # a dozen bits of each feature


def test_without_weight_the_network_is_itself_and_without_the_code_what_it_was():
    model = network()
    assert models.with_code(model, 0.0, 0.25) is model is models.without_code(model)
    coded = models.with_code(model, 0.1, 1e-5)
    np.testing.assert_allclose(coded(IMAGES), model(IMAGES), atol=1e-4)
    plain = models.without_code(coded)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(plain(IMAGES), model(IMAGES))


def test_a_higher_price_leaves_fewer_bits_and_trains_the_density():
    images, found = np.tile(IMAGES, (60, 1)), []
    for weight in (1e-6, 0.1):
        model = Distiller(models.with_code(network(), weight, 0.25))
        model.compile(keras.optimizers.Adam(0.02), jit_compile=False)
        model.fit(images, np.argmax(images[:, :3], axis=1), batch_size=64, verbose=0)
        front, _ = split(models.without_code(model.student))
        features = front(IMAGES).numpy()
        coder = Coder.fit(features, 0.25)
        found.append(coder.ideal_bits(coder.encode(features)))
        code = model.student.get_layer("code")
        assert np.any(code.log_width.numpy() != 0)
    assert found[1] < 0.6 * found[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_takes_the_kernels_and_leaves_the_density(optimizer):
    model = models.with_code(network(), 0.1, 0.25)
    code, kernel = model.get_layer("code"), model.get_layer("hidden").kernel
    for variable in code.trainable_variables:
        variable.assign(variable + 2.0)
    before = kernel.numpy()
    made = make_optimizer(TrainingConfig(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1), 10)
    made.build(model.trainable_variables)
    made._apply_weight_decay(model.trainable_variables)
    np.testing.assert_allclose(kernel, 0.95 * before, rtol=1e-5)
    np.testing.assert_array_equal(code.get_weights(), np.full((2, 5), 2.0))


def test_the_student_of_a_run_is_a_plain_network(tmp_path):
    changes = {
        "data.name": "digits",
        "data.limit": 96,
        "student": {"model": "convnet", "widths": (8,), "depth": 1, "normalization": "none"},
        "view.kind": "plain",
        "losses.kd.weight": 0.0,
        "training.epochs": 1,
        "training.precision": "float32",
        "code.weight": 0.01,
    }
    config = override(read_experiment("cifar10_code")[1], changes)
    places = Workdir(tmp_path / "run", tmp_path)
    off = override(config, {"code.weight": 0.0})
    assert distill.student_fingerprint(override(off, {"code.step": 3.0}), places) == distill.student_fingerprint(
        off, places
    )
    assert distill.student_fingerprint(config, places) != distill.student_fingerprint(off, places)
    run(Run("cifar10_code", config, places, ("data", "distill"), preview=False))
    student = keras.saving.load_model(places.stage("distill") / "student.keras")
    expected = training_setup.untrained_student(config, dataset(config.data))
    assert [layer.name for layer in student.layers] == [layer.name for layer in expected.layers]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code.weight": -0.1}, r"code\.weight must not be negative"),
        ({"code.step": 0.0}, r"code\.step must be positive, got 0\.0"),
    ],
)
def test_a_code_out_of_range_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        override(read_experiment("cifar10_code")[1], changes)


def test_a_network_that_does_not_end_in_logits_is_refused_in_one_line():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="shares")(inputs))
    with pytest.raises(UserError, match=r"code\.weight must be 0 with a student .* ends in 'shares'") as caught:
        models.with_code(model, 0.1, 0.25)
    assert "\n" not in str(caught.value)
