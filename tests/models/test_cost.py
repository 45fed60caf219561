"""Multiply-adds and parameters, by hand."""

import keras
import pytest

from tfigkd.models import cost
from tfigkd.models.layers import FusedBatchNormalization


def _model(size: int | None = 8) -> keras.Model:
    inputs = keras.Input((size, size, 3))
    x = keras.layers.DepthwiseConv2D(1, name="normalization", trainable=False)(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(FusedBatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="valid")(x)
    x = keras.layers.Conv2D(6, 1, groups=2)(x)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))


def test_multiply_adds_by_hand() -> None:
    expected = 64 * 3 + 16 * 9 * 3 * 4 + 4 * 9 * 4 + 4 * 2 * 6 + 6 * 5
    assert cost.multiply_adds(_model()) == expected


def test_parameters_by_hand_frozen_or_not() -> None:
    expected = 9 * 3 * 4 + 2 * 4 + (9 * 4 + 4) + (2 * 6 + 6) + (6 * 5 + 5)
    model = _model()
    assert cost.count_parameters(model) == expected
    model.trainable = False
    assert cost.count_parameters(model) == expected


def test_models_inside_models_count_once() -> None:
    inputs = keras.Input((8, 8, 3))
    assert cost.multiply_adds(keras.Model(inputs, _model()(inputs))) == cost.multiply_adds(_model())
    assert cost.count_parameters(keras.Model(inputs, _model()(inputs))) == cost.count_parameters(_model())


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="fixed input size"):
        cost.multiply_adds(_model(None))
