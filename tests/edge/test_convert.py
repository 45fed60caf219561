"""Each format has the types of its name, and a model that cannot be converted is refused in one line."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.edge.convert import CALIBRATED, FORMATS, convert
from tfigkd.edge.litert import float_operations, float_tensors, litert_predictor, open_litert
from tfigkd.measure.metrics import predict_logits
from tfigkd.runtime.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return models.resnet(8, 10, input_shape=(8, 8, 3))


@pytest.fixture(scope="module")
def contents(network):
    return {format: convert(network, format, PIXELS) for format in FORMATS}


def kinds(content):
    """Return the types of all tensors, and the types of input and output."""
    interpreter = open_litert(content, delegates=False)
    ends = [interpreter.get_input_details()[0], interpreter.get_output_details()[0]]
    return {np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()}, [
        np.dtype(tensor["dtype"]).name for tensor in ends
    ]


def test_each_format_holds_the_types_of_its_name(contents):
    types = {format: kinds(content) for format, content in contents.items()}
    assert types["float32"][1] == types["float16"][1] == types["dynamic"][1] == ["float32", "float32"]
    assert not {"float16", "int8"} & types["float32"][0]
    assert "float16" in types["float16"][0]
    assert {"int8", "float32"} <= types["dynamic"][0]
    assert types["int8"][1] == ["int8", "int8"]
    assert types["int16x8"][1] == ["int16", "int16"]
    assert {"int8", "int16"} <= types["int16x8"][0]


def test_integer_files_hold_no_float(contents):
    for format in CALIBRATED:
        assert float_tensors(contents[format]) == []
        assert float_operations(contents[format]) == []
    assert "CONV_2D" in float_operations(contents["float32"])


def test_every_file_says_what_keras_says(contents, network, tmp_path):
    reference = predict_logits(network, PIXELS)
    for format, bound in {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.05, "int8": 0.1, "int16x8": 0.05}.items():
        path = tmp_path / f"{format}.tflite"
        path.write_bytes(contents[format])
        assert np.abs(litert_predictor(path)(PIXELS) - reference).max() < bound * np.abs(reference).max(), format


def test_narrower_files_are_smaller():
    network = models.mobilenet_v2(10, 14, input_shape=(8, 8, 3))
    sizes = [len(convert(network, format, PIXELS)) for format in ("float32", "float16", "int8")]
    assert sizes == sorted(sizes, reverse=True)


def fake_quantized():
    """Return a network with fake quantization and fixed ranges."""

    @keras.saving.register_keras_serializable("test_convert")
    class Range(keras.layers.Layer):
        def call(self, inputs):
            return keras.quantizers.fake_quant_with_min_max_vars(inputs, 0.0, 1.0)

    class Conv(keras.layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            kernel = keras.quantizers.fake_quant_with_min_max_vars(kernel, -0.5, 0.5, narrow_range=True)
            return super().convolution_op(inputs, kernel)

    inputs = keras.Input((8, 8, 3))
    x = Range()(Conv(10, 3, activation="relu")(Range()(inputs)))
    return keras.Model(inputs, Range()(keras.layers.GlobalAveragePooling2D()(x)))


def test_fake_quantization_needs_no_calibration(tmp_path):
    keras.utils.set_random_seed(0)
    network = fake_quantized()
    path = tmp_path / "learned.tflite"
    path.write_bytes(convert(network, "int8"))
    assert float_tensors(path) == []
    # the ranges are 0 to 1 in 255 steps; they differ by at most one rounding step
    assert np.abs(litert_predictor(path)(PIXELS) - predict_logits(network, PIXELS)).max() <= 2 / 255
    with pytest.raises(UserError, match="has fake quantization and cannot be converted to float16"):
        convert(network, "float16")


def with_operation(operation):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(operation(keras.layers.Conv2D(4, 3)(inputs)))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


@pytest.mark.parametrize("format", CALIBRATED)
def test_an_operation_without_integer_kernel_is_named(format):
    with pytest.raises(UserError) as caught:
        convert(with_operation(keras.ops.sin), format, PIXELS)
    assert "\n" not in str(caught.value)
    assert f"cannot be converted to {format}: SIN " in str(caught.value)


@pytest.mark.parametrize("format", CALIBRATED)
def test_a_loop_has_no_integer_form(format):
    """TensorFlow's calibration of it would end the process."""
    inputs = keras.Input((8, 8, 3))
    rows = keras.layers.GRU(4)(keras.layers.Reshape((8, 24))(inputs))
    with pytest.raises(
        UserError, match=f"{format}: loops and branches, such as recurrent layers, have no integer form"
    ):
        convert(keras.Model(inputs, keras.layers.Dense(10)(rows)), format, PIXELS)


def test_an_operation_unknown_to_litert_is_named(capfd):
    with pytest.raises(UserError, match="cannot be converted to float32: LiteRT has no operation for Erf; ") as caught:
        convert(with_operation(keras.ops.erf), "float32")
    assert "\n" not in str(caught.value)
    assert "callsite" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / np.float32(255), r"calibration images are float32 from 0 to 1; expected uint8"),
        (PIXELS.astype(np.float32), r"float32 from 0 to 255; expected uint8"),
        (PIXELS // 255, r"have only pixels from 0 to 1, as if scaled to \[0,1\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"have only pixels from 0 to 0"),
        (PIXELS[:, :4], r"have the shape \(32, 4, 8, 3\); expected \[N,8,8,3\]"),
        (PIXELS[:0], r"expected \[N,8,8,3\] and at least one"),
        (PIXELS[..., :1], r"expected \[N,8,8,3\]"),
    ],
)
def test_calibration_images_of_another_range_or_shape_are_refused(network, images, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(network, "int8", images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", CALIBRATED)
def test_a_model_of_pixels_to_255_is_not_calibrated_with_images_in_0_1(format, tmp_path):
    keras.utils.set_random_seed(0)
    body = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), *body], name="own")
    with pytest.raises(UserError, match=r"own takes pixels from 0 to 255, .*; give tfigkd.models.as_cl") as caught:
        convert(model, format, PIXELS)
    assert "\n" not in str(caught.value)
    path = tmp_path / "own.tflite"
    path.write_bytes(convert(models.as_classifier(model), format, PIXELS))
    expected = keras.ops.convert_to_numpy(model(PIXELS.astype("float32")))
    assert np.abs(litert_predictor(path)(PIXELS) - expected).max() < 0.1 * np.abs(expected).max()
    assert convert(model, format, PIXELS, input_range=(0, 1))  # as declared
    assert convert(model, "float32")  # it is not calibrated and stays as it is


def test_another_backend_is_refused_in_one_line(network, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"needs KERAS_BACKEND=tensorflow, this process has jax; save the") as caught:
        convert(network, "float32")
    assert "\n" not in str(caught.value)


def test_misuse(network):
    for format in CALIBRATED:
        with pytest.raises(ValueError, match="needs calibration"):
            convert(network, format)
    with pytest.raises(ValueError, match="format must be one of float32"):
        convert(network, "int4", PIXELS)
    with pytest.raises(ValueError, match="io must be one of integer, float32, got 'float'"):
        convert(network, "int8", PIXELS, io="float")
    with pytest.raises(UserError, match=r"calibration images are a list; expected a NumPy array, uint8 \[N,H,W,C\]"):
        convert(network, "int8", list(PIXELS))
    with pytest.raises(ValueError, match=r"expected a Keras model, got str; keras\.saving\.load_model opens a file"):
        convert("model.keras", "float32")
    with pytest.raises(ValueError, match="leaves the size of its images open; build it with a fixed input shape"):
        convert(with_open_size(), "float32")


def with_open_size():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
