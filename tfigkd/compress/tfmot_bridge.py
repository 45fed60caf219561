"""The bridge to tfmot, which does not support Keras 3: a tf_keras twin is trained and its weights are copied back.

Only this module imports tfmot, and only inside functions. Importing tfmot sets TF_USE_LEGACY_KERAS, which
would make `tf.keras` of every child process tf_keras; `libraries` restores it at once.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal

import keras
import numpy as np

from tfigkd.compress.finetune import FineTuning, in_epochs_of, pruning_times, recipe, steps_an_epoch
from tfigkd.compress.layers import compressible_nodes, is_linear_activation, one_or_all, trace
from tfigkd.compress.quantization import fake_quantized
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.losses import Loss
from tfigkd.losses.base import LOGITS
from tfigkd.models.copies import verified_copy
from tfigkd.models.equivalence import TOLERANCE, random_inputs
from tfigkd.models.fake_quant import FakeQuantize
from tfigkd.models.flat import flattened
from tfigkd.models.graph import Node
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint

LEGACY = "TF_USE_LEGACY_KERAS"
Preserve = Literal["nothing", "zeros", "clusters"]

PLAIN: dict[type[keras.Layer], tuple[str, ...]] = {
    keras.layers.ZeroPadding2D: ("padding",),
    keras.layers.AveragePooling2D: ("pool_size", "strides", "padding"),
    keras.layers.MaxPooling2D: ("pool_size", "strides", "padding"),
    keras.layers.GlobalAveragePooling2D: ("keepdims",),
    keras.layers.ReLU: ("max_value", "negative_slope", "threshold"),
    keras.layers.BatchNormalization: ("axis", "momentum", "epsilon", "center", "scale"),
    keras.layers.Conv2D: ("filters", "kernel_size", "strides", "padding", "dilation_rate", "use_bias"),
    keras.layers.DepthwiseConv2D: ("kernel_size", "strides", "padding", "dilation_rate", "use_bias"),
    keras.layers.Dense: ("units", "use_bias"),
    keras.layers.Dropout: ("rate",),
    keras.layers.Flatten: (),
    keras.layers.Add: (),
}
"""Layers that are the same in Keras 3 and tf_keras, with the arguments to copy."""
ACTIVATIONS = (keras.activations.linear, keras.activations.relu)


def libraries() -> SimpleNamespace:
    """Import and return `tf_keras` and `tfmot`; the environment and `tf.keras` stay as they were before."""
    import tensorflow as tf

    before = os.environ.get(LEGACY)
    _ = tf.keras.layers  # resolved now: the first access decides which Keras `tf.keras` is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow_model_optimization as tfmot
            import tf_keras
    finally:
        if before is None:
            os.environ.pop(LEGACY, None)
        else:
            os.environ[LEGACY] = before
    return SimpleNamespace(tf_keras=tf_keras, tfmot=tfmot)


def make_twin(model: keras.Model) -> Any:
    """Return the same network built from tf_keras layers, with the same layer names and weights.

    Linear activations are left out, because they do not change values.

    Raises:
        UserError: tf_keras has no such layer, or tfmot does not support it, such as the shortcuts of our ResNets.
    """
    layers = libraries().tf_keras.layers

    def apply(node: Node, inputs: list[Any]) -> Any:
        if is_linear_activation(node.layer):
            return inputs[0]
        _check(node.layer, model.name)
        kind = next(kind for kind in PLAIN if isinstance(node.layer, kind))
        if kind is keras.layers.Conv2D and isinstance(node.layer, keras.layers.DepthwiseConv2D):
            kind = keras.layers.DepthwiseConv2D
        given = {name: getattr(node.layer, name) for name in PLAIN[kind]}
        given |= {"axis": -1} if "axis" in given else {}
        activation = getattr(node.layer, "activation", None)
        given |= {"activation": activation.__name__} if activation else {}
        twin_layer = getattr(layers, kind.__name__)(**given, name=node.layer.name, trainable=node.layer.trainable)
        outputs = twin_layer(one_or_all(inputs))
        twin_layer.set_weights(node.layer.get_weights())
        return outputs

    graph = compressible_nodes(model)
    image = layers.Input(model.input_shape[1:], name=next(iter(graph)))
    twin = libraries().tf_keras.Model(image, trace(graph, image, apply), name=model.name)
    _check_twin(twin, model)
    return twin


def _check_twin(twin: Any, model: keras.Model) -> None:
    """Check that a twin gives the outputs of its model on random images."""
    images = random_inputs(model)[0]
    expected, found = keras.ops.convert_to_numpy(model(images, training=False)), twin(images, training=False).numpy()
    sizes = np.abs(expected).max(axis=1, keepdims=True)
    if not (np.abs(found - expected) <= TOLERANCE * sizes + 1e-6).all():
        off = float(np.abs(found - expected).max())
        raise UserError(f"the tf_keras twin of {model.name} differs from it by {off:.2g}; use qat, prune or prune_qat")


def check_logit_losses(losses: Iterable[Loss]) -> None:
    """Check that the losses of fine-tuning compare only logits with a teacher's, as a twin has no other outputs.

    Raises:
        UserError: one of them compares features or input gradients, or has no teacher.
    """
    if any(loss.compares != "outputs" or loss.student_layer is not None for loss in losses):
        raise UserError("tfmot methods can distill only from logits; set compress.losses to kd, dkd or dist")


def _check(layer: keras.Layer, model: str) -> None:
    reason = ""
    if not isinstance(layer, tuple(PLAIN)):
        reason = f"tfmot does not support {type(layer).__name__}"
    elif getattr(layer, "data_format", "channels_last") != "channels_last":
        reason = "it is channels-first, as in ResNet shortcuts without parameters"
    elif (activation := getattr(layer, "activation", None)) not in (None, *ACTIVATIONS):
        reason = f"its activation {activation.__name__} is neither linear nor relu"
    elif getattr(layer, "groups", 1) != 1 or getattr(layer, "depth_multiplier", 1) != 1:
        reason = "it has groups or a depth multiplier"
    if reason:
        raise UserError(f"{model} cannot go through tfmot: layer {layer.name!r}: {reason}; use qat, prune or prune_qat")


def weights_back(twin: Any, model: keras.Model) -> keras.Model:
    """Return a flattened copy of the Keras 3 model with the weights of its twin, wrapped layers included."""
    result = verified_copy(flattened(model))
    for layer in twin.layers:
        layer = getattr(layer, "layer", layer)
        if layer.weights:
            result.get_layer(layer.name).set_weights(layer.get_weights())
    return result


def prune_tfmot(student: keras.Model, config: CompressConfig, tuning: FineTuning) -> keras.Model:
    """Prune weights by magnitude with tfmot, on the schedule of `finetune.pruning_times`.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K]; it is not changed.
        config: Share of zeros, number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.

    Returns:
        The pruned student, flattened.
    """
    sparsity = libraries().tfmot.sparsity.keras
    # tfmot's default frequency of 100 prunes nothing in a short training, and tfmot only prunes at multiples of the
    # frequency, so the end must be one
    end, frequency = pruning_times(config)
    schedule = sparsity.PolynomialDecay(0.0, config.sparsity, 0, end, frequency=frequency)
    wrapped = _wrapped(student, lambda layer: sparsity.prune_low_magnitude(layer, pruning_schedule=schedule))
    _fine_tune(wrapped, student, config, tuning, title="prune (tfmot)", callback=sparsity.UpdatePruningStep())
    return weights_back(sparsity.strip_pruning(wrapped), student)


def cluster(student: keras.Model, config: CompressConfig, tuning: FineTuning) -> keras.Model:
    """Cluster the weights of each kernel to `config.clusters` values and train these values (tfmot).

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K]; it is not changed.
        config: Number of clusters, number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.

    Returns:
        The clustered student, flattened.
    """
    clustering = libraries().tfmot.clustering.keras
    options = {
        "number_of_clusters": config.clusters,
        "cluster_centroids_init": clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
    }
    wrapped = _wrapped(student, lambda layer: clustering.cluster_weights(layer, **options))
    _fine_tune(wrapped, student, config, tuning, title="cluster (tfmot)")
    return weights_back(clustering.strip_clustering(wrapped), student)


def quantize(student: keras.Model, config: CompressConfig, tuning: FineTuning, preserve: Preserve) -> keras.Model:
    """Train with tfmot's quantization-aware training.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K]; it is not changed.
        config: Number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.
        preserve: As for `quantization_twin`.

    Returns:
        A student of the layers in `tfigkd.models.fake_quant`.
    """
    quantized = quantization_twin(student, preserve)
    _fine_tune(quantized, student, config, tuning, title="quantize (tfmot)")
    return from_quantization_twin(quantized, student, preserve)


def quantization_twin(student: keras.Model, preserve: Preserve = "nothing") -> Any:
    """Return tfmot's model for quantization-aware training, a tf_keras model.

    Args:
        student: Functional model of Keras 3; it is not changed.
        preserve: What training keeps: zero weights, equal weights ("clusters"), or nothing of the kind.

    Raises:
        UserError: As `make_twin`.
    """
    quantization = libraries().tfmot.quantization.keras
    annotated = quantization.quantize_annotate_model(make_twin(student))
    collaborative = "tensorflow_model_optimization.python.core.quantization.keras.collab_opts"
    if preserve == "zeros":
        module = import_module(f"{collaborative}.prune_preserve.default_8bit_prune_preserve_quantize_scheme")
        return quantization.quantize_apply(annotated, module.Default8BitPrunePreserveQuantizeScheme())
    if preserve == "clusters":
        module = import_module(f"{collaborative}.cluster_preserve.default_8bit_cluster_preserve_quantize_scheme")
        return quantization.quantize_apply(annotated, module.Default8BitClusterPreserveQuantizeScheme(False))
    return quantization.quantize_apply(annotated)


def from_quantization_twin(twin: Any, student: keras.Model, preserve: Preserve = "nothing") -> keras.Model:
    """Copy the twin's weights and ranges to a model of our fake-quantized layers, batch normalization folded.

    The layers are those of `tfigkd.models.fake_quant`. tfmot rounds a depthwise kernel with one scale; the returned
    model has one scale for each channel, which is finer.

    Args:
        twin: From `quantization_twin`, trained.
        student: The Keras 3 model that it was made of; it is not changed.
        preserve: As for `quantization_twin`.

    Returns:
        A Functional model, images [B,H,W,C] in [0,1] to logits [B,K].
    """
    trained = verified_copy(flattened(student))
    ranges: dict[str, list[np.ndarray]] = {}
    for wrapper in twin.layers:
        if not hasattr(wrapper, "layer"):
            continue
        name, values = wrapper.layer.name, {_short_name(variable): variable.numpy() for variable in wrapper.weights}
        target = trained.get_layer(name)
        for variable in target.weights:
            value = values.get(variable.name, values.get(f"depthwise_{variable.name}"))
            # tfmot masks the kernel only where it is used; the stored values drift away from zero
            if preserve == "zeros" and variable.name == "kernel" and target.trainable:
                value = value * (keras.ops.convert_to_numpy(variable) != 0)
            variable.assign(value)
        for kind in ("output", "post_activation"):
            if f"{kind}_min" in values:
                ranges[name] = [values[f"{kind}_min"], values[f"{kind}_max"]]
    result = fake_quantized(trained)
    graph = compressible_nodes(student)
    for layer in result.layers:
        if isinstance(layer, FakeQuantize) and layer.limits is None:
            name = layer.name.removesuffix("_range")
            while name not in ranges:  # tfmot stores the range after the batch normalization
                (name,) = graph[name].readers
            layer.set_weights(ranges[name])
    return result


def _short_name(variable: Any) -> str:
    return variable.name.rpartition("/")[2].removesuffix(":0")


def _wrapped(student: keras.Model, wrap: Callable[[Any], Any]) -> Any:
    """Return the twin with its prunable layers wrapped, the same layers as in `pruning.prunable_kernels`."""
    chosen = ("Conv2D", "Dense")

    def clone(layer: Any) -> Any:
        return wrap(layer) if type(layer).__name__ in chosen and layer.trainable else layer

    return libraries().tf_keras.models.clone_model(make_twin(student), clone_function=clone)


def _fine_tune(
    twin: Any, student: keras.Model, config: CompressConfig, tuning: FineTuning, *, title: str, callback: Any = None
) -> None:
    """Train a twin as `finetune.fine_tune` trains a Keras 3 model: same losses, batches, recipe and checkpoints."""
    import tensorflow as tf

    distiller = tuning.distiller(student)
    check_logit_losses(distiller.distillation_losses.values())
    tf_keras, steps, epochs = libraries().tf_keras, steps_an_epoch(config), recipe(config).epochs
    rate = tf_keras.optimizers.schedules.CosineDecay(config.learning_rate, steps * epochs)
    optimizer = tf_keras.optimizers.Adam(rate)
    optimizer.build(twin.trainable_variables)
    state = _State(twin, optimizer)
    progress = checkpoint.restore(tuning.folder, state, tuning.fingerprint)
    history = progress.history
    if callback is not None:
        callback.set_model(twin)
        callback.on_train_begin()

    @tf.function(reduce_retracing=True, jit_compile=False)
    def step(images: Any, targets: Any, sample_weight: Any = None) -> Any:
        with tf.GradientTape() as tape:
            outputs = {LOGITS: twin(images, training=True)}
            loss = distiller.compare(outputs, images, targets, sample_weight, training=True)["loss"]
        gradients = tape.gradient(loss, twin.trainable_variables)
        # if clusters are preserved, the centroids are trained instead of their kernels
        pairs = zip(gradients, twin.trainable_variables, strict=True)
        optimizer.apply_gradients([(gradient, variable) for gradient, variable in pairs if gradient is not None])
        return loss

    batches = in_epochs_of(tuning.stream, steps)(len(history))
    with console.progress(title, epochs * steps, len(history) * steps) as advance:
        for epoch in range(len(history), epochs):
            losses = []
            for batch in itertools.islice(batches, steps):
                losses.append(float(step(*batch)))
                advance(1)
            if not np.isfinite(losses).all():
                raise UserError(f"{title}: the loss became NaN or infinite; lower compress.learning_rate")
            if callback is not None:
                callback.on_epoch_end(epoch)
            history.append({"loss": float(np.mean(losses))})
            checkpoint.save(tuning.folder, state, tuning.fingerprint, progress)


class _State:
    """The variables of a twin and its optimizer, with the attributes that `checkpoint` reads."""

    def __init__(self, twin: Any, optimizer: Any):
        self.variables = list({id(variable): variable for variable in twin.variables}.values())
        self.optimizer = SimpleNamespace(built=True, variables=list(optimizer.variables))
