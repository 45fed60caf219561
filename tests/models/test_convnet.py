"""The network built for speed: whitening, partial identity, shapes."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.convnet import whitening_kernel
from tfigkd.runtime.errors import UserError

RNG = np.random.default_rng(0)


def correlated(count=500, side=8):
    """Images whose neighbors and channels are alike, as those of photographs are."""
    coarse = RNG.normal(size=(count, side // 2, side // 2, 1)).repeat(2, axis=1).repeat(2, axis=2)
    return (0.5 + 0.2 * coarse + 0.05 * RNG.normal(size=(count, side, side, 3))).astype(np.float32)


def test_whitened_patches_have_the_identity_as_their_second_moments():
    images = correlated()
    kernel = whitening_kernel([images], epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    outputs = np.asarray(keras.ops.conv(images, kernel[..., :12], padding="valid")).reshape(-1, 12)
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(12), atol=2e-3)


def test_a_direction_without_variance_is_not_blown_up():
    gray = correlated()[..., :1].repeat(3, axis=-1)
    assert np.abs(whitening_kernel([gray])).max() <= 1 / np.sqrt(5e-4) + 1e-3


def test_the_stem_whitens_what_the_normalization_gives_and_does_not_learn():
    model = models.build("convnet", num_classes=3, input_shape=(8, 8, 3), normalization="cifar10", widths=(4,))
    images = correlated()
    models.set_whitening(model, [images])
    whitening = model.get_layer("whitening")
    outputs = np.asarray(keras.Model(model.input, whitening.output)(images))[..., :12].reshape(-1, 12)
    moments = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=2e-2)
    assert not whitening.trainable_variables
    assert len(model.trainable_variables) == 2 * 2 + 1  # kernels and biases of the normalization, and the head


def test_kernels_begin_as_a_partial_identity():
    model = models.convnet(3, input_shape=(8, 8, 3), widths=(32,), depth=1)
    conv = model.get_layer("block_01_conv1")
    x = RNG.normal(size=(2, 7, 7, 24)).astype(np.float32)
    outputs = np.asarray(conv(x))
    np.testing.assert_allclose(outputs[..., :24], x, atol=1e-6)
    assert np.abs(outputs[..., 24:]).std() > 0.1


@pytest.mark.parametrize(
    ("shape", "widths", "depth", "taps"),
    [
        ((32, 32, 3), (8, 16, 16), 2, [(31, 31, 24), (15, 15, 8), (7, 7, 16), (3, 3, 16)]),
        ((8, 8, 3), (8, 8, 8, 8), 1, [(7, 7, 24), (3, 3, 8), (1, 1, 8), (1, 1, 8), (1, 1, 8)]),
        ((20, 28, 1), (8, 8), 4, [(19, 27, 8), (9, 13, 8), (4, 6, 8)]),
    ],
)
def test_other_sizes_and_classes(shape, widths, depth, taps, tmp_path):
    model = models.convnet(7, input_shape=shape, widths=widths, depth=depth)
    assert [model.get_layer(f"block_{n:02d}").output.shape[1:] for n in range(len(taps))] == taps
    images = RNG.random((2, *shape)).astype(np.float32)
    stock = with_stock_batch_norm(model)
    stock.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(images), stock(images))
    np.testing.assert_allclose(models.fold_batch_norm(stock)(images), stock(images), atol=1e-5)
    assert ("block_01_add3" in {layer.name for layer in model.layers}) == (depth > 2)


def test_options_of_other_networks_are_refused():
    build = {"num_classes": 3, "input_shape": (8, 8, 3)}
    with pytest.raises(UserError, match="resnet20 has no depth"):
        models.build("resnet20", depth=3, **build)
    with pytest.raises(UserError, match="convnet has no drop_blocks"):
        models.build("convnet", drop_blocks=3, **build)
    with pytest.raises(UserError, match="widths, depth and width must be positive"):
        models.build("convnet", widths=(), **build)
