"""Inference and inspection of LiteRT files, with ai-edge-litert and NumPy only."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data import to_model_input
from tfigkd.data.disk import Pictures
from tfigkd.data.spaces import UNIT, Outputs, Range, in_range, to_logits
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.machine import cores
from tfigkd.runtime.processes import call_module
from tfigkd.runtime.quiet import quiet_stderr

IDENTIFIER = b"TFL3"
TYPE_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
"""Operations that change the type of a tensor and nothing else."""
TRIAL_SECONDS = 600
"""Time limit of a trial run; a file that needs longer for one image is refused."""


def open_litert(
    model: Path | bytes, *, threads: int | None = None, delegates: bool = True, keep_tensors: bool = False
) -> Any:
    """Return a LiteRT interpreter, ready to run.

    Args:
        model: A .tflite file, or its content.
        threads: Number of threads; by default all cores that this process may use.
        delegates: Use XNNPACK for the operations that it supports. Without it the interpreter has exactly the
            operations and tensors of the file.
        keep_tensors: Keep the values between the operations, which otherwise overwrite each other.

    Raises:
        UserError: it is not a LiteRT model, or it leaves the size of its images open.
    """
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"no file {model}; give the path of a .tflite file")
    options: dict[str, Any] = {"num_threads": threads or cores()}
    options["experimental_preserve_all_tensors"] = keep_tensors
    options |= {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    with quiet_stderr():  # the delegate prints a line for each file
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        if not delegates:
            options["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = None
        try:
            interpreter = Interpreter(**options)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if interpreter is not None:
                _require_size(model, interpreter)
            if isinstance(model, bytes):
                raise UserError(f"LiteRT refuses the file: {reason}") from error
            raise UserError(f"{model} is not a LiteRT file: {reason}; export it anew") from error
    return interpreter


def _require_size(model: Path | bytes, interpreter: Any) -> None:
    """Check that a file says the size of its images; only the number of images may be open, which is one then.

    Raises:
        UserError: a height, width or number of channels is open.
    """
    for tensor in interpreter.get_input_details():
        shape = [int(size) for size in tensor["shape_signature"]]
        if -1 in shape[1:]:
            open_ones = ",".join("?" if size < 0 else str(size) for size in shape)
            name = model if isinstance(model, Path) else "the file"
            raise UserError(f"{name} takes images of any size, [{open_ones}]; export it with a fixed size")


def file_operations(interpreter: Any) -> list[dict[str, Any]]:
    """Return the operations of an interpreter's file in its order, without the delegates that it was given.

    This is the only place that uses LiteRT's private name of them.

    Returns:
        Of each operation `index`, its place in the file from 0, `op_name`, its type such as CONV_2D, and `inputs` and
        `outputs`, arrays of tensor indices; a missing optional input is -1.
    """
    return [operation for operation in interpreter._get_ops_details() if operation["op_name"] != "DELEGATE"]


def trial(path: Path) -> None:
    """Open a file and run it once in a child process, because a damaged file can crash the process.

    Raises:
        UserError: the file is not a LiteRT model, or the child process crashed or timed out.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] != IDENTIFIER:
        raise UserError(f"{path} is not a LiteRT file: its identifier is not {IDENTIFIER.decode()}; export it anew")
    try:
        done = call_module("tfigkd.edge.litert", path, seconds=TRIAL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path} did not run once in {TRIAL_SECONDS} s; it may be damaged, export it anew") from error
    if done.returncode == 1 and done.stderr.startswith(str(path)):
        raise UserError(done.stderr.strip())
    if done.returncode:
        raise UserError(f"{path} is damaged: a trial run ended with status {done.returncode}; export it anew")


def float_tensors(model: Path | bytes, *, inside: bool = False) -> list[str]:
    """Return the names of all float tensors of any width, weights included; a full int8 file has none.

    Args:
        model: A .tflite file, or its content.
        inside: Leave out the input and the output; an int8 file with float32 input and output has none then.

    Raises:
        UserError: it is not a LiteRT model.
    """
    interpreter = open_litert(model, delegates=False)
    outer = [*interpreter.get_input_details(), *interpreter.get_output_details()] if inside else []
    left_out = {tensor["index"] for tensor in outer}
    return [
        tensor["name"]
        for tensor in interpreter.get_tensor_details()
        if np.issubdtype(tensor["dtype"], np.floating) and tensor["index"] not in left_out
    ]


def float_operations(model: Path | bytes) -> list[str]:
    """Return the types of operations, such as SIN, with float outputs, without those that only convert types.

    Raises:
        UserError: it is not a LiteRT model.
    """
    interpreter = open_litert(model, delegates=False)
    floats = {
        tensor["index"] for tensor in interpreter.get_tensor_details() if np.issubdtype(tensor["dtype"], np.floating)
    }
    return sorted(
        {
            operation["op_name"]
            for operation in file_operations(interpreter)
            if operation["op_name"] not in TYPE_CONVERSIONS and floats & {*operation["outputs"]}
        }
    )


def open_classifier(model: Path, *, threads: int | None = None) -> Any:
    """Return the interpreter of a file that maps one image to one value for each class; it has run once.

    Raises:
        UserError: the file is not a LiteRT model, or its inputs and outputs are not those of an image classifier.
    """
    interpreter = open_litert(model, threads=threads)
    _require_size(model, interpreter)
    sources, sinks = interpreter.get_input_details(), interpreter.get_output_details()
    takes, gives = ([tuple(map(int, tensor["shape"])) for tensor in tensors] for tensors in (sources, sinks))
    image = len(takes) == 1 and len(takes[0]) == 4 and takes[0][0] == 1 and takes[0][3] in (1, 3)
    if not image or len(gives) != 1 or len(gives[0]) != 2 or gives[0][0] != 1:
        raise UserError(
            f"{model} takes {takes} and gives {gives}; expected one image [1,H,W,3] and values [1,classes]; "
            "convert it for a batch of 1, with one output"
        )
    pixels = sources[0]["dtype"] == np.uint8  # without a scale they are pixels from 0 to 255
    for tensor in (sinks[0],) if pixels else (sources[0], sinks[0]):
        if not np.issubdtype(tensor["dtype"], np.floating) and not tensor["quantization"][0]:
            raise UserError(f"{model} has {np.dtype(tensor['dtype']).name} values without a scale; export it with one")
    try:
        interpreter.invoke()  # some damage is found only when the file is run
    except RuntimeError as error:
        raise UserError(f"{model} cannot be run: {' '.join(str(error).split())}; export it anew") from error
    return interpreter


def input_details(interpreter: Any) -> dict[str, Any]:
    """Return LiteRT's details of the only input."""
    return interpreter.get_input_details()[0]


def output_details(interpreter: Any) -> dict[str, Any]:
    """Return LiteRT's details of the only output."""
    return interpreter.get_output_details()[0]


def class_count(sink: Mapping[str, Any]) -> int:
    """Return the number of classes of a classifier's output; a single value is that of the second of two."""
    return max(int(sink["shape"][-1]), 2)


def litert_predictor(
    path: Path, *, input_range: Range = UNIT, outputs: Outputs = "logits"
) -> Callable[[Any], np.ndarray]:
    """Return a function from uint8 images [N,H,W,C] to float32 logits [N,K], run by LiteRT one image at a time.

    Args:
        path: A .tflite file.
        input_range: The values of a black and of a white pixel that it takes.
        outputs: What it gives; one output is that of the second of two classes.

    Raises:
        UserError: the file is not a LiteRT image classifier. The returned function raises it for images of another
            size.
    """
    interpreter = open_classifier(path)
    source, sink = input_details(interpreter), output_details(interpreter)

    def predict(images: Pictures) -> np.ndarray:
        if images.shape[1:] != tuple(source["shape"][1:]):
            wanted = tuple(map(int, source["shape"][1:]))
            raise UserError(f"{path} takes images {wanted}, got {images.shape[1:]}; resize them: --image-size")
        logits = np.empty((len(images), sink["shape"][-1]), np.float32)
        for index in range(len(images)):
            interpreter.set_tensor(source["index"], input_values(images[index][None], source, input_range))
            interpreter.invoke()
            logits[index] = dequantize(interpreter.get_tensor(sink["index"]), sink)[0]
        return to_logits(logits, outputs)

    return predict


def input_values(images: np.ndarray, tensor: dict[str, Any], input_range: Range = UNIT) -> np.ndarray:
    """Convert uint8 pixels [N,H,W,C] to the values and type of an input tensor that takes black and white as given."""
    return tensor_values(in_range(to_model_input(images), input_range), tensor)


def tensor_values(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Convert real values to the type of an input tensor; integers without a scale are the values themselves."""
    if np.issubdtype(tensor["dtype"], np.floating):
        return values.astype(tensor["dtype"], copy=False)
    if not tensor["quantization"][0]:
        limits = np.iinfo(tensor["dtype"])
        return np.clip(np.round(values), limits.min, limits.max).astype(tensor["dtype"])
    return quantize(values, tensor)


def quantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Convert real values to the integers of a LiteRT tensor."""
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(tensor["dtype"])


def dequantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Convert the values of a LiteRT tensor to float32; integers by its scale and zero point."""
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32, copy=False)
    scale, zero_point = tensor["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


if __name__ == "__main__":
    try:
        open_classifier(Path(sys.argv[1]), threads=1)
    except UserError as error:
        sys.exit(str(error))
