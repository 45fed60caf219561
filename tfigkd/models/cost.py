"""Cost of a network: multiply-adds and parameters."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tfigkd.models.adapt import ADDED
from tfigkd.models.graph import flatten_layers

UNCOMPILED = 2**15
"""Pixels of a batch up to which a call that is not compiled is cheap: it keeps the outputs of all layers, of which
MobileNet-V2 has 17 KB for each pixel."""
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)
COUNTED = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *DEPTHWISE,
    *SEPARABLE,
    *TRANSPOSED,
)


def multiply_adds(model: keras.Model) -> int:
    """Return the multiply-adds of one image's forward pass through convolutions and dense layers, at any depth.

    A layer that is called several times counts each time. Left out are biases, activations, pooling, products without
    weights as in attention, and batch normalization, which inference folds into convolutions.

    Raises:
        ValueError: The model leaves the size of its images open.
    """
    batch, *shape = model.inputs[0].shape
    if None in shape:
        raise ValueError(f"{model.name} takes images {tuple(shape)}; give the model a fixed input size.")
    counts: list[int] = []
    with contextlib.ExitStack() as watched:
        for layer in flatten_layers(model):
            if isinstance(layer, COUNTED):
                watched.enter_context(_watched(layer, counts))
        model(ops.zeros((batch or 1, *shape), dtype=model.inputs[0].dtype), training=False)
    return sum(counts) // (batch or 1)


@contextlib.contextmanager
def _watched(layer: keras.Layer, counts: list[int]) -> Iterator[None]:
    """Append the multiply-adds of each call of a layer to `counts`, also of calls by a wrapper or a user's layer."""
    name = "call" if getattr(layer, "quantization_mode", None) is None else "quantized_call"
    call = getattr(layer, name)

    def watched(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call(inputs, *args, **kwargs)
        counts.append(_of_call(layer, inputs.shape, outputs.shape))
        return outputs

    setattr(layer, name, watched)
    try:
        yield
    finally:
        delattr(layer, name)


def _of_call(layer: Any, takes: Any, gives: Any) -> int:
    """Return the multiply-adds of a call: each value of a kernel is used at each position of the output [B,...]."""
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, output = layer.equation.replace("->", ",").split(",")
        summed = (size for axis, size in zip(kernel, layer.kernel.shape, strict=True) if axis not in output)
        return math.prod(gives) * math.prod(summed)
    if isinstance(layer, TRANSPOSED):  # at each position of the input
        return math.prod(takes) // layer.kernel.shape[-1] * math.prod(layer.kernel.shape)
    if isinstance(layer, SEPARABLE):
        kernels = [layer.depthwise_kernel.shape, layer.pointwise_kernel.shape]
    else:
        kernels = [layer.kernel.shape]
    channels = math.prod(kernels[-1][-2:]) if isinstance(layer, DEPTHWISE) else kernels[-1][-1]
    return math.prod(gives) // channels * sum(map(math.prod, kernels))


def count_parameters(model: keras.Model) -> int:
    """Return the number of learned parameters, frozen for the moment or not.

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
    """Return the number of values that training changes by gradient; of a Distiller, its losses' values as well."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _own_weights(layer: keras.Layer) -> list[keras.Variable]:
    inner = {id(weight) for child in flatten_layers(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]
