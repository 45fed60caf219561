"""Several teachers as one model, and their logits weighted by the labels."""

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax, softmax

Weighting = Literal["mean", "confidence"]


def ensemble(models: Sequence[keras.Model], *, weighting: Weighting = "mean") -> keras.Model:
    """One model whose logits are a mean of several models' logits; a teacher like any other.

    The mean is of logits, not of probabilities, so that a temperature softens it as it softens a single teacher's.
    Weighted by confidence, the weights of an image are the softmax, over the models, of their negative entropies: the
    surer a model, the more it counts. No label is looked at, so the same model serves training, maps and evaluation.

    Args:
        models: Functional, of one input and one output; they share their weights with the result and are not altered.
        weighting: "mean", or "confidence" for a mean weighted image by image.

    Returns:
        A Functional model from images [B,H,W,3] to logits [B,C], with the models inside as "teacher_0", "teacher_1", …

    Raises:
        ValueError: no model, an unknown weighting, or models of different images or classes.
    """
    if not models:
        raise ValueError("an ensemble needs at least one model, got none")
    if weighting not in ("mean", "confidence"):
        raise ValueError(f"weighting must be 'mean' or 'confidence', got {weighting!r}")
    shapes = {(tuple(model.input_shape), tuple(model.output_shape)) for model in models}
    if len(shapes) > 1:
        raise ValueError(f"the models of an ensemble must have the same images and classes, got {sorted(shapes)}")
    images = keras.Input(models[0].input_shape[1:], name="image")
    named = [keras.Model(model.input, model.output, name=f"teacher_{index}") for index, model in enumerate(models)]
    logits = ops.stack([model(images) for model in named], axis=1)
    if weighting == "mean" or len(models) == 1:
        return keras.Model(images, ops.mean(logits, axis=1), name="ensemble")
    entropy = -ops.sum(ops.softmax(logits) * ops.log_softmax(logits), axis=-1, keepdims=True)
    weights = ops.softmax(-entropy, axis=1)
    return keras.Model(images, ops.sum(weights * logits, axis=1), name="ensemble")


def weighted_by_label(logits: Sequence[np.ndarray], labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the mean of several models' logits, each weighted by how well it knows the label.

    The weights of an image are the softmax, over the models, of their negative cross-entropies on its label, divided by
    the temperature. They tell the label, and so are for training alone.

    Args:
        logits: Of each model, [N,...,C].
        labels: Integers [N].
        temperature: A small one makes the best model of an image count alone, a large one all alike.

    Returns:
        float32 [N,...,C].
    """
    each = np.stack([np.asarray(one, np.float32) for one in logits])
    chosen = labels.reshape(1, -1, *[1] * (each.ndim - 2))
    known = np.take_along_axis(log_softmax(each, axis=-1), chosen, axis=-1)
    return np.sum(softmax(known / temperature, axis=0) * each, axis=0)
