"""Copies of a network with new random weights, except in layers that a user has frozen."""

from typing import Any

import keras

from tfigkd.models import copies, kernels
from tfigkd.models.adapt import ADDED
from tfigkd.models.graph import flatten_layers


def with_fresh_weights(model: keras.Model) -> keras.Model:
    """Return a copy with new random initial weights, drawn anew whatever seeds the model's initializers have.

    What does not train keeps its weights: frozen layers and adapted normalization.

    Args:
        model: Functional or Sequential; it is not altered.

    Returns:
        A Functional model with the same layer names, not compiled.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built; or the kernel of a layer that trains
            does not: Keras has quantized it, or trains factors of LoRA beside it.
    """
    fixed = [layer.name for layer in flatten_layers(model) if layer.trainable and not kernels.has_plain_kernel(layer)]
    if fixed:
        raise ValueError(
            f"the kernel of layer {fixed[0]!r} does not train, as Keras has quantized it or given it factors of LoRA; "
            "save the model without them, or keep its weights"
        )

    def replace(layer: keras.Layer) -> keras.Layer:
        if _kept(layer):
            return copies.copy_layer(layer)
        return copies.copy_layer(layer, lambda config: copies.mapped(config, _without_seed))

    result = copies.with_new_layers(model, replace)
    _copy_kept(model, result)
    return result


def count_frozen_layers(model: keras.Model) -> int:
    """Return how many layers keep their weights when a model is initialized afresh."""
    return sum(_kept(layer) and layer.name not in ADDED for layer in flatten_layers(model) if layer.weights)


def _kept(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) or not layer.trainable


def _copy_kept(source: keras.Model, target: keras.Model) -> None:
    for layer in target.layers:
        if isinstance(layer, keras.Model):
            _copy_kept(source.get_layer(layer.name), layer)
        elif layer.weights and _kept(source.get_layer(layer.name)):
            copies.copy_layer_state(source.get_layer(layer.name), layer)


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary of a layer's config; an initializer draws its seed."""
    inner = config.get("config")
    if "initializers" in str(config.get("module")) and isinstance(inner, dict) and "seed" in inner:
        return {**config, "config": {**inner, "seed": None}}
    return config
