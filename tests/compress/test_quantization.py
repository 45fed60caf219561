"""Fake quantization: rounding checked by hand, ranges, positions of the layers, and refused models."""

import keras
import numpy as np
import pytest

from tfigkd.compress.quantization import fake_quantized
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fake_quant import FakeQuantize, fake_quantized_kernel
from tfigkd.runtime.errors import UserError


def ranges(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if isinstance(layer, FakeQuantize)]


def test_kernels_are_rounded_to_their_channels_steps():
    kernel = np.array([[1.27, 0.0], [0.014, -254.0], [-0.3, 3.1]], np.float32)
    each = np.asarray(fake_quantized_kernel(kernel, axis=1))
    np.testing.assert_allclose(each, [[1.27, 0], [0.01, -254], [-0.3, 4]], atol=1e-5)
    together = np.asarray(fake_quantized_kernel(kernel))
    np.testing.assert_allclose(together, [[2, 0], [0, -254], [0, 4]], atol=1e-5)
    assert not np.asarray(fake_quantized_kernel(np.zeros((3, 2), np.float32), axis=1)).any()


def test_ranges_follow_the_batches_of_training_alone():
    layer = FakeQuantize(momentum=0.5)
    first, second = np.array([-1.0, 3.0], np.float32), np.array([0.5, 1.0], np.float32)
    layer(first, training=True)
    assert (float(layer.moving_min), float(layer.moving_max)) == (-1, 3)
    layer(second, training=False)
    assert (float(layer.moving_min), float(layer.moving_max)) == (-1, 3)
    layer(second, training=True)  # zero belongs to every range
    assert (float(layer.moving_min), float(layer.moving_max)) == (-0.5, 2)


def test_activations_are_rounded_to_256_steps_and_zero_is_exact():
    layer = FakeQuantize(limits=(0.0, 1.0))
    values = np.linspace(-0.2, 1.2, 1001, dtype=np.float32)
    rounded = np.asarray(layer(values, training=True))
    np.testing.assert_allclose(rounded, np.round(np.clip(values, 0, 1) * 255) / 255, atol=1 / 255 + 1e-6)
    assert len(np.unique(rounded)) == 256 and 0 in rounded


def test_where_ranges_are_put_in_a_mobilenet(case):
    names = ranges(fake_quantized(case.student))
    block = ["expand_relu", "depthwise_relu", "project"]
    expected = ["image", "block_00", "block_01_depthwise_relu", "block_01_project"]
    expected += [f"block_02_{part}" for part in block] + [f"block_03_{part}" for part in block]
    assert sorted(names) == sorted(f"{name}_range" for name in [*expected, "block_03", "pool", "logits"])


def test_where_ranges_are_put_in_a_resnet(resnet):
    names = ranges(fake_quantized(resnet))
    blocks = [f"block_{n:02d}{part}" for n in (1, 2, 3) for part in ("_relu1", "_conv2", "")]
    assert sorted(names) == sorted(f"{name}_range" for name in ["image", "block_00", *blocks, "pool", "logits"])


def test_it_is_the_student_but_for_the_rounding(case):
    model = fake_quantized(case.student)
    images = case.data.train.images[:128] / np.float32(255)
    model(images, training=True)  # one batch sets the ranges
    expected, found = np.asarray(case.student(images)), np.asarray(model(images))
    assert 0 < np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95
    assert multiply_adds(model) == multiply_adds(case.student)
    assert count_parameters(model) < count_parameters(case.student)  # normalization is folded, ranges are not learned


def conv_model(*tail: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), *tail], name="mine")


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ([keras.layers.Activation("softplus")], "activation is softplus"),
        ([keras.layers.ReLU(), keras.layers.BatchNormalization()], "does not follow a convolution"),
        ([keras.layers.LayerNormalization()], "LayerNormalization is not a supported"),
        ([keras.layers.SeparableConv2D(4, 3)], "SeparableConv2D is not a supported"),
        ([keras.layers.DepthwiseConv2D(3, depth_multiplier=2)], "depth multiplier"),
        ([keras.Sequential([keras.layers.ReLU()], name="inner")], "'inner' is a model"),
    ],
)
def test_what_has_no_int8_counterpart_is_named_in_one_line(tail, message):
    with pytest.raises(UserError, match=message) as caught:
        fake_quantized(conv_model(*tail))
    assert "mine" in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_called_twice_is_refused():
    inputs = keras.Input((8, 8, 4))
    conv = keras.layers.Conv2D(4, 3, padding="same", name="twice")
    with pytest.raises(UserError, match="'twice' is called more than once"):
        fake_quantized(keras.Model(inputs, conv(conv(inputs))))
