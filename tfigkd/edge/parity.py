"""Parity: writing a LiteRT file and comparing it with its Keras model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np

from tfigkd.config.data_fields import BACKGROUND
from tfigkd.config.export_fields import ExportConfig, Format
from tfigkd.data import Dataset, Examples
from tfigkd.data.spaces import UNIT, noise_images
from tfigkd.edge.ai_edge_quantizer import Converted, quantize_file
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import CALIBRATED, CalibrationMissingError, check_calibration, convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.measure.chance import hardly_learned
from tfigkd.measure.metrics import accuracy, balanced_accuracy, comparison, predict_logits
from tfigkd.models.cost import count_parameters
from tfigkd.models.fake_quant import is_fake_quantized
from tfigkd.models.user_model import ReferenceClassifier
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic
from tfigkd.runtime.provenance import versions

FLOAT_FORMATS: tuple[Format, ...] = ("float32", "float16")
NOISE_EXAMPLES = 64
ROUNDING = 1e-9


def parity(path: Path, examples: Examples, reference: np.ndarray) -> dict[str, float]:
    """Compare a file's logits of examples with its Keras model's logits [N,K].

    Returns:
        What `comparison` measures, `accuracy` and `keras_accuracy`, `keras_hardly_learned`, whether the Keras model is
        near chance or not far above it, and the number of `examples`.
    """
    logits = litert_predictor(path)(examples.images)
    return {
        **dict(comparison(logits, reference)),
        "accuracy": accuracy(logits, examples.labels),
        "keras_accuracy": accuracy(reference, examples.labels),
        "keras_hardly_learned": hardly_learned(
            balanced_accuracy(reference, examples.labels), np.unique(examples.labels, return_counts=True)[1]
        ),
        "examples": len(examples),
    }


def check_parity(
    name: str,
    format: Format,
    report: dict[str, float],
    reference: np.ndarray,
    config: ExportConfig,
    *,
    rounded: bool = False,
) -> None:
    """Check a parity report against the bounds of a config.

    Args:
        name: Of the file.
        format: Of the file.
        report: From `parity`. A file with int8 weights may miss the bound by a single image.
        reference: Logits of the Keras model [N,K].
        config: The bounds.
        rounded: The Keras model computes in half precision, so a float32 file is held to the bound of float16.

    Raises:
        UserError: the file differs more from its Keras model than allowed.
    """
    if format in FLOAT_FORMATS:
        relative = report["max_difference"] / max(1.0, float(np.abs(reference).max()))
        bound = "max_float16_difference" if rounded else f"max_{format}_difference"
        if not relative <= getattr(config, bound):  # written so that NaN fails too
            raise UserError(
                f"export: {name} differs from its Keras model by {relative:.2g} of the largest logit; allowed is "
                f"export.{bound} = {getattr(config, bound)}"
            )
        return
    needed, count = config.min_int8_agreement, int(report["examples"])
    spared = 1 / count if needed < 1 else 0.0  # of 8 images, a single one must not decide
    if report["agreement"] < needed - spared - ROUNDING:
        advice = "try more export.calibration_examples"
        if report["keras_hardly_learned"]:
            right = f"{100 * report['keras_accuracy']:.1f} %"
            advice = (
                f"the Keras model itself has hardly learned, it is right on {right} of them, so its logits are nearly "
                "equal: it needs a longer training or more images, or export.min_int8_agreement = 0 for a report "
                "without"
            )
        raise UserError(
            f"export: {name} agrees with its Keras model on {100 * report['agreement']:.1f} % of {count:,} validation "
            f"images; needed is export.min_int8_agreement = {needed}; {advice}"
        )


def export_file(
    path: Path,
    model: keras.Model,
    format: Format,
    data: Dataset | None,
    config: ExportConfig,
    *,
    original: ReferenceClassifier | None = None,
    reference: np.ndarray | None = None,
) -> dict[str, float]:
    """Convert a model, check the file's parity on validation, and write it with its contract beside it.

    Args:
        path: Where to write the .tflite file; nothing is written there if the check fails.
        model: float32 [B,H,W,C] in [0,1] to logits.
        format: One of `tfigkd.config.export_fields.FORMATS`.
        data: Its validation split: the first examples, at most half of them, calibrate; a calibrated file is compared
            on the others, any other file on all. Without data, the file is compared on noise, and bounds are checked
            for float32 and float16 only.
        config: Number of calibration examples, type of input and output, and bounds.
        original: The model that the file must be equal to, as plain Keras opens it; by default `model` itself.
        reference: The original's logits of validation [N,K], if they are known already.

    Returns:
        The report of `parity`, on noise without accuracies.

    Raises:
        UserError: the model cannot be converted to this format, or a parity bound is exceeded.
    """
    predict = partial(predict_logits, model) if original is None else original.logits
    learned = is_fake_quantized(model)
    calibrates = data is not None and format in CALIBRATED and not learned
    by_ai_edge = format == "int8" and config.quantizer == "ai-edge" and not learned
    if data is not None and calibrates and len(data.validation) < 2:
        raise UserError(
            f"{format} needs at least 2 validation images, one to calibrate and one to compare; {data.name} has "
            f"{len(data.validation)}: give more pictures"
        )
    calibration = None if data is None else data.validation.images[: _calibration_count(data.validation, config)]
    if by_ai_edge:
        made = _quantized(model, calibration, config)
    else:
        made = Converted(convert(model, format, calibration, io=config.io, input_range=UNIT), kept=())
    used = len(calibration) if calibration is not None and calibrates else 0
    with atomic(path) as temporary:
        temporary.write_bytes(made.content)
        if data is None:
            report, expected = _parity_on_noise(temporary, predict, model.input_shape[1:])
            on = "noise"
        else:
            expected = predict(data.validation.images) if reference is None else reference
            # on its calibration images a file agrees with Keras more often than on others
            expected, others = expected[used:], data.validation.take(slice(used, None))
            report = parity(temporary, others, expected)
            on = "validation without the calibration images" if used else "validation"
        if data is not None or format in FLOAT_FORMATS:
            check_parity(path.name, format, report, expected, config, rounded=original is not None and original.half)
    kept = {"quantizer": config.quantizer, "kept": {"in": config.keep_in, "layers": list(made.kept)}}
    write_contract(
        path,
        None if data is None else data.class_names,
        format=format,
        io=config.io if format in CALIBRATED else "float32",
        parameters=count_parameters(model),
        data=None if data is None else {"name": data.name, "fingerprint": data.fingerprint, **data.split_choice},
        calibration={"split": "validation", "examples": used} if used else None,
        **(kept if by_ai_edge else {}),
        background=BACKGROUND if data is None else data.background,
        **({} if data is None or data.fit == "stretch" else {"fit": data.fit}),
        parity=report | {"on": on},
        versions=versions(),
    )
    return report


def _quantized(model: keras.Model, calibration: np.ndarray | None, config: ExportConfig) -> Converted:
    """Return an int8 file that ai-edge-quantizer makes of a model.

    Args:
        model: As for `export_file`.
        calibration: uint8 images [N,H,W,C].
        config: Type of input and output, and the layers that stay out of int8.

    Raises:
        CalibrationMissingError: no calibration images are given.
        UserError: the model cannot be quantized, or the images do not fit.
    """
    if calibration is None:
        raise CalibrationMissingError("int8")
    check_calibration(calibration, tuple(model.input_shape[1:]))
    whole = convert(model, "float32")
    return quantize_file(whole, calibration, io=config.io, keep=config.keep, keep_in=config.keep_in)


def _parity_on_noise(
    path: Path, predict: Callable[[np.ndarray], np.ndarray], image_shape: tuple[int, ...]
) -> tuple[dict[str, float], np.ndarray]:
    """Compare a file with its Keras model on images of noise.

    Args:
        path: The .tflite file.
        predict: Returns the Keras model's logits [N,K] for uint8 images [N,H,W,C].
        image_shape: Height, width and channels.

    Returns:
        The parity report without accuracies, and the Keras model's logits [N,K].
    """
    noise = noise_images((NOISE_EXAMPLES, *image_shape))
    expected = predict(noise)
    return dict(comparison(litert_predictor(path)(noise), expected)), expected


def _calibration_count(examples: Examples, config: ExportConfig) -> int:
    """Return how many examples calibrate: at most half of them, so that a file is compared on others."""
    return min(config.calibration_examples, max(1, len(examples) // 2))
