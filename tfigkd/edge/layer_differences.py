"""How far an int8 file is from the float32 file of the same model, layer by layer. It does not need TensorFlow.

Both files run on the same pictures with LiteRT's built-in kernels, and every value between their operations is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.spaces import UNIT, Range
from tfigkd.edge.litert import TYPE_CONVERSIONS, dequantize, input_details, input_values, open_classifier, open_litert
from tfigkd.edge.operations import Operation, operations_of
from tfigkd.runtime.errors import UserError


@dataclass(frozen=True)
class Difference:
    """How the output of an operation of an int8 file differs from that in the float32 file, over all pictures.

    Attributes:
        operation: Of the int8 file.
        cosine: Cosine of the angle between the values of both; 1 is equal.
        sqnr: Signal to quantization noise ratio in dB: 10 log10(sum of squares / sum of squared differences).
        noise: The same as a share: sum of squared differences / sum of squares.
        added: By how much the share is above that of the noisiest input; what this operation contributes.
        saturated: Share of the values that are the smallest or largest integer, while the float32 value is beyond it.
    """

    operation: Operation
    cosine: float
    sqnr: float
    noise: float
    added: float
    saturated: float


@dataclass(frozen=True)
class Comparison:
    """All differences of two files.

    Attributes:
        differences: Of each operation with a counterpart, in the order of the int8 file.
        unmatched: Operations without a counterpart in the float32 file.
        images: Number of pictures.
    """

    differences: tuple[Difference, ...]
    unmatched: tuple[Operation, ...]
    images: int

    def worst(self, count: int = 3) -> list[Difference]:
        """Return the operations that add most noise, the worst first."""
        return sorted((one for one in self.differences if one.added > 0), key=lambda one: -one.added)[:count]


def is_integer(path: Path) -> bool:
    """Return whether a file computes in integers: some of its operations have integer inputs and outputs.

    Raises:
        UserError: it is not a LiteRT model.
    """
    interpreter = open_litert(path, delegates=False)
    kinds = {tensor["index"]: np.dtype(tensor["dtype"]) for tensor in interpreter.get_tensor_details()}
    scaled = {one["index"] for one in interpreter.get_tensor_details() if one["quantization"][0]}
    whole = {index for index, kind in kinds.items() if kind in (np.int8, np.uint8, np.int16) and index in scaled}
    return any(
        {*operation.outputs} & whole and {*operation.inputs} & whole
        for operation in operations_of(interpreter)
        if operation.kind not in TYPE_CONVERSIONS
    )


def compare(
    quantized: Path,
    reference: Path,
    images: np.ndarray,
    *,
    input_range: Range = UNIT,
    reference_range: Range | None = None,
) -> Comparison:
    """Compare an int8 file with the float32 file of the same model.

    Args:
        quantized: A file that computes in integers.
        reference: The float32 file.
        images: uint8 [N,H,W,C].
        input_range: Values of a black and of a white pixel that the files take.
        reference_range: The same of the float32 file, where it differs.

    Raises:
        UserError: a file is damaged, they are not as above, or take images of another size.
    """
    if not is_integer(quantized):
        raise UserError(f"{quantized} computes in floats; layers are compared of an int8 file: --format int8 makes one")
    if is_integer(reference):
        raise UserError(f"{reference} computes in integers; --float32 takes the float32 file of the same model")
    sides = [_Side(quantized, input_range), _Side(reference, reference_range or input_range)]
    shapes = [tuple(map(int, side.source["shape"][1:])) for side in sides]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{quantized} takes images {shapes[0]}, {reference} takes {shapes[1]}; give files of the same model"
        )
    if images.shape[1:] != shapes[0]:
        raise UserError(f"{quantized} takes images {shapes[0]}, got {images.shape[1:]}; resize them: --image-size")
    matched = match(sides[0], sides[1])
    sums = {tensor: _Sums() for tensor in matched}
    for index in range(len(images)):
        for side in sides:
            side.run(images[index : index + 1])
        for tensor, other in matched.items():
            sums[tensor].add(sides[0].values(tensor), sides[1].values(other), sides[0].tensors[tensor])
    differences, unmatched = [], []
    for operation in sides[0].operations:
        if operation.kind in TYPE_CONVERSIONS or not operation.inputs:
            continue
        found = sums.get(operation.outputs[0])
        if found is None:
            unmatched.append(operation)
            continue
        before = [sums[tensor].noise for tensor in operation.inputs if tensor in sums]
        added = max(found.noise - max(before, default=0.0), 0.0)
        about = (found.cosine, found.sqnr, found.noise, added, found.saturated / found.count)
        differences.append(Difference(operation, *about))
    return Comparison(tuple(differences), tuple(unmatched), len(images))


class _Side:
    """A file that keeps the values between its operations."""

    def __init__(self, path: Path, input_range: Range) -> None:
        open_classifier(path, threads=1)
        self.interpreter = open_litert(path, threads=1, delegates=False, keep_tensors=True)
        self.operations = operations_of(self.interpreter)
        self.tensors: dict[int, Any] = {one["index"]: one for one in self.interpreter.get_tensor_details()}
        self.source = input_details(self.interpreter)
        self._range = input_range

    def run(self, image: np.ndarray) -> None:
        """Run an image, uint8 [1,H,W,C]."""
        self.interpreter.set_tensor(self.source["index"], input_values(image, self.source, self._range))
        self.interpreter.invoke()

    def values(self, tensor: int) -> np.ndarray:
        """Return the stored integers or floats of a tensor."""
        return self.interpreter.get_tensor(tensor)

    def weights(self, tensor: int) -> np.ndarray:
        """Return the real values of a constant, whose scale may differ from channel to channel."""
        values, about = self.values(tensor), self.tensors[tensor]["quantization_parameters"]
        if np.issubdtype(values.dtype, np.floating) or not len(about["scales"]):
            return values.astype(np.float32)
        shape = [1] * values.ndim
        if len(about["scales"]) > 1:
            shape[about["quantized_dimension"]] = -1
        scales, zeros = about["scales"].reshape(shape), about["zero_points"].reshape(shape)
        return (values.astype(np.float32) - zeros) * scales


class _Sums:
    """What is summed over all pictures for one tensor."""

    def __init__(self) -> None:
        self.signal = self.other = self.product = self.difference = 0.0
        self.saturated = self.count = 0

    def add(self, integers: np.ndarray, floats: np.ndarray, tensor: dict[str, Any]) -> None:
        expected = floats.astype(np.float64).ravel()
        found = dequantize(integers, tensor).astype(np.float64).ravel()
        self.signal += float(expected @ expected)
        self.other += float(found @ found)
        self.product += float(expected @ found)
        self.difference += float(np.square(expected - found).sum())
        self.count += expected.size
        scale, zero_point = tensor["quantization"]
        if not np.issubdtype(integers.dtype, np.floating) and scale:
            limits = np.iinfo(integers.dtype)
            low, high = scale * (limits.min - zero_point - 0.5), scale * (limits.max - zero_point + 0.5)
            values = integers.ravel()
            beyond = ((values == limits.min) & (expected < low)) | ((values == limits.max) & (expected > high))
            self.saturated += int(np.count_nonzero(beyond))

    @property
    def noise(self) -> float:
        """Squared differences as a share of the squares."""
        if not self.signal:
            return 0.0 if not self.difference else math.inf
        return self.difference / self.signal

    @property
    def sqnr(self) -> float:
        return math.inf if not self.noise else -10 * math.log10(self.noise) if math.isfinite(self.noise) else -math.inf

    @property
    def cosine(self) -> float:
        length = math.sqrt(self.signal * self.other)
        return self.product / length if length else float(self.signal == self.other)


def match(quantized: _Side, reference: _Side) -> dict[int, int]:
    """Return the float tensor of each integer tensor that has a counterpart.

    From the input on, an operation's counterpart has its type, the shape of its output and the counterparts of its
    inputs. Among several, that with the same name is taken, else that with the most similar weights. Where no operation
    fits so, one with the same name and shape does.

    Args:
        quantized: The int8 file.
        reference: The float32 file.
    """
    found = {quantized.source["index"]: reference.source["index"]}
    used: set[int] = set()
    for operation in quantized.operations:
        if operation.kind in TYPE_CONVERSIONS and operation.inputs:
            if operation.inputs[0] in found:
                found[operation.outputs[0]] = found[operation.inputs[0]]
            continue
        free = [one for one in reference.operations if one.index not in used and one.shape == operation.shape]
        wanted = [found.get(tensor, -1) for tensor in operation.inputs]
        fitting = [one for one in free if one.kind == operation.kind and sorted(one.inputs) == sorted(wanted)]
        if not operation.inputs:
            fitting = []
        fitting = fitting or [one for one in free if one.name == operation.name]
        if not fitting:
            continue
        chosen = fitting[0] if len(fitting) == 1 else _closest(operation, fitting, quantized, reference)
        used.add(chosen.index)
        found |= dict(zip(operation.outputs, chosen.outputs, strict=False))
    return found


def _closest(operation: Operation, fitting: Sequence[Operation], quantized: _Side, reference: _Side) -> Operation:
    """Return the operation with the same name, else that with the most similar weights."""
    named = [one for one in fitting if one.name == operation.name]
    return named[0] if named else max(fitting, key=lambda one: _similarity(operation, one, quantized, reference))


def _similarity(operation: Operation, other: Operation, quantized: _Side, reference: _Side) -> float:
    """Return the cosine of the largest constants of two operations."""
    pair = []
    for side, one in ((quantized, operation), (reference, other)):
        weights = [side.weights(tensor).ravel() for tensor in one.constants]
        pair.append(max(weights, key=len, default=np.zeros(1, np.float32)))
    if pair[0].size != pair[1].size:
        return -2.0
    length = float(np.linalg.norm(pair[0]) * np.linalg.norm(pair[1]))
    return float(pair[0] @ pair[1]) / length if length else 0.0
