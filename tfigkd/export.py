"""`python -m tfigkd.export MODEL.keras --format int8 --data DATASET --output FILE`: any Keras classifier to LiteRT.

python -m tfigkd.export student.keras --format int8 --data cifar10 --output student.int8.tflite
python -m tfigkd.export other.keras --format float16 --input-range 0 255 --output other.tflite
python -m tfigkd.export student.int8.tflite --format c --output student.c
"""

import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tfigkd.config.export_fields import ExportConfig, Format, IOType, Kept, Quantizer
from tfigkd.config.flags import DataOptions, SpaceOptions, read_all_options
from tfigkd.config.reading import refused_as
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_folder_of
from tfigkd.runtime.quiet import quiet_stderr
from tfigkd.runtime.text import percent


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions, SpaceOptions):
    """Convert a Keras image classifier to a LiteRT file, calibrated and compared on validation images of --data.

    Whatever the model takes and gives, the file takes images in [0,1] and gives logits.
    """

    model: Annotated[str, Positional, arg(metavar="MODEL.keras")]
    """A .keras file: images to logits or probabilities; for the format c an int8 .tflite file."""
    format: Format | Literal["c"]
    """Number format of the file; c: an int8 file as C source for microcontrollers."""
    output: Path
    """The .tflite file; its contract is written beside it. For the format c a .c file, with its header beside it."""
    calibration_examples: int = ExportConfig.calibration_examples
    """Validation images that calibrate int8 and int16x8, at most half of them."""
    min_int8_agreement: float = ExportConfig.min_int8_agreement
    """Smallest share of validation images with the same top-1 class as in Keras, of files with int8 weights."""
    io: IOType = "integer"
    """Input and output of int8 and int16x8: integer, as inside, or float32, which LiteRT.js needs (tfigkd.web)."""
    quantizer: Quantizer = "converter"
    """What makes int8 files: TensorFlow's converter, or ai-edge-quantizer, which is installed apart."""
    keep: int = 0
    """Layers that ai-edge does not quantize to int8: those that add most noise in tfigkd.profile."""
    keep_in: Kept = "float32"
    """What these layers compute in: float32, or int16 with int8 weights."""


def _load(options: Options) -> tuple[Any, Any, Any]:
    """Return the model, float32 [0,1] to logits, the same as plain Keras opens the file, and the data set or None."""
    from tfigkd import models
    from tfigkd.data import in_gray, load
    from tfigkd.models.batch_norm import with_stock_batch_norm
    from tfigkd.stages.workdir import reading_of_model

    side = options.image_size
    own = models.load_classifier(
        options.model,
        input_shape=None if side is None else (side, side, models.channels_of(options.model)),
        input_range=options.input_range,
        outputs=options.outputs,
    )
    height, width, channels = own.input_shape[1:]
    data = None
    if options.data:
        square = height if height == width else None
        reading = reading_of_model(options.model, options)
        reading = replace(reading, image_size=options.image_size or square or reading.image_size)
        data = load(options.data, reading, directory=options.data_dir)
        if channels == 1:
            data = in_gray(data)
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
    plain = models.ReferenceClassifier(options.model, input_range=options.input_range, outputs=options.outputs)
    return with_stock_batch_norm(own), plain, data


def run(options: Options) -> str:
    """Convert, check and write; returns what to tell the user.

    Raises:
        UserError: the model or the data do not fit, or the file is not equal enough to the model.
    """
    from tfigkd.edge.contract import contract_path, is_foreign
    from tfigkd.edge.convert import CALIBRATED, CalibrationMissingError
    from tfigkd.edge.parity import export_file
    from tfigkd.models.user_model import pixels_said

    _refuse_without_effect(options)
    if options.format == "c":
        return _write_c(options)
    if options.output.suffix != ".tflite":
        raise UserError(f"--output must end in .tflite, got {options.output}")
    require_folder_of(options.output, "--output")
    if is_foreign(options.output):
        raise UserError(
            f"{contract_path(options.output)}, where the contract goes, is a file of another tool; choose another "
            "--output"
        )
    try:
        with refused_as("export."):
            bounds = ExportConfig(
                calibration_examples=options.calibration_examples,
                min_int8_agreement=options.min_int8_agreement,
                io=options.io,
                quantizer=options.quantizer,
                keep=options.keep,
                keep_in=options.keep_in,
            )
        if options.quantizer == "ai-edge" and options.format != "int8":
            raise UserError(f"--quantizer ai-edge makes int8 files, got --format {options.format}; leave it out")
        model, plain, data = _load(options)
        report = export_file(options.output, model, options.format, data, bounds, original=plain)
    except ValueError as error:
        hint = "; give --data DATASET" if isinstance(error, CalibrationMissingError) else ""
        raise UserError(in_options(f"{str(error).rstrip('.')}{hint}")) from error
    except UserError as error:
        raise UserError(in_options(str(error))) from error
    pixels = pixels_said(options.model, options.input_range)
    ends = ", float32 input and output" if options.format in CALIBRATED and options.io == "float32" else ""
    size, on, scores = options.output.stat().st_size, "noise, as there is no --data", ""
    if data is not None:
        on, own = f"{report['examples']:,} validation images", report["keras_accuracy"]
        scores = f", accuracy {percent(report['accuracy'])} (Keras {percent(own)})"
        if report["keras_hardly_learned"]:
            scores += "; the Keras model itself is near chance: does it take other pixel values? (--input-range 0 255)"
    return (
        f"{options.output}: {size / 1e3:,.1f} kB{ends}; on {on}: agreement with Keras "
        f"{percent(report['agreement'])}, largest difference {report['max_difference']:.2g}{scores}; {pixels}"
    )


def _refuse_without_effect(options: Options) -> None:
    """Refuse options that a C file does not take, and those of a data set where none is given."""
    default = Options(model=options.model, format=options.format, output=options.output)
    given = [one.name for one in fields(Options) if getattr(options, one.name) != getattr(default, one.name)]
    if options.format == "c":
        unused, why = [name for name in given if name not in ("input_range", "outputs")], "with --format c"
    else:
        own = {one.name for one in fields(DataOptions)} - {"image_size"}
        unused, why = [name for name in given if name in own and not options.data], "without --data"
    if unused:
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect {why}; leave it out")


def in_options(message: str) -> str:
    """Return an error with the options of this command in place of the fields of a run: --keep for export.keep."""
    own, known = ({field.name for field in fields(one)} for one in (Options, ExportConfig))

    def option(found: re.Match[str]) -> str:
        name, equals = found.groups(default="")
        return f"--{name.replace('_', '-')}{' ' * bool(equals)}" if name in own else "" if equals else name

    return re.sub(rf"(?<![\w./-])export\.({'|'.join(sorted(known))})\b( = )?", option, message.removeprefix("config: "))


def _write_c(options: Options) -> str:
    from tfigkd.edge.microcontroller import write_c

    if not options.model.endswith(".tflite"):
        raise UserError(
            f"--format c takes an int8 .tflite file, got {options.model}; export it with --format int8 first"
        )
    if options.output.suffix != ".c":
        raise UserError(f"--output must end in .c for --format c, got {options.output}")
    require_folder_of(options.output, "--output")
    about = write_c(Path(options.model), options.output, input_range=options.input_range, outputs=options.outputs)
    return (
        f"{options.output}, {options.output.with_suffix('.h')}: {about['bytes'] / 1e3:,.1f} kB of flash, "
        f"{about['arena'] / 1e3:,.1f} kB of memory for tensors; operations: {', '.join(about['operations'])}"
    )


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.export`."""
    options = read_all_options(Options, arguments, prog="python -m tfigkd.export")
    with quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
        said = run(options)
    console.say(said)


if __name__ == "__main__":
    sys.exit(main())
