"""Fused batch normalization says what the stock layer says, and the two can be exchanged."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.children import JAX
from tfigkd.models import batch_norm, copies
from tfigkd.models.batch_norm import FusedBatchNormalization

tf = pytest.importorskip("tensorflow", reason="NEEDS TENSORFLOW: pip install tensorflow")


def _pair(channels: int, **options: Any) -> tuple[keras.Layer, keras.Layer]:
    """A fused and a stock layer with the same random weights."""
    options = {"momentum": 0.9, "epsilon": 1e-5, **options}
    fused, stock = FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)
    generator = np.random.default_rng(0)
    for layer in (fused, stock):
        layer.build((None, 5, 5, channels))
    weights = [generator.uniform(0.5, 2, weight.shape) for weight in stock.weights]
    fused.set_weights(weights)
    stock.set_weights(weights)
    return fused, stock


def _images(*shape: int, dtype: str = "float32", seed: int = 1) -> Any:
    return tf.cast(np.random.default_rng(seed).normal(3, 2, shape), dtype)


def _outputs_and_gradients(layer: keras.Layer, x: Any, training: bool) -> tuple[Any, list[Any]]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 3)
    variables = [variable.value for variable in layer.trainable_variables]
    return outputs, tape.gradient(loss, [x, *variables])


def _assert_close(fused: Any, stock: Any, tolerance: float = 1e-5) -> None:
    fused, stock = np.asarray(fused, "float64"), np.asarray(stock, "float64")
    np.testing.assert_allclose(fused, stock, rtol=tolerance, atol=tolerance * max(1.0, np.abs(stock).max()))


def _classifier(size: int = 8) -> keras.Model:
    """Two normalizations, one of them inside a nested model."""
    block_input = keras.Input((size, size, 4))
    x = keras.layers.DepthwiseConv2D(3, padding="same")(block_input)
    block = keras.Model(block_input, FusedBatchNormalization(name="inner")(x), name="block")
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.ZeroPadding2D()(inputs))
    x = keras.layers.ReLU()(FusedBatchNormalization(momentum=0.9, name="outer")(x))
    x = keras.layers.GlobalAveragePooling2D()(block(x) + x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x), name="tiny")
    generator = np.random.default_rng(2)
    model.set_weights([generator.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_outputs_and_gradients_equal_the_stock_layer(options: dict[str, bool], training: bool) -> None:
    fused, stock = _pair(6, **options)
    x = _images(4, 5, 7, 6)
    outputs, gradients = _outputs_and_gradients(fused, x, training)
    expected, expected_gradients = _outputs_and_gradients(stock, x, training)
    _assert_close(outputs, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        _assert_close(gradient, expected_gradient)


@settings(max_examples=20)
@given(st.tuples(*[st.integers(1, 5)] * 4))
def test_moving_averages_follow_the_stock_layer(shape: tuple[int, ...]) -> None:
    fused, stock = _pair(shape[-1])
    for step in range(4):
        x = _images(*shape, seed=step)
        _assert_close(fused(x, training=True), stock(x, training=True), 1e-4)
    for mine, theirs in zip(fused.weights, stock.weights, strict=True):
        _assert_close(mine, theirs)


def test_moving_averages_by_hand() -> None:
    layer = FusedBatchNormalization(momentum=0.75, epsilon=1e-5)
    layer(np.float32([1, 2, 3, 6]).reshape(4, 1, 1, 1), training=True)
    np.testing.assert_allclose(layer.moving_mean, [0.25 * 3.0], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [0.75 + 0.25 * 3.5], rtol=1e-6)  # 14 / 4, not 14 / 3


def test_one_pixel_gives_the_offset_and_no_nan() -> None:
    fused, stock = _pair(3)
    x = _images(1, 1, 1, 3)
    np.testing.assert_allclose(fused(x, training=True), stock.beta.numpy().reshape(1, 1, 1, 3), atol=1e-5)
    stock(x, training=True)
    for mine, theirs in zip(fused.weights, stock.weights, strict=True):
        _assert_close(mine, theirs)


@pytest.mark.parametrize("shape", [(8, 3), (8, 5, 3), (4, 2, 3, 5, 3)])
def test_other_ranks_take_the_parents_way(shape: tuple[int, ...]) -> None:
    fused, stock = FusedBatchNormalization(), keras.layers.BatchNormalization()
    x = _images(*shape)
    for training in (True, False):
        _assert_close(fused(x, training=training), stock(x, training=training))


def test_axis_mask_and_renorm_take_the_parents_way() -> None:
    x = _images(4, 5, 6, 3)
    mask = np.arange(4 * 5 * 6).reshape(4, 5, 6) % 3 > 0
    for options, arguments in (({"axis": 1}, {}), ({}, {"mask": mask}), ({"renorm": True}, {})):
        fused, stock = FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)
        _assert_close(fused(x, training=True, **arguments), stock(x, training=True, **arguments))
        _assert_close(fused.moving_mean, stock.moving_mean)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision(dtype: str, training: bool) -> None:
    fused, stock = _pair(4, dtype=f"mixed_{dtype}")
    x = _images(3, 6, 6, 4, dtype=dtype)
    outputs, gradients = _outputs_and_gradients(fused, x, training)
    expected, expected_gradients = _outputs_and_gradients(stock, x, training)
    assert outputs.dtype == expected.dtype == dtype
    tolerance = {"float16": 3e-3, "bfloat16": 2e-2}[dtype]
    _assert_close(outputs, expected, tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        _assert_close(gradient, expected_gradient, 3 * tolerance)
    _assert_close(fused.moving_variance, stock.moving_variance, 1e-4)


def test_frozen_layer_uses_and_keeps_its_moving_averages() -> None:
    fused, stock = _pair(3)
    fused.trainable = stock.trainable = False
    before = fused.get_weights()
    x = _images(2, 4, 4, 3)
    _assert_close(fused(x, training=True), stock(x, training=True))
    for old, new in zip(before, fused.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradient_of_the_gradient() -> None:
    """Losses on input gradients differentiate twice."""
    fused, stock = _pair(3)
    x = _images(2, 4, 4, 3)
    seconds = []
    for layer in (fused, stock):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x, training=True) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        seconds.append(outer.gradient(penalty, x))
    _assert_close(*seconds, 1e-4)


def test_compiled_by_xla() -> None:
    fused, stock = _pair(3)
    x = _images(2, 4, 4, 3)
    outputs = tf.function(lambda x: fused(x, training=True), jit_compile=True)(x)
    _assert_close(outputs, stock(x, training=True))
    _assert_close(fused.moving_variance, stock.moving_variance)


def test_training_a_model_equals_training_its_stock_twin() -> None:
    model = _classifier()
    twin = batch_norm.with_stock_batch_norm(model)
    x, y = _images(16, 8, 8, 3).numpy(), np.arange(16) % 3
    losses = []
    for candidate in (model, twin):
        candidate.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        history = candidate.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for mine, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        _assert_close(mine, theirs, 1e-4)


def test_config_and_file_round_trip(tmp_path: Path) -> None:
    model = _classifier()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded.get_layer("outer")) is FusedBatchNormalization
    stock = keras.layers.BatchNormalization(momentum=0.9, name="outer")
    assert loaded.get_layer("outer").get_config().keys() == stock.get_config().keys()
    x = _images(2, 8, 8, 3)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_weights_interchange_in_order_and_by_path() -> None:
    model = _classifier()
    stock = batch_norm.with_stock_batch_norm(model)
    for source, target in ((model, copies.with_new_layers(stock)), (stock, copies.with_new_layers(model))):
        target.set_weights(source.get_weights())
        for mine, theirs in zip(source.weights, target.weights, strict=True):
            assert mine.path == theirs.path
            np.testing.assert_array_equal(mine, theirs)


def test_exchange_keeps_names_weights_and_the_given_model() -> None:
    model = _classifier()
    model.compile("adam", "mse")
    before = model.get_config()
    stock = batch_norm.with_stock_batch_norm(model)
    assert type(stock.get_layer("outer")) is keras.layers.BatchNormalization
    assert type(stock.get_layer("block").get_layer("inner")) is keras.layers.BatchNormalization
    assert [layer.name for layer in stock.layers] == [layer.name for layer in model.layers]
    assert stock.name == model.name and not stock.compiled
    fused = batch_norm.with_fused_batch_norm(stock)
    assert type(fused.get_layer("block").get_layer("inner")) is FusedBatchNormalization
    x = _images(2, 8, 8, 3)
    _assert_close(stock(x), model(x))
    np.testing.assert_array_equal(fused(x), model(x))
    assert model.get_config() == before
    assert batch_norm.with_stock_batch_norm(stock) is stock
    assert batch_norm.with_fused_batch_norm(model) is model


def test_exchange_in_a_sequential_model() -> None:
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(name="norm")]
    )
    fused = batch_norm.with_fused_batch_norm(model)
    assert type(fused.get_layer("norm")) is FusedBatchNormalization
    assert type(model.get_layer("norm")) is keras.layers.BatchNormalization
    x = _images(2, 6, 6, 3)
    _assert_close(fused(x), model(x))


def test_what_cannot_be_exchanged() -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = FusedBatchNormalization()

        def call(self, x: Any) -> Any:
            return self.norm(x)

    with pytest.raises(ValueError, match="must be Functional, or Sequential"):
        batch_norm.with_stock_batch_norm(Subclassed())
    plain = Subclassed()
    assert batch_norm.with_fused_batch_norm(plain) is plain
    inputs = keras.Input((2, 6, 6, 3))
    wrapped = keras.Model(inputs, keras.layers.TimeDistributed(FusedBatchNormalization(name="norm"))(inputs))
    with pytest.raises(ValueError, match=r"inside a wrapper.*norm"):
        batch_norm.with_stock_batch_norm(wrapped)


def _run_apart(code: str, *arguments: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_stock_copy_opens_in_plain_keras(tmp_path: Path) -> None:
    model = _classifier()
    batch_norm.with_stock_batch_norm(model).save(tmp_path / "model.keras")
    x = _images(2, 8, 8, 3).numpy()
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
sys.modules["tfigkd"] = None  # as where it is not installed
import keras, numpy
folder = sys.argv[1]
model = keras.saving.load_model(folder + "/model.keras", safe_mode=True)
numpy.save(folder + "/y.npy", model.predict(numpy.load(folder + "/x.npy"), verbose=0))
"""
    _run_apart(code, tmp_path)
    _assert_close(np.load(tmp_path / "y.npy"), model(x))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="NEEDS JAX: pip install tfigkd[test]")
def test_jax_takes_the_parents_way(tmp_path: Path) -> None:
    fused, _ = _pair(3)
    np.savez(tmp_path / "weights.npz", *fused.get_weights())
    x = _images(4, 5, 5, 3).numpy()
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
import keras, numpy
from tfigkd.models.batch_norm import FusedBatchNormalization
folder = sys.argv[1]
assert keras.config.backend() == "jax" and "tensorflow" not in sys.modules
layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
x = numpy.load(folder + "/x.npy")
layer.build(x.shape)
layer.set_weights(list(numpy.load(folder + "/weights.npz").values()))
y = layer(x, training=True)
numpy.savez(folder + "/out.npz", y, *layer.get_weights())
"""
    _run_apart(code, tmp_path, **JAX)
    outputs = fused(x, training=True)
    for mine, theirs in zip([outputs, *fused.get_weights()], np.load(tmp_path / "out.npz").values(), strict=True):
        _assert_close(mine, theirs)
