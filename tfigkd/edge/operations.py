"""The operations of a LiteRT file with their bytes and multiply-adds. This module does not need TensorFlow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.edge.litert import file_operations, open_litert

KERNELS = {"CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2), "TRANSPOSE_CONV": (1, 3)}
"""Operations with weights, and the positions of kernel and bias among their inputs."""

CONVERSIONS = ("DEQUANTIZE", "DENSIFY")
"""Operations through which float16 and some int8 weights go before they are used."""

WEIGHTED = ("convolution", "depthwise", "MatMul")
"""Beginnings of the last part of a tensor's name, by which the convolution or dense layer is found among what is
fused."""


@dataclass(frozen=True)
class Operation:
    """One operation of a file.

    Attributes:
        index: Its place in the file, from 0.
        kind: Its type, such as CONV_2D.
        name: Name of its first output, as the converter gave it.
        inputs: Tensors that it reads and that are computed, or are the file's input.
        constants: Tensors that it reads and that are stored in the file.
        outputs: Tensors that it writes.
        shape: Of its first output.
        dtype: Of its first output, such as int8.
        weight_bytes: Of the constants, as they are stored.
        activation_bytes: Of what it reads and writes besides the constants.
        multiply_adds: For one image; 0 for operations without weights.
    """

    index: int
    kind: str
    name: str
    inputs: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    weight_bytes: int
    activation_bytes: int
    multiply_adds: int

    @property
    def layer(self) -> str:
        """The name of the layer that does the work, without the model's and the operation's: `block_01_conv1_1`."""
        fused = [one.split("/") for one in self.name.split(";")]  # a convolution with its normalization and activation
        parts = next((one for one in fused if one[-1].startswith(WEIGHTED)), fused[0])
        return "/".join(parts[1:-1] if len(parts) > 2 else parts[-1:])


def read_operations(model: Path | bytes) -> list[Operation]:
    """Return the operations of a file in its order.

    Args:
        model: A .tflite file, or its content.

    Raises:
        UserError: it is not a LiteRT model.
    """
    return operations_of(open_litert(model, delegates=False))


def operations_of(interpreter: Any) -> list[Operation]:
    """Return the operations of an interpreter without delegates, which would replace some of them."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    found = file_operations(interpreter)
    origin = {one["outputs"][0]: one["inputs"][0] for one in found if one["op_name"] in CONVERSIONS}
    computed = {int(index) for one in found for index in one["outputs"]}
    computed |= {tensor["index"] for tensor in interpreter.get_input_details()}
    # weights that are stored in another type count where they are used
    computed -= {int(index) for index in origin if stored_tensor(index, origin) not in computed}
    return [_operation(one, tensors, computed, origin) for one in found]


def _operation(
    found: Mapping[str, Any], tensors: Mapping[int, Any], computed: set[int], origin: Mapping[int, int]
) -> Operation:
    read = [int(index) for index in found["inputs"] if index >= 0]
    inputs = tuple(index for index in read if index in computed)
    constants = tuple(index for index in read if index not in computed)
    outputs = tuple(int(index) for index in found["outputs"])
    first = tensors[outputs[0]]
    return Operation(
        index=int(found["index"]),
        kind=found["op_name"],
        name=first["name"],
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        shape=tuple(map(int, first["shape"])),
        dtype=np.dtype(first["dtype"]).name,
        weight_bytes=sum(tensor_bytes(tensors[stored_tensor(index, origin)]) for index in constants),
        activation_bytes=sum(tensor_bytes(tensors[index]) for index in (*inputs, *outputs)),
        multiply_adds=_multiply_adds(found, tensors, computed),
    )


def _multiply_adds(found: Mapping[str, Any], tensors: Mapping[int, Any], computed: set[int]) -> int:
    """Return the multiply-adds of an operation: each value of its kernel is used once at each output position.

    That of a transposed convolution is used once at each input position.
    """
    place = KERNELS.get(found["op_name"], (0,))[0]
    if not place or found["inputs"][place] in computed:
        return 0
    transposed = found["op_name"] == "TRANSPOSE_CONV"  # its inputs are a shape, the kernel and the image
    where = tensors[found["inputs"][2] if transposed else found["outputs"][0]]
    positions = math.prod(int(size) for size in where["shape"][1:-1])
    return positions * math.prod(map(int, tensors[found["inputs"][place]]["shape"]))


def kernel_tensors(operations: Sequence[Operation], interpreter: Any) -> set[int]:
    """Return the tensors that hold kernels and biases, as they are stored.

    Args:
        operations: Of the file.
        interpreter: That they are of.
    """
    found = {one["index"]: one for one in file_operations(interpreter)}
    origin = {one["outputs"][0]: one["inputs"][0] for one in found.values() if one["op_name"] in CONVERSIONS}
    held = set()
    for operation in operations:
        read = found[operation.index]["inputs"]
        for place in KERNELS.get(operation.kind, ()):
            if place < len(read) and read[place] in operation.constants:
                held.add(stored_tensor(int(read[place]), origin))
    return held


def stored_tensor(index: int, origin: Mapping[int, int]) -> int:
    """Return the stored tensor from which a converted one comes; other tensors are returned as they are."""
    while index in origin:
        index = origin[index]
    return int(index)


def tensor_bytes(tensor: Mapping[str, Any]) -> int:
    """Return the bytes of a tensor's values."""
    return math.prod(map(int, tensor["shape"])) * np.dtype(tensor["dtype"]).itemsize
