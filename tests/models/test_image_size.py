"""Networks that resize the images of the data to their own size: pixels as those of Pillow, one function, a run."""

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd import models
from tfigkd.config.experiment import Config, override
from tfigkd.config.fields import NetworkConfig
from tfigkd.export import main as export
from tfigkd.runtime.errors import UserError
from tfigkd.stages.data import dataset
from tfigkd.stages.pipeline import STAGES
from tfigkd.stages.teacher import build_network
from tfigkd.stages.workdir import Workdir

IMAGES = np.random.default_rng(0).random((5, 12, 12, 3)).astype(np.float32)


def through(images, size, target):
    for step in models.resizing(size, target):
        images = keras.ops.convert_to_numpy(step(images))
    return images


@pytest.mark.parametrize("side", [13, 24, 37])
def test_larger_images_are_those_of_pillow(side):
    channels = [Image.fromarray(IMAGES[0, ..., channel], "F") for channel in range(3)]
    expected = [np.asarray(one.resize((side, side), Image.Resampling.BILINEAR)) for one in channels]
    np.testing.assert_allclose(through(IMAGES, (12, 12), (side, side))[0], np.stack(expected, axis=-1), atol=1e-5)


def test_smaller_images_are_means():
    expected = IMAGES.reshape(5, 4, 3, 4, 3, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(through(IMAGES, (12, 12), (4, 4)), expected, atol=1e-6)
    assert models.resizing((12, 12), (12, 12)) == []
    # a pattern of single pixels is gray, and not what every third pixel happens to be
    stripes = np.broadcast_to((np.arange(14) % 2)[None, :, None, None], (1, 14, 14, 3)).astype(np.float32)
    assert through(stripes, (14, 14), (6, 6)) == pytest.approx(0.5)


@pytest.mark.parametrize("own", [6, 30])
def test_the_network_is_that_of_the_resized_images(own):
    plain = models.resnet(8, 3, input_shape=(own, own, 3))
    resizes = models.with_image_size(plain, (12, 12))
    assert resizes.input_shape == (None, 12, 12, 3)
    assert resizes.count_params() == plain.count_params()
    expected = plain(through(IMAGES, (12, 12), (own, own)))
    np.testing.assert_allclose(resizes(IMAGES), expected, atol=1e-5)  # as plain Keras calls it, without training=False
    np.testing.assert_allclose(resizes(IMAGES, training=False), expected, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of 8x8 whose class is the brighter of two colors, and a file for 16x16 in 0..255 that tells them."""
    folder = tmp_path_factory.mktemp("sizes")
    labels = np.arange(120) % 2
    images = np.random.default_rng(0).integers(0, 100, (120, 8, 8, 3))
    images[np.arange(120), ..., labels] += 100
    parts = {"x_train": images[:100], "y_train": labels[:100], "x_test": images[100:], "y_test": labels[100:]}
    np.savez(folder / "data.npz", **{name: part.astype("uint8") for name, part in parts.items()})
    dense = keras.layers.Dense(2, activation="softmax")
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(3, 1), keras.layers.GlobalAveragePooling2D(), dense]
    model = keras.Sequential(layers)
    model.layers[0].set_weights([np.eye(3)[None, None], np.zeros(3)])
    dense.set_weights([np.array([[1, 0], [0, 1], [0, 0]]) / 9, np.zeros(2)])
    model.save(folder / "large.keras")
    return folder


def config_of(folder, **changes):
    base = {
        "data.name": str(folder / "data.npz"),
        "teacher.model": str(folder / "large.keras"),
        "teacher.input_range": [0.0, 255.0],
        "teacher.image_size": 16,
        "teacher.normalization": "none",
        "student.model": "resnet8",
        "student.drop_blocks": 0,
        "student.image_size": 6,
        "losses.kd.weight": 0.5,
        "overlay.probability": 0.5,
        "training.epochs": 4,
        "training.batch_size": 16,
        "augment.crop_padding": 1,
        "attribution.n_steps": 2,
    }
    return override(Config(), base | {name.replace("__", "."): value for name, value in changes.items()})


def test_a_file_of_another_size_is_refused_with_both_remedies(folder):
    with pytest.raises(UserError, match=r"give --image-size 16, or let it resize them itself: --teacher.image_size"):
        build_network(config_of(folder, teacher__image_size=None).teacher, dataset(config_of(folder).data))
    with pytest.raises(UserError, match="image_size must be positive, got 0"):
        NetworkConfig(image_size=0)


def test_a_large_teacher_and_a_small_student(folder, tmp_path):
    config = config_of(folder)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    data = dataset(config.data)
    teacher = build_network(config.teacher, data)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in data.test.images]
    )
    plain = keras.saving.load_model(folder / "large.keras")(enlarged.astype("float32"))  # pixels rounded by Pillow
    np.testing.assert_allclose(keras.ops.softmax(teacher(data.test.images / 255)), plain, atol=0.02)
    for stage in ("data", "teacher", "overlays", "distill", "export", "evaluate"):
        STAGES[stage](config, workdir)
    student = keras.saving.load_model(workdir.stage("distill") / "student.keras")
    assert student.input_shape == (None, 8, 8, 3)
    names = {path.name for path in workdir.stage("export").glob("*.tflite")}
    assert {"student.float32.tflite", "student.int8.tflite"} <= names


@pytest.mark.parametrize("method", ["qat", "prune_channels"])
def test_its_student_is_compressed_as_any_other(folder, tmp_path, method):
    config = config_of(folder, compress__method=method, compress__steps=20)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    for stage in ("data", "teacher", "overlays", "distill", "compress"):
        STAGES[stage](config, workdir)
    path = workdir.stage("compress") / "compressed.keras"
    written = tmp_path / "small.tflite"
    export([str(path), "--format", "int8", "--data", config.data.name, "--output", str(written)])
    assert written.is_file()
