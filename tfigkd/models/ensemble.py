"""Several teachers as one model, and their logits weighted by the labels."""

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax, softmax

from tfigkd.data.spaces import UNIT
from tfigkd.models.adapt import logits_of
from tfigkd.models.graph import graph_of
from tfigkd.models.input_range import infer_input_range

Weighting = Literal["mean", "confidence"]


def ensemble(models: Sequence[keras.Model], *, weighting: Weighting = "mean") -> keras.Model:
    """Return one model whose logits are a mean of several models' logits; it can be a teacher as any other model.

    The mean is of logits, not of probabilities, so that a temperature softens it as it softens a single teacher's. Of a
    member that gives probabilities the logarithms count, of one with a single output the logits of two classes.
    Weighted by confidence, the weights of an image are the softmax, over the models, of their negative entropies: the
    surer a model, the more it counts. No label is looked at, so the same model serves training, maps and evaluation.

    Args:
        models: Functional, or Sequential and built, of one input and one output; all take the same range of pixels.
            They share their weights with the result and are not altered.
        weighting: "mean", or "confidence" for a mean weighted image by image.

    Returns:
        A Functional model from images [B,H,W,3], in the range that its members take, to logits [B,C], with the models
        inside as "teacher_0", "teacher_1", …

    Raises:
        ValueError: no model, an unknown weighting, a model that is subclassed or not built, or models of different
            images, ranges of pixels or classes.
    """
    if not models:
        raise ValueError("an ensemble needs at least one model, got none")
    if weighting not in ("mean", "confidence"):
        raise ValueError(f"weighting must be 'mean' or 'confidence', got {weighting!r}")
    named = [_giving_logits(model, f"teacher_{index}") for index, model in enumerate(models)]
    shapes = {(tuple(model.input_shape), tuple(model.output_shape)) for model in named}
    if len(shapes) > 1:
        raise ValueError(f"the models of an ensemble must have the same images and classes, got {sorted(shapes)}")
    ranges = {infer_input_range(model) or UNIT for model in models}
    if len(ranges) > 1:
        listed = ", ".join(f"{low:g} to {high:g}" for low, high in sorted(ranges))
        raise ValueError(
            f"the models of an ensemble must take the same range of pixels, got {listed}; give "
            "tfigkd.models.as_classifier(model) of each, with input_range where its layers do not show it"
        )
    images = keras.Input(named[0].input_shape[1:], name="image")
    logits = ops.stack([model(images) for model in named], axis=1)
    if weighting == "mean" or len(models) == 1:
        return keras.Model(images, ops.mean(logits, axis=1), name="ensemble")
    entropy = -ops.sum(ops.softmax(logits) * ops.log_softmax(logits), axis=-1, keepdims=True)
    weights = ops.softmax(-entropy, axis=1)
    return keras.Model(images, ops.sum(weights * logits, axis=1), name="ensemble")


def _giving_logits(model: keras.Model, name: str) -> keras.Model:
    """Return a model of the same layers under another name, whose output is logits of at least two classes."""
    bare = graph_of(model)
    return keras.Model(bare.inputs[0], logits_of(model)(bare.outputs[0]), name=name)


def weighted_by_label(logits: Sequence[np.ndarray], labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the mean of several models' logits, each weighted by how well it knows the label.

    The weights of an image are the softmax, over the models, of their negative cross-entropies on its label, divided by
    the temperature. They tell the label, and so are only for training.

    Args:
        logits: Of each model, [N,...,C].
        labels: Integers [N].
        temperature: A small one lets only the best model of an image count, a large one all alike.

    Returns:
        float32 [N,...,C].
    """
    each = np.stack([np.asarray(one, np.float32) for one in logits])
    chosen = labels.reshape(1, -1, *[1] * (each.ndim - 2))
    known = np.take_along_axis(log_softmax(each, axis=-1), chosen, axis=-1)
    return np.sum(softmax(known / temperature, axis=0) * each, axis=0)
