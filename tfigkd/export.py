"""`python -m tfigkd.export MODEL.keras --format int8 --data DATASET --output FILE`: any Keras classifier to LiteRT.

python -m tfigkd.export student.keras --format int8 --data cifar10 --output student.int8.tflite
python -m tfigkd.export other.keras --format float16 --input-range 0 255 --output other.tflite
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfigkd.config.fields import FORMATS, ExportConfig
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, float32 [0,1] to logits, and the data set or None."""
    from tfigkd import models
    from tfigkd.data import load
    from tfigkd.models.layers import with_stock_layers

    own = models.load_own(options.model, input_shape=options.image_size and (options.image_size, options.image_size, 3))
    height, width, channels = own.input_shape[1:]
    data = None
    if options.data:
        square = height if height == width else None
        data = load(options.data, directory=options.data_dir, image_size=options.image_size or square)
        if (height, width, channels) != data.image_shape:
            raise UserError(
                f"{options.model} takes images {(height, width, channels)}, those of {options.data} are "
                f"{data.image_shape}; give data that fit"
            )
        if own.output_shape[-1] != data.num_classes:
            raise UserError(
                f"{options.model} has {own.output_shape[-1]} classes, {options.data} has {data.num_classes}; give the "
                "data that it was trained on"
            )
    return with_stock_layers(models.with_input_range(own, *options.input_range)), data


def run(options: argparse.Namespace) -> str:
    """Convert, check and write; returns what to tell the user.

    Raises:
        UserError: the model or the data do not fit, or the file is not equal enough to the model.
    """
    from tfigkd.edge.parity import export_file

    if options.output.suffix != ".tflite":
        raise UserError(f"--output must end in .tflite, got {options.output}")
    if not options.output.parent.is_dir():
        raise UserError(f"no folder {options.output.parent}; make it or choose another --output")
    try:
        bounds = ExportConfig(
            calibration_examples=options.calibration_examples, min_int8_agreement=options.min_agreement
        )
        model, data = _load(options)
        report = export_file(options.output, model, options.format, data, bounds)
    except ValueError as error:
        hint = "; give --data DATASET" if "calibration" in str(error) and not options.data else ""
        raise UserError(f"{str(error).rstrip('.')}{hint}") from error
    size, on, scores = options.output.stat().st_size, "noise, as there is no --data", ""
    if data is not None:
        on, own = f"{len(data.validation):,} validation images", report["keras_accuracy"]
        scores = f", accuracy {100 * report['accuracy']:.2f} % (Keras {100 * own:.2f} %)"
        if own < 2 / data.num_classes:
            scores += "; the Keras model itself is near chance: does it take images in [0,1]? (--input-range)"
    return (
        f"{options.output}: {size / 1e3:,.1f} kB; on {on}: agreement with Keras {100 * report['agreement']:.2f} %, "
        f"largest difference {report['max_difference']:.2g}{scores}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and print; returns the exit status."""
    defaults = ExportConfig()
    parser = argparse.ArgumentParser(
        prog="python -m tfigkd.export", description="Convert a Keras image classifier to a LiteRT file."
    )
    parser.add_argument("model", help="a .keras file: images to logits or softmax probabilities")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", type=Path, required=True, help="the .tflite file; its contract goes beside it")
    parser.add_argument("--data", help="tfds name, digits, .npz or image folder: calibrates and checks, by validation")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--image-size", type=int, help="height and width, where the model leaves them open")
    parser.add_argument(
        "--input-range",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="what the model takes black and white for; the file takes 0 and 1 (default: 0 1)",
    )
    parser.add_argument("--calibration-examples", type=int, default=defaults.calibration_examples)
    parser.add_argument("--min-agreement", type=float, default=defaults.min_int8_agreement, help="with Keras, top-1")
    options = parser.parse_args(arguments)
    try:
        with console.quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
            said = run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.say(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
