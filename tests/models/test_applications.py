"""Networks of keras.applications by name, against Keras's own with its `preprocess_input`; strides for large images."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.models.applications import applications, preprocessing
from tfigkd.models.cost import multiply_adds
from tfigkd.runtime.errors import UserError

SIZE = 32


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype("float32")


def plain(classes: int = 4, **options: Any) -> keras.Model:
    return keras.applications.MobileNet(weights=None, input_shape=(SIZE, SIZE, 3), classes=classes, **options)


def build(weights: Path | None = None, classes: int = 4) -> keras.Model:
    shape = (SIZE, SIZE, 3)
    return models.build("keras/MobileNet", num_classes=classes, input_shape=shape, weights=weights, width=0.5)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_weights_of_a_file_and_the_networks_own_preprocessing(ending: str, pixels: np.ndarray, tmp_path: Path) -> None:
    """The images come in [0,1]; the settings of our own networks, such as width, do not apply."""
    reference = plain()
    path = tmp_path / f"m{ending}"
    reference.save(path) if ending == ".keras" else reference.save_weights(path)
    expected = reference(keras.applications.mobilenet.preprocess_input(pixels.copy()))
    model = build(path)
    logits = model(pixels / 255, training=False)
    np.testing.assert_allclose(keras.ops.softmax(logits), expected, atol=1e-5)
    assert model.get_layer("conv_pw_1").output.shape[1:3] == (SIZE // 2, SIZE // 2)
    model.save(tmp_path / "again.keras")
    again = models.build(str(tmp_path / "again.keras"), num_classes=4, input_shape=(SIZE, SIZE, 3))
    np.testing.assert_allclose(again(pixels / 255), logits, atol=1e-5)


@pytest.mark.parametrize("headless", [False, True])
def test_a_head_of_other_classes_stays_fresh(headless: bool, tmp_path: Path) -> None:
    reference = plain(include_top=False) if headless else plain(classes=7)
    reference.save_weights(tmp_path / "m.weights.h5")
    keras.utils.set_random_seed(0)
    model = build(tmp_path / "m.weights.h5")
    keras.utils.set_random_seed(0)
    fresh = build()
    kernel, head = "conv_pw_13", "conv_preds"
    np.testing.assert_array_equal(
        model.get_layer(kernel).get_weights()[0], reference.get_layer(kernel).get_weights()[0]
    )
    assert model.output_shape == (None, 4)
    np.testing.assert_array_equal(model.get_layer(head).get_weights()[0], fresh.get_layer(head).get_weights()[0])


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
@pytest.mark.parametrize(("ending", "headless"), [(".weights.h5", True), (".keras", True), (".keras", False)])
def test_heads_of_several_layers_and_names_with_numbers(name: str, ending: str, headless: bool, tmp_path: Path) -> None:
    """The head of MobileNetV3 has two layers; EfficientNet's normalization is numbered anew by each building."""
    function, options = applications()[name], {"weights": None, "input_shape": (SIZE, SIZE, 3)}
    reference = function(include_top=False, **options) if headless else function(classes=7, **options)
    path = tmp_path / f"m{ending}"
    reference.save(path) if ending == ".keras" else reference.save_weights(path)
    model = models.build(f"keras/{name}", num_classes=4, input_shape=(SIZE, SIZE, 3), weights=path)
    loaded = [layer for layer in model.layers if layer.weights and layer.name != "input_range"]
    kept = [layer for layer in reference.layers if layer.weights]
    assert len(loaded) - len(kept) in ((1, 2) if headless else (0,))
    for ours, theirs in zip(loaded, kept if headless else kept[:-1], strict=False):
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=ours.name)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights file .*absent\.h5"):
        build(tmp_path / "absent.h5")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="does not fit mobilenet") as caught:
        build(tmp_path / "other.weights.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"])
def test_preprocessing_as_a_matrix(name: str) -> None:
    """Colors swapped and centered, divided by deviations, scaled to [-1,1], or left to the network."""
    function = applications()[name]
    modules = {"ResNet50": "resnet", "DenseNet121": "densenet", "MobileNetV2": "mobilenet_v2"}
    modules |= {"MobileNetV3Small": "mobilenet_v3", "EfficientNetB0": "efficientnet"}
    pixel = np.array([[[[10.0, 100.0, 200.0]]]])
    matrix, offset = preprocessing(function)
    expected = getattr(keras.applications, modules[name]).preprocess_input(pixel.copy())
    np.testing.assert_allclose(pixel @ matrix + offset, expected, rtol=1e-5)


def test_strides_of_imagenet_above_64_pixels() -> None:
    """MobileNet-V2 at 224 costs what keras.applications' does; up to 64 pixels nothing changes."""
    keras_own = multiply_adds(keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3)))
    assert multiply_adds(models.mobilenet_v2(1000, input_shape=(224, 224, 3))) == keras_own
    small = models.mobilenet_v2(10, 12, input_shape=(64, 64, 3))
    assert small.get_layer("block_00").output.shape[1:3] == (64, 64)
    large = models.resnet(20, 10, input_shape=(96, 96, 3))
    assert [large.get_layer(f"block_0{n}").output.shape[1] for n in (0, 1, 4, 7)] == [48, 24, 12, 6]
    weights = [variable.shape for variable in models.resnet(20, 10).variables]
    assert [variable.shape for variable in large.variables] == weights  # so published weights fit


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
def test_averages_of_batch_normalization_follow_a_short_training(name: str, pixels: np.ndarray) -> None:
    """After 50 steps 0.5 % of the initial averages are left; of Keras's own MobileNetV2, 95 %."""
    model = models.build(f"keras/{name}", num_classes=4, input_shape=(SIZE, SIZE, 3))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.9}
    front = keras.Model(model.input, norms[0].output)
    for _ in range(50):
        front(pixels / 255, training=True)
    before = keras.Model(model.input, norms[0].input)(pixels / 255)
    np.testing.assert_allclose(norms[0].moving_mean, np.mean(before, axis=(0, 1, 2)), rtol=0.01, atol=1e-6)
