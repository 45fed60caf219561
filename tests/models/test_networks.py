"""MobileNet-V2 and the CIFAR ResNets: sizes, names, padding, initialization, and files that others open."""

from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.models import batch_norm, cost
from tfigkd.models.blocks import scaled

PARAMETERS = {
    0: 2_236_682,
    3: 1_019_402,
    5: 543_498,
    7: 306_954,
    9: 185_738,
    11: 77_194,
    13: 40_970,
    15: 16_042,
    17: 1_994,
}
MEGA_MULTIPLY_ADDS = {
    0: 87.98,
    3: 68.85,
    5: 58.70,
    7: 43.88,
    9: 36.36,
    11: 29.62,
    13: 23.56,
    15: 14.93,
    17: 1.70,
}


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return models.mobilenet_v2(normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))


def _images(count: int = 2, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 3), np.float32)


@pytest.mark.parametrize("drop_blocks", PARAMETERS)
def test_published_sizes(drop_blocks: int) -> None:
    model = models.mobilenet_v2(drop_blocks=drop_blocks)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS[drop_blocks]
    assert cost.count_parameters(model) == PARAMETERS[drop_blocks]
    assert cost.multiply_adds(model) / 1e6 == pytest.approx(MEGA_MULTIPLY_ADDS[drop_blocks], abs=0.006)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_resnet_sizes(depth: int, parameters: int) -> None:
    model = models.resnet(depth)
    assert cost.count_parameters(model) == parameters
    assert model.output_shape == (None, 10)
    assert model.get_layer(f"block_{(depth - 2) // 2:02d}").output.shape == (None, 8, 8, 64)


def test_every_block_can_be_found_by_name(teacher: keras.Model) -> None:
    sizes = [teacher.get_layer(f"block_{index:02d}").output.shape[1:] for index in range(19)]
    assert sizes[0] == (32, 32, 32) and sizes[3] == (32, 32, 24) and sizes[9] == (8, 8, 64)
    assert sizes[13] == (8, 8, 96) and sizes[17] == (4, 4, 320) and sizes[18] == (4, 4, 1280)
    assert teacher.get_layer("block_03_expand_bn").epsilon == 1e-5
    assert teacher.get_layer("block_03_expand_bn").momentum == 0.9
    assert len({layer.name for layer in teacher.layers}) == len(teacher.layers)


def test_dropout_is_the_teachers_alone(teacher: keras.Model) -> None:
    assert teacher.get_layer("dropout").rate == 0.2
    for model in (models.mobilenet_v2(drop_blocks=15), models.mobilenet_v2(drop_blocks=17, dropout=0.0)):
        assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    assert models.mobilenet_v2(drop_blocks=17, dropout=0.3).get_layer("dropout").rate == 0.3


def test_normalization_is_exact_and_frozen(teacher: keras.Model) -> None:
    images = _images()
    tap = keras.Model(teacher.input, teacher.get_layer("normalization").output)
    expected = (images - np.float32(models.CIFAR10_MEAN)) / np.float32(models.CIFAR10_STD)
    np.testing.assert_allclose(tap(images), expected, atol=1e-5)
    assert not teacher.get_layer("normalization").trainable_weights
    with pytest.raises(ValueError, match="each of 1 channels"):
        models.resnet(8, input_shape=(8, 8, 1), normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))


def test_strided_convolutions_pad_both_sides_alike() -> None:
    """An image and its mirror give mirrored maps only if both sides are padded alike."""
    model = models.mobilenet_v2(drop_blocks=14, input_shape=(9, 9, 3))
    flat = [np.ones_like(weight) if weight.ndim == 4 else weight for weight in model.get_weights()]
    model.set_weights(flat)
    tap = keras.Model(model.input, model.get_layer("block_04_depthwise").output)
    images = _images(2, 9)
    np.testing.assert_allclose(tap(images)[:, :, ::-1], tap(images[:, :, ::-1]), rtol=1e-5)


def test_initial_weights_have_pytorchs_deviations(teacher: keras.Model) -> None:
    expected = {
        "block_00_conv": np.sqrt(2 / (9 * 32)),
        "block_14_expand": np.sqrt(2 / 576),
        "block_14_depthwise": np.sqrt(2 / (9 * 576)),
        "block_18_conv": np.sqrt(2 / 1280),
        "logits": 0.01,
    }
    for name, deviation in expected.items():
        kernel = teacher.get_layer(name).kernel.numpy()
        assert kernel.std() == pytest.approx(deviation, rel=0.08), name
    widest = teacher.get_layer("block_18_conv").kernel.numpy()
    assert np.abs(widest).max() > 3.5 * widest.std()  # not truncated at two deviations
    assert not teacher.get_layer("logits").bias.numpy().any()
    resnet = models.resnet(20)
    assert resnet.get_layer("block_09_conv2").kernel.numpy().std() == pytest.approx(np.sqrt(2 / 576), rel=0.05)


def test_width_rounds_to_multiples_of_eight() -> None:
    assert [scaled(channels, 0.5) for channels in (16, 24, 32, 96, 320)] == [8, 16, 16, 48, 160]
    assert scaled(24, 0.75) == 24  # 18 would round to 16 and lose more than a tenth
    small = models.mobilenet_v2(7, width=0.25, input_shape=(8, 8, 3))
    assert small.get_layer("block_18").output.shape[-1] == 1280
    assert small(_images(2, 8)).shape == (2, 7)


def test_option_a_shortcut_by_hand() -> None:
    """With zero kernels a block gives its shortcut: every second pixel, between zero channels."""
    model = models.resnet(8, input_shape=(8, 8, 3))
    for layer in model.layers:
        if layer.name in ("block_02_conv1", "block_02_conv2"):
            layer.set_weights([np.zeros_like(layer.get_weights()[0])])
    taps = keras.Model(model.input, [model.get_layer("block_01").output, model.get_layer("block_02").output])
    before, after = (tap.numpy() for tap in taps(_images(2, 8)))
    expected = np.zeros((2, 4, 4, 32), np.float32)
    expected[..., 8:24] = before[:, ::2, ::2]
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"drop_blocks must be in 0\.\.18, got 19"):
        models.mobilenet_v2(drop_blocks=19)
    with pytest.raises(ValueError, match="width must be positive"):
        models.mobilenet_v2(width=0)
    with pytest.raises(ValueError, match="6n"):
        models.resnet(21)


def test_mixed_precision_gives_float32_logits() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.mobilenet_v2(drop_blocks=15)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("block_02").compute_dtype == "bfloat16"
    assert model(_images(), training=True).dtype == "float32"


def test_resnet8_is_that_of_mlperf_tiny() -> None:
    model = models.build("resnet8", num_classes=10, input_shape=(32, 32, 3))
    # 78,666 there, with the moving statistics of 240 channels, and biases of 240 that the normalization takes out
    assert cost.count_parameters(model) == 78_666 - 480 - 240
    assert cost.multiply_adds(model) / 1e6 == pytest.approx(12.50, abs=0.01)
    assert [model.get_layer(f"block_{index:02d}").output.shape[1:] for index in range(4)] == [
        (32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet8", "resnet20"])
def test_files(name: str, tmp_path: Path) -> None:
    """A .keras file with stock layers, read back, and a LiteRT file say what the model says."""
    model = models.build(name, num_classes=10, input_shape=(16, 16, 3), normalization="imagenet")
    images = _images(3, 16)
    model(images, training=True)  # moving averages that are not the initial ones
    expected = model(images, training=False).numpy()
    batch_norm.with_stock_batch_norm(model).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images), expected, atol=1e-4)
    assert not any(type(layer).__module__.startswith("tfigkd") for layer in loaded.layers)
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="NEEDS LITERT: pip install ai-edge-litert")
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    runner = interpreter.Interpreter(str(tmp_path / "model.tflite"))
    given, gives = runner.get_input_details()[0]["index"], runner.get_output_details()[0]["index"]
    runner.resize_tensor_input(given, images.shape)
    runner.allocate_tensors()
    runner.set_tensor(given, images)
    runner.invoke()
    np.testing.assert_allclose(runner.get_tensor(gives), expected, atol=1e-3)


def test_width_multiplies_the_channels_of_every_network() -> None:
    """Parameters of the wide ResNet by hand: 16 becomes 32 and so on; 0.5 gives convnet half of its channels."""
    wide = models.resnet(14, width=2.0)
    channels, before, expected = (32, 64, 128), 32, 9 * 3 * 32 + 2 * 32 + 128 * 10 + 10
    for filters in channels:
        for _ in range(2):
            expected += 9 * (before + filters) * filters + 4 * filters
            before = filters
    assert cost.count_parameters(wide) == expected
    narrow, halved = models.convnet(width=0.5), models.convnet(widths=(32, 128, 128))
    assert [layer.output.shape for layer in narrow.layers] == [layer.output.shape for layer in halved.layers]
    assert models.convnet(widths=(10,)).get_layer("block_01").output.shape[-1] == 10  # at 1 nothing is rounded


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet8", "resnet14"])
def test_the_stride_of_the_stem_halves_every_map(name: str) -> None:
    build = {"num_classes": 10, "input_shape": (32, 32, 3)}
    plain, strided = models.build(name, **build), models.build(name, **build, stem_stride=2)
    sizes = [(model.get_layer("block_00").output.shape[1], cost.count_parameters(model)) for model in (plain, strided)]
    assert sizes == [(32, sizes[0][1]), (16, sizes[0][1])]
    assert 3.9 < cost.multiply_adds(plain) / cost.multiply_adds(strided) < 4.1
    large = models.build(name, num_classes=10, input_shape=(96, 96, 3), stem_stride=1)
    assert large.get_layer("block_00_conv").strides == (1, 1)
