"""Probabilities as logits, and a subclassed model of probabilities, whose graph is not known, as one of logits."""

from typing import Any

import keras
from keras import ops

from tfigkd.data.spaces import SMALLEST_PROBABILITY

CACHED = "_tfigkd_logits"


def logarithm(shares: Any) -> Any:
    """Return the logits [B,C], float32, whose softmax, or sigmoid for one output, are these probabilities."""
    shares = ops.cast(shares, "float32")
    logits = ops.log(ops.maximum(shares, SMALLEST_PROBABILITY))
    if shares.shape[-1] == 1:
        logits = ops.subtract(logits, ops.log(ops.maximum(1.0 - shares, SMALLEST_PROBABILITY)))
    return logits


def two_classes(logits: Any) -> Any:
    """Return logits of at least two classes: one output z becomes [-z/2, z/2], more outputs stay what they are."""
    return ops.concatenate([-logits / 2, logits / 2], axis=-1) if logits.shape[-1] == 1 else logits


@keras.saving.register_keras_serializable("tfigkd")
class LogitsOf(keras.Model):
    """A model of probabilities as one of logits of at least two classes; it has and trains the model's own weights.

    Args:
        model: Subclassed, from images to probabilities [B,C].
    """

    def __init__(self, model: keras.Model, **kwargs: Any):
        # whatever the policy of the process is, the model gets its inputs as they come and casts them itself
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.model = model
        self.built = model.built  # it has no variables of its own

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the logits [B,C] of images."""
        return two_classes(logarithm(self.model(inputs, training=training)))

    def get_config(self) -> dict[str, Any]:
        """Return the settings, with those of the model inside."""
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "LogitsOf":
        """Return the model that these settings describe."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})


class _Kept:
    """A plain object around a model: Keras would track and save a layer that it finds in an attribute."""

    def __init__(self, model: keras.Model):
        self.model = model


def logits_model(model: keras.Model) -> keras.Model:
    """Return `LogitsOf` of a model, the same one at each call, for as long as the model exists."""
    kept = model.__dict__.get(CACHED)
    if kept is None or kept.model.model is not model:  # a copy of the model has a copy of its dictionary
        kept = model.__dict__[CACHED] = _Kept(LogitsOf(model, name=model.name))
    return kept.model
