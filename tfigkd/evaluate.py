"""`python -m tfigkd.evaluate MODEL`: measure any model on the test split of a data set.

python -m tfigkd.evaluate resnet56 --weights FILE.npz --normalization imagenet --data cifar10
python -m tfigkd.evaluate runs/ig_kd/0/export/student.int8.tflite
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tfigkd import console
from tfigkd.errors import UserError
from tfigkd.provenance import append_row, origin


def _measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """What is known of the model on test: data, number of images and metrics."""
    from tfigkd import models
    from tfigkd.data import load
    from tfigkd.evaluation import measure
    from tfigkd.litert import litert_predictor
    from tfigkd.metrics import predict_logits

    data = load(options.data, directory=options.data_dir)
    if options.model.endswith(".tflite"):
        predict = litert_predictor(Path(options.model))
    else:
        network = {"drop_blocks": options.drop_blocks, "normalization": options.normalization}
        model = models.build(options.model, num_classes=data.num_classes, input_shape=data.image_shape, **network)
        if options.weights:
            models.load_torch_weights(model, options.weights)
        predict = partial(predict_logits, model)
    values, _ = measure(predict, data.test)
    return {"data": data.name, "data_fingerprint": data.fingerprint, "n_test": len(data.test), **values}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    about = "Measure a model on the test split of a data set."
    parser = argparse.ArgumentParser(prog="python -m tfigkd.evaluate", description=about)
    parser.add_argument("model", help="mobilenet_v2, resnet20|32|44|56, or a .keras or .tflite file")
    parser.add_argument("--weights", help="published PyTorch weights (.npz) for a named architecture")
    parser.add_argument("--drop-blocks", type=int, default=0, help="blocks dropped from mobilenet_v2")
    parser.add_argument("--normalization", default="none", help="inside the model: none, cifar10 or imagenet")
    parser.add_argument("--data", default="cifar10", help="tfds name, digits, .npz or image folder")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--rows", type=Path, help="append the result to this .csv")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    try:
        with console.quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
            values = _measure(options)
        if options.rows:
            command = f"python -m tfigkd.evaluate {shlex.join(given)}"
            append_row(
                options.rows, {"model": options.model, "weights": options.weights or ""} | values | origin(command)
            )
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    figures = f"accuracy {100 * values['accuracy']:.2f} %  nll {values['nll']:.4f}  ece {100 * values['ece']:.2f} %"
    console.say(f"{figures}  ({values['n_test']:,} test images)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
