"""The end of a classifier: whether its last operation gives logits or probabilities, and which ends are refused."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from scipy import special

from tfigkd.data.spaces import Outputs
from tfigkd.models.graph import ARITHMETIC, is_graph, maker_of, sources_of

WEIGHTED = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv2D)
"""Layers whose outputs are logits where they end in no activation."""
SAME = (keras.layers.Dropout, keras.layers.Identity)
"""Layers whose output is their input when the model does not train."""
RESHAPED = (keras.layers.Flatten, keras.layers.Reshape)
"""Layers whose output has the values of their input in another shape."""
OPERATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
"""Class names of functions of keras.ops, with the name of the activation that each is."""
OUTPUT_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda logits: special.softmax(logits, axis=-1),
    "log_softmax": lambda logits: special.log_softmax(logits, axis=-1),
    "sigmoid": special.expit,
}
"""The output activations by name, each as a function of logits [N,C]."""
BACKENDS = ("keras", "tensorflow", "jax", "torch")
"""Packages whose `softmax`, `log_softmax` and `sigmoid` are recognized by name."""


def infer_outputs_by_end(model: keras.Model) -> Outputs | None:
    """Return whether a model gives logits or probabilities by its last operations; None where these do not tell."""
    last, activation = last_operation(model)
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    while _passes_values(last) and (sources := sources_of(last)):
        last = maker_of(sources[0])
        activation = _activation_of(last)
    # a single logit of an untrained network is often between 0 and 1
    logits = activation == "log_softmax" or (activation == "linear" and isinstance(last, WEIGHTED))
    return "logits" if logits else None


def _passes_values(operation: Any) -> bool:
    """Return whether an operation's outputs are its inputs, means of them, or affine in them, as by a temperature."""
    some = isinstance(operation, (*RESHAPED, keras.layers.GlobalAveragePooling2D))
    return some or _passes_classes(operation) or _is_affine(operation)


def _is_affine(operation: Any) -> bool:
    if type(operation).__name__ not in ARITHMETIC:
        return isinstance(operation, keras.layers.Rescaling)
    return len(sources_of(operation)) == 1  # the other operand is a constant


def last_operation(model: keras.Model) -> tuple[Any, str]:
    """Return the last operation that computes, at any depth, and the name of its activation.

    What only passes the values of all classes on, as a Flatten layer or a conversion to float32, does not compute. A
    subclassed model is one operation.
    """
    last = _innermost(model)
    while _passes_classes(last):
        last = _innermost(maker_of(sources_of(last)[0]))
    return last, _activation_of(last)


def _innermost(operation: Any) -> Any:
    """Return the operation itself, or of a model the one that makes its output."""
    while is_graph(operation):
        sequential = isinstance(operation, keras.Sequential)
        operation = operation.layers[-1] if sequential else maker_of(operation.outputs[0])
    return operation


def _passes_classes(operation: Any) -> bool:
    """Return whether an operation gives the values of its only input, whose last axis holds one for each class."""
    sources = sources_of(operation)
    if len(sources) != 1 or getattr(operation, "weights", None):
        return False
    if isinstance(operation, keras.layers.Activation):
        return _activation_of(operation) == "linear"
    kind, shape = type(operation).__name__, sources[0].shape[1:]
    if isinstance(operation, RESHAPED) or kind == "Reshape":  # the layer, or the function of keras.ops
        return None not in shape and math.prod(shape) == shape[-1]
    return isinstance(operation, SAME) or kind == "Cast"


def _activation_of(operation: Any) -> str:
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, keras.Model):  # a subclassed one, of which an attribute tells nothing
        return "linear"
    if isinstance(operation, keras.layers.Layer):
        return _name_of(getattr(operation, "activation", None))
    return OPERATIONS.get(type(operation).__name__, "linear")


def _name_of(activation: Any) -> str:
    """Return an activation's name; with its package where a user's function is named as in `OUTPUT_ACTIVATIONS`."""
    name = str(getattr(activation, "__name__", "linear"))
    home = str(getattr(activation, "__module__", "")).partition(".")[0]
    return f"{home}.{name}" if name in OUTPUT_ACTIVATIONS and home not in BACKENDS else name


def refuse_end(model: keras.Model) -> None:
    """Refuse a model whose last activation does not fit a choice of one class.

    Raises:
        ValueError: The model ends in a softmax over one output, in several sigmoids, or in one bounded or rectified
            output that is no sigmoid.
    """
    activation, classes = last_operation(model)[1], model.output_shape[-1]
    if activation == "softmax" and classes == 1:
        raise ValueError(
            f"{model.name} ends in a softmax over one output, which is always 1; train it with one sigmoid, or with a "
            "softmax over two outputs"
        )
    if activation == "sigmoid" and classes != 1:
        raise ValueError(
            f"{model.name} ends in {classes} sigmoids, expected one choice among the classes: softmax, logits, or one "
            "sigmoid for two classes; save it with such a last layer"
        )
    if activation in ("tanh", "hard_sigmoid", "relu", "relu6", "softplus") and classes == 1:
        raise ValueError(f"{model.name} ends in one {activation}, expected one sigmoid or logit for two classes")
