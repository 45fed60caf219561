"""Multiply-adds and parameters, by hand and as the operations of the LiteRT file have them."""

from pathlib import Path
from typing import Any

import keras
import pytest

from tfigkd.edge.convert import convert
from tfigkd.edge.operations import read_operations
from tfigkd.models import cost
from tfigkd.models.batch_norm import FusedBatchNormalization


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


def _tokens(*layers: keras.Layer) -> list[keras.Layer]:
    return [keras.layers.Reshape((64, 3)), *layers, keras.layers.GlobalAveragePooling1D()]


class Inside(keras.layers.Layer):
    """A user's layer, which calls a convolution and a dense layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [keras.layers.Conv2D(4, 3), keras.layers.Dense(2)]

    def call(self, inputs: Any) -> Any:
        return self.parts[1](self.parts[0](inputs))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (lambda: [keras.layers.SeparableConv2D(8, 3, depth_multiplier=2)], 36 * (9 * 6 + 6 * 8)),
        (lambda: [keras.layers.Conv2DTranspose(8, 3, strides=2)], 64 * 9 * 3 * 8),
        (lambda: _tokens(keras.layers.Conv1D(8, 3)), 62 * 3 * 3 * 8),
        (lambda: _tokens(keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 8))), 64 * 3 * 8),
        (lambda: [keras.layers.SpectralNormalization(keras.layers.Conv2D(8, 3))], 36 * 9 * 3 * 8),
        (lambda: [Inside()], 36 * (9 * 3 * 4 + 4 * 2)),
        (lambda: [conv := keras.layers.Conv2D(3, 3), conv], (36 + 16) * 9 * 3 * 3),
    ],
)
def test_layers_of_users_as_in_the_file(layers: Any, expected: int, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers()])
    assert cost.multiply_adds(model) == cost.multiply_adds(model) == expected
    (tmp_path / "m.tflite").write_bytes(convert(model, "float32"))
    assert sum(one.multiply_adds for one in read_operations(tmp_path / "m.tflite")) == expected


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
