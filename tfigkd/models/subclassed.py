"""A subclassed model of probabilities, whose graph is not known, as one of logits."""

from typing import Any

import keras

from tfigkd.models.logits import probabilities_to_logits, two_classes

CACHED = "_tfigkd_logits"


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
        return two_classes(probabilities_to_logits(self.model(inputs, training=training)))

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
