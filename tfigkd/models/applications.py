"""Classifiers of keras.applications by name, with their own preprocessing inside: images in [0,1] to logits."""

import difflib
import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from tfigkd.config.fields import APPLICATIONS
from tfigkd.models import batch_norm, copies
from tfigkd.models.blocks import IMAGENET_STD
from tfigkd.models.graph import flatten_layers, run_graph
from tfigkd.models.input_range import INPUT_RANGE
from tfigkd.models.keras_file import load_model
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import shortened

WEIGHTS = (".weights.h5", ".h5", ".keras")
SHOWN = 5
MOMENTUM = 0.9
"""Largest momentum of batch normalization; larger ones are lowered to it. keras.applications' MobileNets have 0.999,
which suits the training on ImageNet: after the few hundred steps of a small data set the moving averages would still
consist mostly of their initial values."""


def applications() -> dict[str, Callable[..., keras.Model]]:
    """Return the functions of keras.applications that build a classifier, by name."""
    found = {name: getattr(keras.applications, name) for name in dir(keras.applications) if name[:1].isupper()}
    return {name: function for name, function in found.items() if callable(function)}


def application(
    name: str, *, num_classes: int, input_shape: Sequence[int], weights: str | Path | None = None
) -> keras.Model:
    """Build a classifier of keras.applications.

    Its layers have the names that Keras gives them, so they can be taps. The momentum of batch normalization is at most
    `MOMENTUM`.

    Args:
        name: `keras/` and its name there, such as keras/MobileNetV3Small.
        num_classes: Number of classes.
        input_shape: (H, W, 3) of the images, float32 in [0,1]; any size that the network allows.
        weights: A local file, .weights.h5, .h5 or .keras, of the same network with or without its head; a head that
            is missing or has another number of classes stays random. None: random weights.

    Returns:
        A Functional model from images [B,H,W,3] to logits [B,num_classes]. Its first layer maps [0,1] to what the
        network's `preprocess_input` would give it.

    Raises:
        UserError: No such network, a size that it does not allow, or weights that do not fit.
    """
    known = applications()
    function = known.get(name.removeprefix(APPLICATIONS))
    if function is None:
        near = difflib.get_close_matches(name.removeprefix(APPLICATIONS), known, n=3, cutoff=0.4)
        hint = f"there are {', '.join(known)}"
        if near:
            hint = f"did you mean {' or '.join(APPLICATIONS + one for one in near)}?"
        raise UserError(f"no model {name!r} in keras.applications; {hint}")
    if input_shape[-1] != 3:
        raise UserError(f"{name} takes images of 3 channels, got {tuple(input_shape)}")
    try:
        model = function(weights=None, input_shape=tuple(input_shape), classes=num_classes, classifier_activation=None)
    except ValueError as error:
        raise UserError(f"cannot build {name}: {' '.join(str(error).split())[:200]}; try another image size") from error
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, MOMENTUM)
    if weights is not None:
        bare = functools.partial(function, include_top=False, weights=None, input_shape=tuple(input_shape))
        load_application_weights(model, weights, bare)
    return _with_preprocessing(model, function, input_shape)


def _with_preprocessing(model: keras.Model, function: Callable, input_shape: Sequence[int]) -> keras.Model:
    """Return the network behind a frozen 1x1 convolution, which is what `preprocess_input` does to each pixel."""
    matrix, offset = preprocessing(function)
    inputs = keras.Input(tuple(input_shape), name="image")
    if np.count_nonzero(matrix - np.diag(np.diag(matrix))):  # it swaps colors
        layer: keras.layers.Layer = keras.layers.Conv2D(3, 1, name=INPUT_RANGE, trainable=False, dtype="float32")
        kernel = 255 * matrix.reshape(1, 1, 3, 3)
    else:
        layer = keras.layers.DepthwiseConv2D(1, name=INPUT_RANGE, trainable=False, dtype="float32")
        kernel = 255 * np.diag(matrix).reshape(1, 1, 3, 1)
    prepared = layer(inputs)
    layer.set_weights([kernel, offset])
    joined = keras.Model(inputs, run_graph(model, [prepared]), name=model.name)
    # new layers, so that each belongs to one graph only
    return batch_norm.with_fused_batch_norm(copies.verified_copy(joined))


def preprocessing(function: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return what the `preprocess_input` of a network does to a pixel of 0 to 255: `pixel @ matrix + offset`.

    Args:
        function: One of `applications`.

    Returns:
        The matrix [3,3], colors in to colors out, and the offset [3].
    """
    module = importlib.import_module(function.__module__)
    black = np.asarray(module.preprocess_input(np.zeros((1, 1, 1, 3), np.float64)), np.float64).reshape(3)
    colors = 255 * np.eye(3).reshape(3, 1, 1, 3)
    matrix = (np.asarray(module.preprocess_input(colors), np.float64).reshape(3, 3) - black) / 255
    return matrix, black


def load_application_weights(model: keras.Model, path: str | Path, bare: Callable[[], keras.Model]) -> None:
    """Load weights of a network into one that may have another head.

    Args:
        model: From keras.applications, with `include_top`.
        path: A local file, .weights.h5, .h5 or .keras.
        bare: Builds the same network without its head.

    Raises:
        UserError: The file cannot be read, or it lacks weights of any layer but the head.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}; give a local {', '.join(WEIGHTS)} file, or no weights")
    if not path.name.endswith(WEIGHTS):
        raise UserError(f"{path} must end in {', '.join(WEIGHTS)}: weights of a network of keras.applications")
    bare, weighted = functools.cache(bare), _with_weights(model)
    fresh = {layer.name: layer.get_weights() for layer in weighted}
    for layer in weighted:  # what is still not a number afterwards has not been loaded
        layer.set_weights([_unset(values) for values in layer.get_weights()])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of a head that does not fit
            _read_weights(model, path, bare)
    except UserError:
        raise
    except Exception as error:  # Keras raises many kinds of errors for files that do not fit
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit {model.name} ({type(error).__name__}: {reason})") from error
    missing = [name for name in fresh if any(np.isnan(one).any() for one in model.get_layer(name).get_weights())]
    head = {layer.name for layer in weighted[len(_with_weights(bare())) :]} if missing else set()
    if set(missing) - head:
        raise UserError(
            f"{path} does not fit {model.name}: it lacks {shortened(missing, SHOWN)}; give weights of this very network"
        )
    for name in missing:
        model.get_layer(name).set_weights(fresh[name])


def _read_weights(model: keras.Model, path: Path, bare: Callable[[], keras.Model]) -> None:
    """Load the weights whose shapes fit, layer by layer."""
    if path.name.endswith(".weights.h5"):
        model.load_weights(path, skip_mismatch=True)
    elif path.suffix == ".h5":
        try:
            model.load_weights(path, skip_mismatch=True)
        except ValueError:  # another number of layers: perhaps it has no head
            body = bare()
            body.load_weights(path)
            _copy_in_order(body, model)
    else:
        donors = [layer for layer in flatten_layers(load_model(path)) if layer.weights]
        named = {layer.name: layer for layer in donors}
        body = _shapes(_with_weights(bare()))
        alike = _shapes(donors[: len(body)]) == body  # then their order tells, as names that Keras numbers do not
        for position, layer in enumerate(_with_weights(model)):
            donor = donors[position] if alike and position < len(donors) else named.get(layer.name)
            if donor is not None and _shapes([donor]) == _shapes([layer]):
                layer.set_weights(donor.get_weights())
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            _mend_variance(layer)


def _copy_in_order(source: keras.Model, target: keras.Model) -> None:
    """Copy weights layer by layer in the order of the graph: names that Keras numbers differ between two models."""
    for before, after in zip(_with_weights(source), _with_weights(target), strict=False):
        after.set_weights(before.get_weights())


def _with_weights(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that have weights, in the order of the graph."""
    return [layer for layer in model.layers if layer.weights]


def _shapes(layers: Sequence[keras.Layer]) -> list[list[tuple[int, ...]]]:
    """Return the shapes of the weights of layers."""
    return [[tuple(weight.shape) for weight in layer.weights] for layer in layers]


def _unset(values: np.ndarray) -> np.ndarray:
    """Return an array that shows that it was not loaded, as far as its type can: integers stay."""
    return np.full_like(values, np.nan) if np.issubdtype(values.dtype, np.floating) else values


def _mend_variance(layer: keras.layers.Normalization) -> None:
    """Square the deviations that EfficientNet's ImageNet weights hold in the place of variances.

    Keras adds a Rescaling for it where it downloads these weights itself, and for no others.
    """
    mean, variance, *count = layer.get_weights()
    if np.allclose(variance, IMAGENET_STD, atol=1e-4):
        layer.set_weights([mean, np.square(variance), *count])
    layer.finalize_state()
