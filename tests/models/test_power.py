"""Powerpropagation: the kernel by hand, its gradient, files of kernels, pruning, and the control at exponent 1."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.compress.pruning import MagnitudePruning, sparsity
from tfigkd.losses import KLDivergence
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.copies import copy_layer_state
from tfigkd.models.power import PowerConv2D, PowerDense, PowerDepthwiseConv2D, powered, root
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller

RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, 8, 8, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 16)
LAYERS = {
    "convolution": lambda alpha: PowerConv2D(2, 3, alpha=alpha),
    "depthwise": lambda alpha: PowerDepthwiseConv2D(3, alpha=alpha, use_bias=False),
    "dense": lambda alpha: PowerDense(2, alpha=alpha),
}


def student(seed=0):
    keras.utils.set_random_seed(seed)
    return models.mobilenet_v2(4, 16, input_shape=(8, 8, 3), width=0.25)


def distiller(network, **options):
    model = Distiller(network, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5}, **options)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=False)
    return model


def trained(network, steps=3, **options):
    model = distiller(network, **options)
    targets = {"label": LABELS, "teacher_logits": np.eye(4, dtype=np.float32)[LABELS]}
    for _ in range(steps):
        model.train_on_batch(IMAGES, targets)
    return model.student


def test_kernel_and_gradient_by_hand():
    import tensorflow as tf

    theta = tf.constant([-2.0, 0.0, 0.25])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(theta)
        square, half, same = (powered(theta, alpha) for alpha in (2.0, 1.5, 1.0))
    np.testing.assert_allclose(square, [-4, 0, 0.0625])
    np.testing.assert_allclose(half, [-(2**1.5), 0, 0.125], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(square, theta), [4, 0, 0.5])
    np.testing.assert_allclose(tape.gradient(half, theta), [1.5 * 2**0.5, 0, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(tape.gradient(same, theta), [1, 1, 1])
    np.testing.assert_allclose(root(np.array([-4.0, 0.0, 0.0625]), 2.0), [-2, 0, 0.25])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_starts_as_the_plain_one_and_reopens_to_the_same_function(name, tmp_path):
    """The plain layer saves its kernel and loads it into θ: the file would come back raised to the power twice."""
    inputs = keras.Input((8,) if name == "dense" else (8, 8, 3))
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, LAYERS[name](1.5)(inputs))
    layer = model.layers[-1]
    keras.utils.set_random_seed(0)
    plain = type(layer).plain.from_config({k: v for k, v in layer.get_config().items() if k != "alpha"})
    plain.build(inputs.shape)
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    np.testing.assert_allclose(kernel, plain.kernel, rtol=1e-5, atol=1e-7)
    assert len(layer.trainable_variables) == len(plain.trainable_variables)
    theta = layer.theta.numpy()
    assert not np.allclose(theta, kernel)
    for path in (tmp_path / "model.keras", tmp_path / "again.keras"):
        model.save(path)
        model = keras.saving.load_model(path)
        assert type(model.layers[-1]) is type(layer)
        np.testing.assert_allclose(model.layers[-1].theta, theta, rtol=1e-5)
    twin = keras.Model(inputs, type(plain).from_config(plain.get_config())(inputs))
    copy_layer_state(model.layers[-1], twin.layers[-1])
    x = RNG.random((2, *inputs.shape[1:])).astype(np.float32)
    np.testing.assert_allclose(twin(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_student_trains_θ_and_is_written_as_a_plain_model_of_its_kernels(tmp_path):
    start = student()
    network = models.with_power(start, 2.0)
    powered_layers = [layer for layer in network.layers if hasattr(layer, "theta")]
    assert {type(layer) for layer in powered_layers} == {PowerConv2D, PowerDepthwiseConv2D, PowerDense}
    assert network.count_params() == start.count_params()
    np.testing.assert_allclose(network(IMAGES), start(IMAGES), rtol=1e-3, atol=1e-5)
    before = [layer.theta.numpy() for layer in powered_layers]
    after = trained(network)
    for layer, value in zip(powered_layers, before, strict=True):
        assert (layer.theta.numpy() != value).any(), layer.name
    plain = with_stock_batch_norm(models.with_plain_kernels(after))
    assert not any(type(layer).__module__.startswith("tfigkd") for layer in plain.layers)
    assert plain.count_params() == start.count_params()
    np.testing.assert_allclose(plain(IMAGES), after(IMAGES), rtol=1e-3, atol=1e-5)
    plain.save(tmp_path / "student.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "student.keras")(IMAGES), plain(IMAGES))
    assert models.with_plain_kernels(plain) is plain


def test_one_step_moves_the_kernel_by_the_squared_slope_of_the_power():
    """To first order: dW = α²·|θ|^(2α-2) times what it is for the kernel itself."""
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(inputs))
    network = models.with_power(plain, 2.0)
    kernel = plain.layers[-1].kernel.numpy()
    x, labels = RNG.random((8, 3)).astype(np.float32), np.arange(8) % 2
    moves = []
    for model in (plain, network):
        model = Distiller(model)
        model.compile(keras.optimizers.SGD(1e-4), jit_compile=False)
        model.train_on_batch(x, labels)
        moves.append(keras.ops.convert_to_numpy(model.student.layers[-1].kernel) - kernel)
    np.testing.assert_allclose(moves[1], 4 * np.abs(kernel) * moves[0], rtol=0.02, atol=3e-7)


def test_exponent_1_is_the_plain_student_bit_for_bit():
    start = student()
    assert models.with_power(start, 1.0) is start
    config = keras.layers.Dense(4, name="logits").get_config()

    def network(layer):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        return keras.Model(inputs, layer(keras.layers.GlobalAveragePooling2D()(inputs)))

    pair = [trained(network(kind.from_config(config))) for kind in (PowerDense, keras.layers.Dense)]
    assert pair[0].layers[-1].alpha == 2.0
    config = {**config, "alpha": 1.0}
    one = trained(network(PowerDense.from_config(config)))
    for a, b, c in zip(one.get_weights(), pair[1].get_weights(), pair[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(b, c)


@pytest.mark.parametrize("alpha", [1.0, 1.25])
def test_pruned_weights_stay_zero(alpha):
    """Below exponent 2 the derivative of the product form is NaN at zero."""
    model = distiller(models.with_power(student(), alpha))
    targets = {"label": LABELS, "teacher_logits": np.eye(4, dtype=np.float32)[LABELS]}
    pruning = MagnitudePruning(0.5, end=2, frequency=1)
    model.fit(IMAGES, targets, batch_size=8, epochs=3, verbose=0, callbacks=[pruning])
    plain = models.with_plain_kernels(model.student)
    assert sparsity(plain)["prunable_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert all(np.isfinite(weight).all() for weight in plain.get_weights())


def test_a_student_that_starts_with_zeros_is_refused():
    with pytest.raises(UserError, match="of the kernel of block_01_conv1 are zero and would never learn") as caught:
        models.with_power(models.convnet(input_shape=(8, 8, 3), widths=(24, 24)), 2.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="alpha must be at least 1"):
        PowerDense(2, alpha=0.5)


def test_l1_is_the_sum_of_absolute_kernels():
    """Of convolutions, depthwise and dense ones; of an effective kernel where there is a θ."""
    start = student()
    kernels = [v.numpy() for v in start.trainable_variables if v.name == "kernel"]
    expected = 0.01 * sum(float(np.abs(kernel).sum()) for kernel in kernels)
    targets = {"label": LABELS, "teacher_logits": np.zeros((16, 4), np.float32)}
    for network in (start, models.with_power(start, 2.0)):
        model = distiller(network, l1=0.01)
        terms, _ = model.compute_terms(IMAGES, targets, training=True)
        difference = float(terms["loss"]) - 0.5 * float(terms["hard_loss"]) - 0.5 * float(terms["kd_loss"])
        np.testing.assert_allclose(difference, expected, rtol=1e-4)
    assert distiller(start, l1=0.01).get_config()["l1"] == 0.01
    terms, _ = distiller(start, l1=0.01).compute_terms(IMAGES, targets, training=False)
    np.testing.assert_allclose(float(terms["loss"]), float(terms["hard_loss"]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"l1 -0\.1"):
        distiller(start, l1=-0.1)
