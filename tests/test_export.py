"""LiteRT files say what their Keras model says, and the gate stops those that do not."""

import keras
import numpy as np
import pytest

from tfigkd import export, models
from tfigkd.convert import convert
from tfigkd.data import load
from tfigkd.distiller import Distiller
from tfigkd.errors import UserError
from tfigkd.exporting import parity
from tfigkd.fields import ExportConfig
from tfigkd.layers import with_stock_layers
from tfigkd.litert import dequantize, litert_predictor, open_litert, quantize
from tfigkd.metrics import predict_logits


@pytest.fixture(scope="module")
def data():
    return load("digits", limit=300)


@pytest.fixture(scope="module")
def student(data):
    """A small MobileNet-V2, trained for a moment so that its logits mean something."""
    keras.utils.set_random_seed(0)
    model = models.mobilenet_v2(10, 15, input_shape=(8, 8, 3), width=0.5)
    distiller = Distiller(model)
    distiller.compile(keras.optimizers.Adam(5e-3), jit_compile=False)
    distiller.fit(data.train.images / np.float32(255), data.train.labels, epochs=12, batch_size=32, verbose=0)
    return with_stock_layers(model)


@pytest.fixture(scope="module")
def files(student, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    for format in export.FORMATS:
        (folder / f"{format}.tflite").write_bytes(convert(student, format, data.validation.images[:64]))
    return folder


def test_float32_is_the_same_function(files, student, data):
    report = parity(files / "float32.tflite", data.validation, predict_logits(student, data.validation.images))
    assert report["max_difference"] < 1e-4
    assert report["agreement"] == 1


def test_int8_is_integer_throughout_smaller_and_close(files, student, data):
    interpreter = open_litert(files / "int8.tflite")
    types = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert np.float32 not in types
    assert interpreter.get_input_details()[0]["dtype"] == np.int8
    assert (files / "int8.tflite").stat().st_size < (files / "float32.tflite").stat().st_size
    reference = predict_logits(student, data.validation.images)
    report = parity(files / "int8.tflite", data.validation, reference)
    assert report["agreement"] >= 0.9
    assert report["max_difference"] < 0.2 * np.abs(reference).max()


def test_batch_normalization_is_folded(files):
    names = [detail["op_name"] for detail in open_litert(files / "float32.tflite")._get_ops_details()]
    assert not {"MUL", "SUB", "RSQRT"} & set(names)


def test_quantize_and_dequantize_by_hand():
    tensor = {"quantization": (0.5, -10), "dtype": np.int8}
    quantized = quantize(np.array([-200.0, 0.0, 0.6, 500.0]), tensor)
    assert quantized.tolist() == [-128, -10, -9, 127]
    assert dequantize(quantized, tensor).tolist() == [-59.0, 0.0, 0.5, 68.5]


def test_the_gate_stops_a_file_of_another_model(files, data):
    keras.utils.set_random_seed(9)
    other = models.mobilenet_v2(10, 15, input_shape=(8, 8, 3), width=0.5)
    reference = 10 * predict_logits(other, data.validation.images)
    for format in export.FORMATS:
        report = parity(files / f"{format}.tflite", data.validation, reference)
        with pytest.raises(UserError, match=r"export: x\.tflite .*export\."):
            export._gate("x.tflite", format, report, reference, ExportConfig())


def test_int8_needs_calibration(student):
    with pytest.raises(ValueError, match="calibration"):
        convert(student, "int8")


def test_a_file_that_is_no_model_gives_one_line(tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a LiteRT file"):
        litert_predictor(path)
