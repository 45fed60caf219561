"""Operations on tensors that Keras 2 saves as layers, as functions of Keras 3 with TensorFlow's arguments."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from tfigkd.runtime.errors import UserError

OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")
"""Classes of the layers that stand for `OPERATIONS`."""


def _constant(given: Any) -> Any:
    """Return a list of numbers, as Keras 2 stores an array, as an array."""
    return np.asarray(given, "float32") if isinstance(given, list | tuple) else given


def _of_two(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation of x and y, either of which may be a stored array."""
    return lambda x, y: operation(_constant(x), _constant(y))


def _add_bias(value: Any, bias: Any, data_format: str | None = None) -> Any:
    if (data_format or "NHWC").startswith("NC"):
        raise UserError("it adds a bias to channels that come first; save it for images whose channels come last")
    return ops.add(value, _constant(bias))


def _slices(given: Any) -> Any:
    """Return what is between the brackets of a slice from its stored form."""
    return tuple(given) if isinstance(given, list) else given


OPERATIONS: dict[str, Callable[..., Any]] = {
    "__operators__.getitem": lambda tensor, slice_spec, var=None: tensor[_slices(slice_spec)],
    "__operators__.add": _of_two(ops.add),
    "math.add": _of_two(ops.add),
    "math.subtract": _of_two(ops.subtract),
    "math.multiply": _of_two(ops.multiply),
    "math.truediv": _of_two(ops.true_divide),
    "math.divide": _of_two(ops.true_divide),
    "math.pow": _of_two(ops.power),
    "math.negative": ops.negative,
    "math.abs": ops.abs,
    "math.square": ops.square,
    "math.sqrt": ops.sqrt,
    "math.rsqrt": ops.rsqrt,
    "math.exp": ops.exp,
    "math.log": ops.log,
    "math.tanh": ops.tanh,
    "math.sigmoid": ops.sigmoid,
    "math.softplus": lambda features: ops.softplus(features),
    "math.maximum": _of_two(ops.maximum),
    "math.minimum": _of_two(ops.minimum),
    "math.add_n": lambda inputs: functools.reduce(ops.add, inputs),
    "math.reduce_mean": lambda input_tensor, axis=None, keepdims=False: ops.mean(input_tensor, axis, keepdims),
    "math.reduce_sum": lambda input_tensor, axis=None, keepdims=False: ops.sum(input_tensor, axis, keepdims),
    "math.reduce_max": lambda input_tensor, axis=None, keepdims=False: ops.max(input_tensor, axis, keepdims),
    "math.reduce_min": lambda input_tensor, axis=None, keepdims=False: ops.min(input_tensor, axis, keepdims),
    "nn.relu": lambda features: ops.relu(features),
    "nn.relu6": lambda features: ops.relu6(features),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "nn.elu": lambda features: ops.elu(features),
    "nn.selu": lambda features: ops.selu(features),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis),
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, axis),
    "nn.bias_add": _add_bias,
    "math.l2_normalize": lambda x, axis=None, epsilon=1e-12: (
        x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis, keepdims=True), epsilon))
    ),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(t, clip_value_min, clip_value_max),
    "cast": lambda x, dtype: ops.cast(x, getattr(dtype, "name", dtype)),
    "identity": lambda input: input,
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "transpose": lambda a, perm=None, conjugate=False: ops.transpose(a, perm),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "pad": lambda tensor, paddings, mode="CONSTANT", constant_values=0: ops.pad(
        tensor, paddings, mode.lower(), constant_values if mode.lower() == "constant" else None
    ),
    "linalg.matmul": lambda a, b: ops.matmul(a, b),
    "image.resize": lambda images, size, method="bilinear": ops.image.resize(images, size, method),
}
"""Operations on tensors that Keras 2 saves as layers, by name without "compat.v1.", with TensorFlow's arguments."""


def operation_name(stored: Any) -> str | None:
    """Return the name in `OPERATIONS` of an operation as a file has it; None for one that is not there."""
    name = stored.removeprefix("compat.v1.") if isinstance(stored, str) else None
    return name if name in OPERATIONS else None
