"""An entropy bottleneck: a layer that rounds the features before the classifier and adds their rate to the loss.

A network is cut before its classifier: a device sends the rounded features, a server classifies them. Their rate is the
length, in bits, of an ideal entropy code under a density that is trained with the network. In training, uniform noise
replaces the rounding, which has no gradient (Ballé et al. 2017, arXiv 1611.01704).
"""

import math
from typing import Any

import keras
from keras import ops

from tfigkd.models.copies import copy_layer, copy_layer_state
from tfigkd.runtime.errors import UserError

Tensor = Any  # a tensor of the Keras backend in use

DENSITY = ("density_mean", "density_log_width")
"""Names of the density's variables. They have no weight decay, which would move them towards width 1 and mean 0."""


def rate_bits(values: Tensor, mean: Tensor, log_width: Tensor) -> Tensor:
    """Return the rate: -log2 of the probability of the unit interval around each value, under logistic densities.

    With b and a the ends of the interval in widths from the mean it is computed as
    log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)), which has a gradient however far out a value is.

    Args:
        values: [B,D], in steps.
        mean: [D].
        log_width: Logarithm of the densities' widths, [D].

    Returns:
        Bits, float32 [B,D].
    """
    inverse = ops.exp(-log_width)
    upper, lower = (values + 0.5 - mean) * inverse, (values - 0.5 - mean) * inverse
    inside = ops.log1p(-ops.exp(-inverse))
    return -(ops.log_sigmoid(upper) + ops.log_sigmoid(-lower) + inside) / math.log(2)


@keras.saving.register_keras_serializable("tfigkd")
class CodedFeatures(keras.layers.Layer):
    """A layer that rounds features [B,D] to multiples of a step; in training it adds noise as wide as a step instead.

    In training it adds `weight` times the mean number of bits of an image to the model's losses.

    Args:
        weight: Factor of the bits of an image in the loss.
        step: Distance between two values of the code, in the unit of the features.
    """

    def __init__(self, weight: float, step: float, **options: Any):
        super().__init__(**{**options, "dtype": "float32"})
        self.weight, self.step = weight, step
        self.noise = keras.random.SeedGenerator()

    def build(self, input_shape: Any) -> None:
        """Create mean and width of the density of each feature, in steps."""
        self.mean, self.log_width = (
            self.add_weight(shape=(input_shape[-1],), initializer="zeros", name=name) for name in DENSITY
        )

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return the decoded features, float32 [B,D]."""
        values = inputs / self.step
        if not training:  # the gradient passes as if there were no rounding, for maps of the network
            return inputs + ops.stop_gradient(ops.round(values) * self.step - inputs)
        values = values + keras.random.uniform(ops.shape(values), -0.5, 0.5, seed=self.noise)
        bits = rate_bits(values, self.mean, self.log_width)
        self.add_loss(self.weight * ops.mean(ops.sum(bits, axis=-1)))
        return values * self.step

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {**super().get_config(), "weight": self.weight, "step": self.step}


def with_code(model: keras.Model, weight: float, step: float) -> keras.Model:
    """Return a network with a layer `CodedFeatures` before its classifier and otherwise the model's own layers.

    Args:
        model: Functional, with a dense last layer that makes the logits.
        weight: Factor of the bits of an image in the loss; with 0 the model itself is returned.
        step: Distance between two values of the code, in the unit of the features.

    Returns:
        A Functional model whose last layer is a copy of the model's.

    Raises:
        UserError: The last layer is not dense, or not the logits.
    """
    if not weight:
        return model
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.linear:
        raise UserError(
            f"code.weight must be 0 with a student whose last layer is not a dense one that gives logits: "
            f"{model.name} ends in {last.name!r}"
        )
    return _with_classifier(model, last, CodedFeatures(weight, step, name="code")(last.input))


def without_code(model: keras.Model) -> keras.Model:
    """Return a network from `with_code` without its layer `CodedFeatures`: the classifier reads the exact features."""
    code = next((layer for layer in model.layers if isinstance(layer, CodedFeatures)), None)
    return model if code is None else _with_classifier(model, model.layers[-1], code.input)


def _with_classifier(model: keras.Model, classifier: keras.Layer, features: Tensor) -> keras.Model:
    """Return the layers of a model up to some features, and a copy of its classifier on them."""
    copied = copy_layer(classifier)
    result = keras.Model(model.input, copied(features), name=model.name)
    copy_layer_state(classifier, copied)
    return result
