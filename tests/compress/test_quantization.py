"""Fake quantization: rounding checked by hand, ranges, positions of the layers, and refused models."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.compress.quantization import COMPOSITE_ACTIVATIONS, fake_quantized
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import float_tensors, litert_predictor
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fake_quant import FakeQuantize, fake_quantized_kernel, without_rounding
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


def test_activations_pass_until_a_range_is_seen():
    layer, values = FakeQuantize(), np.array([[3.0, -2.0, 0.123]], np.float32)
    np.testing.assert_array_equal(layer(values), values)
    layer(np.zeros((1, 3), np.float32), training=True)  # no range either
    np.testing.assert_array_equal(layer(values), values)
    layer(np.array([[255.0, 0.0, 0.0]], np.float32), training=True)
    np.testing.assert_allclose(layer(values), [[3, 0, 0]], atol=1e-6)


def test_a_frozen_layer_takes_the_range_of_its_first_batch_and_keeps_it():
    layer = FakeQuantize(trainable=False)
    for values in ([-1.0, 3.0], [-9.0, 9.0]):
        layer(np.array(values, np.float32), training=True)
        assert (float(layer.moving_min), float(layer.moving_max)) == (-1, 3)


def check_kernels_on_jax():
    """A channel has its own scale on any axis, and every weight a gradient of one, the largest included."""
    import jax

    rng = np.random.default_rng(0)
    for shape, axis in (((3, 3, 16, 1), 2), ((3, 3, 4, 8), 3), ((1, 1, 16, 1), 2), ((16, 8), None)):
        kernel = rng.normal(size=shape).astype(np.float32)
        others = None if axis is None else tuple(one for one in range(len(shape)) if one != axis)
        step = np.abs(kernel).max(axis=others, keepdims=True) / 127
        rounded = np.array(fake_quantized_kernel(keras.ops.convert_to_tensor(kernel), axis=axis))
        np.testing.assert_allclose(rounded, np.round(kernel / step) * step, atol=1e-5)
        gradient = jax.grad(lambda one, axis=axis: fake_quantized_kernel(one, axis=axis).sum())(kernel)
        np.testing.assert_array_equal(np.array(gradient), np.ones(shape))
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ReLU(name="relu")(keras.layers.DepthwiseConv2D(3, name="depthwise")(inputs))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))
    images = rng.random((4, 8, 8, 3), np.float32)
    quantized = fake_quantized(model)
    np.testing.assert_allclose(quantized(images, training=True), model(images), atol=0.05)


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
        (
            [keras.layers.Flatten(), keras.layers.Dense(4, activation="relu"), keras.layers.BatchNormalization()],
            "it cannot be folded; put it between a layer and its activation",
        ),
        ([keras.layers.LayerNormalization()], "LayerNormalization is not a supported"),
        ([keras.layers.SeparableConv2D(4, 3)], "SeparableConv2D is not a supported"),
        ([keras.layers.DepthwiseConv2D(3, depth_multiplier=2)], "depth multiplier"),
        ([keras.layers.Activation("gelu")], "activation is gelu"),
        ([keras.layers.ReLU(negative_slope=0.1)], "its ReLU has a slope, a threshold or a bound other than 6"),
        ([keras.layers.ReLU(max_value=1)], "its ReLU has a slope, a threshold or a bound other than 6"),
        ([keras.Sequential([keras.layers.LayerNormalization(name="inner_norm")])], "'inner_norm': LayerNormalization"),
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


def users_network(activation: str = "swish") -> keras.Model:
    """Scaling in front, a backbone as a model of its own with squeeze-and-excitation, and a head."""
    inner = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(16, 3, use_bias=False, name="expand")(inner)
    x = keras.layers.Activation(activation, name="curve")(keras.layers.BatchNormalization(name="norm")(x))
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = keras.layers.Conv2D(8, 1, activation="relu", name="squeeze")(gate)
    gate = keras.layers.Conv2D(16, 1, name="excite")(gate)
    gate = keras.layers.ReLU(6.0)(gate + 3.0) * (1 / 6)  # as MobileNet-V3 writes its hard sigmoid
    x = keras.layers.Multiply(name="gated")([x, gate])
    backbone = keras.Model(inner, keras.layers.Conv2D(8, 3, activation=activation, name="project")(x), name="backbone")
    images = keras.Input((16, 16, 3))
    norm = keras.layers.Normalization(name="adapted")
    norm.adapt(np.random.default_rng(0).uniform(60, 200, (20, 16, 16, 3)))
    x = backbone(norm(keras.layers.Rescaling(255.0)(images)))
    model = keras.Model(images, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)), name="users")
    generator = np.random.default_rng(1)
    backbone.get_layer("norm").set_weights([generator.uniform(0.5, 1.5, 16) for _ in range(4)])
    return model


@pytest.mark.parametrize("activation", [*COMPOSITE_ACTIVATIONS, "relu"])
def test_curves_gates_scaling_and_backbones_become_an_int8_file(activation, tmp_path):
    """LiteRT's own integer arithmetic says what the fake-quantized model says, and that says what Keras says."""
    keras.utils.set_random_seed(0)
    model = users_network(activation)
    pixels = np.random.default_rng(2).integers(0, 256, (64, 16, 16, 3), np.uint8)
    images = pixels / np.float32(255)
    expected = np.asarray(model(images))
    quantized = fake_quantized(model)
    with without_rounding():
        np.testing.assert_allclose(quantized(images), expected, atol=1e-4 * np.abs(expected).max())
    quantized(images, training=True)  # one batch sets the ranges
    rounded = np.asarray(quantized(images))
    assert 0 < np.abs(rounded - expected).max() < 0.15 * np.abs(expected).max()
    path = tmp_path / "users.tflite"
    path.write_bytes(convert(quantized, "int8"))
    assert float_tensors(path) == []
    np.testing.assert_allclose(litert_predictor(path)(pixels), rounded, atol=0.05 * np.abs(expected).max())
    path.write_bytes(convert(quantized, "int8", io="float32"))
    assert len(float_tensors(path)) == 2 and float_tensors(path, inside=True) == []
    np.testing.assert_allclose(litert_predictor(path)(pixels), rounded, atol=0.05 * np.abs(expected).max())


def test_normalization_that_cannot_be_folded_becomes_a_convolution(tmp_path):
    """Behind an activation, as in Keras's own examples, and after an addition, as in ResNet-V2."""
    keras.utils.set_random_seed(0)
    layers, inputs = keras.layers, keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="behind")(layers.Conv2D(8, 3, activation="relu")(inputs))
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(x)])
    x = layers.ReLU()(layers.BatchNormalization(name="before", center=False)(x))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))))
    generator = np.random.default_rng(1)
    for name in ("behind", "before"):
        norm = model.get_layer(name)
        norm.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in norm.get_weights()])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    images = pixels / np.float32(255)
    expected = np.asarray(model(images))
    quantized = fake_quantized(model)
    assert quantized.get_layer("before").kernel.shape == (1, 1, 8, 1) and quantized.get_layer("before").trainable
    quantized(images, training=True)  # one batch sets the ranges
    (tmp_path / "m.tflite").write_bytes(convert(quantized, "int8"))
    assert float_tensors(tmp_path / "m.tflite") == []
    np.testing.assert_allclose(litert_predictor(tmp_path / "m.tflite")(pixels), quantized(images), atol=0.02)
    assert 0 < np.abs(np.asarray(quantized(images)) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("head", "end", "message"),
    [
        ([keras.layers.Rescaling(1 / 255)], None, r"takes pixels from 0 to 255, expected images in \[0,1\]"),
        ([], "softmax", "'end': it gives probabilities, not logits"),
    ],
)
def test_a_model_of_other_images_or_outputs_is_given_as_a_classifier(head, end, message):
    """The image is rounded in [0,1], so that a white pixel of 255 would become 1."""
    keras.utils.set_random_seed(0)
    pool, last = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation=end, name="end")
    model = keras.Sequential([keras.Input((8, 8, 3)), *head, keras.layers.Conv2D(4, 3), pool, last])
    with pytest.raises(UserError, match=rf"{message}; give tfigkd.models.as_classifier\(model\)"):
        fake_quantized(model)
    classifier = models.as_classifier(model)
    images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    np.testing.assert_allclose(fake_quantized(classifier)(images, training=True), classifier(images), atol=0.02)


def test_augmentation_inside_a_model_is_no_part_of_its_file(tmp_path):
    """As Keras's tutorials build it: a Sequential of random layers before the scaling."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    moved = layers.RandomTranslation(0.2, 0.2, interpolation="nearest")
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), moved])
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(2.0, -1.0)(augmentation(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    trained = fake_quantized(model)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    images = pixels / np.float32(255)
    expected = np.asarray(model(images, training=False))  # random layers of Keras augment by default
    augmented = np.asarray(trained(images, training=True))  # the ranges follow
    assert np.abs(augmented - expected).max() > 0.05
    (tmp_path / "m.tflite").write_bytes(convert(trained, "int8"))
    found = litert_predictor(tmp_path / "m.tflite")(pixels)
    assert np.abs(found - expected).mean() < 0.2 * np.abs(augmented - expected).mean()
    np.testing.assert_allclose(found, expected, atol=0.05)  # the ranges are those of one augmented batch


def test_an_input_range_before_other_scaling_is_part_of_it():
    """A model of pixels to 255, as this package loads it: its range, then its own layers that undo it."""
    images = keras.Input((16, 16, 3))
    users = users_network()
    x = keras.layers.Rescaling(1 / 255)(images)
    pixels = keras.Model(images, users(x), name="pixels")
    model = models.with_input_range(pixels, 0.0, 255.0)
    quantized = fake_quantized(model)
    values = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    with without_rounding():
        np.testing.assert_allclose(quantized(values), users(values), rtol=1e-3, atol=1e-3)
    assert sum(isinstance(layer, keras.layers.DepthwiseConv2D) for layer in quantized.layers) == 1


def test_scaling_in_front_may_feed_two_branches():
    inputs = keras.Input((8, 8, 3))
    scaled = keras.layers.Rescaling(2.0, -1.0)(inputs)
    branches = [keras.layers.Conv2D(4, size, padding="same")(scaled) for size in (1, 3)]
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()(branches))
    plain = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    with without_rounding():
        np.testing.assert_allclose(fake_quantized(plain)(images), plain(images), rtol=1e-3, atol=1e-3)


def test_scaling_in_front_is_one_frozen_convolution():
    quantized = fake_quantized(users_network())
    layer = quantized.get_layer("adapted")
    assert "rescaling" not in {each.name for each in quantized.layers} and not layer.trainable
    norm = users_network().get_layer("adapted")
    mean, deviation = (np.ravel(value) for value in (norm.mean, np.sqrt(norm.variance)))
    np.testing.assert_allclose(np.ravel(layer.kernel), 255 / deviation, rtol=1e-4)
    np.testing.assert_allclose(layer.bias, -mean / deviation, rtol=1e-4)
