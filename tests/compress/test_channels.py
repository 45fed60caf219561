"""Structured pruning: the graph becomes smaller, and cutting channels without effect changes no output."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.compress.channels import channel_groups, cut_channels, importance
from tfigkd.edge.convert import convert
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.runtime.errors import UserError

IMAGES = np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32)


def scrambled(model: keras.Model) -> keras.Model:
    """Set random normalization weights, so that every weight has an effect; return the model."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def test_groups_of_a_mobilenet_are_its_expansions_and_stem():
    groups = channel_groups(models.mobilenet_v2(drop_blocks=15, input_shape=(16, 16, 3)))
    ends = [(group[0].layer.name, group[-1].layer.name) for group in groups]
    assert ends == [
        ("block_00_conv", "block_01_project"),
        ("block_02_expand", "block_02_project"),
        ("block_03_expand", "block_03_project"),
    ]


def test_groups_of_a_resnet_are_its_inner_channels():
    groups = channel_groups(models.resnet(8, input_shape=(16, 16, 3)))
    ends = [(group[0].layer.name, group[-1].layer.name) for group in groups]
    assert ends == [(f"block_{n:02d}_conv1", f"block_{n:02d}_conv2") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.mobilenet_v2(drop_blocks=14, input_shape=(16, 16, 3)),
        pytest.param(lambda: models.mobilenet_v2(width=0.25, input_shape=(16, 16, 3)), marks=pytest.mark.slow),
        lambda: models.resnet(8, input_shape=(16, 16, 3)),
    ],
)
def test_dead_channels_go_without_a_trace(build):
    """Half of each group's channels are given no effect; cutting half leaves the same function."""
    model, generator = scrambled(build()), np.random.default_rng(1)
    for group in channel_groups(model):
        reader = group[-1].layer
        kernel = np.array(reader.kernel)
        channels = kernel.shape[-2]
        dead = generator.permutation(channels)[: channels // 2]
        kernel[..., dead, :] = 0
        reader.kernel.assign(kernel)
    before = count_parameters(model), multiply_adds(model), len(convert(model, "float32"))
    smaller = cut_channels(model, 0.5)
    np.testing.assert_allclose(smaller(IMAGES), model(IMAGES), atol=1e-4)
    after = count_parameters(smaller), multiply_adds(smaller), len(convert(smaller, "float32"))
    assert all(new < 0.8 * old for new, old in zip(after, before, strict=True))
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


def test_importance_by_hand():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(2, 1)(inputs))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="reader")(keras.layers.ReLU()(x)))
    model.get_layer("norm").gamma.assign([2.0, -3.0])
    model.get_layer("reader").kernel.assign(np.array([[3.0, 4.0], [1.0, 0.0]]).reshape(1, 1, 2, 2))
    (group,) = channel_groups(model)
    np.testing.assert_allclose(importance(group), [10, 3])


def test_a_model_without_such_channels_is_refused():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)), name="flat")
    with pytest.raises(UserError, match="flat has no channels to cut"):
        cut_channels(model, 0.5)
