"""Integrated Gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365), with the numerical error of every image.

The attribution of a pixel is its difference from the baseline times the model's gradient, averaged along the straight
path from baseline to image. The exact attributions of all pixels sum to the difference of the model's outputs at the
two ends of the path. The deviation of the computed sum is the error of the quadrature; every result includes it.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from tfigkd.attribution.baselines import make_baseline
from tfigkd.attribution.quadrature import added_by_doubling, nodes_and_weights
from tfigkd.data.spaces import Outputs, Range
from tfigkd.models import cached_classifier
from tfigkd.models.graph import is_built_graph
from tfigkd.models.trace_key import settings_of

FIRST_STEPS = 16
"""Number of steps with which the adaptive mode starts. With 4 or 8 some images pass the tolerance by chance with
inexact maps, and little time is saved, because most images need 16 or 32 (experiments/results/attribution.csv)."""


@dataclass(frozen=True)
class Attribution:
    """Attributions of B images, with their errors, numbers of steps and logits.

    Attributes:
        attributions: float32 [B,H,W,C], signed, in logits.
        convergence_delta: Sum of the attributions minus the difference of the logits, float32 [B].
        n_steps: Number of steps used for each image, int32 [B].
        logits: The model's output for the images themselves, float32 [B,classes].
    """

    attributions: np.ndarray
    convergence_delta: np.ndarray
    n_steps: np.ndarray
    logits: np.ndarray


def integrated_gradients(
    model: keras.Model,
    images: np.ndarray,
    targets: np.ndarray | Sequence[int],
    *,
    baseline: str | np.ndarray = "black",
    n_steps: int | None = None,
    rule: str = "midpoint",
    tolerance: float = 0.05,
    max_steps: int = 128,
    batch_size: int = 128,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attribute the logit of each image's target to the image's pixels.

    Args:
        model: A classifier of images [B,H,W,C]; it runs in inference mode. One that takes other values than [0,1] or
            gives probabilities is converted as `tfigkd.models.as_classifier` does it, so the logits under its softmax
            are attributed; one output is that of the second of two classes, whose logits are [-z/2, z/2].
        images: float [B,H,W,C] in [0,1].
        targets: Index of the logit to explain, int [B] or [B,1].
        baseline: "black", "blur", or an array that broadcasts to the images, such as `make_baseline` gives.
        n_steps: Number of gradient evaluations along each path. With None the number is doubled for each image until
            its completeness error is at most `tolerance` or `max_steps` are used.
        rule: Quadrature rule, see `nodes_and_weights`.
        tolerance: Largest accepted completeness error, relative to max(|difference of logits|, 1).
        max_steps: Largest number of steps for one image; an image still over the tolerance keeps its last result.
        batch_size: Number of gradient evaluations at once; it limits the memory and does not change the results.
        input_range: Pixel values of black and white that the model expects; by default inferred from its layers. A
            subclassed model, whose layers are not known, has to take [0,1].
        outputs: "logits" or "probabilities"; by default inferred from the last layer and outputs.

    Returns:
        Attributions, float32 [B,H,W,C], and convergence deltas, float32 [B], see `completeness_error`.

    Raises:
        ValueError: An argument is not as above, or the model's output is not finite.
    """
    images = _check_images(images)
    _check_ends(model, images)
    result = attribute(
        cached_classifier(model, input_range=input_range, outputs=outputs, images=images),
        images,
        targets,
        baseline=baseline,
        n_steps=n_steps,
        rule=rule,
        tolerance=tolerance,
        max_steps=max_steps,
        batch_size=batch_size,
    )
    return result.attributions, result.convergence_delta


def attribute(
    model: keras.Model,
    images: np.ndarray,
    targets: np.ndarray | Sequence[int],
    *,
    baseline: str | np.ndarray = "black",
    n_steps: int | None = None,
    rule: str = "midpoint",
    tolerance: float = 0.05,
    max_steps: int = 128,
    batch_size: int = 128,
) -> Attribution:
    """Compute `integrated_gradients`; return also the numbers of steps and the logits, which are computed anyway.

    Args:
        model: float32 [B,H,W,C] in [0,1] to logits; it runs in inference mode.
        images: float [B,H,W,C] in [0,1].
        targets: Index of the logit to explain, int [B] or [B,1].
        baseline: "black", "blur", or an array that broadcasts to the images.
        n_steps: Steps of each image; None doubles them until the error is within the tolerance.
        rule: Quadrature rule, see `nodes_and_weights`.
        tolerance: Largest accepted completeness error.
        max_steps: Largest number of steps for one image.
        batch_size: Number of gradient evaluations at once.

    Raises:
        ValueError: An argument is not as above, or a target is no index of a logit.
    """
    for name, value in (("tolerance", tolerance), ("max_steps", max_steps), ("batch_size", batch_size)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    for name, count in (("n_steps", n_steps), ("max_steps", max_steps), ("batch_size", batch_size)):
        if count is not None and not isinstance(count, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {count!r}.")
    steps = min(FIRST_STEPS, max_steps) if n_steps is None else n_steps
    nodes_and_weights(rule, steps)  # raise an error for an unknown rule before the model runs
    images, targets = _check_images(images), _check_targets(targets, len(images))
    _check_ends(model, images)
    starts = make_baseline(baseline, images)
    functions = _compile(model)
    logits = _run_in_batches(functions.forward, np.concatenate([images, starts]), batch_size)
    logits, start_logits = logits[: len(images)], np.broadcast_to(logits[len(images) :], (len(images), logits.shape[1]))
    if targets.max() >= logits.shape[1]:
        raise ValueError(f"targets must be below the number of logits, {logits.shape[1]}; got {targets.max()}.")
    rows = np.arange(len(images))
    difference = logits[rows, targets].astype(np.float64) - start_logits[rows, targets]

    starts = np.broadcast_to(starts, images.shape)
    attributions, deltas = np.empty_like(images), np.empty(len(images), np.float32)
    averages = np.zeros(images.shape)
    used, pending = np.empty(len(images), np.int32), rows
    nodes, weights, kept = *nodes_and_weights(rule, steps), 0.0
    while len(pending):
        chosen = images[pending], starts[pending], targets[pending]
        averages[pending] *= kept
        averages[pending] += _average_gradients(functions.gradient, *chosen, nodes, weights, batch_size)
        attributions[pending] = (images[pending] - starts[pending]) * averages[pending]
        sums = attributions[pending].sum(axis=(1, 2, 3), dtype=np.float64)
        deltas[pending], used[pending] = sums - difference[pending], steps
        if n_steps is not None or steps >= max_steps:
            break
        # use the rounded values of the result, so that recomputing the error from it gives the same decision
        pending = pending[completeness_error(attributions[pending], deltas[pending]) > tolerance]
        if 2 * steps <= max_steps:
            steps = 2 * steps
            nodes, weights, kept = added_by_doubling(rule, steps)
        else:
            steps = max_steps
            nodes, weights, kept = *nodes_and_weights(rule, steps), 0.0
    return Attribution(attributions, deltas, used, logits)


def completeness_error(attributions: np.ndarray, convergence_delta: np.ndarray) -> np.ndarray:
    """Return the relative error of the sum of the attributions: |sum IG - dF| / max(|dF|, 1).

    Args:
        attributions: [B,H,W,C].
        convergence_delta: [B], sum IG - dF, where dF is the difference of the logits of image and baseline.

    Returns:
        float32 [B], non-negative.
    """
    difference = attributions.sum(axis=(1, 2, 3), dtype=np.float64) - convergence_delta
    return (np.abs(convergence_delta) / np.maximum(np.abs(difference), 1)).astype(np.float32)


def saliency_map(attributions: np.ndarray) -> np.ndarray:
    """Return one value per pixel [B,H,W]: the absolute attributions [B,H,W,C], summed over the channels."""
    return np.abs(attributions).sum(axis=-1)


def _check_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype == np.uint8:
        raise ValueError("images must be floats in [0,1], got uint8; pass images.astype('float32') / 255.")
    if images.ndim != 4 or not len(images) or images.dtype.kind != "f":
        raise ValueError(f"images must be floats [B,H,W,C] with B > 0, got {images.dtype} of shape {images.shape}.")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0,1], got values from {images.min()} to {images.max()}.")
    return images.astype(np.float32)


def _check_ends(model: keras.Model, images: np.ndarray) -> None:
    """Check that images have the size that a model takes, as far as it tells it, and that it has one output."""
    if not is_built_graph(model):
        return
    if len(model.outputs) > 1:
        count = len(model.outputs)
        raise ValueError(
            f"the model must have one output, got {count}; take keras.Model(model.inputs, model.outputs[0])."
        )
    taken = model.inputs[0].shape[1:]
    fits = len(taken) == 3 and all(wanted in (None, size) for wanted, size in zip(taken, images.shape[1:], strict=True))
    if len(model.inputs) == 1 and not fits:
        raise ValueError(f"the model takes images {taken}, got {images.shape[1:]}.")


def _check_targets(targets: np.ndarray | Sequence[int], count: int) -> np.ndarray:
    targets = np.asarray(targets)
    targets = targets[:, 0] if targets.shape == (count, 1) else targets  # the labels of keras.datasets are [B,1]
    if targets.shape != (count,) or targets.dtype.kind not in "iu" or targets.min() < 0:
        lowest = f", from {targets.min(initial=0)}" if targets.dtype.kind in "iuf" else ""
        raise ValueError(
            f"targets must be the index of a logit, from 0, for each of the {count} images, an int array [{count}]; "
            f"got {targets.dtype} of shape {targets.shape}{lowest}."
        )
    return targets.astype(np.int32)


def _average_gradients(
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
    images: np.ndarray,
    starts: np.ndarray,
    targets: np.ndarray,
    nodes: np.ndarray,
    weights: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return the weighted sums of the gradients at the nodes of each path, [B,H,W,C].

    All pairs of image and step form one sequence, image by image, which is cut into batches of exactly `batch_size`,
    so that the compiled function gets only one shape; the last batch is filled with repetitions of weight zero.
    """
    totals = np.zeros((len(images), images[0].size))
    n_steps = len(nodes)
    count = len(images) * n_steps
    for start in range(0, count, batch_size):
        row = np.arange(start, start + batch_size)
        image, step = np.divmod(np.minimum(row, count - 1), n_steps)
        alphas = nodes[step].astype(np.float32)[:, None, None, None]
        gradients = gradient(starts[image] + alphas * (images[image] - starts[image]), targets[image])
        if not np.isfinite(gradients).all():
            raise ValueError("the model's gradient is not finite; check its weights for NaN and infinity.")
        first, last = image[0], image[-1]
        share = np.zeros((last - first + 1, batch_size))
        share[image - first, np.arange(batch_size)] = np.where(row < count, weights[step], 0)
        totals[first : last + 1] += share @ gradients.reshape(batch_size, -1)
    return totals.reshape(images.shape)


def _run_in_batches(forward: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return logits [B,classes], in batches of equal size; the last one is filled with copies of the last image."""
    parts = []
    for start in range(0, len(images), batch_size):
        parts.append(forward(images[np.minimum(np.arange(start, start + batch_size), len(images) - 1)]))
    logits = np.concatenate(parts)[: len(images)]
    if logits.ndim != 2:
        raise ValueError(f"the model must give logits [B,classes], got shape {logits.shape}.")
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite; check its weights for NaN and infinity.")
    return logits


class _Functions(NamedTuple):
    """Compiled functions: from images [B,H,W,C] to logits, and from images and targets [B] to gradients [B,H,W,C]."""

    forward: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray]


_COMPILED: weakref.WeakKeyDictionary[keras.Model, tuple[Any, _Functions]] = weakref.WeakKeyDictionary()


def _compile(model: keras.Model) -> _Functions:
    """Return the compiled functions of the model; they are cached while the model exists, so it is traced only once.

    It is traced again where it computes with other `settings_of` its layers: a trace follows only its variables.
    """
    known, now = _COMPILED.get(model), settings_of(model)
    if known is None or known[0] != now:
        makers = {"tensorflow": _compile_tensorflow, "jax": _compile_jax}
        backend = keras.backend.backend()
        if backend not in makers:
            raise ValueError(f"attribution runs on the Keras backends {' and '.join(makers)}, not on {backend!r}.")
        # A weak reference to the model: a strong one in the cached value would keep the model, its key, alive.
        known = _COMPILED[model] = now, makers[backend](weakref.ref(model))
    return known[1]


def _compile_tensorflow(model: Callable[[], Any]) -> _Functions:
    import tensorflow as tf

    # On a CPU, XLA needs minutes to compile a convolutional network, and the result is slower.
    @tf.function(jit_compile=False)
    def forward(images: Any) -> Any:
        return tf.cast(model()(images, training=False), tf.float32)

    @tf.function(jit_compile=False)
    def gradient(images: Any, targets: Any) -> Any:
        # Watching only the input avoids the gradients of the weights.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = model()(images, training=False)
            chosen = tf.gather(logits, targets, batch_dims=1)
        return tape.gradient(chosen, images)

    traced: dict[Any, Any] = {}

    def run(function: Any, *arrays: np.ndarray) -> np.ndarray:
        # Traced explicitly: TensorFlow counts the traces of all models together and would warn of repeated tracing.
        tensors = [tf.constant(array) for array in arrays]
        key = function, *(array.shape for array in arrays)
        if key not in traced:
            traced[key] = function.get_concrete_function(*tensors)
        result = traced[key](*tensors)
        if result is None:
            raise ValueError(
                "the model's logits have no gradient by the pixels of its images; look for a cast to integers, a "
                "rounding or stop_gradient before its first layer."
            )
        return result.numpy()

    return _Functions(lambda images: run(forward, images), lambda images, targets: run(gradient, images, targets))


def _compile_jax(model: Callable[[], Any]) -> _Functions:
    import jax

    def state() -> tuple[list[Any], list[Any]]:
        # Passed as an argument: as a constant of the compiled function, the weights of the first call would be frozen.
        trainable, fixed = model().trainable_variables, model().non_trainable_variables
        return [variable.value for variable in trainable], [variable.value for variable in fixed]

    @jax.jit
    def forward(images: Any, variables: Any) -> Any:
        return model().stateless_call(*variables, images, training=False)[0].astype("float32")

    @jax.jit
    @jax.grad
    def gradient(images: Any, targets: Any, variables: Any) -> Any:
        logits = model().stateless_call(*variables, images, training=False)[0]
        return jax.numpy.take_along_axis(logits, targets[:, None], axis=1).sum()

    return _Functions(
        lambda images: np.asarray(forward(images, state())),
        lambda images, targets: np.asarray(gradient(images, targets, state())),
    )
