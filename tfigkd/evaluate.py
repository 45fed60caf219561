"""`python -m tfigkd.evaluate MODEL`: measure any model on the test split of a data set, or on all of it.

python -m tfigkd.evaluate resnet56 --weights FILE.npz --normalization imagenet --data cifar10
python -m tfigkd.evaluate runs/ig_kd/0/export/student.int8.tflite
python -m tfigkd.evaluate student.keras --data imagenet_cifar10 --image-size 32 --split all --per-class
"""

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tfigkd.config.flags import DataOptions, read_all_options
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.provenance import append_row, origin

PROG = "python -m tfigkd.evaluate"


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Measure a model on the test split of a data set, or on all of one that no model was trained on."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """mobilenet_v2, resnet20|32|44|56, or a .keras or .tflite file."""
    data: str = "cifar10"
    """A tfds name, "digits", the path of an .npz file or of an image folder."""
    weights: str | None = None
    """Published PyTorch weights (.npz) for a named architecture."""
    drop_blocks: int = 0
    """Blocks dropped from mobilenet_v2."""
    normalization: Literal["none", "cifar10", "imagenet"] = "none"
    """Input normalization inside a named architecture."""
    split: Literal["test", "all"] = "test"
    """all: every picture of the data set."""
    per_class: bool = False
    """Show the recall of each class."""
    rows: Path | None = None
    """Append the result to this .csv."""


def _measure(options: Options) -> dict[str, Any]:
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
        network: dict[str, Any] = {"drop_blocks": options.drop_blocks, "normalization": options.normalization}
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


@command()
def main(arguments: list[str]) -> None:
    """Entry point of `python -m tfigkd.evaluate`."""
    options = read_all_options(Options, arguments, prog=PROG)
    with console.quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
        values = _measure(options)
    if options.rows:
        named = {"model": options.model, "weights": options.weights or ""}
        append_row(options.rows, named | values | origin(f"{PROG} {shlex.join(arguments)}"))
    figures = f"accuracy {100 * values['accuracy']:.2f} %  balanced {100 * values['balanced_accuracy']:.2f} %"
    figures += f"  nll {values['nll']:.4f}  ece {100 * values['ece']:.2f} %"
    console.say(f"{figures}  ({values['n_test']:,} images)")


if __name__ == "__main__":
    sys.exit(main())
