"""LiteRT files as C sources for LiteRT for Microcontrollers. This module does not need TensorFlow."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.spaces import UNIT, Outputs, Range
from tfigkd.edge.classifier_files import infer_spaces
from tfigkd.edge.contract import verified_contract
from tfigkd.edge.litert import file_operations, input_details, open_classifier, open_litert, output_details
from tfigkd.edge.operations import tensor_bytes
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, write_text

ALIGNMENT = 16
"""Bytes at whose multiples tensors begin in the arena."""
BYTES_A_LINE = 16


@dataclass(frozen=True)
class _File:
    """What the C sources tell of a file.

    Attributes:
        path: Of the .tflite file.
        name: What the names in C begin with.
        source: Details of the input tensor, as LiteRT gives them.
        sink: Details of the output tensor.
        arena: From `arena_bytes`.
        operations: From `operation_names`.
        class_names: In the order of the outputs; None if they are unknown.
        input_range: The values of a black and of a white pixel.
        outputs: "logits" or "probabilities".
    """

    path: Path
    name: str
    source: dict[str, Any]
    sink: dict[str, Any]
    arena: int
    operations: list[str]
    class_names: list[str] | None
    input_range: Range
    outputs: Outputs


def write_c(
    model: Path, output: Path, *, input_range: Range | None = None, outputs: Outputs | None = None
) -> dict[str, Any]:
    """Write an int8 file as `NAME.c`, an array of its bytes, and `NAME.h`, its contract as constants.

    Args:
        model: A .tflite file whose input and output are int8.
        output: The .c file; the header is written beside it.
        input_range: The values of a black and of a white pixel; by default what the contract or the file shows.
        outputs: "logits" or "probabilities"; by default what the contract or the file shows.

    Returns:
        `bytes` of the file, `arena` (see `arena_bytes`) and `operations`, which the program has to register.

    Raises:
        UserError: The file is damaged, no image classifier, or not int8 at its ends.
    """
    contract = verified_contract(model)
    interpreter = open_classifier(model, threads=1)
    source, sink = input_details(interpreter), output_details(interpreter)
    if {source["dtype"], sink["dtype"]} != {np.int8}:
        takes, gives = (np.dtype(tensor["dtype"]).name for tensor in (source, sink))
        raise UserError(
            f"{model} takes {takes} and gives {gives}; microcontrollers take an int8 file: export it with --format int8"
        )
    if re.search("[A-Za-z0-9]", output.stem) is None:
        raise UserError(f"{output.name} has no Latin letter or digit for the names in C; choose another --output")
    name = re.sub(r"\W", "_", output.stem, flags=re.ASCII)
    name = f"_{name}" if name[0].isdigit() else name
    arena, operations = arena_bytes(model), operation_names(model)
    names = (contract or {}).get("class_names")
    taken, given = infer_spaces(interpreter, contract, input_range, outputs)
    file = _File(model, name, source, sink, arena, operations, names, taken, given)
    write_text(output.with_suffix(".h"), _header(file))
    write_text(output, _source(file, output))
    return {"bytes": model.stat().st_size, "arena": arena, "operations": operations}


def operation_names(model: Path) -> list[str]:
    """Return the types of a file's operations, such as CONV_2D, each once, in alphabetical order."""
    return sorted({operation["op_name"] for operation in file_operations(open_litert(model, delegates=False))})


def arena_bytes(model: Path) -> int:
    """Return the bytes that the tensors of a file need while it runs, without the interpreter's own structures.

    Placed as the planner of LiteRT for Microcontrollers does: the largest first, each at the lowest place that is free
    while it is needed. The interpreter and the scratch buffers of its kernels come on top.
    """
    interpreter = open_litert(model, delegates=False)
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    operations = file_operations(interpreter)
    first = {tensor["index"]: -1 for tensor in interpreter.get_input_details()}
    last = {tensor["index"]: len(operations) for tensor in interpreter.get_output_details()}
    for number, operation in enumerate(operations):
        for index in operation["outputs"]:
            first.setdefault(int(index), number)
        for index in operation["inputs"]:
            if index in first:
                last[int(index)] = max(number, last.get(int(index), number))
    sizes = {index: _aligned(tensor_bytes(details[index])) for index in first}
    placed: list[tuple[int, int]] = []  # tensor and offset
    for index in sorted(first, key=lambda index: (-sizes[index], first[index])):
        begin, end = first[index], last.get(index, first[index])
        beside = sorted(
            (offset, offset + sizes[other])
            for other, offset in placed
            if first[other] <= end and last.get(other, first[other]) >= begin
        )
        place = 0
        for low, high in beside:
            if place + sizes[index] <= low:
                break
            place = max(place, high)
        placed.append((index, place))
    return max((offset + sizes[index] for index, offset in placed), default=0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _header(file: _File) -> str:
    name, constant = file.name, file.name.upper()
    source, sink = file.source, file.sink
    (_, height, width, channels), (_, classes) = source["shape"], sink["shape"]
    values = {
        "HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "CLASSES": classes,
        "INPUT_SCALE": f"{source['quantization'][0]!r}f", "INPUT_ZERO_POINT": source["quantization"][1],
        "OUTPUT_SCALE": f"{sink['quantization'][0]!r}f", "OUTPUT_ZERO_POINT": sink["quantization"][1],
    }  # fmt: skip
    low, high = file.input_range
    value = "pixel / 255" if file.input_range == UNIT else f"({low:g} + {high - low:g} * pixel / 255)"
    meaning = "logit" if file.outputs == "logits" else "probability"
    lines = [f"#define {constant}_{key} {value}" for key, value in values.items()]
    named = f"extern const char *const {name}_class_names[{constant}_CLASSES];\n" if file.class_names else ""
    return f"""/* {file.path.name} for LiteRT for Microcontrollers, made by tfigkd.
   sha256 {checksum(file.path)}
   Input: int8 [1][HEIGHT][WIDTH][CHANNELS], round({value} / INPUT_SCALE) + INPUT_ZERO_POINT, at most 127.
   Output: int8 [1][CLASSES], {meaning} = (value - OUTPUT_ZERO_POINT) * OUTPUT_SCALE.
   Operations to register: {", ".join(file.operations)}. */
#ifndef {constant}_H_
#define {constant}_H_

{chr(10).join(lines)}
/* Of the tensors; the interpreter and scratch buffers come on top. */
#define {constant}_TENSOR_BYTES {file.arena}

#ifdef __cplusplus
extern "C" {{
#endif
extern const unsigned char {name}_model[];
extern const unsigned int {name}_model_size;
{named}#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(file: _File, output: Path) -> str:
    name, content = file.name, file.path.read_bytes()
    lines = [content[start : start + BYTES_A_LINE] for start in range(0, len(content), BYTES_A_LINE)]
    array = "\n".join("  " + " ".join(f"0x{byte:02x}," for byte in line) for line in lines)
    named = ""
    if file.class_names:
        quoted = ", ".join(_quoted(one) for one in file.class_names)
        named = f"\nconst char *const {name}_class_names[{name.upper()}_CLASSES] = {{{quoted}}};\n"
    return f"""#include "{output.with_suffix(".h").name}"

/* aligned as the flat buffer needs it */
#if defined(__GNUC__)
__attribute__((aligned({ALIGNMENT})))
#endif
const unsigned char {name}_model[] = {{
{array}
}};
const unsigned int {name}_model_size = sizeof({name}_model);
{named}"""


def _quoted(text: str) -> str:
    """Return a C string literal in UTF-8; octal escapes end after three digits, so that no digit joins them."""
    plain = set(b" !#$%&()*+,-./:;<=>@[]^_`{|}~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
