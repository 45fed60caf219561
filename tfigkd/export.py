"""LiteRT files of a model, and the check that they still say what the model says."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfigkd import console
from tfigkd.config import fingerprint
from tfigkd.data import Examples, to_model_input
from tfigkd.data.stage import dataset
from tfigkd.errors import UserError
from tfigkd.fields import Config, ExportConfig
from tfigkd.metrics import accuracy, comparison, predict_logits
from tfigkd.student import load_student
from tfigkd.teacher import load_teacher, weights_fingerprint
from tfigkd.workdir import Workdir, atomic, checksum, finished, make_folder, write_manifest

Format = Literal["float32", "int8"]
FORMATS: tuple[Format, ...] = ("float32", "int8")


def convert(model: keras.Model, format: Format, calibration: np.ndarray | None = None) -> bytes:
    """Convert a Keras image classifier to a LiteRT file with a batch of one.

    Args:
        model: float32 [B,H,W,3] in [0,1] to logits [B,C].
        format: "float32", or "int8" for integer weights, activations, input and output.
        calibration: uint8 images [N,H,W,3] that fix the activation ranges; needed by int8. They go through
            `to_model_input`, the input path of training and evaluation.

    Returns:
        The content of a .tflite file.

    Raises:
        ValueError: int8 without calibration images.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    shape = (1, *model.input_shape[1:])
    function = tf.function(lambda images: model(images, training=False), jit_compile=False)
    signature = function.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="image"))
    # frozen, because a variable that is left in the graph breaks the calibration of int8
    frozen = convert_variables_to_constants_v2(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    if format == "int8":
        if calibration is None:
            raise ValueError("int8 needs calibration images")
        images = calibration

        def representative() -> Iterator[list[np.ndarray]]:
            for index in range(len(images)):
                yield [to_model_input(images[index : index + 1])]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with console.quiet_stderr():
        return converter.convert()


def open_litert(path: Path, *, threads: int | None = None) -> Any:
    """A LiteRT interpreter of a file, ready to run; all cores unless `threads` says otherwise.

    Raises:
        UserError: the file is not a LiteRT model.
    """
    with console.quiet_stderr():  # each file is greeted by the delegate
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_path=str(path), num_threads=threads or len(os.sched_getaffinity(0)))
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path} is not a LiteRT file: {error}") from error
    return interpreter


def litert_predictor(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 images [N,H,W,3] to float32 logits [N,C], run by LiteRT one image at a time.

    Raises:
        UserError: the file is not a LiteRT model.
    """
    interpreter = open_litert(path)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def predict(images: np.ndarray) -> np.ndarray:
        values = to_model_input(images)
        if source["dtype"] != np.float32:
            values = quantize(values, source)
        logits = np.empty((len(images), sink["shape"][-1]), np.float32)
        for index in range(len(images)):
            interpreter.set_tensor(source["index"], values[index : index + 1])
            interpreter.invoke()
            logits[index] = dequantize(interpreter.get_tensor(sink["index"]), sink)[0]
        return logits

    return predict


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


def parity(path: Path, examples: Examples, reference: np.ndarray) -> dict[str, float]:
    """What a file says of examples against its Keras model's logits [N,C], and its accuracy."""
    logits = litert_predictor(path)(examples.images)
    return {**dict(comparison(logits, reference)), "accuracy": accuracy(logits, examples.labels)}


def _gate(name: str, format: Format, report: dict[str, float], reference: np.ndarray, config: ExportConfig) -> None:
    if format == "float32":
        relative = report["max_difference"] / max(1.0, float(np.abs(reference).max()))
        if relative > config.max_float32_difference:
            raise UserError(
                f"export: {name} deviates from its Keras model by {relative:.2g} of the largest logit, allowed is "
                f"export.max_float32_difference = {config.max_float32_difference}"
            )
    elif report["agreement"] < config.min_int8_agreement:
        raise UserError(
            f"export: {name} agrees with its Keras model on {100 * report['agreement']:.1f} % of validation, needed is "
            f"export.min_int8_agreement = {config.min_int8_agreement}; try more export.calibration_examples"
        )


def file_name(role: str, format: str) -> str:
    """Name of an exported file, e.g. student.int8.tflite."""
    return f"{role}.{format}.tflite"


def export_identity(config: Config, weights: dict[str, str]) -> str:
    """Hash of everything the files depend on; `weights` are the fingerprints of the models, by role."""
    return fingerprint("export", dataset(config.data).fingerprint, weights, config.export)


def export(config: Config, workdir: Workdir) -> None:
    """Stage `export`: float32 and int8 files of student and teacher, with a parity report on validation each."""
    data, folder = dataset(config.data), make_folder(workdir.stage("export"))
    roles = {"student": load_student(config, workdir)}
    if config.needs_teacher:
        roles["teacher"] = load_teacher(config, workdir)
    weights = {role: weights_fingerprint(model) for role, model in roles.items()}
    identity = export_identity(config, weights)
    if finished(folder, identity):
        console.say(f"  done before: {folder}")
        return
    calibration = data.validation.images[: config.export.calibration_examples]
    reports: dict[str, dict[str, float]] = {}
    files: dict[str, str] = {}
    with console.progress("export", len(roles) * len(FORMATS)) as advance:
        for role, model in roles.items():
            reference = predict_logits(model, data.validation.images)
            for format in FORMATS:
                path = folder / file_name(role, format)
                with atomic(path) as temporary:
                    temporary.write_bytes(convert(model, format, calibration))
                reports[path.name] = parity(path, data.validation, reference)
                _gate(path.name, format, reports[path.name], reference, config.export)
                files[path.name] = checksum(path)
                advance()
    write_manifest(folder, identity, files=files, parity=reports)
    for name, report in reports.items():
        console.say(
            f"  {name}: {(folder / name).stat().st_size / 1e6:.2f} MB, agreement with Keras "
            f"{100 * report['agreement']:.2f} % of validation, largest difference {report['max_difference']:.2g}"
        )
