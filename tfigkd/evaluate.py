"""Stage `evaluate`: the only reader of the test split; teacher and student through the same code.

`python -m tfigkd.evaluate resnet56 --weights FILE.npz --data cifar10` measures published weights or any .keras or
.tflite file.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfigkd import console, models
from tfigkd.config import closest, fingerprint
from tfigkd.data import Dataset, load
from tfigkd.data.stage import dataset
from tfigkd.errors import UserError
from tfigkd.export import litert_predictor
from tfigkd.fields import Config, NetworkConfig
from tfigkd.metrics import comparison, metrics, predict_logits
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.provenance import append_row, origin
from tfigkd.student import load_student
from tfigkd.teacher import build_network, load_teacher, weights_fingerprint
from tfigkd.workdir import Workdir, finished, make_folder, write_manifest


def measure(
    model: keras.Model, data: Dataset, reference: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Test metrics of a model, and its logits; with a reference's logits their agreement as well."""
    logits = predict_logits(model, data.test.images)
    values = dict(metrics(logits, data.test.labels))
    values["parameters"] = count_parameters(model)
    values["multiply_adds"] = multiply_adds(model)
    if reference is not None:
        values |= dict(comparison(logits, reference))
    return values, logits


def evaluate(config: Config, workdir: Workdir) -> None:
    """Stage `evaluate`: test accuracy of student and teacher, and how far the two agree."""
    data, folder = dataset(config.data), make_folder(workdir.stage("evaluate"))
    student = load_student(config, workdir)
    teacher = load_teacher(config, workdir) if config.needs_teacher else None
    weights = [weights_fingerprint(model) for model in (student, teacher) if model is not None]
    identity = fingerprint("evaluate", data.fingerprint, weights)
    if finished(folder, identity):
        console.say(f"  done before: {folder}")
        return
    results: dict[str, dict[str, float]] = {}
    reference = None
    if teacher is not None:
        results["teacher"], reference = measure(teacher, data)
    results["student"], _ = measure(student, data, reference)
    write_manifest(folder, identity, results=results, n_test=len(data.test))
    for role, values in results.items():
        agreement = f", agreement with the teacher {100 * values['agreement']:.2f} %" if "agreement" in values else ""
        console.say(f"  {role}: test accuracy {100 * values['accuracy']:.2f} %{agreement}")


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tfigkd.evaluate MODEL`: accuracy of one model on the test split of a data set."""
    parser = argparse.ArgumentParser(
        prog="python -m tfigkd.evaluate", description="Accuracy of one model on a test split."
    )
    parser.add_argument("model", help="mobilenet_v2, resnet20|32|44|56, or a .keras or .tflite file")
    parser.add_argument("--weights", help="published PyTorch weights (.npz) for a named architecture")
    parser.add_argument("--drop-blocks", type=int, default=0, help="blocks dropped from mobilenet_v2")
    parser.add_argument("--normalization", default="none", help=", ".join(models.NORMALIZATIONS))
    parser.add_argument("--data", default="cifar10", help="tfds name, digits, .npz or image folder")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--rows", type=Path, help="append the result to this .csv")
    options = parser.parse_args(arguments)
    try:
        if options.normalization not in models.NORMALIZATIONS:
            hint = closest(options.normalization, models.NORMALIZATIONS)
            raise UserError(f"unknown normalization {options.normalization!r}; {hint}")
        data = load(options.data, directory=options.data_dir)
        if options.model.endswith(".tflite"):
            logits = litert_predictor(Path(options.model))(data.test.images)
        else:
            network = NetworkConfig(options.model, options.drop_blocks, normalization=options.normalization)
            model = build_network(network, data)
            if options.weights:
                models.load_torch_weights(model, options.weights)
            logits = predict_logits(model, data.test.images)
        values = dict(metrics(logits, data.test.labels))
        if options.rows:
            given = sys.argv[1:] if arguments is None else arguments
            what = {"model": options.model, "weights": options.weights or "", "data": data.name}
            counts = {"data_fingerprint": data.fingerprint, "n_test": len(data.test)}
            append_row(options.rows, what | counts | values | origin(f"python -m tfigkd.evaluate {shlex.join(given)}"))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.say(f"accuracy {100 * values['accuracy']:.2f} %  nll {values['nll']:.4f}  ({len(data.test):,} test images)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
