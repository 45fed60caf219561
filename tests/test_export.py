"""LiteRT files say what their Keras model says, and the gate stops those that do not."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd import models
from tfigkd.benchmark import main as benchmark
from tfigkd.config.export_fields import ExportConfig
from tfigkd.data import load
from tfigkd.data.spaces import to_gray
from tfigkd.edge.contract import read_contract
from tfigkd.edge.convert import CALIBRATED, FORMATS, convert
from tfigkd.edge.litert import (
    dequantize,
    float_operations,
    float_tensors,
    litert_predictor,
    open_litert,
    quantize,
)
from tfigkd.edge.parity import check_parity, export_file, parity
from tfigkd.evaluate import main as evaluate
from tfigkd.export import Options, in_options, main
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.predict import main as predict
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller


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
    return with_stock_batch_norm(model)


@pytest.fixture(scope="module")
def files(student, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    for format in FORMATS:
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


@pytest.mark.parametrize("format", CALIBRATED)
def test_float32_ends_leave_integers_inside_and_the_same_answers(format, files, student, data, tmp_path):
    """Quantizing at the ends is the same arithmetic, in the file: logits are equal up to one step of the output."""
    path = tmp_path / f"student.{format}.tflite"
    report = export_file(path, student, format, data, ExportConfig(io="float32"))
    interpreter = open_litert(path, delegates=False)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert source["dtype"] == sink["dtype"] == np.float32
    assert float_tensors(path, inside=True) == [] and float_operations(path) == []
    assert len(interpreter.get_tensor_details()) > 20
    contract = read_contract(path)
    assert (contract["format"], contract["io"]) == (format, "float32")
    assert contract["input"]["dtype"] == contract["output"]["dtype"] == "float32"
    assert "quantization" not in contract["input"] and contract["calibration"]["examples"] == 70
    assert contract["parity"]["agreement"] == report["agreement"] >= 0.9
    other = tmp_path / "integer.tflite"
    export_file(other, student, format, data, ExportConfig())
    assert read_contract(other)["io"] == "integer"
    step = open_litert(other).get_output_details()[0]["quantization"][0]
    images = data.validation.images
    np.testing.assert_allclose(litert_predictor(path)(images), litert_predictor(other)(images), atol=1.01 * step)


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
    for format in FORMATS:
        report = parity(files / f"{format}.tflite", data.validation, reference)
        with pytest.raises(UserError, match=r"export: x\.tflite .*export\."):
            check_parity("x.tflite", format, report, reference, ExportConfig())


def test_what_breaks_its_bound_is_not_written(student, data, tmp_path):
    path = tmp_path / "student.tflite"
    # the same function of the classes, but one step of the output in int8 is several logits
    far = keras.Sequential([keras.Input(student.input_shape[1:]), student, keras.layers.Rescaling(1.0, offset=1000.0)])
    with pytest.raises(UserError, match=r"student\.tflite agrees .* export.min_int8_agreement = 0.9"):
        export_file(path, far, "int8", data, ExportConfig())
    with pytest.raises(UserError, match=r"export\.max_float16_difference = 1e-12"):
        export_file(path, student, "float16", data, ExportConfig(max_float16_difference=1e-12))
    assert list(tmp_path.iterdir()) == []


def test_a_single_image_of_few_decides_nothing():
    """With 240 photographs eight images are left for the comparison: seven of eight are as good as nine of ten."""
    reference = np.eye(4, dtype=np.float32)[np.arange(8) % 4]

    def check(agreement, examples=8, needed=0.9, **chance):
        report = {"agreement": agreement, "examples": examples, "keras_accuracy": 0.9, "keras_hardly_learned": False}
        report |= chance
        check_parity("x.tflite", "int8", report, reference, ExportConfig(min_int8_agreement=needed))

    check(7 / 8)
    check(0.8999, examples=10_000)
    for agreement, more in ((6 / 8, {}), (0.8998, {"examples": 10_000}), (7 / 8, {"needed": 1.0})):
        with pytest.raises(UserError, match=r"validation images; needed .* = [01]\.\d; try more"):
            check(agreement, **more)
    with pytest.raises(UserError, match=r"75\.0 % of 8 .* hardly learned, it is right on 25\.0 % of them"):
        check(6 / 8, keras_accuracy=0.25, keras_hardly_learned=True)


def test_the_report_is_written_beside_the_file(student, data, tmp_path):
    path = tmp_path / "student.int8.tflite"
    report = export_file(path, student, "int8", data, ExportConfig(calibration_examples=20))
    contract = read_contract(path)
    assert contract["parity"] == report | {"on": "validation without the calibration images"}
    assert contract["calibration"] == {"split": "validation", "examples": 20}
    assert contract["data"] == {"name": "digits", "fingerprint": data.fingerprint}
    assert contract["class_names"] == list(data.class_names)
    # an image that has set the file's ranges is not in the comparison
    images, labels = data.validation.images[20:], data.validation.labels[20:]
    assert report["examples"] == len(labels)
    assert report["accuracy"] == (litert_predictor(path)(images).argmax(1) == labels).mean()
    assert report["keras_accuracy"] == (predict_logits(student, images).argmax(1) == labels).mean()


def test_one_validation_image_cannot_calibrate_and_compare(student, data, tmp_path):
    single = dataclasses.replace(data, validation=data.validation.take(slice(1)))
    path = tmp_path / "student.tflite"
    for format in CALIBRATED:
        with pytest.raises(UserError, match=rf"{format} needs at least 2 validation images, .*digits.* has 1: give"):
            export_file(path, student, format, single, ExportConfig())
    assert not path.exists()
    assert export_file(path, student, "float32", single, ExportConfig())["examples"] == 1


def test_a_file_that_is_no_model_gives_one_line(tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a LiteRT file"):
        litert_predictor(path)


def own_models(folder):
    """A user's classifier that ends in softmax and scales its pixels, and the same with an open image size."""
    keras.utils.set_random_seed(0)
    for name, size in (("own", 8), ("open", None)):
        inputs = keras.Input((size, size, 3))
        x = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
        outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
        keras.Model(inputs, outputs).save(folder / f"{name}.keras")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    own_models(folder)
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_exports_a_users_model(shop, capsys, format):
    output = shop / f"own.{format}.tflite"
    arguments = [str(shop / "own.keras"), "--format", format, "--data", "digits", "--input-range", "0", "255"]
    assert main([*arguments, "--output", str(output)]) == 0
    count = 70 if format in CALIBRATED else 140  # half of validation calibrates, the other half compares
    assert re.search(rf"kB; on {count} validation images: agreement with Keras \d", capsys.readouterr().out)
    contract = read_contract(output)
    assert contract["format"] == format
    assert contract["input"]["range"] == [0.0, 1.0]
    assert contract["input"]["dtype"] == {"int8": "int8", "int16x8": "int16"}.get(format, "float32")
    # the file takes [0,1] and gives the logits under the softmax of a model that takes [0,255]
    images = load("digits").validation.images
    expected = keras.saving.load_model(shop / "own.keras")(images.astype("float32"), training=False).numpy()
    logits = litert_predictor(output)(images)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=0.02)


def test_a_file_with_float32_ends_works_in_every_command(shop, capsys, tmp_path):
    output = tmp_path / "own.int8.tflite"
    own = [str(shop / "own.keras"), "--format", "int8", "--data", "digits", "--input-range", "0", "255"]
    assert main([*own, "--io", "float32", "--output", str(output)]) == 0
    assert "kB, float32 input and output; on 70 validation images" in capsys.readouterr().out
    picture = tmp_path / "one.png"
    Image.fromarray(load("digits").test.images[0]).save(picture)
    assert predict([str(output), str(picture)]) == 0
    assert capsys.readouterr().out.count(" %") == 5
    assert evaluate([str(output), "--data", "digits"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert benchmark([str(output), "--runs", "5", "--warmup", "1", "--threads", "1", "--data", "digits"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_an_option_has_the_name_of_its_field(shop, capsys):
    own = [shop / "open.keras", "--format", "int8", "--data", "digits", "--output", shop / "strict.tflite"]
    for name in ("--min-int8-agreement", "--min_int8_agreement"):
        error = refusal(capsys, *own, "--image-size", "8", f"{name}=1")
        assert "needed is --min-int8-agreement 1.0; " in error and "export." not in error
    fields = {field.name for field in dataclasses.fields(ExportConfig)}
    assert {field.name for field in dataclasses.fields(Options)} & fields == {
        "calibration_examples",
        "min_int8_agreement",
        "io",
        "keep",
        "keep_in",
        "quantizer",
    }


def test_the_command_without_data(shop, capsys):
    arguments = ["--format", "float16", "--output", str(shop / "noise.tflite"), "--image-size", "8"]
    assert main([str(shop / "open.keras"), *arguments]) == 0
    assert "on noise, as there is no --data" in capsys.readouterr().out
    contract = json.loads((shop / "noise.json").read_text())
    assert contract["parity"]["on"] == "noise"
    assert contract["class_names"] is None


def test_a_bound_that_the_command_lacks_is_not_called_an_option():
    """A run has --export.max_float32_difference, this command has not."""
    said = "export: a/export.keep/x.tflite differs; allowed is export.max_float32_difference = 0.001; try export.keep"
    assert in_options(said) == "export: a/export.keep/x.tflite differs; allowed is 0.001; try --keep"


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error)
    return error


def test_what_the_command_refuses(shop, capsys, tmp_path):
    int8, output = ("--format", "int8"), ("--output", tmp_path / "x.tflite")
    own = shop / "own.keras"
    assert "int8 needs calibration images; give --data DATASET" in refusal(capsys, own, *int8, *output)
    assert "takes images of any size" in refusal(capsys, shop / "open.keras", *int8, *output)
    assert "no model file" in refusal(capsys, shop / "absent.keras", *int8, *output)
    assert "must end in .tflite" in refusal(capsys, own, *int8, "--output", tmp_path / "x.bin")
    assert "no folder" in refusal(capsys, own, *int8, "--output", tmp_path / "absent" / "x.tflite")
    line = refusal(capsys, own, *int8, *output, "--data", "digits", "--input-range", "1", "1")
    assert "different values for black and white" in line
    line = refusal(capsys, own, *int8, *output, "--data", "digits", "--calibration-examples", "0")
    assert "error: --calibration-examples must be positive" in line
    line = refusal(capsys, own, *int8, *output, "--data", "digits", "--keep", "1")
    assert "error: --keep needs --quantizer ai-edge" in line
    line = refusal(capsys, own, *int8, *output, "--splits.test", "validation")
    assert "--splits has no effect without --data; leave it out" in line
    line = refusal(capsys, shop / "x.tflite", "--format", "c", "--output", tmp_path / "x.c", "--data", "digits")
    assert "--data has no effect with --format c" in line
    line = refusal(capsys, shop / "x.tflite", "--format", "c", "--output", tmp_path / "x.c", "--keep", "3")
    assert "--keep has no effect with --format c" in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_gray_images_stays_one(shop, capsys, tmp_path):
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu")(inputs))
    keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(hidden)).save(tmp_path / "gray.keras")
    output = tmp_path / "gray.tflite"
    arguments = [str(tmp_path / "gray.keras"), "--format", "float32", "--output", str(output), "--data", "digits"]
    assert main([*arguments, "--image-size", "8"]) == 0
    assert "agreement with Keras 100.00 %" in capsys.readouterr().out
    contract = read_contract(output)
    assert contract["input"]["shape"] == [1, 8, 8, 1] and contract["input"]["colors"] == "gray"
    images = to_gray(load("digits").validation.images)
    expected = keras.saving.load_model(tmp_path / "gray.keras")(images / np.float32(255), training=False).numpy()
    assert (litert_predictor(output)(images).argmax(1) == expected.argmax(1)).all()


def test_the_command_refuses_data_that_do_not_fit(shop, capsys, tmp_path):
    def archive(name, images, labels):
        np.savez(tmp_path / name, x_train=images, y_train=labels, x_test=images, y_test=labels)
        arguments = ("--format", "int8", "--output", tmp_path / "x.tflite", "--data", tmp_path / name)
        return refusal(capsys, shop / "own.keras", *arguments)

    pixels, labels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 10
    assert "x_train is float32; expected uint8 pixels" in archive("scaled.npz", pixels / np.float32(255), labels)
    assert "have only pixels from 0 to 1, as if scaled" in archive("dark.npz", pixels // 128, labels)
    assert "has 10 classes" in archive("classes.npz", pixels, labels % 5)
    assert not (tmp_path / "x.tflite").exists()
