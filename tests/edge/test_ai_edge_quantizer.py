"""Files of the second quantizer: what is int8 in them, what is kept, and how far they are from Keras."""

import re
import sys

import keras
import numpy as np
import pytest

from tests.edge.spoiling import spoil
from tfigkd.config.experiment import override, read_experiment
from tfigkd.config.export_fields import ExportConfig
from tfigkd.data import load
from tfigkd.edge.ai_edge_quantizer import quantize_file
from tfigkd.edge.contract import read_contract
from tfigkd.edge.convert import convert
from tfigkd.edge.layer_differences import compare
from tfigkd.edge.litert import float_tensors, litert_predictor, open_litert
from tfigkd.edge.operations import read_operations
from tfigkd.edge.parity import export_file
from tfigkd.export import main
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
layers = keras.layers


@pytest.fixture(scope="module")
def model():
    """A residual network with a layer that int8 spoils: weights of 9 on a channel that is always zero."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(stem)
    hidden = layers.Conv2D(8, 3, padding="same", name="spoilt")(hidden)
    hidden = layers.GlobalAveragePooling2D()(layers.Add()([stem, hidden]))
    model = keras.Model(inputs, layers.Dense(10, name="head")(hidden))
    spoil(model.get_layer("first"), model.get_layer("spoilt"))
    return model


def noise(content, model, folder):
    """Squared differences from Keras's logits as a share of the squares."""
    path = folder / "m.tflite"
    path.write_bytes(content)
    wanted = np.asarray(model(PIXELS[16:] / np.float32(255)))
    return float(np.square(litert_predictor(path)(PIXELS[16:]) - wanted).sum() / np.square(wanted).sum())


def kinds(content):
    """Type of the output of each operation with weights, by layer."""
    return {one.layer.removesuffix("_1"): one.dtype for one in read_operations(content) if one.multiply_adds}


def ends(content):
    interpreter = open_litert(content)
    return [one[0]["dtype"] for one in (interpreter.get_input_details(), interpreter.get_output_details())]


def test_all_is_int8_and_near_keras(model, tmp_path):
    made = quantize_file(convert(model, "float32"), PIXELS[:16])
    assert made.kept == () and float_tensors(made.content) == [] and ends(made.content) == [np.int8] * 2
    assert noise(made.content, model, tmp_path) < 0.05
    floating = quantize_file(convert(model, "float32"), PIXELS[:16], io="float32").content
    assert ends(floating) == [np.float32] * 2 and {*kinds(floating).values()} == {"int8"}
    assert noise(floating, model, tmp_path) < 0.05


@pytest.mark.parametrize("keep", [0, 1])
def test_what_would_stay_in_floats_is_named(keep):
    """The package leaves what it does not know in floats, and says nothing."""
    inputs = keras.Input((8, 8, 3))
    hidden = keras.ops.sin(layers.LeakyReLU()(layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))
    with pytest.raises(UserError, match=r"to int8: LEAKY_RELU,.* SIN would stay in floats; leave out the quantizer"):
        quantize_file(convert(model, "float32"), PIXELS[:4], keep=keep)


def test_no_calibration_image_is_clipped(model, tmp_path):
    """One light image among dark ones sets the ranges; the package alone would average it away."""
    images = np.concatenate([PIXELS[:15] // 8, PIXELS[16:17]])
    quantized, reference = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    reference.write_bytes(convert(model, "float32"))
    quantized.write_bytes(quantize_file(reference.read_bytes(), images).content)
    assert max(one.saturated for one in compare(quantized, reference, images[-1:]).differences) < 0.01


@pytest.mark.parametrize(("keep_in", "stored"), [("float32", "float32"), ("int16", "int16")])
def test_the_layer_that_int8_spoils_is_kept(keep_in, stored, model, tmp_path):
    content = convert(model, "float32")
    whole, mixed = (quantize_file(content, PIXELS[:16], keep=keep, keep_in=keep_in) for keep in (0, 1))
    assert [name.removesuffix("_1") for name in mixed.kept] == ["spoilt"]
    found = kinds(mixed.content)
    assert found["spoilt"] == stored and {found["stem"], found["first"]} == {"int8"}
    # int16 activations do not help a layer whose weights are rounded; float32 weights do
    better = noise(mixed.content, model, tmp_path) / noise(whole.content, model, tmp_path)
    assert better < 0.7 if keep_in == "float32" else better < 1.1


def test_a_file_in_the_export_table(model, tmp_path):
    data = load("digits")
    path = tmp_path / "m.int8.tflite"
    config = ExportConfig(quantizer="ai-edge", keep=2, min_int8_agreement=0.5, calibration_examples=16)
    report = export_file(path, model, "int8", data, config)
    contract = read_contract(path)
    assert contract["quantizer"] == "ai-edge" and contract["kept"]["in"] == "float32"
    assert len(contract["kept"]["layers"]) == 2 and contract["calibration"]["examples"] == 16
    assert {*kinds(path.read_bytes()).values()} == {"int8", "float32"}
    wanted = np.asarray(model(data.validation.images[16:] / np.float32(255))).argmax(axis=1)
    found = litert_predictor(path)(data.validation.images[16:]).argmax(axis=1)
    assert report["agreement"] == pytest.approx(float(np.mean(found == wanted)))


def test_learned_ranges_go_through_the_converter(model, tmp_path, monkeypatch):
    """Fake quantization has its own ranges, so the second quantizer is not asked."""
    monkeypatch.setattr("tfigkd.edge.parity.is_fake_quantized", lambda model: True)
    monkeypatch.setattr("tfigkd.edge.parity.quantize_file", lambda *_, **__: pytest.fail("asked"))
    config = ExportConfig(quantizer="ai-edge", min_int8_agreement=0.0, calibration_examples=16)
    export_file(tmp_path / "m.int8.tflite", model, "int8", load("digits"), config)
    assert "quantizer" not in read_contract(tmp_path / "m.int8.tflite")


def test_finished_runs_of_earlier_versions_keep_their_fingerprints():
    _, config = read_experiment("quickstart")
    same = override(config, {"export.quantizer": "converter", "export.keep": 0, "export.keep_in": "float32"})
    assert fingerprint(same.export) == fingerprint(config.export)
    other = override(config, {"export.quantizer": "ai-edge"})
    assert fingerprint(other.export) != fingerprint(config.export)


def test_what_is_refused(model, tmp_path, capsys, monkeypatch):
    content = convert(model, "float32")
    with pytest.raises(UserError, match="keep is 5, but the model has 4 layers with weights"):
        quantize_file(content, PIXELS[:4], keep=5)
    with pytest.raises(UserError, match=r"keep needs export.quantizer = ai-edge"):
        ExportConfig(keep=1)
    with pytest.raises(UserError, match=r"keep must not be negative"):
        ExportConfig(keep=-1, quantizer="ai-edge")
    model.save(tmp_path / "m.keras")
    words = [str(tmp_path / "m.keras"), "--quantizer", "ai-edge", "--output", str(tmp_path / "m.tflite")]
    for more, message in (
        (["--format", "float16"], "--quantizer ai-edge makes int8 files, got --format float16"),
        (["--format", "int8"], "int8 needs calibration images; give --data DATASET"),
    ):
        assert main([*words, *more]) == 1
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer.quantizer", None)
    with pytest.raises(UserError, match="pip install ai-edge-quantizer"):
        quantize_file(content, PIXELS[:4])
