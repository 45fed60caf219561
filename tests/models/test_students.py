"""Students cut from a teacher: new layers, the papers' sizes, nothing done to the teacher."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.models import cost
from tfigkd.models.adapt import RGB_TO_GRAY, with_rgb


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    model = models.mobilenet_v2(width=0.25, normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))
    model.trainable = False
    return model


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


@pytest.mark.parametrize("drop_blocks", [5, 15])
def test_truncation_equals_the_network_built_small(drop_blocks: int) -> None:
    teacher = models.mobilenet_v2(normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))
    student, built = models.truncate(teacher, drop_blocks, 10), models.mobilenet_v2(drop_blocks=drop_blocks)
    assert [layer.name for layer in student.layers] == [layer.name for layer in built.layers]
    assert cost.count_parameters(student) == cost.count_parameters(built)
    built.set_weights(student.get_weights())
    np.testing.assert_array_equal(student(_images()), built(_images()))


def test_student_is_new_trainable_and_leaves_the_teacher_alone(teacher: keras.Model) -> None:
    before, config = teacher.get_weights(), teacher.get_config()
    student = models.truncate(teacher, 15, 7)
    assert student.output_shape == (None, 7)
    assert student.trainable_weights and not teacher.trainable_weights
    assert not set(map(id, student.layers)) & set(map(id, teacher.layers))
    assert "normalization" not in {layer.name for layer in student.layers}
    mine = student.get_layer("block_00_conv").kernel.numpy()
    assert not np.array_equal(mine, teacher.get_layer("block_00_conv").kernel)
    assert not np.array_equal(mine, models.truncate(teacher, 15, 7).get_layer("block_00_conv").kernel)
    for layer in student.layers:
        layer.set_weights([weight + 1 for weight in layer.get_weights()])
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert teacher.get_config() == config
    assert teacher.get_layer("block_03").output.shape == (None, 32, 32, 8)


def test_copied_weights_give_the_teachers_feature_map(teacher: keras.Model) -> None:
    student = models.truncate(teacher, 12, 10, copy_weights=True, keep_normalization=True)
    maps = [keras.Model(model.input, model.get_layer("block_06").output)(_images()) for model in (teacher, student)]
    np.testing.assert_array_equal(*maps)
    assert not student.get_layer("normalization").trainable


def test_kept_normalization_keeps_its_constants(teacher: keras.Model) -> None:
    student = models.truncate(teacher, 15, 10, keep_normalization=True)
    expected = teacher.get_layer("normalization").get_weights()
    for mine, theirs in zip(student.get_layer("normalization").get_weights(), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_resnets_can_be_cut_too() -> None:
    student = models.truncate(models.resnet(20), 3, 10)
    assert student.get_layer("block_06").output.shape == (None, 16, 16, 32)
    assert "block_07" not in {layer.name for layer in student.layers}
    assert student(_images()).shape == (2, 10)


@pytest.mark.parametrize("copied", [False, True])
def test_what_prepares_the_image_stays_constant(copied) -> None:
    gray = with_rgb(models.resnet(8, 3, input_shape=(8, 8, 1)))
    student = models.truncate(gray, 1, 3, copy_weights=copied)
    layer = student.get_layer(RGB_TO_GRAY)
    assert not layer.trainable
    np.testing.assert_array_equal(layer.kernel, gray.get_layer(RGB_TO_GRAY).kernel)


def test_what_cannot_be_cut(teacher: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"drop_blocks must be in 0\.\.18"):
        models.truncate(teacher, 19, 10)
    with pytest.raises(ValueError, match=r"has no blocks of convolutions .* choose another teacher"):
        models.truncate(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), 1, 10)


def _sequence() -> keras.Model:
    L = keras.layers
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            L.Rescaling(255.0),
            L.Conv2D(4, 3, name="one"),
            L.ReLU(name="one_relu"),
            L.MaxPooling2D(name="pool"),
            L.Conv2D(6, 3, name="two"),
            L.ReLU(name="two_relu"),
            L.Flatten(),
            L.Dense(3, name="logits"),
        ]
    )


def _backbone() -> keras.Model:
    images = keras.Input((32, 32, 3))
    options = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    features = keras.applications.MobileNetV3Small(**options)(images)
    return keras.Model(images, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(features)))


def _resnet() -> keras.Model:
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=3)


@pytest.mark.parametrize(
    ("build", "drop_blocks", "end", "shape"),
    [
        (_sequence, 0, "two_relu", (5, 5, 6)),
        (_sequence, 1, "pool", (7, 7, 4)),
        (_backbone, 3, "expanded_conv_8_project_bn", (1, 1, 96)),
        (_resnet, 14, "conv2_block2_out", (16, 16, 256)),
    ],
)
def test_any_network_of_blocks_can_be_cut(build, drop_blocks, end, shape) -> None:
    """The kept part gives the very feature map of the user's own network, which has no block_NN."""
    model = build()
    student = models.truncate(model, drop_blocks, 5, copy_weights=True, keep_normalization=True)
    assert student.output_shape == (None, 5) and student.get_layer(end).output.shape[1:] == shape
    owner = model if end in {layer.name for layer in model.layers} else model.layers[1]
    images = np.random.default_rng(0).random((2, *model.input_shape[1:]), np.float32)
    expected = keras.Model(owner.inputs[0], owner.get_layer(end).output)(images)
    found = keras.Model(student.inputs[0], student.get_layer(end).output)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_student_of_a_convnet_is_the_network_built_small() -> None:
    """The same kind of head, and a stem that nothing trains, whether its weights are copied or random."""
    teacher = models.convnet(widths=(16, 24, 32))
    built = models.convnet(widths=(16, 24))
    for copy in (False, True):
        student = models.truncate(teacher, 1, 10, copy_weights=copy)
        assert [layer.name for layer in student.layers] == [layer.name for layer in built.layers]
        assert [w.shape for w in student.trainable_weights] == [w.shape for w in built.trainable_weights]
        np.testing.assert_array_equal(*(one.get_layer("whitening").kernel for one in (student, teacher)))
        built.set_weights(student.get_weights())
        np.testing.assert_allclose(student(_images()), built(_images()), atol=1e-6)
