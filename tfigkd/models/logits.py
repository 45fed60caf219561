"""Probabilities as logits, for tensors of Keras; `tfigkd.data.spaces.to_logits` does the same for NumPy arrays."""

from typing import Any

from keras import ops

from tfigkd.data.spaces import SMALLEST_PROBABILITY


def probabilities_to_logits(shares: Any) -> Any:
    """Return the logits [B,C], float32, whose softmax, or sigmoid for one output, are these probabilities."""
    shares = ops.cast(shares, "float32")
    logits = ops.log(ops.maximum(shares, SMALLEST_PROBABILITY))
    if shares.shape[-1] == 1:
        logits = ops.subtract(logits, ops.log(ops.maximum(1.0 - shares, SMALLEST_PROBABILITY)))
    return logits


def two_classes(logits: Any) -> Any:
    """Return logits of at least two classes: one output z becomes [-z/2, z/2], more outputs stay what they are."""
    return ops.concatenate([-logits / 2, logits / 2], axis=-1) if logits.shape[-1] == 1 else logits
