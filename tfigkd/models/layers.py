"""Batch normalization by TensorFlow's fused kernel, and models rebuilt from new layers with the same state.

Keras 3 computes moments and normalization as separate operations on TensorFlow. On a CPU training is bound by
memory traffic, and this costs several times what the fused kernel does.
"""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.models.equivalence import check_same
from tfigkd.models.graph import flatten_layers, graph_of, input_like, is_graph, without_empty_mask

Replace = Callable[[keras.Layer], keras.Layer]
Values = Callable[[keras.Layer], list[np.ndarray] | None]


@keras.saving.register_keras_serializable("tfigkd")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that calls TensorFlow's fused kernel where one applies.

    Same variables, names, config and numbers as the parent. The kernel takes channels-last images [B,H,W,C] of
    type float32, float16 or bfloat16 on the TensorFlow backend; anything else (other ranks and axes, masks,
    `synchronized`, `renorm`, JAX) is left to the parent.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize [B,H,W,C] by the batch's moments in training, else by the moving averages."""
        if mask is not None or not self._kernel_applies(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        moving_mean = ops.cast(self.moving_mean, "float32")
        moving_variance = ops.cast(self.moving_variance, "float32")
        use_batch_moments = bool(training and self.trainable)
        empty = tf.zeros([0], tf.float32)
        # The raw operation, since tf.compat.v1.nn.fused_batch_norm raises epsilon to 1.001e-5.
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32") if self.scale else tf.ones_like(moving_mean),
            offset=ops.cast(self.beta, "float32") if self.center else tf.zeros_like(moving_mean),
            mean=empty if use_batch_moments else moving_mean,
            variance=empty if use_batch_moments else moving_variance,
            epsilon=self.epsilon,
            is_training=use_batch_moments,
        )
        if use_batch_moments:
            # The kernel returns the unbiased variance, Keras averages the biased one. Of a single value the
            # unbiased one is undefined; multiply_no_nan makes it 0, which is the biased one.
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
            variance = tf.math.multiply_no_nan(variance, (count - 1.0) / count)
            self.moving_mean.assign(moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(moving_variance * self.momentum + variance * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def _kernel_applies(self, inputs: Any) -> bool:
        return (
            keras.config.backend() == "tensorflow"
            and not self.synchronized
            and not self.renorm
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
        )


def with_stock_layers(model: keras.Model) -> keras.Model:
    """Return a copy of a model with Keras's own layers in the place of fused ones, so that plain Keras opens its file.

    Args:
        model: Functional or Sequential; it is not altered. A model without fused layers, of whatever kind, is
            returned as it is.

    Returns:
        A Functional model with the same layer names and weights, not compiled.

    Raises:
        ValueError: A fused layer sits where it cannot be exchanged.
        UserError: The copy is not the same function.
    """
    result = _exchange(model, FusedBatchNormalization, keras.layers.BatchNormalization)
    left = [layer.name for layer in flatten_layers(result) if type(layer) is FusedBatchNormalization]
    if left:
        raise ValueError(
            f"Cannot exchange FusedBatchNormalization inside a wrapper or subclassed model: {', '.join(left)}. "
            "Build the model from such layers directly."
        )
    return result


def with_fused_layers(model: keras.Model) -> keras.Model:
    """Return a copy of a model with fused layers in the place of Keras's batch normalization, so that it trains fast.

    Batch normalization inside a wrapper or a subclassed layer stays as it is.

    Args:
        model: Functional or Sequential; it is not altered. A model without stock batch normalization, of
            whatever kind, is returned as it is.

    Returns:
        A Functional model with the same layer names and weights, not compiled.

    Raises:
        UserError: The copy is not the same function.
    """
    return _exchange(model, keras.layers.BatchNormalization, FusedBatchNormalization)


def _exchange(model: keras.Model, old: type[keras.Layer], new: type[keras.Layer]) -> keras.Model:
    # Exact types, since a subclass of the user's may do something else.
    if not any(type(layer) is old for layer in flatten_layers(model)):
        return model

    def replace(layer: keras.Layer) -> keras.Layer:
        return new.from_config(layer.get_config()) if type(layer) is old else copy_layer(layer)

    return rebuilt(model, replace)


def mapped(config: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a config of Keras in which each dictionary is changed, those inside it first; lists and tuples stay such.

    Args:
        config: Of a layer or model, or a part of it.
        change: Function from a dictionary, whose values are changed already, to the one in its place.
    """
    if isinstance(config, list | tuple):
        return type(config)(mapped(value, change) for value in config)
    if not isinstance(config, dict):
        return config
    return change({key: mapped(value, change) for key, value in config.items()})


@contextlib.contextmanager
def keeps_random_numbers() -> Iterator[None]:
    """Leave Python's random numbers as they are: Keras draws the seed of each new layer from them."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def copy_layer(layer: keras.Layer) -> keras.Layer:
    """Return a new layer of the same configuration, with its own fresh weights.

    Raises:
        ValueError: The layer, or the subclassed model, does not tell its configuration.
    """
    if isinstance(layer, keras.layers.Lambda):  # whose code Keras refuses to take from a configuration
        given = {name: getattr(layer, name) for name in ("function", "mask", "arguments", "name")}
        return keras.layers.Lambda(**given, output_shape=layer._output_shape, dtype=layer.dtype_policy)
    try:
        return type(layer).from_config({"name": layer.name, **layer.get_config()})
    except NotImplementedError as error:
        raise ValueError(
            f"{layer.name} cannot be copied: its class {type(layer).__name__} does not say its arguments; give it a "
            "method get_config that returns them"
        ) from error


def rebuilt(
    model: keras.Model,
    replace: Replace = copy_layer,
    *,
    values: Values | None = None,
    skip: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    through: Callable[[np.ndarray], np.ndarray] | None = None,
) -> keras.Model:
    """Rebuild a model from new layers, with the weights and all other state, and compare it with the model itself.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        replace: Gives the new layer for an old one.
        values: Gives the new weights of an old layer's replacement; None for a layer takes over the old layer's state.
        skip: As for `rebuild`; only layers that change no value.
        input_shape: As for `rebuild`.
        through: Applied to the new outputs before they are compared, such as the softmax that was taken off.

    Returns:
        A Functional model of the same name and layer names, not compiled.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
        UserError: The outputs differ on random inputs; the first layer that differs is named.
    """
    result = rebuild(model, replace, skip=skip, input_shape=input_shape)
    copy_state(model, result, values)
    check_same(result, model, through=through)
    return result


def rebuild(
    model: keras.Model,
    replace: Replace = copy_layer,
    *,
    skip: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
) -> keras.Model:
    """Return the same graph made of new layers with fresh weights; not compiled.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        replace: Gives the new layer for an old one.
        skip: Names of layers with one input to leave out; what they fed is fed by their input.
        input_shape: Fixed shape, without the batch, for the model's single input; by default the model's own.

    Returns:
        A Functional model of the same name and layer names; models inside it are Functional as well.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
    """
    return _rebuild(model, replace, {}, skip, input_shape)


def _rebuild(
    model: keras.Model,
    replace: Replace,
    made: dict[int, Any],
    skip: Sequence[str],
    input_shape: Sequence[int] | None,
) -> keras.Model:
    def fresh_input(tensor: Any) -> Any:
        # clone_model would take the tensor's name, which an unnamed input does not share with its layer.
        return input_like(tensor, None if input_shape is None else (None, *input_shape))

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return layer  # keras.ops inside a functional model are operations without weights and need no copy
        if id(layer) not in made:  # a layer that is used twice is one layer in the copy too
            inner = is_graph(layer)
            made[id(layer)] = _rebuild(layer, replace, made, skip, None) if inner else replace(layer)
        return made[id(layer)]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in skip else layer(*args, **without_empty_mask(kwargs))

    bare = graph_of(model)
    result = keras.models.clone_model(
        bare,
        input_tensors=keras.tree.map_structure(fresh_input, bare.input),
        clone_function=clone,
        call_function=call,
    )
    if not model.trainable:
        result.trainable = False
    return result


def copy_state(source: keras.Model, target: keras.Model, values: Values | None = None) -> None:
    """Copy the whole state of every layer of `target` from the layer of that name in `source`.

    State is what a .keras file holds of a layer, written and read by the layer's own methods: weights, the adapted
    statistics of `Normalization` and the vocabulary of `IntegerLookup` among them; and the states of random generators
    and metrics.

    Args:
        source: Has a layer for every layer of `target`, at the same depth.
        target: Of the same structure, or the beginning of it; it is altered.
        values: Gives the weights for a layer of `source` in place of its own; None takes its own.
    """
    for layer in target.layers:
        if isinstance(layer, keras.layers.InputLayer):  # which a Sequential model does not list
            continue
        original = source.get_layer(layer.name)
        if is_graph(layer):
            copy_state(original, layer, values)
            continue
        given = None if values is None else values(original)
        if given is not None:
            layer.set_weights(given)
        else:
            copy_layer_state(original, layer)


def copy_layer_state(source: keras.Layer, target: keras.Layer) -> None:
    """Copy the whole state of one layer and of the layers inside it; see `copy_state`."""
    pairs = zip(flatten_layers(source, include_self=True), flatten_layers(target, include_self=True), strict=True)
    for mine, theirs in pairs:
        store: dict[str, Any] = {}
        mine.save_own_variables(store)
        if store:
            theirs.load_own_variables({name: _values_of(variable) for name, variable in store.items()})
        if hasattr(mine, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                mine.save_assets(folder)
                theirs.load_assets(folder)
        for generator, other in zip(mine._seed_generators, theirs._seed_generators, strict=True):
            other.state.assign(_values_of(generator.state))
        for metric, twin in zip(mine._metrics, theirs._metrics, strict=True):
            for variable, copy in zip(metric.variables, twin.variables, strict=True):
                copy.assign(_values_of(variable))


def _values_of(variable: Any) -> np.ndarray:
    """Return a copy of a variable's values: on JAX, training and `predict` delete the array that a variable holds."""
    return np.array(ops.convert_to_numpy(variable))


def has_plain_kernel(layer: keras.Layer) -> bool:
    """Return whether a layer computes with its kernel as it is: not quantized by Keras, and without factors of LoRA."""
    return getattr(layer, "quantization_mode", None) is None and not getattr(layer, "lora_enabled", False)


def l1_of_kernels(model: keras.Model) -> Any:
    """Return the sum of the absolute values of a model's trained kernels, float32, whatever its layers."""
    layers = [layer for layer in flatten_layers(model) if layer.trainable]
    # a reparameterized layer computes its kernel from a variable that Keras calls kernel as well
    with_kernel = [layer for layer in layers if getattr(layer, "kernel", None) is not None]
    theirs = {id(variable) for layer in with_kernel for variable in layer.variables if variable.name == "kernel"}
    kernels = [layer.kernel for layer in with_kernel]
    kernels += [v for v in model.trainable_variables if v.name.endswith("kernel") and id(v) not in theirs]
    each_once = {id(kernel): kernel for kernel in kernels}.values()  # a wrapper may show its layer's kernel as its own
    return sum(ops.sum(ops.abs(ops.cast(kernel, "float32"))) for kernel in each_once)
