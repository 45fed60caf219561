"""Input and output spaces of a user-provided classifier: which values its pixels have, and whether it gives logits.

All of this package works with float32 images in [0,1] and logits [B,C]. A model of another kind is rebuilt so that it
takes and gives these: its own pixel range, its softmax or sigmoid and its single output become layers around it.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.data import to_model_input
from tfigkd.data.spaces import LUMA, UNIT, Outputs, Range, check_range, output_kind, probe_images
from tfigkd.models import copies
from tfigkd.models.graph import is_graph, run_graph, single_graph, student_of
from tfigkd.models.input_range import INPUT_RANGE, infer_input_range
from tfigkd.models.logits import probabilities_to_logits, two_classes
from tfigkd.models.output_end import OUTPUT_ACTIVATIONS, infer_outputs_by_end, last_operation, refuse_end
from tfigkd.models.subclassed import logits_model
from tfigkd.models.trace_key import settings_of

TWO_CLASSES = "two_classes"
"""Name of the layer that turns one logit z into the two logits [-z/2, z/2]."""
RGB_TO_GRAY = "rgb_to_gray"
"""Name of the layer that gives a model of gray images the gray of RGB images."""
ADDED = frozenset({INPUT_RANGE, TWO_CLASSES, RGB_TO_GRAY})

PROBED_IMAGES = 16
"""Number of images, besides noise, that the model is run on to infer what it gives."""


def graph_as_classifier(
    model: keras.Model,
    *,
    input_shape: Sequence[int] | None = None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Return a classifier as a model from float32 images in [0,1] to the logits of at least two classes.

    A softmax at the end is removed, wherever the structure shows it; other probabilities (an average of softmaxes, say)
    become their logarithms. One output, a sigmoid or a single logit z, becomes the two logits [-z/2, z/2], which have
    the same probabilities.

    Args:
        model: Functional or Sequential; it is not altered.
        input_shape: Fixed (H, W, C) for a model of open image size; by default its own.
        input_range: The values of a black and of a white pixel that it takes; by default as
            `infer_input_range` says, else (0, 1).
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
    bare = single_graph(model)
    if bare is None:
        _refuse_unbuilt(model)
        raise ValueError(
            f"{model.name} must be Functional or Sequential, with one image as input and one output; build it so"
        )
    if not isinstance(model, keras.Sequential) and not all(
        isinstance(end, keras.KerasTensor) for end in (model.input, model.output)
    ):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # of a dictionary or list of one
    known = infer_input_range(model)
    taken = (known or UNIT) if input_range is None else (float(input_range[0]), float(input_range[1]))
    check_range(taken)
    result = _with_linear_end(model, outputs, input_shape)
    floats = keras.backend.standardize_dtype(bare.inputs[0].dtype) == "float32"
    # a layer of its own also where [0,1] is declared against what the model shows, so that a saved copy says so
    if taken != UNIT or known not in (None, UNIT) or not floats:
        result = with_input_range(result, *taken)
    if len(result.output_shape) != 2:
        return result
    squashed = last_operation(model)[1] in OUTPUT_ACTIVATIONS  # it is off by now
    if not squashed and (outputs or _infer_outputs(result, images)) == "probabilities":
        result = _with_logarithm(result)
    return _with_two_classes(result) if result.output_shape[-1] == 1 else result


_CLASSIFIERS: weakref.WeakKeyDictionary[keras.Model, dict[Any, keras.Model | None]] = weakref.WeakKeyDictionary()
"""What `cached_classifier` gives for each model, by settings and declared spaces; None for the model itself."""


def as_classifier(
    model: keras.Model,
    *,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Return `graph_as_classifier` of a model that is in memory; of a `Distiller`, that of its student.

    A subclassed model has no graph. One that gives logits is returned as it is; one that gives probabilities, as is
    declared or as its outputs look, is wrapped in a model that returns log-probabilities and shares its weights.

    Args:
        model: Functional, Sequential and built, or subclassed.
        input_range: As for `graph_as_classifier`.
        outputs: As for `graph_as_classifier`; by default a subclassed model gives logits if there are no images.
        images: float32 [N,H,W,C] in [0,1]; a subclassed model is looked at on them.

    Raises:
        ValueError: As `graph_as_classifier`; or a Sequential model is not built, or the range of a subclassed one is
            declared.
    """
    return _as_classifier(model, graph_as_classifier, input_range, outputs, images)


def cached_classifier(
    model: keras.Model,
    *,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """Return `as_classifier(model)` from a cache, for reading only.

    Each call returns the same object, with the model's current weights.

    Arguments and errors are those of `as_classifier`.
    """
    return _as_classifier(model, _cached, input_range, outputs, images)


@copies.keeps_random_numbers()
def _as_classifier(
    model: keras.Model,
    of_graph: Callable[..., keras.Model],
    input_range: Range | None,
    outputs: Outputs | None,
    images: np.ndarray | None,
) -> keras.Model:
    model = student_of(model)
    if single_graph(model) is None:
        _refuse_unbuilt(model)
        if input_range not in (None, UNIT):
            raise ValueError(
                f"{model.name} is a subclassed model, whose input range cannot be changed; let its call scale the "
                "pixels, from [0,1]"
            )
        if outputs is None and images is not None:
            outputs = _infer_subclassed_outputs(model, images)
        return logits_model(model) if outputs == "probabilities" else model
    return of_graph(model, input_range=input_range, outputs=outputs)


def _cached(model: keras.Model, *, input_range: Range | None, outputs: Outputs | None) -> keras.Model:
    known = _CLASSIFIERS.setdefault(model, {})
    key = None if input_range is None else tuple(map(float, input_range)), outputs, settings_of(model)
    if key not in known:
        known = _CLASSIFIERS[model] = {one: made for one, made in known.items() if one[-1] == key[-1]}
        made = graph_as_classifier(model, input_range=input_range, outputs=outputs)
        known[key] = None if made is model else made
    result = known[key]
    if result is None:
        return model
    _refresh(model, result)
    return result


def logits_of(model: keras.Model, outputs: Outputs | None = None) -> Callable[[Any], Any]:
    """Return a function from the outputs of a model [B,C] to the logits of at least two classes.

    It is for training, where a model stays the very one that the user has made: probabilities become logarithms, which
    have the same softmax and gradient, and one output z becomes [-z/2, z/2].

    Args:
        model: Of any kind; what a subclassed one gives is not looked at and counts as logits.
        outputs: What it gives; by default as for `graph_as_classifier`.

    Raises:
        ValueError: As `graph_as_classifier`, of the end of the model; or a Sequential model that is not built does not
            end in logits.
    """
    graph = single_graph(model)
    if graph is None and isinstance(model, keras.Sequential) and not model.built:
        if outputs is None and not (model.layers and infer_outputs_by_end(model) == "logits"):
            _refuse_unbuilt(model)
        if outputs == "probabilities":
            return lambda values: two_classes(probabilities_to_logits(values))
        return two_classes
    if graph is None or len(model.output_shape) != 2:
        return (lambda values: values) if outputs != "probabilities" else probabilities_to_logits
    single = model.output_shape[-1] == 1
    refuse_end(model)
    given = outputs or _infer_outputs(model, None)

    def convert(values: Any) -> Any:
        logits = probabilities_to_logits(values) if given == "probabilities" else values
        return two_classes(logits) if single else logits

    return convert


def _refuse_unbuilt(model: keras.Model) -> None:
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"{model.name} is not built, so its input and output are not known; build it first: "
            "model.build((None, H, W, C)), or begin it with keras.Input"
        )


def _refresh(source: keras.Model, target: keras.Model) -> None:
    """Copy the state of layers to those of the same name in another model, but to none that was added to it."""
    for layer in target.layers:
        if is_graph(layer):
            _refresh(source.get_layer(layer.name), layer)
        elif layer.weights and layer.name not in ADDED:
            copies.copy_layer_state(source.get_layer(layer.name), layer)


def with_input_range(model: keras.Model, low: float, high: float) -> keras.Model:
    """Return a classifier of another pixel range as one of images in [0,1], which it first scales to its own range.

    Args:
        model: Functional or Sequential, from images [B,H,W,C] of its own range.
        low: The value that it takes for black.
        high: The value that it takes for white.

    Returns:
        A Functional model with copies of the layers under the same names, behind the layer `INPUT_RANGE`.

    Raises:
        ValueError: The two are equal, or one is no number.
    """
    check_range((low, high))
    shape = model.input_shape[1:]
    layer = keras.layers.DepthwiseConv2D(1, name=INPUT_RANGE, trainable=False, dtype="float32")
    layer.build((None, *shape))
    layer.set_weights([np.full((1, 1, shape[-1], 1), high - low), np.full(shape[-1], low)])
    return _behind(layer, model, shape)


def with_rgb(model: keras.Model) -> keras.Model:
    """Return a classifier of gray images [B,H,W,1] as one of RGB images [B,H,W,3], which it first makes gray."""
    shape = (*model.input_shape[1:3], 3)
    layer = keras.layers.Conv2D(1, 1, use_bias=False, trainable=False, dtype="float32", name=RGB_TO_GRAY)
    layer.build((None, *shape))
    layer.set_weights([np.reshape(LUMA, (1, 1, 3, 1))])
    return _behind(layer, model, shape)


def with_image_size(model: keras.Model, size: Sequence[int]) -> keras.Model:
    """Return a classifier as one of images of another (H,W,...), which it first resizes to its own size."""
    own, channels = model.input_shape[1:3], model.input_shape[3]
    if (*size[:2],) == own:
        return model
    resize = partial(_resize, size=own, name=_free_name("reduced", model))
    return _behind(resize, model, (*size[:2], channels))


def _behind(front: Callable[[Any], Any], model: keras.Model, shape: Sequence[int]) -> keras.Model:
    """Return a copy of a model that takes images of a shape (H,W,C), which go through a layer or a function first."""
    bare = keras.Model(model.inputs[0], model.outputs[0])
    inputs = keras.Input(shape, name=_free_name("image", model))
    return _copy(keras.Model(inputs, run_graph(bare, [front(inputs)]), name=model.name))


def _free_name(wanted: str, model: keras.Model) -> str:
    """Return the name that is wanted, with a number where an operation of the model has it."""
    operations = single_graph(model).operations
    taken = {one.name for one in operations if not isinstance(one, keras.layers.InputLayer)}
    numbered = (f"{wanted}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([wanted], numbered) if name not in taken)


def resize_pixels(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return pixels, uint8 [N,H,W,C], as a model from `with_image_size` sees them, of another (H,W,...); rounded."""
    if images.shape[1:3] == (*size[:2],):
        return images
    return np.rint(ops.convert_to_numpy(_resize(images.astype(np.float32), size[:2]))).astype(np.uint8)


def _resize(images: Any, size: Sequence[int], name: str = "reduced") -> Any:
    """Resize images [B,H,W,C] to (H,W), in operations that every format of file knows; the last may need a name.

    They are enlarged to the next multiple of the size, between the nearest four pixels, and reduced by means, so that
    fine patterns become gray. Keras's `Resizing` would do, but a plain call of a model that has it trains: its own
    default of `training` is true, and the layers behind it take that up.
    """
    factors = [-(-had // wanted) for had, wanted in zip(images.shape[1:3], size, strict=True)]
    larger = [factor * wanted for factor, wanted in zip(factors, size, strict=True)]
    if larger != [*images.shape[1:3]]:
        images = ops.image.resize(images, larger, interpolation="bilinear")
    if factors != [1, 1]:
        images = keras.layers.AveragePooling2D(factors, name=name, dtype="float32")(images)
    return images


def _copy(model: keras.Model) -> keras.Model:
    """Return a copy, so that each layer stands in only one graph and its `output` is that of this model."""
    return copies.verified_copy(model)


def _infer_outputs(model: keras.Model, images: np.ndarray | None) -> Outputs:
    """Return whether a model gives logits or probabilities: by its end, else by its outputs on noise and on images.

    Raises:
        ValueError: It has a single output from 0 to 1, which may be a probability or a logit.
    """
    told = infer_outputs_by_end(model)
    if told is not None:
        return told
    return _kind_of(model, _probe(model, images))


def _kind_of(model: keras.Model, values: np.ndarray) -> Outputs:
    """Return whether outputs [N,C] of a model are logits or probabilities.

    Raises:
        ValueError: They are single ones from 0 to 1, each of which may be a probability or a logit.
    """
    found = output_kind(values)
    if found == "probabilities" and values.shape[1] == 1:
        raise ValueError(
            f"the single output of {model.name} may be a probability or a logit; declare outputs as probabilities or "
            "logits"
        )
    return found


def _probe(model: keras.Model, images: np.ndarray | None) -> np.ndarray:
    """Return a model's outputs [N,C], float64, on noise, on black and white images, and on some real ones."""
    shape = tuple(model.input_shape[1:])
    if None in shape:
        return np.full((1, int(model.output_shape[-1])), -1.0)  # not known; the size is asked for elsewhere
    seen = [probe_images(shape)]
    if images is not None and images.shape[1:] == shape:
        seen.append(to_model_input(images[:PROBED_IMAGES]))
    return ops.convert_to_numpy(model(np.concatenate(seen), training=False)).astype(np.float64)


def _infer_subclassed_outputs(model: keras.Model, images: np.ndarray) -> Outputs | None:
    """Return what a subclassed model gives for noise and for images, float32 [N,H,W,C]; None if that is no [N,C].

    Raises:
        ValueError: It has a single output from 0 to 1, which may be a probability or a logit.
    """
    shown = np.concatenate([probe_images(images.shape[1:]), images[:PROBED_IMAGES]])
    values = model(shown, training=False)
    if len(getattr(values, "shape", ())) != 2:
        return None
    return _kind_of(model, ops.convert_to_numpy(values))


def _with_linear_end(model: keras.Model, outputs: Outputs | None, input_shape: Sequence[int] | None) -> keras.Model:
    """Return the model itself, or a copy of fixed input size whose last activation is linear."""
    last, activation = last_operation(model)
    refuse_end(model)
    squashed = activation in OUTPUT_ACTIVATIONS and outputs != "logits"
    if not squashed and (input_shape is None or None not in model.inputs[0].shape[1:]):
        return model
    named = (last.name,) if squashed and not isinstance(last, keras.layers.Layer) else ()

    def replace(layer: keras.Layer) -> keras.Layer:
        if layer is not last or not squashed:
            return copies.copy_layer(layer)
        if isinstance(layer, keras.layers.Softmax):
            return keras.layers.Activation("linear", name=layer.name)
        return type(layer).from_config({**layer.get_config(), "activation": "linear"})

    undone = OUTPUT_ACTIVATIONS[activation] if squashed else None
    return copies.verified_copy(model, replace, skip=named, input_shape=input_shape, through=undone)


def _with_logarithm(model: keras.Model) -> keras.Model:
    """Return the model with logits whose softmax, or sigmoid for one output, is what it gives."""
    logits = probabilities_to_logits(model.outputs[0])
    return _copy(keras.Model(model.inputs[0], logits, name=model.name))


def _with_two_classes(model: keras.Model) -> keras.Model:
    """Return the model with the logits [-z/2, z/2] in the place of z; a dense layer, which all number formats know.

    Their softmax is that of [0, z], but here the logit of either class depends on the image, so that both have maps.
    """
    layer = keras.layers.Dense(2, use_bias=False, trainable=False, dtype="float32", name=TWO_CLASSES)
    logits = layer(model.outputs[0])
    layer.set_weights([np.array([[-0.5, 0.5]])])
    return _copy(keras.Model(model.inputs[0], logits, name=model.name))
