"""The second quantizer: `ai-edge-quantizer` makes an int8 file of a float32 file, whole or without its worst layers.

An alternative to TensorFlow's converter. The package is optional: `pip install ai-edge-quantizer`.
"""

import contextlib
import io as streams
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.export_fields import IOType, Kept
from tfigkd.data import to_model_input
from tfigkd.edge.convert import check_content
from tfigkd.edge.layer_differences import compare
from tfigkd.edge.litert import input_details, open_litert
from tfigkd.edge.operations import Operation, read_operations
from tfigkd.runtime.errors import UserError, one_line
from tfigkd.runtime.quiet import quiet_stderr

PROFILED = 32
"""Calibration images on which the layers are compared to find the worst."""
BITS = {"int8": 8, "int16": 16}


@dataclass(frozen=True)
class Converted:
    """The content of a .tflite file.

    Attributes:
        content: The bytes.
        kept: Layers that stay out of int8.
    """

    content: bytes
    kept: tuple[str, ...]


def quantize_file(
    content: bytes, calibration: np.ndarray, *, io: IOType = "integer", keep: int = 0, keep_in: Kept = "float32"
) -> Converted:
    """Quantize a float32 file to int8 weights and activations.

    Args:
        content: Of a float32 .tflite file with one input and one output.
        calibration: uint8 images [N,H,W,C] that set the activation ranges.
        io: "integer" or "float32" input and output.
        keep: How many layers are not int8: those with weights that add most noise where all of the file is int8.
        keep_in: What these compute in: "float32", or "int16" activations with int8 weights.

    Raises:
        UserError: the package is not installed, or it cannot quantize this file, or not all of its operations.
    """
    make, recipe = _package(), _recipe(io, (), keep_in)
    with _reported():
        found = make(bytearray(content), recipe).calibrate(_sample(content, calibration[:1]), num_threads=1)
        ranges = _widened(found, content, calibration)
        whole = bytes(make(bytearray(content), recipe).quantize(ranges).quantized_model)
    # what may be kept has weights, and the package quantizes all of these
    check_content(whole, "int8", io, "leave out the quantizer ai-edge, or use another format")
    if not keep:
        return Converted(whole, ())
    worst = worst_operations(content, whole, calibration[:PROFILED], keep)
    with _reported():
        mixed = make(bytearray(content), _recipe(io, worst, keep_in)).quantize(ranges).quantized_model
    return Converted(bytes(mixed), tuple(one.layer for one in worst))


def worst_operations(content: bytes, whole: bytes, images: np.ndarray, count: int) -> list[Operation]:
    """Return the operations with weights of a float32 file that add most noise in int8, the worst first.

    Args:
        content: Of the float32 file.
        whole: Of the int8 file that was made of it: the names of its tensors are the same.
        images: uint8 [N,H,W,C].
        count: How many.

    Raises:
        UserError: the file has fewer operations with weights.
    """
    named = {one.name: one for one in read_operations(content) if one.multiply_adds}
    if count > len(named):
        raise UserError(f"export.keep is {count}, but the model has {len(named)} layers with weights; choose fewer")
    with tempfile.TemporaryDirectory() as folder:
        quantized, reference = Path(folder) / "int8.tflite", Path(folder) / "float32.tflite"
        quantized.write_bytes(whole)
        reference.write_bytes(content)
        compared = compare(quantized, reference, images)
    own = [one for one in compared.differences if one.operation.name in named]
    if len(own) < count:
        raise UserError(f"export.keep is {count}, but only {len(own)} layers can be compared; choose fewer")
    ordered = sorted(own, key=lambda one: (-one.added, one.sqnr))
    return [named[one.operation.name] for one in ordered[:count]]


def _package() -> Callable[..., Any]:
    """Return the package's class of quantizers."""
    try:
        with _silence():
            from ai_edge_quantizer.quantizer import Quantizer
    except ImportError as error:
        raise UserError(
            "the quantizer ai-edge needs the package ai-edge-quantizer: pip install ai-edge-quantizer"
        ) from error
    return Quantizer


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn an error of the package into one line, and hold back what it prints."""
    with _silence():
        try:
            yield
        except Exception as error:  # the package raises ValueError, RuntimeError, KeyError and others
            raise UserError(f"ai-edge-quantizer cannot quantize this model: {one_line(error)}") from error


def _sample(content: bytes, image: np.ndarray) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return an image, uint8 [1,H,W,C], as an input of the file's only signature."""
    ((key, ends),) = open_litert(content, threads=1).get_signature_list().items()
    (name,) = ends["inputs"]
    return {key: [{name: to_model_input(image)}]}


def _widened(found: Mapping[str, Any], content: bytes, calibration: np.ndarray) -> dict[str, Any]:
    """Return ranges from the smallest to the largest value of all calibration images.

    The package averages the ends of the ranges over the images instead, so that every image that is above average
    is clipped, most of all in the logits.

    Args:
        found: What the package has measured on one image: tensor's name to `min` and `max`.
        content: Of the float32 file.
        calibration: uint8 images [N,H,W,C].
    """
    interpreter = open_litert(content, threads=1, delegates=False, keep_tensors=True)
    source = input_details(interpreter)
    tensors = {one["name"]: one["index"] for one in interpreter.get_tensor_details() if one["name"] in found}
    ends = {name: (math.inf, -math.inf) for name in tensors}
    for place in range(len(calibration)):
        interpreter.set_tensor(source["index"], to_model_input(calibration[place : place + 1]))
        interpreter.invoke()
        for name, index in tensors.items():
            values, (low, high) = interpreter.get_tensor(index), ends[name]
            ends[name] = min(low, float(values.min())), max(high, float(values.max()))
    widened = dict(found)
    for name, (low, high) in ends.items():
        about = dict(found[name])
        widened[name] = about | {"min": np.full_like(about["min"], low), "max": np.full_like(about["max"], high)}
    return widened


def _recipe(io: IOType, kept: Sequence[Operation], keep_in: Kept) -> list[dict[str, Any]]:
    """Return the rules of the package, of which the last that fits an operation holds."""
    rules = [_rule(".*", "*", "int8")]
    if io == "float32":
        rules += [_rule(".*", end, "float32") for end in ("INPUT", "OUTPUT")]
    # the package matches the names of an operation's outputs, each followed by a semicolon
    return rules + [_rule(f"^{re.escape(one.name)};$", one.kind, keep_in) for one in kept]


def _rule(pattern: str, operation: str, kind: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"regex": pattern, "operation": operation}
    if kind == "float32":
        return rule | {"algorithm_key": "no_quantize", "op_config": {}}
    activations = {"num_bits": BITS[kind], "symmetric": kind == "int16", "granularity": "TENSORWISE", "dtype": "INT"}
    weights = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    config: dict[str, Any] = {"activation_tensor_config": activations, "weight_tensor_config": weights}
    config |= {"compute_precision": "INTEGER", "explicit_dequantize": False, "skip_checks": False}
    return rule | {"algorithm_key": "min_max_uniform_quantize", "op_config": config}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what the package prints, its progress bars and its warnings of memory."""
    with quiet_stderr(), contextlib.redirect_stdout(streams.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
