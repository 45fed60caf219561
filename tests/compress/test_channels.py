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
    ends = [(group.writers[0].layer.name, group.readers[-1].layer.name) for group in groups]
    assert ends == [
        ("block_00_conv", "block_01_project"),
        ("block_02_expand", "block_02_project"),
        ("block_03_expand", "block_03_project"),
    ]


def test_groups_of_a_resnet_are_its_inner_channels():
    groups = channel_groups(models.resnet(8, input_shape=(16, 16, 3)))
    ends = [(group.writers[0].layer.name, group.readers[-1].layer.name) for group in groups]
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
        (reader,) = (node.layer for node in group.readers)
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


def gated(name: str = "gated") -> keras.Model:
    """A wide convolution whose channels are gated by squeeze-and-excitation, inside a backbone."""
    inner = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(32, 3, activation="swish", name="wide")(inner)
    gate = keras.layers.Reshape((1, 1, 32))(keras.layers.GlobalAveragePooling2D()(x))
    gate = keras.layers.Conv2D(16, 1, activation="swish", name="squeeze")(gate)
    gate = keras.layers.Conv2D(32, 1, activation="sigmoid", name="excite")(gate)
    x = keras.layers.Multiply()([x, gate])
    backbone = keras.Model(inner, keras.layers.Conv2D(8, 1, name="project")(x), name="backbone")
    inputs = keras.Input((16, 16, 3))
    x = backbone(keras.layers.Rescaling(2.0, offset=-1.0)(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)), name=name)


def test_a_gate_loses_the_channels_that_it_multiplies():
    keras.utils.set_random_seed(0)
    model = gated()
    backbone, dead = model.get_layer("backbone"), np.arange(16, 32)
    for name in ("squeeze", "project"):  # all that mixes these channels
        layer = backbone.get_layer(name)
        kernel = np.array(layer.kernel)
        kernel[..., dead, :] = 0
        layer.kernel.assign(kernel)
    smaller = cut_channels(model, 0.5)
    sizes = {name: smaller.get_layer(name).filters for name in ("wide", "squeeze", "excite", "project")}
    assert sizes == {"wide": 16, "squeeze": 8, "excite": 16, "project": 8}
    # the squeezed channels were alive, so only the widths and not the function can be compared with the whole model
    groups = {group.writers[0].layer.name: group for group in channel_groups(model)}
    assert [node.layer.name for node in groups["wide"].writers] == ["wide", "excite"]
    assert [node.layer.name for node in groups["wide"].readers] == ["squeeze", "project"]


def test_dead_gated_channels_go_without_a_trace():
    keras.utils.set_random_seed(0)
    model = gated()
    backbone = model.get_layer("backbone")
    for name, dead in (("squeeze", 16), ("project", 16), ("excite", 8)):
        layer = backbone.get_layer(name)
        kernel = np.array(layer.kernel)
        kernel[..., dead:, :] = 0
        layer.kernel.assign(kernel)
    np.testing.assert_allclose(cut_channels(model, 0.5)(IMAGES), model(IMAGES), atol=1e-5)


def test_channels_of_a_shortcut_or_a_concatenation_stay():
    inputs = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="kept")(inputs)
    second = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="added")(first)
    x = keras.layers.Concatenate()([keras.layers.Add()([first, second]), first])
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)), name="joined")
    assert channel_groups(model) == []
    with pytest.raises(UserError, match="no channels to cut"):
        cut_channels(model, 0.5)


@pytest.mark.parametrize(
    "between", [keras.layers.BatchNormalization(axis=1), keras.layers.Rescaling(1.0, offset=[0.5] * 32)]
)
def test_channels_stay_where_a_layer_has_other_values_than_one_a_channel(between):
    inputs = keras.Input((8, 8, 3))
    x = between(keras.layers.Conv2D(32, 3, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    assert channel_groups(model) == []


def test_channels_that_a_kernel_with_factors_reads_stay():
    model = models.resnet(8, input_shape=(16, 16, 3))
    model.get_layer("block_02_conv2").enable_lora(2)
    ends = [group.readers[-1].layer.name for group in channel_groups(model)]
    assert ends == ["block_01_conv2", "block_03_conv2"]
    assert cut_channels(model, 0.5).count_params() < model.count_params()


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, float("nan")])
def test_a_share_of_channels_is_between_none_and_all(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\), got"):
        cut_channels(models.resnet(8, input_shape=(16, 16, 3)), share)
