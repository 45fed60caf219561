"""Batch normalization by TensorFlow's fused kernel.

Keras 3 computes moments and normalization as separate operations on TensorFlow. On a CPU training is bound by
memory traffic, and this costs several times what the fused kernel does.
"""

from typing import Any

import keras
from keras import ops

from tfigkd.models.copies import copy_layer, verified_copy
from tfigkd.models.graph import flatten_layers


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


def with_stock_batch_norm(model: keras.Model) -> keras.Model:
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


def with_fused_batch_norm(model: keras.Model) -> keras.Model:
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

    return verified_copy(model, replace)
