"""The settings of a model beside its variables, whose changes a function that is already traced would not follow."""

from typing import Any

import keras
import numpy as np

from tfigkd.models.graph import flatten_layers

PLAIN = (str, bytes, int, float, bool, type(None))
OF_TRAINING = frozenset(
    {
        "compiled",
        "jit_compile",
        "loss",
        "optimizer",
        "predict_function",
        "run_eagerly",
        "steps_per_execution",
        "stop_evaluating",
        "stop_predicting",
        "stop_training",
        "test_function",
        "train_function",
    }
)
"""What `compile` and `fit` set on a model; it changes nothing of what the model computes."""


def settings_of(model: keras.Model) -> tuple[Any, ...]:
    """Return the settings of a model and its layers: numbers, texts, functions, and arrays that are no variables.

    The activation of a layer is among them, and the statistics of an adapted `Normalization`. They are read off
    the public attributes, which takes a fraction of the time of `get_config`. Lists and dictionaries are left out: in
    these a layer records shapes and the like while it is traced.

    Returns:
        A hashable value that refers to nothing of the model; equal ones mean equal settings.
    """
    return tuple(
        (id(layer), name, found)
        for layer in (model, *flatten_layers(model))
        for name, value in vars(layer).items()
        if not name.startswith("_") and name not in OF_TRAINING and (found := _comparable(value)) is not None
    )


def _comparable(value: Any) -> Any:
    """Return a hashable value that stands for a setting; None for what is no setting, such as a variable or layer."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple):
        return tuple(map(_comparable, value))
    if isinstance(value, keras.Variable | keras.KerasTensor | keras.Layer):
        return None
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        try:
            array = keras.ops.convert_to_numpy(value)
        except Exception:  # left by a trace, which has no value
            return None
        return array.shape, array.dtype.str, hash(array.tobytes())
    return id(value) if callable(value) else None
