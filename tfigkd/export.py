"""LiteRT files of a model, and the check that they still say what the model says."""

from pathlib import Path

import numpy as np

from tfigkd import console
from tfigkd.config import fingerprint
from tfigkd.convert import FORMATS, convert
from tfigkd.data import Examples
from tfigkd.data.stage import dataset
from tfigkd.errors import UserError
from tfigkd.fields import Config, ExportConfig
from tfigkd.litert import litert_predictor
from tfigkd.metrics import accuracy, comparison, predict_logits
from tfigkd.student import load_student
from tfigkd.teacher import load_teacher, weights_fingerprint
from tfigkd.workdir import Workdir, atomic, checksum, finished, make_folder, write_manifest


def parity(path: Path, examples: Examples, reference: np.ndarray) -> dict[str, float]:
    """What a file says of examples against its Keras model's logits [N,C], and its accuracy."""
    logits = litert_predictor(path)(examples.images)
    return {**dict(comparison(logits, reference)), "accuracy": accuracy(logits, examples.labels)}


def _gate(name: str, format: str, report: dict[str, float], reference: np.ndarray, config: ExportConfig) -> None:
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
