"""Fingerprints of models: of what they compute, and of their weights."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import keras

from tfigkd.models.graph import flatten_layers

NO_FUNCTION = ("name", "trainable", "seed", "build_config", "compile_config", "registered_name", "shared_object_id")
"""Parts of a model's config that do not change what it computes; nor do initializers and regularizers."""
MOVED = {"tfigkd.models.batch_norm": "tfigkd.models.layers"}
"""Module to the one in which stores of earlier versions know its layers."""


def architecture_fingerprint(model: keras.Model) -> str:
    """Return a hash of what a model computes with its weights: layers, their settings and connections, but no names."""
    try:
        config = model.get_config()
    except NotImplementedError:  # of a subclassed model; its class is all that can be told
        config = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    numbers: dict[str, int] = {}
    for layer in flatten_layers(model, include_self=True):
        numbers.setdefault(layer.name, len(numbers))
    text = json.dumps(_nameless(config, numbers), sort_keys=True, default=_without_address)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_address(value: Any) -> str:
    """Return an object as text, without the address that Python prints, which differs in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _nameless(value: Any, numbers: Mapping[str, int]) -> Any:
    """Return a config in which each name of a layer is its number."""
    if isinstance(value, Mapping):
        kept = {
            key: item
            for key, item in value.items()
            if key not in NO_FUNCTION and not str(key).endswith(("_initializer", "_regularizer"))
        }
        if "module" in kept:
            kept["module"] = MOVED.get(kept["module"], kept["module"])
        return {str(key): _nameless(item, numbers) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_nameless(item, numbers) for item in value]
    return f"layer {numbers[value]}" if isinstance(value, str) and value in numbers else value


def weights_fingerprint(model: keras.Model) -> str:
    """Return a hash of a model's weights: of their values, shapes and types, but not of names."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(weight.tobytes())
    return digest.hexdigest()[:16]
