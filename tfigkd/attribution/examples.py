"""Integrated Gradients maps of a data set's examples, with the settings of an experiment."""

import math
from collections.abc import Iterator

import keras
import numpy as np

from tfigkd import models
from tfigkd.attribution.baselines import make_baseline
from tfigkd.attribution.integrated_gradients import Attribution, attribute, completeness_error, saliency_map
from tfigkd.config.fields import AttributionConfig
from tfigkd.data import Examples, mean_color, to_model_input
from tfigkd.data.disk import AT_ONCE
from tfigkd.models.graph import is_graph


def baseline_color(config: AttributionConfig, training: Examples) -> np.ndarray:
    """Return the mean color of the training images [3] in [0,1] for the baseline "mean"; zeros for the others.

    All pictures are read for it, so it is computed only where it is used.
    """
    return mean_color(training) if config.baseline == "mean" else np.zeros(3, np.float32)


def attribute_examples(
    model: keras.Model, examples: Examples, config: AttributionConfig, color: np.ndarray
) -> Attribution:
    """Attribute the label's logit of each example with a store's settings.

    Args:
        model: float32 [B,H,W,C] in [0,1] to logits.
        examples: Images and labels.
        config: The settings.
        color: Of the training images, float32 [3] in [0,1]; only for the baseline "mean".
    """
    images = to_model_input(examples.images[:])
    return attribute(
        model,
        images,
        examples.labels,
        baseline=make_baseline(config.baseline, images, mean_color=color),
        n_steps=config.n_steps,
        rule=config.rule,
        tolerance=config.tolerance,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
    )


def explain(
    model: keras.Model, examples: Examples, config: AttributionConfig, color: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps [B,H,W] of a model for the labels of the examples, and their completeness errors [B].

    Args:
        model: float32 [B,H,W,C] in [0,1] to logits.
        examples: Images and labels.
        config: The settings.
        color: Of the training images, float32 [3] in [0,1]; only for the baseline "mean".
    """
    parts = [
        (saliency_map(result.attributions), completeness_error(result.attributions, result.convergence_delta))
        for result in attribute_in_parts(folded(model), examples, config, color)
    ]
    maps, errors = zip(*parts, strict=True)
    return np.concatenate(maps), np.concatenate(errors)


def attribute_in_parts(
    model: keras.Model, examples: Examples, config: AttributionConfig, color: np.ndarray
) -> Iterator[Attribution]:
    """Yield the attributions of examples, some at a time: as many as `AT_ONCE` bytes of pixels hold."""
    few = max(1, AT_ONCE // (np.float32().nbytes * math.prod(examples.image_shape)))
    for start in range(0, len(examples), few):
        yield attribute_examples(model, examples.take(slice(start, start + few)), config, color)


def folded(model: keras.Model) -> keras.Model:
    """Return a model with batch normalization folded into its kernels; unchanged where it cannot be rebuilt."""
    try:
        return models.fold_batch_norm(model) if is_graph(model) else model
    except ValueError:
        return model
