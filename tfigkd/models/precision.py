"""Networks rebuilt to train in another precision, layer by layer, and back to plain float32."""

from collections.abc import Collection
from typing import Any

import keras

from tfigkd.models.copies import copy_layer, mapped, verified_copy
from tfigkd.models.graph import flatten_layers, maker_of, sources_of

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
HALF = ("float16", "bfloat16")
OTHERS = (*HALF, "float64")
"""Types other than float32 in which layers of a user-provided model may compute."""
WITHOUT_WEIGHTS = (keras.layers.Activation, keras.layers.Softmax, keras.layers.Rescaling, keras.layers.Reshape)


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """Return a copy of a model whose layers compute in a precision; its weights stay float32.

    In a mixed precision the layers of `float32_layers` stay float32. "float32" makes a plain model again, whose file
    any Keras opens, of one that has been trained in a mixed precision.

    Args:
        model: Functional or Sequential; it is not altered. One that has the precision already is returned as it is.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".

    Returns:
        A Functional model with the same layer names and weights, not compiled.

    Raises:
        ValueError: an unknown precision, or a model that cannot be rebuilt.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    kept = float32_layers(model) if precision != "float32" else set()
    if not any(layer.dtype_policy.name != "float32" for layer in flatten_layers(model)) and precision == "float32":
        return model

    def replace(layer: keras.Layer) -> keras.Layer:
        if precision == "float32":
            return in_float32(layer)
        if isinstance(layer, keras.layers.Wrapper):  # what is inside has a policy of its own
            return copy_layer(layer)
        name = "float32" if layer.name in kept else precision
        return copy_layer(layer, lambda config: {**config, "dtype": name})

    return verified_copy(model, replace)


def in_float32(layer: keras.Layer) -> keras.Layer:
    """Return a new layer of the same configuration that computes in float32, with its own fresh weights."""
    return copy_layer(layer, lambda config: mapped(config, _in_float32))


def computes_in(layer: keras.Layer, dtypes: Collection[str]) -> bool:
    """Return whether a layer, or one inside it, computes in one of these types."""
    return any(one.compute_dtype in dtypes for one in flatten_layers(layer, include_self=True))


def _in_float32(config: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary of a layer's config with float32 in the place of a precision policy."""
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": "float32"}}
    return {**config, "dtype": "float32"} if config.get("dtype") in (*PRECISIONS, *OTHERS) else config


def float32_layers(model: keras.Model) -> set[str]:
    """Return the names of the layers that stay float32 in a mixed precision.

    - What makes the logits: the last layer with weights, and all after it.
    - The normalization of the input, a 1x1 depthwise convolution, since half precision would round the pixels.
    - On a CPU, as measured with TensorFlow 2.21 and AVX-512 in bfloat16: depthwise convolutions with strides,
      whose input gradient falls back to a reference kernel (199 against 8 ms of CPU time), and ReLU6, which takes three
      times its float32 (13.0 against 4.9 ms).

    The variables of normalization layers, moving averages included, are float32 in any mixed precision.
    """
    kept = head_layers(model)
    for layer in flatten_layers(model):
        plain = isinstance(layer, keras.layers.DepthwiseConv2D)
        of_channels = plain or isinstance(layer, keras.layers.SeparableConv2D)
        slow = on_cpu() and ((of_channels and max(layer.strides) > 1) or _clipped(layer))
        if slow or (plain and set(layer.kernel_size) == {1}):
            kept.add(layer.name)
    return kept


def _clipped(layer: keras.Layer) -> bool:
    """Return whether a layer's activation is a ReLU with an upper bound."""
    bounded = isinstance(layer, keras.layers.ReLU) and layer.max_value is not None
    return bounded or getattr(layer, "activation", None) is keras.activations.relu6


def head_layers(model: Any) -> set[str]:
    """Return the layers from the last one with weights to the outputs; models inside included."""
    names: set[str] = set()
    for output in model.outputs:
        layer = maker_of(output)
        while True:
            names.add(layer.name)
            if isinstance(layer, keras.Model):
                names |= head_layers(layer)
            sources = sources_of(layer)
            if getattr(layer, "weights", ()):
                break
            if len(sources) != 1 or not isinstance(layer, WITHOUT_WEIGHTS):
                break
            layer = maker_of(sources[0])
    return names


def on_cpu() -> bool:
    """Return whether training runs on the CPU, without an accelerator."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")
