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
from tfigkd.stages.networks import build_network
from tfigkd.stages.pipeline import STAGES
from tfigkd.stages.workdir import Workdir


def pixels(side):
    return np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)


def by_pillow(images, side, method=Image.Resampling.BILINEAR):
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), method)) for image in images])


@pytest.mark.parametrize("side", [13, 24, 37])
def test_larger_images_are_those_of_pillow(side):
    images = pixels(12)
    np.testing.assert_allclose(models.resize_pixels(images, (side, side)), by_pillow(images, side).astype(int), atol=1)
    assert models.resize_pixels(images, (12, 12)) is images


def test_smaller_images_are_means():
    images = pixels(12)
    expected = np.rint(images.reshape(4, 4, 3, 4, 3, 3).mean(axis=(2, 4)))
    np.testing.assert_array_equal(models.resize_pixels(images, (4, 4, 3)), expected)
    smooth = by_pillow(pixels(3), 47)  # 47 to 16: no whole number of pixels, and none is left out
    box = by_pillow(smooth, 16, Image.Resampling.BOX).astype(int)
    assert np.abs(models.resize_pixels(smooth, (16, 16)) - box).mean() < 2


@pytest.mark.parametrize(("side", "own"), [(14, 6), (11, 6), (16, 9)])
def test_fine_patterns_become_gray(side, own):
    """And not what every second or third pixel happens to be."""
    stripes = np.broadcast_to(255 * (np.arange(side) % 2)[None, :, None, None], (1, side, side, 3)).astype(np.uint8)
    assert np.abs(models.resize_pixels(stripes, (own, own)) - 127.5).max() < 64


@pytest.mark.parametrize("own", [6, 7, 30])
def test_the_network_is_that_of_the_resized_images(own):
    plain = models.resnet(8, 3, input_shape=(own, own, 3))
    resizes = models.with_image_size(plain, (12, 12, 3))
    assert resizes.input_shape == (None, 12, 12, 3)
    assert resizes.count_params() == plain.count_params()
    images = pixels(12)
    expected = plain(models.resize_pixels(images, (own, own)) / np.float32(255))
    for options in ({}, {"training": False}):  # also as plain Keras calls it
        np.testing.assert_allclose(resizes(images / np.float32(255), **options), expected, atol=0.02)
    assert models.with_image_size(plain, (own, own, 3)) is plain


def test_layers_may_have_the_names_of_those_that_are_added():
    names = ("image", "reduced", "image_1")
    layers = [keras.layers.Conv2D(3, 1, name=name) for name in names]
    plain = keras.Sequential([keras.Input((6, 6, 3), name="x"), *layers, keras.layers.GlobalAveragePooling2D()])
    images = pixels(12)
    expected = plain(models.resize_pixels(images, (6, 6)) / np.float32(255))
    resizes = models.with_image_size(plain, (12, 12, 3))
    np.testing.assert_allclose(resizes(images / np.float32(255)), expected, atol=0.02)
    assert {*names} < {layer.name for layer in resizes.layers}
    scaled = models.with_input_range(plain, 0.0, 255.0)
    np.testing.assert_allclose(scaled(images[:, :6, :6] / np.float32(255)), plain(images[:, :6, :6]), rtol=1e-4)


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
    with pytest.raises(UserError, match=r"give --image-size 16; in a run also --teacher.image_size 16 .*, with which"):
        build_network(config_of(folder, teacher__image_size=None).teacher, dataset(config_of(folder).data))
    with pytest.raises(UserError, match="image_size must be positive, got 0"):
        NetworkConfig(image_size=0)
    with pytest.raises(UserError, match=r"student.image_size must be unset or equal to teacher.image_size"):
        config_of(folder, student__init="teacher", student__model="mobilenet_v2")


def test_a_large_teacher_and_a_small_student(folder, tmp_path):
    config = config_of(folder)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    data = dataset(config.data)
    teacher = build_network(config.teacher, data)
    enlarged = by_pillow(data.test.images, 16).astype("float32")  # which rounds pixels
    plain = keras.saving.load_model(folder / "large.keras")(enlarged)
    np.testing.assert_allclose(keras.ops.softmax(teacher(data.test.images / 255)), plain, atol=0.02)
    for stage in ("data", "teacher", "overlays", "distill", "export", "evaluate"):
        STAGES[stage](config, workdir)
    student = keras.saving.load_model(workdir.stage("distill") / "student.keras")
    assert student.input_shape == (None, 8, 8, 3)
    names = {path.name for path in workdir.stage("export").glob("*.tflite")}
    assert {"student.float32.tflite", "student.int8.tflite"} <= names


@pytest.mark.parametrize(("method", "own"), [("qat", 4), ("qat", 7), ("prune_channels", 7)])
def test_its_student_is_compressed_as_any_other(folder, tmp_path, method, own):
    """One of a file, which scales its pixels itself; 4 of 8 pixels are means, 7 of 8 are interpolated as well."""
    layers = [keras.Input((own, own, 3)), keras.layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)]
    layers += [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Conv2D(16, 1, activation="relu")]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "small.keras")
    changes = {"student__model": str(tmp_path / "small.keras"), "student__image_size": own}
    config = config_of(folder, compress__method=method, compress__steps=20, **changes)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    for stage in ("data", "teacher", "overlays", "distill", "compress"):
        STAGES[stage](config, workdir)
    path = workdir.stage("compress") / "compressed.keras"
    written = tmp_path / "small.tflite"
    export([str(path), "--format", "int8", "--data", config.data.name, "--output", str(written)])
    assert written.is_file()
