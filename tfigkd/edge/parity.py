"""Parity: writing a LiteRT file and comparing it with its Keras model."""

from pathlib import Path

import keras
import numpy as np

from tfigkd.config.fields import BACKGROUND, ExportConfig, Format
from tfigkd.data import Dataset, Examples
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import CALIBRATED, convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.measure.metrics import accuracy, comparison, predict_logits
from tfigkd.models.cost import count_parameters
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic
from tfigkd.runtime.provenance import versions

WIDE: tuple[Format, ...] = ("float32", "float16")
NOISE_EXAMPLES = 64


def parity(path: Path, examples: Examples, reference: np.ndarray) -> dict[str, float]:
    """Compare a file's logits of examples with its Keras model's logits [N,K], and return the accuracy of both."""
    logits = litert_predictor(path)(examples.images)
    return {
        **dict(comparison(logits, reference)),
        "accuracy": accuracy(logits, examples.labels),
        "keras_accuracy": accuracy(reference, examples.labels),
    }


def check_parity(
    name: str, format: Format, report: dict[str, float], reference: np.ndarray, config: ExportConfig
) -> None:
    """Check a parity report against the bounds of a config.

    Raises:
        UserError: the file differs more from its Keras model than allowed.
    """
    if format in WIDE:
        relative, bound = (
            report["max_difference"] / max(1.0, float(np.abs(reference).max())),
            f"max_{format}_difference",
        )
        if not relative <= getattr(config, bound):  # written so that NaN fails too
            raise UserError(
                f"export: {name} differs from its Keras model by {relative:.2g} of the largest logit; allowed is "
                f"export.{bound} = {getattr(config, bound)}"
            )
    elif report["agreement"] < config.min_int8_agreement:
        raise UserError(
            f"export: {name} agrees with its Keras model on {100 * report['agreement']:.1f} % of validation; needed is "
            f"export.min_int8_agreement = {config.min_int8_agreement}; try more export.calibration_examples"
        )


def export_file(
    path: Path,
    model: keras.Model,
    format: Format,
    data: Dataset | None,
    config: ExportConfig,
    *,
    reference: np.ndarray | None = None,
) -> dict[str, float]:
    """Convert a model, check the file's parity on validation, and write it with its contract beside it.

    Args:
        path: Where to write the .tflite file; nothing is written there if the check fails.
        model: float32 [B,H,W,C] in [0,1] to logits.
        format: One of `tfigkd.config.fields.FORMATS`.
        data: Its validation split is used for calibration and parity. Without data, the file is compared on noise, and
            bounds are checked for float32 and float16 only.
        config: Number of calibration examples, and bounds.
        reference: The model's logits of validation [N,K], if they are known already.

    Returns:
        The parity report: agreement, kl, max_difference, mean_difference, accuracy, keras_accuracy.

    Raises:
        UserError: the model cannot be converted to this format, or a parity bound is exceeded.
    """
    calibration = None if data is None else data.validation.images[: config.calibration_examples]
    content = convert(model, format, calibration)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        if data is None:
            noise = np.random.default_rng(0).integers(0, 256, (NOISE_EXAMPLES, *model.input_shape[1:]), dtype=np.uint8)
            reference = predict_logits(model, noise)
            report = dict(comparison(litert_predictor(temporary)(noise), reference))
        else:
            reference = predict_logits(model, data.validation.images) if reference is None else reference
            report = parity(temporary, data.validation, reference)
        if data is not None or format in WIDE:
            check_parity(path.name, format, report, reference, config)
    if calibration is not None and format in CALIBRATED:
        used = {"split": "validation", "examples": len(calibration)}
    else:
        used = None
    write_contract(
        path,
        None if data is None else data.class_names,
        format=format,
        parameters=count_parameters(model),
        data=None if data is None else {"name": data.name, "fingerprint": data.fingerprint},
        calibration=used,
        background=BACKGROUND if data is None else data.background,
        parity=report | {"on": "noise" if data is None else "validation"},
        versions=versions(),
    )
    return report


def file_name(role: str, format: str) -> str:
    """Return the name of an exported file, e.g. student.int8.tflite."""
    return f"{role}.{format}.tflite"
