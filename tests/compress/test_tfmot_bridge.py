"""The bridge to tfmot: the twin computes the same function, and the process environment is unchanged."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.compress import tfmot_bridge
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import float_tensors, open_litert
from tfigkd.measure.metrics import predict_logits

ENVIRONMENT = """
import os
before = dict(os.environ)
import keras
from tfigkd.compress import tfmot_bridge
tfmot_bridge.libraries()
import tensorflow as tf
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert tf.keras.layers.Dense is keras.layers.Dense
assert isinstance(tf.keras.Sequential([tf.keras.layers.Dense(1)]), keras.Model)
"""


def test_environment_and_keras_are_left_as_found(monkeypatch):
    """The libraries are the only code of the bridge that reads or changes the environment."""
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_twin_is_the_same_function_and_weights_come_back(case):
    twin = tfmot_bridge.make_twin(case.student)
    images = case.data.validation.images / np.float32(255)
    np.testing.assert_allclose(twin(images, training=False).numpy(), case.logits, atol=1e-5)
    assert [layer.name for layer in twin.layers if layer.weights] == [
        layer.name for layer in case.student.layers if layer.weights
    ]
    for layer in twin.layers:
        layer.set_weights([weight * 0.5 for weight in layer.get_weights()])
    back = tfmot_bridge.weights_back(twin, case.student)
    np.testing.assert_allclose(
        predict_logits(back, case.data.validation.images), twin(images, training=False).numpy(), atol=1e-5
    )


def test_weights_come_back_into_a_model_inside_another():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    base = [layers.Conv2D(8, 3, strides=2), layers.BatchNormalization(), layers.ReLU()]
    inputs = keras.Input((16, 16, 3))
    hidden = keras.Sequential([keras.Input((16, 16, 3)), *base], name="base")(inputs)
    student = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    expected = student(images)
    back = tfmot_bridge.weights_back(tfmot_bridge.make_twin(student), student)
    np.testing.assert_allclose(back(images), expected, atol=1e-5)
    twin = tfmot_bridge.quantization_twin(student)
    quantized = tfmot_bridge.from_quantization_twin(twin, student)(images)
    np.testing.assert_allclose(quantized, expected, atol=2 * 12 / 255)  # two steps: tfmot's ranges begin at -6 to 6


@pytest.mark.slow
def test_the_whole_published_architecture_has_a_twin():
    model = models.mobilenet_v2(normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(tfmot_bridge.make_twin(model)(images, training=False).numpy(), expected, atol=1e-5)


def test_tfmots_own_model_and_what_is_made_of_it_agree(case, tmp_path):
    """tfmot's own model converts to a full int8 file and agrees with ours."""
    twin = tfmot_bridge.quantization_twin(case.student)
    images = case.data.train.images[:128] / np.float32(255)
    for _ in range(20):  # tfmot's ranges start at 6 and move by 1 % a step
        twin(images, training=True)
    ours = tfmot_bridge.from_quantization_twin(twin, case.student)
    pictures = case.data.validation.images
    expected = twin(pictures / np.float32(255), training=False).numpy()
    found = predict_logits(ours, pictures)
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95
    path = tmp_path / "tfmot.tflite"
    path.write_bytes(convert(twin, "int8"))
    assert not float_tensors(path)
    assert open_litert(path).get_input_details()[0]["dtype"] == np.int8
