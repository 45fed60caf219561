"""Mixed precision: which layers stay float32, and float32 files that plain Keras opens."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.graph import flatten_layers
from tfigkd.models.precision import float32_layers

RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 16, 16, 3), np.float32)


def network(name="mobilenet_v2", **options):
    keras.utils.set_random_seed(0)
    return models.build(name, num_classes=4, input_shape=(16, 16, 3), normalization="cifar10", **options)


def policies(model):
    return {layer.name: layer.dtype_policy.name for layer in flatten_layers(model)}


def test_the_slow_layers_of_bfloat16_stay_float32():
    found = policies(models.with_precision(network(drop_blocks=5, width=0.5), "mixed_bfloat16"))
    assert found["block_01_project"] == found["block_01_project_bn"] == "mixed_bfloat16"
    assert found["block_04_depthwise"] == found["block_07_depthwise"] == "float32"  # strides of two
    assert found["block_05_depthwise"] == "mixed_bfloat16"
    assert found["block_00"] == found["block_05_depthwise_relu"] == "float32"  # ReLU6
    assert found["logits"] == found["normalization"] == "float32"
    resnet = policies(models.with_precision(network("resnet20"), "mixed_bfloat16"))
    assert {name for name, policy in resnet.items() if policy == "float32"} == {"image", "logits", "normalization"}


def test_weights_and_statistics_and_logits_are_float32():
    model = models.with_precision(network("resnet20"), "mixed_bfloat16")
    assert {variable.dtype for variable in model.variables if "seed" not in variable.path} == {"float32"}
    assert keras.backend.standardize_dtype(model(IMAGES).dtype) == "float32"
    assert (
        keras.backend.standardize_dtype(keras.Model(model.input, model.get_layer("block_03").output)(IMAGES).dtype)
        == "bfloat16"
    )


def test_the_head_of_a_model_whose_softmax_became_linear_stays_float32():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    x = keras.layers.Activation("linear", name="end")(keras.layers.Dense(4, name="scores")(x))
    assert float32_layers(keras.Model(inputs, x)) == {"scores", "end"}


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_model_is_close_to_float32_and_back_again_it_is_the_same(precision):
    model = network("convnet", widths=(8, 16), depth=3)
    mixed = models.with_precision(model, precision)
    np.testing.assert_allclose(mixed(IMAGES), model(IMAGES), atol=0.05)
    assert (np.asarray(mixed(IMAGES)) != np.asarray(model(IMAGES))).any()
    back = models.with_precision(mixed, "float32")
    np.testing.assert_array_equal(back(IMAGES), model(IMAGES))
    assert {*policies(back).values()} == {"float32"}
    assert back.count_params() == model.count_params()
    frozen = [layer.name for layer in back.layers if not layer.trainable]
    assert frozen == [layer.name for layer in model.layers if not layer.trainable]


def test_a_float32_model_is_returned_as_it_is():
    model = network("resnet20")
    assert models.with_precision(model, "float32") is model
    with pytest.raises(ValueError, match="float64"):
        models.with_precision(model, "float64")


@pytest.mark.parametrize(("name", "options"), [("convnet", {"widths": (8, 8)}), ("resnet20", {})])
def test_plain_keras_opens_a_model_that_trained_in_bfloat16(name, options, tmp_path):
    model = models.with_precision(network(name, **options), "mixed_bfloat16")
    saved = with_stock_batch_norm(models.with_precision(model, "float32"))
    saved.save(tmp_path / "saved.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    script = (
        "import keras, numpy as np, sys\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "assert {layer.dtype_policy.name for layer in model.layers} == {'float32'}\n"
        "np.save(sys.argv[3], model(np.load(sys.argv[2])))\n"
        "assert not any(name.startswith('tfigkd') for name in sys.modules)\n"
    )
    paths = [str(tmp_path / name) for name in ("saved.keras", "images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True)
    np.testing.assert_array_equal(np.load(paths[2]), saved(IMAGES))
