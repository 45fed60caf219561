"""What a network costs: multiply-adds and parameters."""

import math

import keras

from tfigkd.models.layers import flatten_layers
from tfigkd.models.spaces import ADDED

COUNTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of one image's forward pass through convolutions and dense layers.

    Left out are biases, activations, pooling, and batch normalization, which inference folds into convolutions.
    A layer counts once, however often the model calls it.

    Raises:
        ValueError: A layer's output size is unknown.
    """
    return sum(_layer_multiply_adds(layer) for layer in flatten_layers(model) if isinstance(layer, COUNTED))


def _layer_multiply_adds(layer: keras.Layer) -> int:
    """Return every kernel weight is used once at each output position."""
    shape = layer.output.shape
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    if None in positions:
        raise ValueError(f"Layer {layer.name} has the output shape {shape}; give the model a fixed input size.")
    return math.prod(layer.kernel.shape) * math.prod(positions)


def count_parameters(model: keras.Model) -> int:
    """Number of learned parameters, frozen for the moment or not.

    Moving averages and normalization constants are not learned by gradient and do not count, as in the
    papers' compression factors.
    """
    return sum(
        math.prod(weight.shape)
        for layer in flatten_layers(model)
        if layer.name not in {"normalization", *ADDED} and not isinstance(layer, keras.layers.Normalization)
        for weight in _own_weights(layer)
        if not weight.name.startswith("moving_")
    )


def trained_parameters(model: keras.Model) -> int:
    """Number of values that training changes by gradient; of a Distiller, with those that its losses train."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _own_weights(layer: keras.Layer) -> list[keras.Variable]:
    inner = {id(weight) for child in layer._flatten_layers(include_self=False) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]
