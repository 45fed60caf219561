"""The contract of an exported file, written beside it: what goes in, what comes out, what the classes are called.

`student.int8.tflite` has its contract in `student.int8.json`. Nothing here needs TensorFlow.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.errors import UserError
from tfigkd.litert import open_classifier
from tfigkd.workdir import checksum, write_text


def contract_path(model: Path) -> Path:
    """Where the contract of a .tflite file lies."""
    return model.with_suffix(".json")


def write_contract(path: Path, class_names: Sequence[str] | None, **about: Any) -> None:
    """Write the contract of a file that is complete.

    Args:
        path: The .tflite file.
        class_names: In the order of the logits, where they are known.
        about: What else is known of the file; plain JSON values.
    """
    interpreter = open_classifier(path)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
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
    write_text(contract_path(path), json.dumps(content, indent=1) + "\n")


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
    """The contract of a .tflite file, or None where there is none beside it.

    Raises:
        UserError: the contract is damaged, or the file is not the one that it describes.
    """
    beside = contract_path(path)
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        expected, names = content["sha256"], content["class_names"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{beside} is no contract of a file ({type(error).__name__}); delete it or export anew"
        ) from error
    if not path.is_file():
        raise UserError(f"no file {path}; give the path of a .tflite file")
    if checksum(path) != expected:
        raise UserError(f"{path} is not the file that {beside} describes: its checksum differs; export it anew")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{beside} has no list of class_names; delete it or export anew")
    return content
