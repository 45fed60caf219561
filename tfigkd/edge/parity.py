"""Parity: writing a LiteRT file and comparing it with its Keras model."""

from functools import partial
from pathlib import Path

import keras
import numpy as np

from tfigkd.config.data_fields import BACKGROUND
from tfigkd.config.fields import ExportConfig, Format
from tfigkd.data import Dataset, Examples
from tfigkd.data.spaces import UNIT
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import CALIBRATED, check_calibration, convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.edge.quantizer import quantize
from tfigkd.measure.metrics import accuracy, comparison, predict_logits
from tfigkd.models.cost import count_parameters
from tfigkd.models.fake_quant import is_fake_quantized
from tfigkd.models.user_model import PlainClassifier
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic
from tfigkd.runtime.provenance import versions

WIDE: tuple[Format, ...] = ("float32", "float16")
NOISE_EXAMPLES = 64
ROUNDING = 1e-9


def near_chance_level(classes: int) -> float:
    """Return the accuracy below which a classifier of so many classes is said to be near chance: 0.55 of 2."""
    return min(2 / classes, 0.5 + 0.1 / classes)


def parity(path: Path, examples: Examples, reference: np.ndarray) -> dict[str, float]:
    """Compare a file's logits of examples with its Keras model's logits [N,K], and return the accuracy of both."""
    logits = litert_predictor(path)(examples.images)
    return {
        **dict(comparison(logits, reference)),
        "accuracy": accuracy(logits, examples.labels),
        "keras_accuracy": accuracy(reference, examples.labels),
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
    if format in WIDE:
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
        if report["keras_accuracy"] < near_chance_level(reference.shape[-1]):
            right = f"{100 * report['keras_accuracy']:.1f} %"
            advice = (
                f"the Keras model itself is right on {right} of them, near chance, so its logits are nearly equal: it "
                "needs a longer training or more images, or export.min_int8_agreement = 0 for a report without"
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
    original: PlainClassifier | None = None,
    reference: np.ndarray | None = None,
) -> dict[str, float]:
    """Convert a model, check the file's parity on validation, and write it with its contract beside it.

    Args:
        path: Where to write the .tflite file; nothing is written there if the check fails.
        model: float32 [B,H,W,C] in [0,1] to logits.
        format: One of `tfigkd.config.fields.FORMATS`.
        data: Its validation split: the first examples, at most half of them, calibrate; a calibrated file is compared
            on the others, any other file on all. Without data, the file is compared on noise, and bounds are checked
            for float32 and float16 only.
        config: Number of calibration examples, type of input and output, and bounds.
        original: The model that the file must be equal to, as plain Keras opens it; by default `model` itself.
        reference: The original's logits of validation [N,K], if they are known already.

    Returns:
        The parity report: agreement, kl, max_difference, mean_difference, accuracy, keras_accuracy, examples.

    Raises:
        UserError: the model cannot be converted to this format, or a parity bound is exceeded.
    """
    predict = partial(predict_logits, model) if original is None else original.logits
    calibration = None if data is None else data.validation.images[: _calibration_count(data.validation, config)]
    learned = is_fake_quantized(model)
    if data is not None and format in CALIBRATED and not learned and len(data.validation) < 2:
        raise UserError(
            f"{format} needs at least 2 validation images, one to calibrate and one to compare; {data.name} has "
            f"{len(data.validation)}: give more pictures"
        )
    kept: tuple[str, ...] = ()
    used = None
    own = format == "int8" and config.quantizer == "ai-edge" and not learned
    if own:
        if calibration is None:
            raise ValueError(f"{format} needs calibration images.")
        check_calibration(calibration, tuple(model.input_shape[1:]))
        made = quantize(convert(model, "float32"), calibration, io=config.io, keep=config.keep, keep_in=config.keep_in)
        content, kept = made.content, made.kept
    else:
        content = convert(model, format, calibration, io=config.io, input_range=UNIT)
    if calibration is not None and format in CALIBRATED and not learned:
        used = {"split": "validation", "examples": len(calibration)}
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        if data is None:
            noise = np.random.default_rng(0).integers(0, 256, (NOISE_EXAMPLES, *model.input_shape[1:]), dtype=np.uint8)
            reference, on = predict(noise), "noise"
            report = dict(comparison(litert_predictor(temporary)(noise), reference))
        else:
            reference = predict(data.validation.images) if reference is None else reference
            # images that have set a file's ranges would flatter it
            fresh = slice(0 if used is None else used["examples"], None)
            on = "validation" if used is None else "validation without the calibration images"
            reference = reference[fresh]
            report = parity(temporary, data.validation.take(fresh), reference)
        if data is not None or format in WIDE:
            check_parity(path.name, format, report, reference, config, rounded=original is not None and original.half)
    write_contract(
        path,
        None if data is None else data.class_names,
        format=format,
        io=config.io if format in CALIBRATED else "float32",
        parameters=count_parameters(model),
        data=None if data is None else {"name": data.name, "fingerprint": data.fingerprint},
        calibration=used,
        **({"quantizer": config.quantizer, "kept": {"in": config.keep_in, "layers": list(kept)}} if own else {}),
        background=BACKGROUND if data is None else data.background,
        **({} if data is None or data.fit == "stretch" else {"fit": data.fit}),
        parity=report | {"on": on},
        versions=versions(),
    )
    return report


def _calibration_count(examples: Examples, config: ExportConfig) -> int:
    """Return how many examples calibrate: at most half of them, so that a file is compared on others."""
    return min(config.calibration_examples, max(1, len(examples) // 2))


def file_name(role: str, format: str) -> str:
    """Return the name of an exported file, e.g. student.int8.tflite."""
    return f"{role}.{format}.tflite"
