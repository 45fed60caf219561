"""Input and output spaces of a user-provided classifier: which values its pixels have, and whether it gives logits.

All of this package works with float32 images in [0,1] and logits [B,C]. A model of another kind is rebuilt so that it
takes and gives these: its own pixel range, its softmax or sigmoid and its single output become layers around it.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import special

from tfigkd.data.spaces import (
    LUMA,
    PIXELS,
    SIGNED,
    SMALLEST_PROBABILITY,
    UNIT,
    Outputs,
    Range,
    check_range,
    look_images,
    output_kind,
)
from tfigkd.models import layers

INPUT_RANGE = "input_range"
"""Name of the layer that maps [0,1] to the model's own range; a model that begins with it takes [0,1]."""
TWO_CLASSES = "two_classes"
"""Name of the layer that turns one logit z into the two logits [0, z]."""
RGB_TO_GRAY = "rgb_to_gray"
"""Name of the layer that gives a model of gray images the gray of RGB images."""
ADDED = frozenset({INPUT_RANGE, TWO_CLASSES, RGB_TO_GRAY})

SMALLEST_SCALE = 0.1
"""A factor below this is one for pixels to 255: networks take values of about -3 to 3."""
LOOKED_AT = 16
"""Images on which the outputs are looked at, beside noise."""

PASSED = (
    *(keras.layers.Dropout, keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.ZeroPadding2D),
    *(keras.layers.Resizing, keras.layers.CenterCrop, keras.layers.InputLayer, keras.layers.Identity),
)
"""Layers that leave the range of the pixels as it is; so do those whose name begins with Random."""
PASSED_OPERATIONS = ("GetItem", "Stack", "Concatenate", "Cast", "Flip")
WEIGHTED = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv2D)
"""Layers whose outputs are logits where they end in no activation."""
PASSES_VALUES = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout, keras.layers.GlobalAveragePooling2D)
"""Layers that give what they take, or means of it."""
OPERATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
"""Functions of keras.ops, and the activations of their name."""
SQUASHES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda logits: special.softmax(logits, axis=-1),
    "log_softmax": lambda logits: special.log_softmax(logits, axis=-1),
    "sigmoid": special.expit,
}
SQUASHED = tuple(SQUASHES)


@dataclass(frozen=True)
class _Affine:
    """An operation `scale · x + offset`, with a value for each channel or one for all."""

    scale: np.ndarray
    offset: np.ndarray
    statistics: bool = False
    """Whether scale and offset are a deviation and a mean that were measured on images."""

    @property
    def neutral(self) -> bool:
        """Whether it changes nothing."""
        return bool(np.allclose(self.scale, 1, atol=0.02) and np.allclose(self.offset, 0, atol=1e-3))


def _scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float64)


def recognise_input_range(model: keras.Model) -> Range | None:
    """Return the values of a black and of a white pixel that a model shows it was made for.

    Read are an integer input and the operations that a single image passes first: Rescaling, Normalization, batch
    normalization, 1x1 depthwise convolutions and arithmetic with constants, as keras.applications' `preprocess_input`
    does it; models inside the model are read too. Where several read the image, as in an ensemble, all have to agree.

    Args:
        model: Functional or Sequential, built.

    Returns:
        (0, 255), (0, 1), (-1, 1) or another range; None where the model does not tell.
    """
    first = _bare(model)
    if first is None:
        return None
    readers = _reading(first, first.inputs[0])
    found = _told_by(first)
    if found is None and len(readers) > 1:
        told = {_told_by(first, node) for node in readers}
        found = told.pop() if len(told) == 1 else None
    integer = "int" in keras.backend.standardize_dtype(first.inputs[0].dtype)
    return PIXELS if integer and found is None else found


def _told_by(model: keras.Model, start: Any = None) -> Range | None:
    return _range_of([part for part in _affine_parts(model, start) if not part.neutral])


def _range_of(parts: list[_Affine]) -> Range | None:
    if not parts:
        return None
    scale, offset = _scalar(1), _scalar(0)
    for part in parts:
        scale, offset = part.scale * scale, part.scale * offset + part.offset
    if not np.all(scale):
        return None
    center = float(np.mean(-offset / scale))  # the value that becomes zero, which is about the mean pixel
    if abs(center) > 1e-3:
        if len(parts) == 1 and parts[0].statistics and 0 < center <= 1:
            # no values in [0,1] of this mean have a larger variance (Bhatia, Davis 2000)
            within = np.mean(1 / scale**2) <= center * (1 - center) + 0.02
            return UNIT if within else SIGNED
        if center > 1:
            return PIXELS
        return UNIT if center > 0 else SIGNED if center >= -1.01 else None
    if len(parts) > 1 and np.allclose(scale, 1, atol=0.02):
        # the first operation is undone by the others: they say what it has to give
        rest, first = _range_of(parts[1:]), parts[0]
        if rest is None:
            return None
        low, high = ((value - np.mean(first.offset)) / np.mean(first.scale) for value in rest)
        return round(float(low), 6), round(float(high), 6)
    return UNIT if np.mean(np.abs(scale)) >= SMALLEST_SCALE else PIXELS


def _affine_parts(model: keras.Model, start: Any = None) -> Iterator[_Affine]:
    for operation, node in _leading(model, start):
        if operation.name == INPUT_RANGE:  # written by `with_input_range`
            yield _Affine(_scalar(1), _scalar(-0.5))
            return
        part = _affine(operation, node)
        if part is None:
            return
        yield part


def _reading(bare: keras.Model, tensor: Any) -> list[Any]:
    """Return the nodes of a graph that read a tensor."""
    nodes = [node for depth in bare._nodes_by_depth.values() for node in depth if not node.is_input]
    return [node for node in nodes if any(source is tensor for source in node.input_tensors)]


def _leading(model: keras.Model, start: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield the operations, with their nodes, that the image passes one after the other; models inside are entered.

    Args:
        model: Functional or Sequential.
        start: Which of the nodes that read the image is the first one; needed where there are several.
    """
    bare = _bare(model)
    if bare is None:
        return
    tensor = bare.inputs[0]
    while tensor is not bare.outputs[0]:
        reading = _reading(bare, tensor) if start is None else [start]
        start = None
        if len(reading) > 1 and all(type(node.operation).__name__ == "GetItem" for node in reading):
            # channels taken apart, as keras.applications turns RGB into BGR, until one operation joins them
            picked = [node.outputs[0] for node in reading]
            reading = _reading(bare, picked[0])
        if len(reading) != 1:
            return
        node = reading[0]
        if _bare(node.operation) is not None:
            yield from _leading(node.operation)
        else:
            yield node.operation, node
        tensor = node.outputs[0]


def _bare(model: Any) -> Any:
    """Return the graph of a Functional or built Sequential model with one input and one output, else None."""
    if not isinstance(model, keras.Model):
        return None
    try:
        (model_input,), (model_output,) = model.inputs, model.outputs
        return keras.Model(model_input, model_output)
    except (AttributeError, TypeError, ValueError):
        return None


def _affine(operation: Any, node: Any) -> _Affine | None:
    """Return what an operation does to every pixel alike; None where it does something else."""
    kind = type(operation).__name__
    if isinstance(operation, PASSED) or kind.startswith("Random") or kind in PASSED_OPERATIONS:
        return _Affine(_scalar(1), _scalar(0))
    if isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear:
        return _Affine(_scalar(1), _scalar(0))
    if isinstance(operation, keras.layers.Rescaling):
        return _Affine(np.asarray(operation.scale, float), np.asarray(operation.offset, float))
    if isinstance(operation, keras.layers.Normalization):
        fixed = operation.input_mean is not None
        mean, variance = (
            (operation.mean, operation.variance) if fixed else (operation.adapt_mean, operation.adapt_variance)
        )
        return _statistics(mean, variance, operation.invert)
    if isinstance(operation, keras.layers.BatchNormalization):
        return _statistics(operation.moving_mean, operation.moving_variance)
    if isinstance(operation, keras.layers.DepthwiseConv2D):
        linear = operation.activation is keras.activations.linear
        if set(operation.kernel_size) | set(operation.strides) | {operation.depth_multiplier} != {1} or not linear:
            return None
        bias = _array(operation.bias) if operation.use_bias else _scalar(0)
        return _Affine(_array(operation.kernel).reshape(-1), bias)
    return _arithmetic(kind, node)


def _arithmetic(kind: str, node: Any) -> _Affine | None:
    arguments = list(node.arguments.args)
    if kind not in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide") or len(arguments) != 2:
        return None
    symbolic = [isinstance(one, keras.KerasTensor) for one in arguments]
    if sum(symbolic) != 1:
        return None
    constant = np.asarray(ops.convert_to_numpy(arguments[symbolic.index(False)]), float).reshape(-1)
    if kind in ("Add", "Subtract"):
        sign = -1.0 if kind == "Subtract" else 1.0
        return _Affine(_scalar(1), sign * constant) if symbolic[0] else _Affine(_scalar(sign), constant)
    if kind == "Multiply":
        return _Affine(constant, _scalar(0))
    return _Affine(1 / constant, _scalar(0)) if symbolic[0] else None


def _statistics(mean: Any, variance: Any, invert: bool = False) -> _Affine:
    center, deviation = _array(mean).reshape(-1), np.sqrt(np.maximum(_array(variance), 1e-12)).reshape(-1)
    if invert:
        return _Affine(deviation, center, statistics=True)
    return _Affine(1 / deviation, -center / deviation, statistics=True)


def _array(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype("float64")


def classifier(
    model: keras.Model,
    *,
    input_shape: Sequence[int] | None = None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Return a classifier as a model from float32 images in [0,1] to the logits of at least two classes.

    A softmax at the end is removed, wherever the structure shows it; other probabilities (an average of softmaxes, say)
    become their logarithms. One output, a sigmoid or a single logit z, becomes the two logits [0, z], which have the
    same probabilities.

    Args:
        model: Functional or Sequential; it is not altered.
        input_shape: Fixed (H, W, C) for a model of open image size; by default its own.
        input_range: The values of a black and of a white pixel that it takes; by default as
            `recognise_input_range` says, else (0, 1).
        outputs: What it gives; by default "probabilities" where it ends in softmax or sigmoid, or where its outputs on
            some images look so, else "logits".
        images: uint8 [N,H,W,C], whose outputs are looked at, beside those of noise.

    Returns:
        The model itself where it is such a classifier already, else a Functional model with copies of its layers under
        the same names.

    Raises:
        ValueError: The graph is not known, the outputs cannot be those of one choice among classes, or black and
            white are the same value.
    """
    bare = _bare(model)
    if bare is None:
        raise ValueError(
            f"{model.name} must be Functional or Sequential, with one image as input and one output; build it so"
        )
    if not isinstance(model, keras.Sequential) and not all(
        isinstance(end, keras.KerasTensor) for end in (model.input, model.output)
    ):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # of a dictionary or list of one
    known = recognise_input_range(model)
    taken = (known or UNIT) if input_range is None else (float(input_range[0]), float(input_range[1]))
    check_range(taken)
    result = _with_linear_end(model, outputs, input_shape)
    floats = keras.backend.standardize_dtype(bare.inputs[0].dtype) == "float32"
    # a layer of its own also where [0,1] is declared against what the model shows, so that a saved copy says so
    if taken != UNIT or known not in (None, UNIT) or not floats:
        result = with_input_range(result, *taken)
    if len(result.output_shape) != 2:
        return result
    squashed = last_operation(model)[1] in SQUASHED  # it is off by now
    if not squashed and (outputs or _given_by(result, images)) == "probabilities":
        result = _with_logarithm(result)
    return _with_two_classes(result) if result.output_shape[-1] == 1 else result


_CLASSIFIERS: weakref.WeakKeyDictionary[keras.Model, dict[Any, keras.Model | None]] = weakref.WeakKeyDictionary()
"""Of each model in memory what `classifier` made of it, by what was declared; None where it is one already."""


def as_classifier(
    model: keras.Model, *, input_range: Range | None = None, outputs: Outputs | None = None
) -> keras.Model:
    """Return `classifier` of a model that is in memory, the same one at each call, with the weights of this moment.

    A subclassed model has no graph: it is taken as it is.

    Raises:
        ValueError: As `classifier`; or something is declared of a subclassed model.
    """
    if _bare(model) is None:
        if input_range not in (None, UNIT) or outputs == "probabilities":
            raise ValueError(f"{model.name} is a subclassed model, whose input range and outputs cannot be changed")
        return model
    known = _CLASSIFIERS.setdefault(model, {})
    key = None if input_range is None else tuple(map(float, input_range)), outputs
    if key not in known:
        made = classifier(model, input_range=input_range, outputs=outputs)
        known[key] = None if made is model else made
    result = known[key]
    if result is None:
        return model
    _refresh(model, result)
    return result


def logits_of(model: keras.Model, outputs: Outputs | None = None) -> Callable[[Any], Any]:
    """Return a function from the outputs of a model [B,C] to the logits of at least two classes.

    It is for training, where a model stays the very one that the user has made: probabilities become logarithms, which
    have the same softmax and gradient, and one output z becomes [0, z].

    Args:
        model: Of any kind; what a subclassed one gives is not looked at and counts as logits.
        outputs: What it gives; by default as for `classifier`.

    Raises:
        ValueError: As `classifier`, of the end of the model.
    """
    if _bare(model) is None or len(model.output_shape) != 2:
        return (lambda values: values) if outputs != "probabilities" else _logarithm
    single = model.output_shape[-1] == 1
    _refuse_end(model)
    given = outputs or _given_by(model, None)

    def convert(values: Any) -> Any:
        logits = _logarithm(values) if given == "probabilities" else values
        return ops.concatenate([ops.zeros_like(logits), logits], axis=-1) if single else logits

    return convert


def _logarithm(shares: Any) -> Any:
    shares = ops.cast(shares, "float32")
    logits = ops.log(ops.maximum(shares, SMALLEST_PROBABILITY))
    if shares.shape[-1] == 1:
        logits = ops.subtract(logits, ops.log(ops.maximum(1.0 - shares, SMALLEST_PROBABILITY)))
    return logits


def _refresh(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of the layers that two models share by name, but for those that `classifier` has added."""
    for layer in target.layers:
        if isinstance(layer, keras.Model):
            _refresh(source.get_layer(layer.name), layer)
        elif layer.weights and layer.name not in ADDED:
            layers.copy_layer_state(source.get_layer(layer.name), layer)


def with_input_range(model: keras.Model, low: float, high: float) -> keras.Model:
    """Return the same classifier for images in [0,1], where the model itself takes black for `low`, white for `high`.

    Raises:
        ValueError: The two are equal, or one is no number.
    """
    check_range((low, high))
    bare = keras.Model(model.inputs[0], model.outputs[0])
    shape = model.input_shape[1:]
    inputs = keras.Input(shape, name="image")
    layer = keras.layers.DepthwiseConv2D(1, name=INPUT_RANGE, trainable=False, dtype="float32")
    scaled = layer(inputs)
    layer.set_weights([np.full((1, 1, shape[-1], 1), high - low), np.full(shape[-1], low)])
    return _copy(keras.Model(inputs, bare._run_through_graph([scaled]), name=model.name))


def with_rgb(model: keras.Model) -> keras.Model:
    """Return a classifier of gray images [B,H,W,1] as one of RGB images [B,H,W,3], whose gray it looks at."""
    bare = keras.Model(model.inputs[0], model.outputs[0])
    inputs = keras.Input((*model.input_shape[1:3], 3), name="image")
    layer = keras.layers.Conv2D(1, 1, use_bias=False, trainable=False, dtype="float32", name=RGB_TO_GRAY)
    gray = layer(inputs)
    layer.set_weights([np.reshape(LUMA, (1, 1, 3, 1))])
    return _copy(keras.Model(inputs, bare._run_through_graph([gray]), name=model.name))


def _copy(model: keras.Model) -> keras.Model:
    """Return a copy, so that each layer stands in one graph alone and its `output` is that of this model."""
    return layers.rebuilt(model)


def _given_by(model: keras.Model, images: np.ndarray | None) -> Outputs:
    """Return what a model gives: its last operation tells, else its outputs on noise and on some images."""
    last, activation = last_operation(model)
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    while _passes_values(last) and last._inbound_nodes[0].input_tensors:
        last = last._inbound_nodes[0].input_tensors[0]._keras_history.operation
        activation = _activation_of(last)
    # a single logit of an untrained network is often between 0 and 1
    if activation == "log_softmax" or (activation == "linear" and isinstance(last, WEIGHTED)):
        return "logits"
    return output_kind(_look(model, images))


def _passes_values(operation: Any) -> bool:
    linear = isinstance(operation, keras.layers.Activation) and _activation_of(operation) == "linear"
    return linear or isinstance(operation, PASSES_VALUES)


def _look(model: keras.Model, images: np.ndarray | None) -> np.ndarray:
    """Return the outputs of noise, of black and white images, and of some real ones."""
    shape = tuple(model.input_shape[1:])
    if None in shape:
        return np.full((1, int(model.output_shape[-1])), -1.0)  # not known; the size is asked for elsewhere
    seen = [look_images(shape)]
    if images is not None and images.shape[1:] == shape:
        seen.append(images[:LOOKED_AT].astype(np.float32) / np.float32(255))
    return ops.convert_to_numpy(model(np.concatenate(seen), training=False)).astype(np.float64)


def last_operation(model: keras.Model) -> tuple[Any, str]:
    """Return the last operation, at any depth, and the name of its activation."""
    last: Any = model
    while isinstance(last, keras.Model):
        last = last.layers[-1] if isinstance(last, keras.Sequential) else last.outputs[0]._keras_history.operation
    return last, _activation_of(last)


def _activation_of(operation: Any) -> str:
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, keras.layers.Layer):
        return str(getattr(getattr(operation, "activation", None), "__name__", "linear"))
    return OPERATIONS.get(type(operation).__name__, "linear")


def _refuse_end(model: keras.Model) -> None:
    """Refuse outputs that are those of no single choice among classes."""
    activation, classes = last_operation(model)[1], model.output_shape[-1]
    if activation == "sigmoid" and classes != 1:
        raise ValueError(
            f"{model.name} ends in {classes} sigmoids, expected one choice among the classes: softmax, logits, or one "
            "sigmoid for two classes; save it with such a last layer"
        )
    if activation in ("tanh", "hard_sigmoid", "relu", "relu6", "softplus") and classes == 1:
        raise ValueError(f"{model.name} ends in one {activation}, expected one sigmoid or logit for two classes")


def _with_linear_end(model: keras.Model, outputs: Outputs | None, input_shape: Sequence[int] | None) -> keras.Model:
    """Return the model itself, or a copy of fixed input size whose last activation is linear."""
    last, activation = last_operation(model)
    _refuse_end(model)
    squashed = activation in SQUASHED and outputs != "logits"
    if not squashed and (input_shape is None or None not in model.inputs[0].shape[1:]):
        return model
    named = (last.name,) if squashed and not isinstance(last, keras.layers.Layer) else ()

    def replace(layer: keras.Layer) -> keras.Layer:
        if layer is not last or not squashed:
            return layers.copy_layer(layer)
        if isinstance(layer, keras.layers.Softmax):
            return keras.layers.Activation("linear", name=layer.name)
        return type(layer).from_config({**layer.get_config(), "activation": "linear"})

    undone = SQUASHES[activation] if squashed else None
    return layers.rebuilt(model, replace, skip=named, input_shape=input_shape, through=undone)


def _with_logarithm(model: keras.Model) -> keras.Model:
    """Return the model with logits whose softmax, or sigmoid for one output, is what it gives."""
    logits = _logarithm(model.outputs[0])
    return _copy(keras.Model(model.inputs[0], logits, name=model.name))


def _with_two_classes(model: keras.Model) -> keras.Model:
    """Return the model with the logits [0, z] in the place of z; a dense layer, which all number formats know."""
    layer = keras.layers.Dense(2, use_bias=False, trainable=False, dtype="float32", name=TWO_CLASSES)
    logits = layer(model.outputs[0])
    layer.set_weights([np.array([[0.0, 1.0]])])
    return _copy(keras.Model(model.inputs[0], logits, name=model.name))


def with_fresh_weights(model: keras.Model) -> keras.Model:
    """Return a copy with new random initial weights, drawn anew whatever seeds the model's initializers have.

    What does not train keeps its weights: frozen layers and adapted normalization.

    Args:
        model: Functional or Sequential; it is not altered.
    """

    def replace(layer: keras.Layer) -> keras.Layer:
        if _kept(layer):
            return layers.copy_layer(layer)
        return type(layer).from_config(_without_seeds(layer.get_config()))

    result = layers.rebuild(model, replace)
    _copy_kept(model, result)
    return result


def frozen_layers(model: keras.Model) -> int:
    """Return how many layers keep their weights when a model is initialized afresh."""
    return sum(_kept(layer) and layer.name not in ADDED for layer in layers.flatten_layers(model) if layer.weights)


def _kept(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) or not layer.trainable


def _copy_kept(source: keras.Model, target: keras.Model) -> None:
    for layer in target.layers:
        if isinstance(layer, keras.Model):
            _copy_kept(source.get_layer(layer.name), layer)
        elif layer.weights and _kept(source.get_layer(layer.name)):
            layers.copy_layer_state(source.get_layer(layer.name), layer)


def _without_seeds(config: Any) -> Any:
    """Return a layer's config with initializers that draw their seed."""
    if isinstance(config, list | tuple):
        return type(config)(map(_without_seeds, config))
    if not isinstance(config, dict):
        return config
    made = {key: _without_seeds(value) for key, value in config.items()}
    inner = made.get("config")
    if "initializers" in str(made.get("module")) and isinstance(inner, dict) and "seed" in inner:
        made["config"] = {**inner, "seed": None}
    return made
