"""Comparison of two models that must be the same function: outputs on random inputs, and the first layer that differs.

Every model that is rebuilt goes through this check. It detects a rebuilt model that has lost part of the original,
such as a layer's state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfigkd.models.graph import flatten_layers, is_built_graph, run_graph, takes_training
from tfigkd.runtime.errors import UserError

EXAMPLES = 3
RANGES = ((0.0, 1.0), (0.0, 1.0), (0.0, 255.0))
"""Range of the values of each example: that of this package's images, or that of a model that scales pixels itself."""
OPEN_SIZE = 32
"""Stands for a dimension that a model leaves open, such as the size of its images."""
TOLERANCES = {"float16": 3e-2, "bfloat16": 2e-1}
"""Largest difference, relative to the largest output, where a model computes in half precision."""
TOLERANCE = 1e-3
"""The same in single precision: other kernels and folded constants round differently."""


def random_inputs(model: keras.Model, open_size: int = OPEN_SIZE) -> list[np.ndarray]:
    """Return random inputs [B,...] of a model: floats in the ranges of images, integers from 0 to 255.

    Args:
        model: Functional or built Sequential.
        open_size: Stands for a dimension that the model leaves open.
    """
    generator = np.random.default_rng(0)
    inputs = []
    for tensor in model.inputs:
        count, *shape = (tensor.shape[0] or EXAMPLES, *(size or open_size for size in tensor.shape[1:]))
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        values = generator.random((count, *shape))
        if "int" in dtype:
            inputs.append(np.floor(values * 256).astype(dtype))
            continue
        for index in range(count):
            low, high = RANGES[index % len(RANGES)]
            values[index] = low + values[index] * (high - low)
        inputs.append(values.astype("float32"))
    return inputs


def check_same(
    made: keras.Model,
    source: keras.Model,
    *,
    through: Callable[[np.ndarray], np.ndarray] | None = None,
    what: str = "the rebuilt model",
) -> None:
    """Check that a model made from another one gives the same outputs, in inference mode, on random inputs.

    A source that cannot run on random inputs, such as integers outside of an embedding, is not compared.

    Args:
        made: The new model.
        source: The model that it must be equal to, of the same inputs.
        through: Applied to the new outputs before they are compared.
        what: Names the new model in the error.

    Raises:
        UserError: the outputs differ; the first layer that differs is named.
    """
    inputs = random_inputs(made)
    try:
        expected = _run(source, inputs)
    except Exception:  # whatever the backend raises for inputs or layouts that it cannot run
        return
    found = _run(made, inputs)
    if through is not None:
        found = [through(output) for output in found]
    tolerance = max(tolerance_of(made), tolerance_of(source))
    if len(found) == len(expected) and all(map(close, found, expected, [tolerance] * len(found))):
        return
    # networks with huge gains amplify rounding, so each layer is compared on the very inputs that the source gives it
    place, stepwise = first_difference(made, source, inputs)
    if through is not None:
        stepwise = [through(output) for output in stepwise]
    if len(stepwise) == len(expected) and all(map(close, stepwise, expected, [tolerance] * len(stepwise))):
        return
    layer = f"the first layer that differs is {place!r}" if place else "no layer of the same name differs"
    sizes = [float(np.max(_difference(*pair), initial=0.0)) for pair in zip(found, expected, strict=False)]
    raise UserError(
        f"{what} of {source.name!r} does not give the model's outputs (they differ by {max(sizes):.2g}): "
        f"{layer}; use a stock layer in its place, or report this model as a bug"
    )


def first_difference(
    made: keras.Model, source: keras.Model, inputs: Sequence[np.ndarray]
) -> tuple[str | None, list[np.ndarray]]:
    """Compare two models layer by layer, each on the inputs that the source gives it, so that no rounding adds up.

    Layers are paired by path and order of calls. A layer that differs while a later one agrees again, such as a
    convolution that has taken in its batch normalization, does not count.

    Args:
        made: The new model.
        source: The model that it must be equal to, of the same inputs.
        inputs: An array [B,...] for each input of the source.

    Returns:
        The path, such as "backbone/norm", of the first layer that differs, or None; and the outputs that `made` has if
        every layer that agrees with the source gives the source's very outputs.
    """
    tolerance = max(tolerance_of(made), tolerance_of(source))
    expected: dict[str, np.ndarray] = {}
    _visit(source, inputs, lambda path, output: expected.setdefault(path, output))
    differing: list[str] = []

    def compare(path: str, output: np.ndarray) -> np.ndarray:
        if path not in expected:
            return output
        if not close(output, expected[path], tolerance):
            differing.append(path)
            return output
        differing.clear()
        return expected[path]

    outputs = _visit(made, inputs, compare)
    return (differing[0] if differing else None), outputs


def _visit(model: keras.Model, inputs: Sequence[Any], see: Callable[[str, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Run a model operation by operation; `see` is given path and output of each, and returns the value to pass on."""
    counts: dict[str, int] = {}

    def run(graph: keras.Model, given: Any, prefix: str) -> Any:
        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            path = prefix + operation.name
            if takes_training(operation):
                kwargs["training"] = False  # random layers of Keras augment by default
            inside = is_built_graph(operation)
            result = run(operation, args[0], f"{path}/") if inside else operation(*args, **kwargs)
            if not keras.ops.is_tensor(result):
                return result  # several outputs
            counts[path] = counts.get(path, 0) + 1
            name = path if counts[path] == 1 else f"{path} (call {counts[path]})"
            return keras.ops.convert_to_tensor(see(name, _array(result)), dtype=result.dtype)

        return run_graph(keras.Model(graph.inputs, graph.outputs), given, call)

    tensors = [keras.ops.convert_to_tensor(values) for values in inputs]
    return [_array(output) for output in keras.tree.flatten(run(model, tensors, ""))]


def _run(model: keras.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    given = keras.tree.pack_sequence_as(model.input, list(inputs))
    return [_array(output) for output in keras.tree.flatten(model(given, training=False))]


def _array(output: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")).astype("float64")


def _difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the largest difference of each example, [B]; equal infinities and NaN in both do not differ."""
    with np.errstate(invalid="ignore"):
        off = np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0.0, np.abs(found - expected))
    return np.nan_to_num(off, nan=np.inf).reshape(len(off), -1).max(axis=1, initial=0.0)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Return whether outputs differ by at most a share of each example's largest output.

    Args:
        found: [B,...].
        expected: [B,...], with the largest outputs.
        tolerance: The share, such as 1e-3.
    """
    if found.shape != expected.shape:
        return False
    sizes = np.where(np.isfinite(expected), np.abs(expected), 0.0).reshape(len(expected), -1).max(axis=1, initial=0.0)
    return bool((_difference(found, expected) <= tolerance * sizes + 1e-6).all())


def tolerance_of(model: keras.Model) -> float:
    """Return the largest relative difference that the precision of a model's layers explains."""
    computed = {layer.compute_dtype for layer in flatten_layers(model, include_self=True)}
    return max((TOLERANCES.get(dtype, TOLERANCE) for dtype in computed), default=TOLERANCE)
