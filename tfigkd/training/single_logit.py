"""Metrics of a student that gives one logit: those that are given by name see its probability, as their names say."""

from typing import Any

import keras
from keras import ops

from tfigkd.training.tapped import TappedNetwork

PROBED = 0.25
"""Test output: its logit differs depending on whether it is read as logit or probability."""


@keras.saving.register_keras_serializable("tfigkd")
class OfProbability(keras.metrics.Metric):
    """A Keras metric of the sigmoid of what it is given.

    Args:
        metric: Of labels and probabilities.
    """

    def __init__(self, metric: keras.metrics.Metric):
        super().__init__(name=metric.name)
        self.metric = metric

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Take the labels and logits of a batch."""
        return self.metric.update_state(y_true, ops.sigmoid(y_pred), sample_weight=sample_weight)

    def result(self) -> Any:
        """Return the value."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """Return the metric that is inside."""
        return {"metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "OfProbability":
        """Return the metric that these settings describe."""
        return cls(keras.saving.deserialize_keras_object(config["metric"]))


def gives_one_logit(network: TappedNetwork) -> bool:
    """Return whether a network gives a single logit; false where a subclassed model does not tell its outputs."""
    if getattr(network.model, "output_shape", (0,))[-1] != 1:
        return False
    zero, one = ops.convert_to_numpy(network.to_logits(ops.full((1, 1), PROBED)))[0]
    return bool(abs(one - zero - PROBED) < 1e-6)


def of_one_logit(metrics: Any) -> Any:
    """Return metrics for `compile`, in which those that are given by their names are `OfProbability`."""
    return keras.tree.map_structure(lambda one: _of_probability(one) if isinstance(one, str) else one, metrics)


def _of_probability(name: str) -> OfProbability:
    metric = keras.metrics.BinaryAccuracy() if name.lower() in ("accuracy", "acc") else keras.metrics.get(name)
    if not isinstance(metric, keras.metrics.Metric):
        metric = keras.metrics.MeanMetricWrapper(metric)
    metric.name = name  # as Keras calls it in the logs
    return OfProbability(metric)
