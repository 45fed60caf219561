"""LiteRT files run and looked into, by ai-edge-litert and NumPy alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data import to_model_input
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.quiet import quiet_stderr

IDENTIFIER = b"TFL3"
TRIAL_SECONDS = 600
"""A file that takes longer to run once is none that anybody waits for."""


def open_litert(model: Path | bytes, *, threads: int | None = None, delegates: bool = True) -> Any:
    """A LiteRT interpreter, ready to run.

    Args:
        model: A .tflite file, or its content.
        threads: All cores that this process may use unless said otherwise.
        delegates: Run what XNNPACK knows by XNNPACK; without it the file's own operations and tensors are all there is.

    Raises:
        UserError: it is not a LiteRT model.
    """
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"no file {model}; give the path of a .tflite file")
    options: dict[str, Any] = {"num_threads": threads or available_cores()}
    options |= {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    with quiet_stderr():  # each file is greeted by the delegate
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        if not delegates:
            options["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            interpreter = Interpreter(**options)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if isinstance(model, bytes):
                raise UserError(f"LiteRT refuses it: {reason}") from error
            raise UserError(f"{model} is not a LiteRT file: {reason}; export it anew") from error
    return interpreter


def trial(path: Path) -> None:
    """Open and run a file in a child process, which damage may end in any way.

    Raises:
        UserError: it is not a LiteRT model, or the child did not survive it.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] != IDENTIFIER:
        raise UserError(f"{path} is not a LiteRT file: it does not have the mark {IDENTIFIER.decode()}; export it anew")
    # the child finds this package wherever the parent found it
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tfigkd.edge.litert", str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path} did not run once in {TRIAL_SECONDS} s; it may be damaged, export it anew") from error
    if done.returncode == 1 and done.stderr.startswith(str(path)):
        raise UserError(done.stderr.strip())
    if done.returncode:
        raise UserError(f"{path} is damaged: a trial run ended with status {done.returncode}; export it anew")


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def float_tensors(model: Path | bytes) -> list[str]:
    """Names of the tensors that hold floats of any width, weights included; none in a full int8 file.

    Raises:
        UserError: it is not a LiteRT model.
    """
    details = open_litert(model, delegates=False).get_tensor_details()
    return [tensor["name"] for tensor in details if np.issubdtype(tensor["dtype"], np.floating)]


def float_operations(model: Path | bytes) -> list[str]:
    """Kinds of operations, such as SIN, that give out floats; those that only convert between types are left out.

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
            for operation in interpreter._get_ops_details()
            if operation["op_name"] not in ("QUANTIZE", "DEQUANTIZE") and floats & {*operation["outputs"]}
        }
    )


def open_classifier(model: Path, *, threads: int | None = None) -> Any:
    """A LiteRT interpreter of a file that takes one image and gives a value for each class; it has run once.

    Raises:
        UserError: the file is not a LiteRT model, or not such a one.
    """
    interpreter = open_litert(model, threads=threads)
    sources, sinks = interpreter.get_input_details(), interpreter.get_output_details()
    takes, gives = ([tuple(map(int, tensor["shape"])) for tensor in tensors] for tensors in (sources, sinks))
    image = len(takes) == 1 and len(takes[0]) == 4 and takes[0][0] == 1 and takes[0][3] in (1, 3)
    if not image or len(gives) != 1 or len(gives[0]) != 2 or gives[0][0] != 1:
        raise UserError(f"{model} takes {takes} and gives {gives}; expected one image [1,H,W,3] and values [1,classes]")
    for tensor in (sources[0], sinks[0]):
        if not np.issubdtype(tensor["dtype"], np.floating) and not tensor["quantization"][0]:
            raise UserError(f"{model} has {np.dtype(tensor['dtype']).name} without a scale; export it with one")
    try:
        interpreter.invoke()  # some damage shows only now
    except RuntimeError as error:
        raise UserError(f"{model} cannot be run: {' '.join(str(error).split())}; export it anew") from error
    return interpreter


def litert_predictor(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 images [N,H,W,C] to float32 logits [N,K], run by LiteRT one image at a time.

    Raises:
        UserError: the file is not a LiteRT classifier of images; the images, later, are of another size.
    """
    interpreter = open_classifier(path)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def predict(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != tuple(source["shape"][1:]):
            raise UserError(f"{path} takes images {tuple(map(int, source['shape'][1:]))}, got {images.shape[1:]}")
        values = input_values(images, source)
        logits = np.empty((len(images), sink["shape"][-1]), np.float32)
        for index in range(len(images)):
            interpreter.set_tensor(source["index"], values[index : index + 1])
            interpreter.invoke()
            logits[index] = dequantize(interpreter.get_tensor(sink["index"]), sink)[0]
        return logits

    return predict


def input_values(images: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Pixels, uint8 [N,H,W,C], as the input tensor of a file takes them."""
    values = to_model_input(images)
    return values if np.issubdtype(tensor["dtype"], np.floating) else quantize(values, tensor)


def quantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Real values to the integers of a LiteRT tensor."""
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(tensor["dtype"])


def dequantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """The integers of a LiteRT tensor to real values; floats pass."""
    if values.dtype == np.float32:
        return values
    scale, zero_point = tensor["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


if __name__ == "__main__":
    try:
        open_classifier(Path(sys.argv[1]), threads=1)
    except UserError as error:
        sys.exit(str(error))
