"""Folded batch normalization: the same outputs, and only where it may be folded."""

from typing import Any

import keras
import numpy as np
import pytest

from tfigkd.models import fold_batch_norm, mobilenet_v2
from tfigkd.models.batch_norm import FusedBatchNormalization

Norm = keras.layers.BatchNormalization


def _randomized(model: keras.Model) -> keras.Model:
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0.2, 1.5, weight.shape) - 0.1 for weight in model.get_weights()])
    return model


def _norms(model: keras.Model) -> list[str]:
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, Norm)]


def _assert_same_function(model: keras.Model, folded: keras.Model) -> None:
    shape = (3, *model.inputs[0].shape[1:])
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    expected = np.asarray(model(x, training=False))
    np.testing.assert_allclose(folded(x), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_convolutions_and_dense_layers() -> None:
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(FusedBatchNormalization(name="first")(x))
    x = Norm(scale=False)(keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x))
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    model = _randomized(keras.Model(inputs, Norm(center=False)(keras.layers.Dense(5)(x))))
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert _norms(folded) == [] and len(_norms(model)) == 3
    assert [layer.name for layer in folded.layers] == [layer.name for layer in model.layers]
    _assert_same_function(model, folded)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_feature_maps_keep_their_names() -> None:
    model = _randomized(mobilenet_v2(drop_blocks=15, input_shape=(8, 8, 3)))
    folded = fold_batch_norm(model)
    taps = [keras.Model(each.input, each.get_layer("block_02_depthwise_bn").output) for each in (model, folded)]
    _assert_same_function(*taps)


def test_models_inside_models() -> None:
    inner = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 1), Norm()], name="inner")
    inputs = keras.Input((6, 6, 4))
    outer = keras.Model(inputs, Norm(name="kept")(inner(inputs)))
    folded = fold_batch_norm(_randomized(outer))
    assert _norms(folded) == ["kept"]
    _assert_same_function(outer, folded)
    sequential = _randomized(
        keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(2, 3), Norm(), keras.layers.ReLU()])
    )
    _assert_same_function(sequential, fold_batch_norm(sequential))
    assert _norms(fold_batch_norm(sequential)) == []
    first = [keras.Input((6, 6, 4)), Norm(name="first"), keras.layers.Conv2D(2, 3), Norm()]
    begins = _randomized(keras.Sequential(first, name="begins"))
    around = keras.Model(inputs, begins(inputs))
    for model in (begins, around):
        assert _norms(fold_batch_norm(model)) == ["first"]
        _assert_same_function(model, fold_batch_norm(model))


def _two_readers(x: Any) -> Any:
    return Norm(name="kept")(x) + x


def _activated(x: Any) -> Any:
    return Norm(name="kept")(keras.layers.Conv2D(4, 1, activation="relu")(x))


def _other_axis(x: Any) -> Any:
    return Norm(name="kept", axis=1)(keras.layers.Conv2D(4, 1)(x))


def _after_pooling(x: Any) -> Any:
    return Norm(name="kept")(keras.layers.MaxPooling2D()(x))


@pytest.mark.parametrize("head", [_two_readers, _activated, _other_axis, _after_pooling])
def test_what_is_not_folded(head: Any) -> None:
    inputs = keras.Input((6, 6, 3))
    model = _randomized(keras.Model(inputs, head(keras.layers.Conv2D(4, 1)(inputs))))
    folded = fold_batch_norm(model)
    assert _norms(folded) == ["kept"]
    _assert_same_function(model, folded)


def test_a_feature_map_that_is_also_an_output_is_left_alone() -> None:
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 1)(inputs)
    model = _randomized(keras.Model(inputs, [x, Norm(name="kept")(x)]))
    folded = fold_batch_norm(model)
    assert _norms(folded) == ["kept"]
    x = np.ones((2, 6, 6, 3), np.float32)
    for mine, theirs in zip(folded(x), model(x, training=False), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
