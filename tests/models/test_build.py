"""Models by name or from the user's own file, and the one line that a wrong one gets."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.config.fields import StudentConfig, TeacherConfig
from tfigkd.models.batch_norm import FusedBatchNormalization
from tfigkd.runtime.errors import UserError


def _own(head: list[Any], shape: tuple[int | None, ...] = (8, 8, 3)) -> keras.Model:
    layers = [keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(shape), *layers, *head], name="own")


def _dense(activation: Any = None, classes: int = 4) -> list[Any]:
    return [keras.layers.Dense(classes, activation=activation)]


def _load(model: keras.Model, folder: Path) -> keras.Model:
    model.save(folder / "own.keras")
    return models.build(str(folder / "own.keras"), num_classes=4, input_shape=(8, 8, 3))


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((3, 8, 8, 3), np.float32)


@pytest.mark.parametrize("name", models.MODELS)
def test_names(name: str) -> None:
    model = models.build(
        name,
        num_classes=7,
        input_shape=(16, 16, 3),
        drop_blocks=0,
        width=1.0,
        dropout=None,
        normalization="cifar10",
    )
    assert model.input_shape == (None, 16, 16, 3) and model.output_shape == (None, 7)
    np.testing.assert_allclose(model.get_layer("normalization").kernel[0, 0, 1, 0], 1 / 0.2435, rtol=1e-6)


def test_options_reach_the_network() -> None:
    model = models.build("mobilenet_v2", num_classes=3, input_shape=(8, 8, 3), drop_blocks=14, width=0.5, dropout=0.1)
    assert model.get_layer("dropout").rate == 0.1
    assert model.get_layer("block_04").output.shape[-1] == 16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet-20", {}, "did you mean resnet20?"),
        ("mobilenetv2", {}, "did you mean mobilenet_v2?"),
        (
            "vgg",
            {},
            "there are mobilenet_v2, resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, convnet,",
        ),
        ("resnet20", {"drop_blocks": 5}, "resnet20 has no drop_blocks"),
        ("convnet", {"stem_stride": 2}, "convnet has no stem_stride"),
        ("resnet20", {"width": -1.0}, "width must be positive"),
        ("absent.keras", {"width": 0.5}, "no model file absent.keras"),  # a setting of another network
        ("resnet20", {"input_range": (0.0, 255.0)}, "resnet20 takes images in [0,1]"),
        ("keras/MobileNetV9", {}, "did you mean keras/MobileNetV"),
        ("keras/InceptionV3", {}, "try another image size"),
        ("absent.keras", {}, "no model file absent.keras"),
        ("mobilenet_v2", {"drop_blocks": 19}, "drop_blocks must be in"),
        ("resnet20", {"normalization": ((0.5,), (0.5,))}, "each of 3 channels"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        models.build(name, num_classes=10, input_shape=(32, 32, 3), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_option_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="got layers"):
        models.build("resnet20", num_classes=10, input_shape=(32, 32, 3), layers=3)


def test_own_model_trains_fast_and_says_the_same(tmp_path: Path) -> None:
    model = _own(_dense())
    loaded = _load(model, tmp_path)
    np.testing.assert_allclose(loaded(_images()), model(_images()), atol=1e-5)
    assert any(isinstance(layer, FusedBatchNormalization) for layer in loaded.layers)


@pytest.mark.parametrize(
    "head",
    [
        lambda: _dense("softmax"),
        lambda: [*_dense(), keras.layers.Activation("softmax")],
        lambda: [*_dense(), keras.layers.Softmax()],
        lambda: [keras.Sequential([keras.Input((6,)), *_dense("softmax")])],
    ],
)
def test_softmax_is_taken_off(head: Any, tmp_path: Path) -> None:
    model = _own(head())
    loaded = _load(model, tmp_path)
    assert loaded.output_shape == (None, 4)
    logits = loaded(_images()).numpy()
    assert not np.allclose(logits.sum(-1), 1)
    np.testing.assert_allclose(keras.ops.softmax(logits), model(_images()), atol=1e-6)


def test_open_image_size_becomes_the_datas(tmp_path: Path) -> None:
    model = _own(_dense(), shape=(None, None, 3))
    loaded = _load(model, tmp_path)
    assert loaded.input_shape == (None, 8, 8, 3)
    np.testing.assert_allclose(loaded(_images()), model(_images()), atol=1e-5)


def test_lambda_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lambda, which could run any code"):
        _load(_own([keras.layers.Lambda(lambda x: x * 2), *_dense()]), tmp_path)


class _Custom(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: _own(_dense("sigmoid")), "ends in 4 sigmoids, expected one choice among the classes"),
        (lambda: _own(_dense(classes=5)), r"outputs of shape \(5,\), expected \(4,\)"),
        (lambda: _own(_dense(), shape=(9, 9, 3)), r"takes inputs of shape \(9, 9, 3\), .*; give --image-size 9"),
        (lambda: _own(_dense(), shape=(9, 5, 3)), "leave out --image-size if the pictures have that size"),
        (lambda: _own(_dense(), shape=(8, 8, 4)), "save it for images of 3 channels$"),
        (lambda: _own(_dense(), shape=(3, 8, 8)), "channels first; save it for images whose channels come last"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 8)]),
            r"outputs of shape \(1, 1, 4\), .*; save it with a Flatten layer",
        ),
        (lambda: _own([_Custom(), *_dense()]), "asks for code of .*test_build.*, which is refused"),
        (
            lambda: keras.Sequential([keras.Input((8,)), *_dense()]),
            r"inputs of shape \(8,\), expected images .* Reshape",
        ),
    ],
)
def test_own_model_that_does_not_fit(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load(model(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_registered_layer_whose_code_is_not_there_is_named(tmp_path: Path) -> None:
    """A file of one program is read by another, which has not imported the layer."""
    registered = keras.saving.register_keras_serializable("elsewhere", "Custom")(_Registered)
    _load(_own([registered(), *_dense()]), tmp_path)
    del keras.saving.get_custom_objects()["elsewhere>Custom"]
    with pytest.raises(UserError, match="asks for code of 'elsewhere>Custom', which is refused; use stock layers"):
        models.load_classifier(tmp_path / "own.keras")


class _Registered(keras.layers.Layer):
    __module__ = "__main__"  # of a script or a notebook, which the file does not name

    def call(self, x: Any) -> Any:
        return x


@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.parametrize("wrap", [lambda name, tensor: {name: tensor}, lambda name, tensor: [tensor]])
def test_inputs_and_outputs_in_a_dictionary_or_list_of_one(wrap: Any, tmp_path: Path) -> None:
    image, layers = keras.Input((8, 8, 3), name="image"), keras.layers
    shares = layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(image)))
    bare, model = keras.Model(image, shares), keras.Model(wrap("image", image), wrap("shares", shares))
    loaded = _load(model, tmp_path)
    np.testing.assert_allclose(keras.ops.softmax(loaded(_images())), bare(_images()), atol=1e-6)
    plain = models.ReferenceClassifier(tmp_path / "own.keras")
    np.testing.assert_allclose(plain(_images()), loaded(_images()), atol=1e-5)


def test_two_outputs_are_refused(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    with pytest.raises(UserError, match="one output"):
        _load(keras.Model(inputs, [_dense()[0](pooled), _dense()[0](pooled)]), tmp_path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_of_earlier_keras_say_how_they_become_a_keras_file(tmp_path: Path) -> None:
    model = _own(_dense())
    model.save(tmp_path / "old.h5")
    model.save_weights(tmp_path / "own.weights.h5")
    (tmp_path / "own.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    for name in ("saved_model.keras", "saved_model", "folder.keras"):
        (tmp_path / name).mkdir()
    for name in ("saved_model.keras", "saved_model"):
        (tmp_path / name / "saved_model.pb").touch()
    model.save(tmp_path / "parts", zipped=False)
    for name, advice in {
        "own.weights.h5": r"is not a \.keras file but only weights; build its model, load_weights them",
        "old.h5": r"but a model that Keras 3.* saved; python -m tfigkd\.upgrade .*old\.h5 --output .*old\.keras$",
        "saved_model": r"not a \.keras file but the folder of a SavedModel .* save it as saved_model\.keras$",
        "saved_model.keras": r"not a \.keras file but the folder of a SavedModel .* save it as saved_model\.keras$",
        "folder.keras": r"folder\.keras is not a \.keras file but a folder; give the path of a \.keras file$",
        "parts": r"not a \.keras file but its content in a folder; .*load_model\('parts', .*save\('parts.keras'\)",
    }.items():
        for act in (models.load_classifier, lambda path: models.build(str(path), num_classes=4, input_shape=(8, 8, 3))):
            with pytest.raises(UserError, match=advice) as caught:
                act(tmp_path / name)
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"is not a \.keras file but a LiteRT file"):
        models.load_classifier(tmp_path / "own.tflite")
    model.save(tmp_path / "own.keras")
    (tmp_path / "own.keras").rename(tmp_path / "own.KERAS")
    with pytest.raises(UserError, match=r"own\.KERAS does not end in \.keras, .*; rename it own\.keras"):
        models.load_classifier(tmp_path / "own.KERAS")
    # the advice is followed
    opened = keras.models.load_model(tmp_path / "old.h5", compile=False)
    opened.save(tmp_path / "old.keras")
    models.build(str(tmp_path / "old.keras"), num_classes=4, input_shape=(8, 8, 3))


def test_broken_files(tmp_path: Path) -> None:
    _own(_dense()).save(tmp_path / "own.keras")
    whole = (tmp_path / "own.keras").read_bytes()
    for name, content in {"text": b"not a model", "cut": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.keras"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a \.keras file|cannot load"):
            models.build(str(path), num_classes=4, input_shape=(8, 8, 3))


def test_kinds_of_names_and_the_options_of_an_architecture() -> None:
    names = ["convnet", "keras/MobileNetV3Small", "own.keras", "folder/own.keras", "own.tflite"]
    assert [models.is_file(name) for name in names] == [False, False, True, True, False]
    assert [models.is_application(name) for name in names] == [False, True, False, False, False]
    fields = {field.name for config in (TeacherConfig, StudentConfig) for field in dataclasses.fields(config)}
    assert set(models.ARCHITECTURE) <= fields
