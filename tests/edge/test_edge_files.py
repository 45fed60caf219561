"""Files of other tools, and class names of a contract against those of the data; Keras's own model is the measure."""

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfigkd.data.spaces import to_gray
from tfigkd.edge.classifier_files import class_order, file_predictor, image_side, infer_spaces, probe
from tfigkd.edge.contract import read_contract, write_contract
from tfigkd.edge.input_range import assumption, infer_input_range
from tfigkd.edge.litert import open_classifier
from tfigkd.export import Options
from tfigkd.export import run as export
from tfigkd.runtime.errors import UserError

SHAPE = (8, 8, 3)
NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def net(*head: Any, units: int = 3, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(units, activation=activation, kernel_initializer=keras.initializers.RandomNormal(0, 3))
    return keras.Sequential([keras.Input(SHAPE), *head, keras.layers.GlobalAveragePooling2D(), last])


def convert(model: keras.Model, path: Path, calibration: np.ndarray | None = None, dtype: Any = None) -> Path:
    """As another tool would, with TensorFlow's converter alone."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([one[None]] for one in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter misses statistics that it has just been given
        path.write_bytes(converter.convert())
    return path


def shares(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_softmax_and_pixels_of_a_float_file(pixels: np.ndarray, tmp_path: Path) -> None:
    model = net(keras.layers.Rescaling(1 / 255), activation="softmax")
    path = convert(model, tmp_path / "m.tflite")
    assert image_side(path) == 8
    expected = model(pixels.astype("float32"))
    predict = file_predictor(path, NAMES, input_range=(0, 255))
    np.testing.assert_allclose(shares(predict(pixels)), expected, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1, 1)])
@pytest.mark.parametrize("dtype", [tf.uint8, tf.int8])
def test_the_scale_of_an_integer_input_tells_its_range(
    low: float, high: float, dtype: Any, pixels: np.ndarray, tmp_path: Path
) -> None:
    model = net(keras.layers.Rescaling(1 / (high - low), -low / (high - low)), activation="softmax")
    images = (low + (high - low) * (pixels / np.float32(255))).astype("float32")
    ends = np.stack([np.full(SHAPE, low), np.full(SHAPE, high)]).astype("float32")
    path = convert(model, tmp_path / "m.tflite", np.concatenate([images, ends]), dtype)
    assert infer_spaces(open_classifier(path), None) == ((low, high), "probabilities")
    np.testing.assert_allclose(shares(file_predictor(path, NAMES)(pixels)), model(images), atol=0.05)


def test_one_output_is_the_second_of_two_classes(pixels: np.ndarray, tmp_path: Path) -> None:
    images = pixels / np.float32(255)
    for activation in ("sigmoid", None):
        model = net(units=1, activation=activation)
        second = keras.ops.convert_to_numpy(net(units=1, activation="sigmoid")(images)).ravel()
        predict = file_predictor(convert(model, tmp_path / "m.tflite"), ("no", "yes"))
        np.testing.assert_allclose(shares(predict(pixels))[:, 1], second, atol=1e-5)


def test_one_logit_between_0_and_1_is_no_probability(pixels: np.ndarray, tmp_path: Path) -> None:
    """Float and int8, whose outputs are made wider by another operation."""
    model, images = net(units=1), pixels / np.float32(255)
    model.set_weights([np.full((3, 1), 0.3), np.zeros(1)])
    second = 1 / (1 + np.exp(-model(images).numpy().ravel()))
    assert second.min() > 0.5 and model(np.ones((1, *SHAPE))).numpy().max() < 1
    for path in (
        convert(model, tmp_path / "m.tflite"),
        convert(model, tmp_path / "m.int8.tflite", images, tf.int8),
        convert(model, tmp_path / "m.float.tflite", images, tf.float32),
    ):
        assert infer_spaces(open_classifier(path), None)[1] == "logits"
        np.testing.assert_allclose(shares(file_predictor(path, ("no", "yes"))(pixels))[:, 1], second, atol=0.01)


@pytest.mark.parametrize(("taken", "given"), [("float32", "float16"), ("float32", "float64"), ("float16", "float32")])
def test_floats_of_any_width_at_the_ends(taken: str, given: str, pixels: np.ndarray, tmp_path: Path) -> None:
    kernel = np.random.default_rng(1).normal(size=(192, 3)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec([1, *SHAPE], taken)])
    def network(images: Any) -> Any:
        return tf.cast(tf.matmul(tf.reshape(tf.cast(images, "float32"), [1, 192]), kernel), given)

    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()]).convert())
    found = file_predictor(path, NAMES)(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (pixels / 255).reshape(6, 192) @ kernel, atol=0.05)


def test_bytes_around_zero_are_no_pixels_from_0_to_255(pixels: np.ndarray, tmp_path: Path) -> None:
    model = net(keras.layers.Rescaling(1 / 128), activation="softmax")
    centered = pixels.astype("float32") - 128
    path = convert(model, tmp_path / "q.tflite", np.concatenate([centered, np.full_like(centered, 127)]), tf.int8)
    low, high = infer_spaces(open_classifier(path), None)[0]
    assert (low, high) == (pytest.approx(-128, abs=1), pytest.approx(127, abs=1))
    np.testing.assert_allclose(shares(file_predictor(path, NAMES)(pixels)), model(centered), atol=0.05)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("scale", "offset", "taken"),
    [
        (1 / 127.5, -1.0, (0, 255)),
        ([1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)], [-2.118, -2.036, -1.804], (0, 255)),
        (2.0, -1.0, (0, 1)),
        (0.5, 0.5, (-1, 1)),
    ],
)
def test_the_first_operations_of_a_float_input_tell_its_range(
    scale: Any, offset: Any, taken: tuple, quantized: bool, pixels: np.ndarray, tmp_path: Path
) -> None:
    # without padding, the converter puts scale and offset into the kernels
    convolution = keras.layers.Conv2D(4, 3, padding="same", activation="relu")
    model = net(keras.layers.Rescaling(scale, offset), convolution)
    shown = (taken[0] + (taken[1] - taken[0]) * (pixels / 255)).astype("float32")
    path = convert(model, tmp_path / "m.tflite", shown if quantized else None, tf.float32)
    np.testing.assert_allclose(infer_input_range(open_classifier(path), None), taken, rtol=0.01)
    assert assumption(open_classifier(path), None, None) == ""
    expected = keras.ops.convert_to_numpy(model(shown))
    found = file_predictor(path, NAMES, outputs="logits")(pixels)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected) if quantized else 1e-4)


def test_a_range_that_nothing_tells_is_said_to_be_assumed(tmp_path: Path) -> None:
    path = convert(net(keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)), tmp_path / "m.tflite")
    assert assumption(open_classifier(path), None, None).startswith("note: pixels from 0 to 1 are assumed, as the file")
    assert assumption(open_classifier(path), None, (0, 255)) == ""
    # batch normalization of pixels of unknown range: mean 0.1, deviation 1
    scaled = net(keras.layers.Rescaling(1.0, -0.1), keras.layers.Conv2D(4, 3, padding="same"))
    assert infer_input_range(open_classifier(convert(scaled, tmp_path / "b.tflite")), None) is None


def test_standardized_pixels_of_an_integer_input(pixels: np.ndarray, tmp_path: Path) -> None:
    model = net(keras.layers.Conv2D(4, 3, activation="relu"))
    extremes = np.stack([np.zeros(SHAPE), np.full(SHAPE, 255), *pixels]).astype("float32")
    standard = (extremes / 255 - 0.45) / 0.22
    path = convert(model, tmp_path / "q.tflite", standard, tf.int8)
    np.testing.assert_allclose(infer_input_range(open_classifier(path), None), (-2.045, 2.5), atol=0.03)
    expected = keras.ops.convert_to_numpy(model(standard[2:]))
    found = file_predictor(path, NAMES, outputs="logits")(pixels)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected))


def test_a_file_that_gives_nan_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    model = net(keras.layers.Conv2D(4, 3))
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * np.nan, bias])
    path = convert(model, tmp_path / "nan.tflite")
    with pytest.raises(UserError, match=r"nan\.tflite gives NaN or infinity"):
        file_predictor(path, NAMES, outputs="logits")(pixels)
    with pytest.raises(UserError, match="the file gives NaN or infinity"):
        probe(open_classifier(path), (0, 1))


def test_one_output_of_a_file_is_told_by_the_operation_before_its_scale(pixels: np.ndarray, tmp_path: Path) -> None:
    image = keras.Input(SHAPE)
    features = keras.layers.GlobalAveragePooling2D()(image)
    logit = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(0.2))(features)
    path = convert(keras.Model(image, keras.layers.Rescaling(1 / 3)(logit)), tmp_path / "z.tflite")
    assert infer_spaces(open_classifier(path), None)[1] == "logits"
    unsure = convert(keras.Model(image, keras.ops.minimum(logit, 0.9)), tmp_path / "u.tflite")
    with pytest.raises(UserError, match="may be a probability or a logit; give --outputs"):
        infer_spaces(open_classifier(unsure), None)
    assert infer_spaces(open_classifier(unsure), None, None, "logits")[1] == "logits"


@pytest.mark.parametrize("content", ["architecture", "labels"])
def test_json_of_another_tool_is_no_contract(content: str, pixels: np.ndarray, tmp_path: Path) -> None:
    """The files model.json and model.tflite of one model; the contract goes nowhere else, so export leaves it alone."""
    model = net()
    path, beside = convert(model, tmp_path / "model.tflite"), tmp_path / "model.json"
    beside.write_text(model.to_json() if content == "architecture" else '{"class_names": ["a", "b", "c"]}')
    kept = beside.read_text()
    np.testing.assert_allclose(file_predictor(path, NAMES)(pixels), model(pixels / np.float32(255)), atol=1e-4)
    model.save(tmp_path / "model.keras")
    options = Options(model=str(tmp_path / "model.keras"), format="float32", output=path)
    with pytest.raises(UserError, match=r"model.json, where the contract goes, is a file of another tool; choose"):
        export(options)
    assert beside.read_text() == kept
    beside.unlink()
    export(options)
    assert read_contract(path) is not None


def test_classes_by_name(pixels: np.ndarray, tmp_path: Path) -> None:
    """Another order, other capitals, fewer classes: the columns follow the names."""
    model = net()
    path = convert(model, tmp_path / "m.tflite")
    write_contract(path, NAMES)
    logits = keras.ops.convert_to_numpy(model(pixels / np.float32(255)))
    for names, columns in ((("Cat", "ant", "bee"), [2, 0, 1]), (("bee", "cat"), [1, 2, 0]), (NAMES, [0, 1, 2])):
        np.testing.assert_allclose(file_predictor(path, names)(pixels), logits[:, columns], atol=1e-4)
    with pytest.raises(UserError, match="does not know the classes dog of the data; it knows ant, bee, cat"):
        file_predictor(path, ("ant", "bee", "dog"))


def test_a_file_of_gray_images_gets_the_gray_of_rgb_images(pixels: np.ndarray, tmp_path: Path) -> None:
    layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    path = convert(model, tmp_path / "m.tflite")
    gray = to_gray(pixels)
    expected = model(gray / np.float32(255))
    for images in (pixels, gray):
        np.testing.assert_allclose(file_predictor(path, NAMES)(images), expected, atol=1e-5)
    with pytest.raises(UserError, match="--input-range: expected different values for black and white"):
        file_predictor(path, NAMES, input_range=(float("nan"), 1.0))


def test_a_keras_file_is_no_litert_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.keras is no .tflite file; make one of it: python -m tfigkd.export"):
        image_side(tmp_path / "m.keras")


def test_classes_without_names() -> None:
    path = Path("m.tflite")
    apart, joined = "A\u0308pfel", "\u00c4pfel"  # as macOS stores the names of folders, and as others do
    assert (
        class_order(path, 2, (apart, "b"), ("b", joined)) == class_order(path, 2, (joined, "b"), ("b", apart)) == [1, 0]
    )
    assert class_order(path, 2, None, ("a", "b")) == [0, 1]
    with pytest.raises(UserError, match="has 3 classes without names, the data have 2"):
        class_order(path, 3, None, ("a", "b"))
    with pytest.raises(UserError, match="names 2 classes, it has 3"):
        class_order(path, 3, ("a", "b"), ("a", "b"))
