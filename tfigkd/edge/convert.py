"""Conversion of Keras models to LiteRT files, in five formats."""

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import keras
import numpy as np

from tfigkd.config.export_fields import FORMATS, Format, IOType
from tfigkd.data import to_model_input
from tfigkd.data.spaces import UNIT, Range, noise_images
from tfigkd.edge.litert import float_operations, float_tensors
from tfigkd.models.graph import flatten_layers, student_of
from tfigkd.models.input_range import require_unit_range
from tfigkd.runtime.errors import UserError, one_line
from tfigkd.runtime.quiet import quiet_stderr


class CalibrationMissingError(ValueError):
    """An integer format needs calibration images, and none are given."""

    def __init__(self, format: Format):
        super().__init__(f"{format} needs calibration images.")


class OperationError(UserError):
    """A format has no operation for a part of the model, whatever its weights are."""


CALIBRATED: tuple[Format, ...] = ("int8", "int16x8")


def convert(
    model: keras.Model,
    format: Format,
    calibration: np.ndarray | None = None,
    *,
    io: IOType = "integer",
    input_range: Range | None = None,
) -> bytes:
    """Convert a Keras image classifier to a LiteRT file with a batch of one.

    It needs Keras's TensorFlow backend: set KERAS_BACKEND=tensorflow before Keras is imported. A model that was trained
    on another one is saved, and converted in a process of its own.

    Args:
        model: float32 [B,H,W,C] in [0,1] to logits [B,K], of Keras 3 or tf_keras. If it has fake
            quantization, its learned ranges are used, and int8 needs no calibration.
        format: "float32"; "float16" weights; "dynamic": int8 weights, float activations; "int8": integer weights,
            activations, input and output; "int16x8": int8 weights, int16 activations, input and output.
        calibration: uint8 images [N,H,W,C] that set the activation ranges. They are preprocessed by `to_model_input`,
            as in training and evaluation.
        io: Of "int8" and "int16x8": "integer", or "float32" input and output around integer operations.
        input_range: Pixel values of black and white that the model takes; by default inferred from its layers. Formats
            with calibration refuse a model that does not take [0,1]; the other formats do not check.

    Returns:
        The content of a .tflite file.

    Raises:
        ValueError: the format is unknown, the image size is not fixed, or calibration images are needed and missing.
        UserError: the calibration images do not fit, or the model takes other pixels than they are given as; an
            operation does not exist in this format; or Keras runs on another backend.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow" and isinstance(model, keras.Model):  # one of tf_keras has no other
        raise UserError(
            f"conversion needs KERAS_BACKEND=tensorflow, this process has {backend}; save the model and convert it in "
            "a process of that backend"
        )
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if io not in get_args(IOType):
        raise ValueError(f"io must be one of {', '.join(get_args(IOType))}, got {io!r}")
    model = student_of(model)
    if not hasattr(model, "input_shape"):
        raise ValueError(f"expected a Keras model, got {type(model).__name__}; keras.saving.load_model opens a file")
    shape = (1, *model.input_shape[1:])
    if None in shape:
        raise ValueError(f"{model.name} leaves the size of its images open; build it with a fixed input shape")
    layers = flatten_layers(model, include_self=True)
    by_keras = [layer.name for layer in layers if getattr(layer, "quantization_mode", None)]
    if by_keras:
        raise OperationError(
            f"Keras has quantized layer {by_keras[0]!r} of this model (model.quantize), for which LiteRT has no "
            "operation; export the model as it was before, an int8 file is made of it here"
        )
    frozen = _freeze(model, shape)
    operations = _operations(frozen)
    learned = any(name.startswith("FakeQuant") for name in operations)
    if learned and format not in ("float32", "int8"):
        raise UserError(f"this model has fake quantization and cannot be converted to {format}; use int8 or float32")
    if format not in CALIBRATED or learned:
        return _run(frozen, format, io=io)
    if "Switch" in operations:  # with which the calibration of TensorFlow ends the process
        raise OperationError(
            f"this model cannot be converted to {format}: loops and branches, such as recurrent layers, have no "
            "integer form; use another format"
        )
    if calibration is None:
        raise CalibrationMissingError(format)
    require_unit_range(model, input_range, remedy=", or input_range=(0, 1) if it does take these")
    check_calibration(calibration, shape[1:])
    return _run(frozen, format, calibration, io=io)


def check_calibration(images: np.ndarray, image_shape: tuple[int, ...]) -> None:
    """Check that calibration images have the type, shape and pixel range of real inputs.

    Raises:
        UserError: the images are not uint8, have another size, are none at all, or do not use the range 0 to 255.
    """
    if not isinstance(images, np.ndarray):
        raise UserError(f"calibration images are a {type(images).__name__}; expected a NumPy array, uint8 [N,H,W,C]")
    if images.dtype != np.uint8:
        spread = f" from {images.min():.3g} to {images.max():.3g}" if images.size else ""
        raise UserError(
            f"calibration images are {images.dtype}{spread}; expected uint8 pixels 0 to 255, as tfigkd.data loads them"
        )
    if images.ndim != 4 or images.shape[1:] != image_shape or not len(images):
        expected = ",".join(map(str, image_shape))
        raise UserError(f"calibration images have the shape {images.shape}; expected [N,{expected}] and at least one")
    if images.max() - images.min() < 2:
        raise UserError(
            f"calibration images have only pixels from {images.min()} to {images.max()}, as if scaled to [0,1]; "
            "expected pixels 0 to 255"
        )


def _freeze(model: keras.Model, shape: tuple[int, ...]) -> Any:
    """Return the model's inference function with its variables frozen to constants.

    A variable that remains in the graph breaks the calibration of int8.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(lambda images: model(images, training=False), jit_compile=False)
    return convert_variables_to_constants_v2(
        function.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="image"))
    )


def _operations(frozen: Any) -> set[str]:
    """Return the names of the TensorFlow operations of a function and of the functions that it calls."""
    graph = frozen.graph.as_graph_def()
    return {node.op for nodes in (graph.node, *(each.node_def for each in graph.library.function)) for node in nodes}


def _run(frozen: Any, format: Format, calibration: np.ndarray | None = None, *, io: IOType) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    if format != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if format == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if format in CALIBRATED and io == "integer":
        converter.inference_input_type = converter.inference_output_type = tf.int8 if format == "int8" else tf.int16
    if calibration is not None:
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [sets.TFLITE_BUILTINS_INT8 if format == "int8" else wide]

        def representative() -> Iterator[list[np.ndarray]]:
            for index in range(len(calibration)):
                yield [to_model_input(calibration[index : index + 1])]

        converter.representative_dataset = representative
    with quiet_stderr(), warnings.catch_warnings():
        # the converter warns of missing statistics, which calibration gives it afterwards
        warnings.simplefilter("ignore", UserWarning)
        try:
            content = converter.convert()
        except Exception as error:  # the converter raises its own error types, RuntimeError and ValueError
            reason, known = _reason(error)
            kind = OperationError if known else UserError
            raise kind(f"this model cannot be converted to {format}: {reason}") from error
    check_content(content, format, io)
    return content


def check_content(content: bytes, format: Format, io: IOType, remedy: str = "use another format") -> None:
    """Check that LiteRT opens a file, and that an integer format has no operation left in floats.

    Args:
        content: Of the .tflite file.
        format: Of the file.
        io: Its input and output, as in `convert`.
        remedy: What the user can do if an operation is left in floats.

    Raises:
        UserError: LiteRT refuses it.
        OperationError: an operation is left in floats.
    """
    try:
        floats = float_tensors(content, inside=io == "float32")
    except UserError as error:  # such as biases that overflow because an untrained network has tiny activations
        raise UserError(f"this model cannot be converted to {format}: {error}") from error
    if format in CALIBRATED and floats:
        kinds = ", ".join(float_operations(content)) or "some operations"
        reason = f"{kinds} would stay in floats; {remedy}"
        raise OperationError(f"this model cannot be converted to {format}: {reason}")


def check_convertible(model: keras.Model, formats: Iterable[Format]) -> None:
    """Check that LiteRT has the operations of a model in some formats, trained or not.

    Raises:
        OperationError: a format lacks an operation.
    """
    noise = noise_images((2, *model.input_shape[1:]))
    for format in formats:
        try:
            convert(model, format, noise, input_range=UNIT)
        except OperationError:
            raise
        except UserError:  # caused by the weights' values, which training will change
            continue


def _reason(error: Exception) -> tuple[str, bool]:
    """Return the cause of a converter error in one line, and whether it is a missing operation.

    The converter's own messages are pages of call sites.
    """
    unknown = sorted({*re.findall(r"'tf\.(\w+)' op is neither", str(error))})
    if unknown:
        return f"LiteRT has no operation for {', '.join(unknown)}; build the model from other operations", True
    unquantized = re.search(r"not yet supported for op: '(\w+)'", str(error))
    if unquantized:
        return f"{unquantized[1]} has no kernel for it; use another format", True
    return one_line(error), False
