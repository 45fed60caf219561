"""Whether two models are the same function: outputs on random inputs, and the first layer that differs.

Every model that is rebuilt passes this check. A rebuilt model that has lost something of the original, such as a
layer's state, would otherwise be wrong without a word.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfigkd.runtime.errors import UserError

EXAMPLES = 3
RANGES = ((0.0, 1.0), (0.0, 1.0), (0.0, 255.0))
"""Of each example: the range of this package's images, and that of a model which scales its pixels itself."""
OPEN_SIZE = 32
"""Stands for a dimension that the model leaves open."""
TOLERANCES = {"float16": 3e-2, "bfloat16": 2e-1}
"""Largest difference, relative to the largest output, where a model computes in half precision."""
TOLERANCE = 1e-3
"""The same in single precision: other kernels and folded constants round differently."""
ROUNDING = 10.0
"""A difference counts as rounding up to so many times the effect of rounding the inputs."""


def random_inputs(model: keras.Model) -> list[np.ndarray]:
    """Random inputs [B,...] of a model: float values in the ranges of images, integers 0 to 255."""
    generator = np.random.default_rng(0)
    inputs = []
    for tensor in model.inputs:
        count, *shape = (tensor.shape[0] or EXAMPLES, *(size or OPEN_SIZE for size in tensor.shape[1:]))
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
    # networks with huge gains amplify rounding; only what exceeds that is another function
    moved = _run(source, [_rounded(values, tolerance) for values in inputs])
    spread = [ROUNDING * _difference(*pair) for pair in zip(moved, expected, strict=True)]
    if len(found) == len(expected) and all(map(close, found, expected, [tolerance] * len(found), spread)):
        return
    place = first_difference(made, source, inputs)
    layer = f"the first layer that differs is {place!r}" if place else "no layer of the same name differs"
    sizes = [float(np.max(_difference(*pair), initial=0.0)) for pair in zip(found, expected, strict=False)]
    raise UserError(
        f"{what} of {source.name!r} is another function than the model itself (outputs differ by {max(sizes):.2g}): "
        f"{layer}; use a stock layer in its place, or report this model as a bug"
    )


def first_difference(made: keras.Model, source: keras.Model, inputs: Sequence[np.ndarray]) -> str | None:
    """Return the path, such as "backbone/norm", of the first layer whose outputs differ though all before agree.

    Layers are paired by path and order of calls. A layer that differs while a later one agrees again, such as a
    convolution that has taken in its batch normalization, does not count.
    """
    tolerance = max(tolerance_of(made), tolerance_of(source))
    expected = dict(_outputs_by_path(source, inputs))
    first = None
    for path, output in _outputs_by_path(made, inputs):
        if path not in expected:
            continue
        same = output.shape == expected[path].shape and close(output, expected[path], tolerance)
        first = None if same else (first or path)
    return first


def _outputs_by_path(model: keras.Model, inputs: Sequence[Any]) -> Iterator[tuple[str, np.ndarray]]:
    counts: dict[str, int] = {}
    for path, output in _visit(model, inputs, ""):
        counts[path] = counts.get(path, 0) + 1
        yield path if counts[path] == 1 else f"{path} (call {counts[path]})", _array(output)


def _visit(model: keras.Model, inputs: Sequence[Any], prefix: str) -> list[tuple[str, Any]]:
    """Return the outputs of every layer of a model in order of their computation, by path."""
    seen: list[tuple[str, Any]] = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        inside = isinstance(operation, keras.Model) and getattr(operation, "inputs", None)
        if inside:
            seen.extend(_visit(operation, keras.tree.flatten(args[0]), f"{prefix}{operation.name}/"))
        result = operation(*args, **kwargs)
        outputs = keras.tree.flatten(result)
        if len(outputs) == 1:
            seen.append((prefix + operation.name, outputs[0]))
        return result

    graph = keras.Model(model.inputs, model.outputs)
    graph._run_through_graph([keras.ops.convert_to_tensor(values) for values in inputs], call_fn=call)
    return seen


def _run(model: keras.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    given = keras.tree.pack_sequence_as(model.input, list(inputs))
    return [_array(output) for output in keras.tree.flatten(model(given, training=False))]


def _array(output: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")).astype("float64")


def _difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference of each example, [B]; equal infinities and NaN in both do not differ."""
    with np.errstate(invalid="ignore"):
        off = np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0.0, np.abs(found - expected))
    return np.nan_to_num(off, nan=np.inf).reshape(len(off), -1).max(axis=1, initial=0.0)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, spread: Any = 0.0) -> bool:
    """Check that outputs [B,...] differ by at most a share of each example's largest output and of its spread."""
    if found.shape != expected.shape:
        return False
    sizes = np.where(np.isfinite(expected), np.abs(expected), 0.0).reshape(len(expected), -1).max(axis=1, initial=0.0)
    return bool((_difference(found, expected) <= tolerance * sizes + spread + 1e-6).all())


def _rounded(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Floats moved by about a rounding error; integers as they are."""
    if values.dtype.kind != "f":
        return values
    signs = np.where(np.random.default_rng(1).random(values.shape) < 0.5, -1, 1)
    return (values * (1 + signs * (1e-6 if tolerance == TOLERANCE else tolerance / 20))).astype("float32")


def tolerance_of(model: keras.Model) -> float:
    """Return the largest relative difference that the precision of a model's layers explains."""
    computed = {layer.compute_dtype for layer in model._flatten_layers()}
    return max((TOLERANCES.get(dtype, TOLERANCE) for dtype in computed), default=TOLERANCE)
