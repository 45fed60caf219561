"""The contract of an exported file, a JSON file beside it: the input tensor, the output tensor and the class names.

The contract of `student.int8.tflite` is `student.int8.json`. This module does not need TensorFlow.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.edge.litert import input_details, open_classifier, output_details, trial
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, read_signed, write_signed


def contract_path(model: Path) -> Path:
    """Return the path of the contract of a .tflite file."""
    return model.with_suffix(".json")


def is_foreign(path: Path) -> bool:
    """Return whether the file in the place of a model's contract is JSON of another tool, such as a list of labels."""
    try:
        content = json.loads(contract_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or not content.keys() & {"file", "sha256"}


def write_contract(path: Path, class_names: Sequence[str] | None, **about: Any) -> None:
    """Write the contract of a finished .tflite file.

    Args:
        path: The .tflite file.
        class_names: In the order of the logits; None if they are unknown.
        about: Further facts about the file, as JSON values.
    """
    interpreter = open_classifier(path)
    source, sink = input_details(interpreter), output_details(interpreter)
    content = {
        "file": path.name,
        "sha256": checksum(path),
        **about,
        "input": _tensor(source)
        | {"layout": "NHWC", "colors": "RGB" if source["shape"][-1] == 3 else "gray", "range": [0.0, 1.0]}
        | {"means": "pixel / 255"},
        "output": _tensor(sink) | {"means": "logits"},
        "class_names": None if class_names is None else list(class_names),
    }
    write_signed(contract_path(path), content)


def _tensor(details: Mapping[str, Any]) -> dict[str, Any]:
    scale, zero_point = details["quantization"]
    tensor = {"shape": [int(size) for size in details["shape"]], "dtype": np.dtype(details["dtype"]).name}
    if scale:
        tensor["quantization"] = {
            "scale": float(scale),
            "zero_point": int(zero_point),
            "means": "integer = round(value / scale) + zero_point",
        }
    return tensor


def read_contract(path: Path) -> dict[str, Any] | None:
    """Return the contract of a .tflite file, or None if the file has no contract beside it, or JSON of another tool.

    Raises:
        UserError: the contract is damaged, or it describes another file.
    """
    beside, remedy = contract_path(path), "delete it or export anew"
    if is_foreign(path):
        return None
    try:
        content = read_signed(beside, remedy, names=("sha256", "class_names"), unsigned=True)
    except FileNotFoundError:
        return None
    if not path.is_file():
        raise UserError(f"no file {path}; give the path of a .tflite file")
    if checksum(path) != content["sha256"]:
        raise UserError(f"{path} is not the file that {beside} describes: its checksum differs; export it anew")
    names = content["class_names"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{beside} has no list of class_names; {remedy}")
    return content


def verified_contract(path: Path) -> dict[str, Any] | None:
    """Check that a .tflite file is safe to open, and return its contract; None if it has none, or does not exist.

    About one damaged file in a thousand crashes the process that opens it. A file without a contract is therefore
    opened and run in a child process first; a file with a contract must match its checksum.

    Raises:
        UserError: the file or its contract is damaged, or the contract describes another file.
    """
    if path.suffix == ".keras":
        raise UserError(f"{path} is no .tflite file; make one of it: python -m tfigkd.export {path} --format int8 ...")
    contract = read_contract(path)
    if contract is None and path.is_file():
        trial(path)
    return contract
