"""`python -m tfigkd.evaluate MODEL`: measure any model on the test split of a data set, or on all of it.

python -m tfigkd.evaluate resnet56 --weights FILE.npz --normalization imagenet --data cifar10
python -m tfigkd.evaluate runs/ig_kd/0/export/student.int8.tflite
python -m tfigkd.evaluate student.keras --data imagenet_cifar10 --image-size 32 --split all --per-class
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.provenance import append_row, origin


def _measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """What is known of the model: data, number of images and metrics; per class it is said at once."""
    from tfigkd import models
    from tfigkd.data import concatenate, load
    from tfigkd.edge.contract import admit
    from tfigkd.edge.litert import litert_predictor
    from tfigkd.measure.explanation import measure
    from tfigkd.measure.metrics import per_class, predict_logits

    data = load(options.data, directory=options.data_dir, image_size=options.image_size)
    examples = data.test if options.split == "test" else concatenate([data.train, data.validation, data.test])
    if options.model.endswith(".tflite"):
        admit(Path(options.model))
        predict = litert_predictor(Path(options.model))
    else:
        network = {"drop_blocks": options.drop_blocks, "normalization": options.normalization}
        model = models.build(options.model, num_classes=data.num_classes, input_shape=data.image_shape, **network)
        if options.weights:
            models.load_torch_weights(model, options.weights)
        predict = partial(predict_logits, model)
    values, logits = measure(predict, examples)
    if options.per_class:
        recalls = per_class(logits, examples.labels, data.num_classes)
        width = max(map(len, data.class_names))
        for name, one in zip(data.class_names, recalls, strict=True):
            recall = "no images" if one["recall"] is None else f"{100 * one['recall']:6.2f} % of {one['examples']:,}"
            console.say(f"{name:<{width}}  {recall}")
    return {"data": data.name, "data_fingerprint": data.fingerprint, "n_test": len(examples), **values}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    about = "Measure a model on the test split of a data set, or on all of one that has trained nothing."
    parser = argparse.ArgumentParser(prog="python -m tfigkd.evaluate", description=about)
    parser.add_argument("model", help="mobilenet_v2, resnet20|32|44|56, or a .keras or .tflite file")
    parser.add_argument("--weights", help="published PyTorch weights (.npz) for a named architecture")
    parser.add_argument("--drop-blocks", type=int, default=0, help="blocks dropped from mobilenet_v2")
    parser.add_argument("--normalization", default="none", help="inside the model: none, cifar10 or imagenet")
    parser.add_argument("--data", default="cifar10", help="tfds name, digits, .npz or image folder")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--image-size", type=int, help="stretch pictures to this height and width, antialiased")
    parser.add_argument("--split", choices=("test", "all"), default="test", help="all: every picture of the data set")
    parser.add_argument("--per-class", action="store_true", help="show the recall of each class")
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
    figures = f"accuracy {100 * values['accuracy']:.2f} %  balanced {100 * values['balanced_accuracy']:.2f} %"
    figures += f"  nll {values['nll']:.4f}  ece {100 * values['ece']:.2f} %"
    console.say(f"{figures}  ({values['n_test']:,} images)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
