"""`python -m tfigkd.profile MODEL.tflite`: which operation takes the time, and which layer of an int8 file is off.

python -m tfigkd.profile student.int8.tflite --float32 student.float32.tflite --data cifar10
python -m tfigkd.profile student.int8.tflite --float32 student.keras --data cifar10 --output profile.csv
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.config.reading import refused_as
from tfigkd.data.spaces import UNIT, Range, noise_images, to_gray
from tfigkd.edge.classifier_files import image_side, infer_spaces, reading_for
from tfigkd.edge.contract import contract_path, verified_contract
from tfigkd.edge.layer_differences import Comparison, compare, is_integer
from tfigkd.edge.litert import input_details, open_classifier
from tfigkd.edge.options import add_data_options, add_space_options, given_spaces, load_data, refuse_without_data
from tfigkd.edge.profile import about_layers, about_times, noisiest, profile, rows, slowest
from tfigkd.runtime import console
from tfigkd.runtime.command import Parser, command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_folder_of, write_text
from tfigkd.runtime.processes import call_module, last_line
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.rows import as_csv

IMAGES, TOP = 64, 15


def float_file(path: Path, given: Path | None) -> Path | None:
    """Return the float32 file to compare with: the given one, else the file of the same export beside it, if any."""
    if given is not None:
        return given
    name = path.name.replace(".int8.", ".float32.")
    beside = path.with_name(name)
    return beside if name != path.name and beside.is_file() else None


def converted(
    model: Path,
    folder: Path,
    side: int | None,
    input_range: Range | None = None,
    outputs: str | None = None,
) -> Path:
    """Convert a .keras file to float32 in a process of its own, since this command runs without TensorFlow.

    Args:
        model: The .keras file.
        folder: Where the file is written.
        side: Height and width of its images, for a model that leaves them open.
        input_range: Its values of a black and of a white pixel; the file takes [0,1].
        outputs: What it gives; the file gives logits.

    Raises:
        UserError: it is missing or cannot be converted.
    """
    if not model.is_file():
        raise UserError(f"no file {model}; give the path of a .keras file")
    output = folder / f"{model.stem}.float32.tflite"
    words = [str(model), "--format", "float32", "--output", str(output)]
    words += [] if side is None else ["--image-size", str(side)]
    words += [] if input_range is None else ["--input-range", *map(str, input_range)]
    words += [] if outputs is None else ["--outputs", outputs]
    done = call_module("tfigkd.export", *words)
    if done.returncode:
        raise UserError(last_line(done).removeprefix("error: "))
    return output


def layers(path: Path, options: argparse.Namespace, given: Path) -> tuple[Comparison, str]:
    """Compare an int8 file with its float32 file; also return on which pictures."""
    if not is_integer(path):
        raise UserError(
            f"{path} computes in floats; layers are compared of an int8 file, which tfigkd.export --format int8 makes"
        )
    side = image_side(path)
    source = input_details(open_classifier(path))
    if options.data:
        validation = load_data(options, reading_for(path, options)).validation
        images = validation.images[-options.images :]  # the first may have calibrated the file
        if source["shape"][-1] == 1:
            images = to_gray(images)
        on = f"{len(images)} validation images of {options.data}"
    else:
        shape = tuple(map(int, source["shape"][1:]))
        images = noise_images((options.images, *shape))
        on = f"{options.images} images of noise, which no model was made for: give --data DATASET"
    declared = given_spaces(options)
    if given.suffix != ".keras":
        ranges = [_range(one, declared["input_range"]) for one in (path, given)]
        return compare(path, given, images, input_range=ranges[0], reference_range=ranges[1]), on
    # --input-range is that of the .keras file; a contract says what the int8 file takes
    own = _range(path, None if "input" in (verified_contract(path) or {}) else declared["input_range"])
    with tempfile.TemporaryDirectory() as folder:
        reference = converted(given, Path(folder), side, **declared)
        return compare(path, reference, images, input_range=own, reference_range=UNIT), on


def _range(path: Path, given: Range | None) -> Range:
    return infer_spaces(open_classifier(path), verified_contract(path), given, "logits")[0]


def show_times(made: Sequence[dict[str, Any]], top: int) -> None:
    """Print the operations that take longest, or all in the order of the file where `top` is 0."""
    header = ["#", "us", "%", "M mult-adds", "kB weights", "kB in+out", "runs on", "operation", "layer"]
    lines = [
        [
            str(row["index"]),
            "" if row["milliseconds"] is None else f"{1e3 * row['milliseconds']:.1f}",
            "" if row["share"] is None else f"{100 * row['share']:.1f}",
            f"{row['multiply_adds'] / 1e6:.2f}" if row["multiply_adds"] else "",
            f"{row['weight_bytes'] / 1e3:.1f}",
            f"{row['activation_bytes'] / 1e3:.1f}",
            row["runs_on"],
            row["operation"],
            row["layer"],
        ]
        for row in slowest(made, top)
    ]
    console.say("Operations by time" if top else "Operations")
    console.show_columns(header, lines, right=6)


def show_layers(made: Sequence[dict[str, Any]], top: int, name: str) -> None:
    """Print the operations that add most noise, or all that are compared where `top` is 0."""
    header = ["#", "cosine", "SQNR, dB", "noise added, %", "saturated, %", "operation", "layer"]
    lines = [
        [
            str(row["index"]),
            f"{row['cosine']:.5f}",
            "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            "" if row["added_noise"] is None else f"{100 * row['added_noise']:.3f}",
            f"{100 * row['saturated']:.2g}" if row["saturated"] else "",
            row["operation"],
            row["layer"],
        ]
        for row in noisiest(made, top)
    ]
    console.say(f"\nDifference from {name}")
    console.show_columns(header, lines, right=5)
    console.say("")


def write(path: Path, made: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the rows to a .csv, where each has the columns of `about`, or to a .json, which has them once."""
    if path.suffix == ".json":
        write_text(path, json.dumps({**about, "operations": list(made)}, indent=1) + "\n")
    else:
        write_text(path, as_csv([{**row, **about} for row in made]))


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.profile`; like benchmark it needs neither TensorFlow nor tyro."""
    defaults = BenchmarkConfig()
    parser = Parser(
        prog="python -m tfigkd.profile",
        description="Time, bytes and multiply-adds of each operation of a LiteRT file; of an int8 file also the "
        "difference from float32, layer by layer.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=".tflite classifier")
    parser.add_argument(
        "--float32",
        type=Path,
        metavar="FILE",
        help="float32 .tflite or .keras file of the same model, to compare the layers of an int8 file with (default: "
        "NAME.float32.tflite beside NAME.int8.tflite)",
    )
    parser.add_argument("--images", type=int, default=IMAGES, help=f"pictures to compare on (default: {IMAGES})")
    parser.add_argument("--threads", type=int, default=1, help="threads of LiteRT (default: 1)")
    runs, warmup = defaults.runs, defaults.warmup
    parser.add_argument("--runs", type=int, default=runs, help=f"profiled inferences (default: {runs})")
    parser.add_argument("--warmup", type=int, default=warmup, help=f"untimed inferences before (default: {warmup})")
    parser.add_argument("--top", type=int, default=TOP, help=f"operations to list; 0 lists all (default: {TOP})")
    parser.add_argument("--output", type=Path, help="write all operations to this .csv or .json")
    add_data_options(parser, "compare layers on the last validation images of this data set (default: on noise)")
    add_space_options(parser)
    options = parser.parse_args(arguments)
    refuse_without_data(parser, options)
    if options.output and options.output.suffix not in (".csv", ".json"):
        raise UserError(f"--output must end in .csv or .json, got {options.output}")
    require_folder_of(options.output, "--output")
    described = options.output.with_suffix(".tflite") if options.output else None
    if described and contract_path(described) == options.output and described.is_file():
        raise UserError(f"{options.output} is the place of the contract of {described}; choose another --output")
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    if options.top < 0:
        raise UserError(f"--top must be 0 or more, got {options.top}")
    with refused_as("--"):
        config = BenchmarkConfig(options.runs, options.warmup, (options.threads,))
    if not options.file.is_file():
        raise UserError(f"no file {options.file}; give the path of a .tflite file")
    verified_contract(options.file)
    reference = float_file(options.file, options.float32)
    if options.data and reference is None:
        raise UserError("--data compares an int8 file with its float32 file; give --float32 FILE")
    found, on = (None, "") if reference is None else layers(options.file, options, reference)
    profiled = profile(options.file, config)
    made = rows(profiled, found)
    show_times(made, options.top)
    if found is not None and reference is not None:
        show_layers(made, options.top, f"{reference.name}, {on}")
    said = about_times(profiled) + ([] if found is None else about_layers(found))
    for line in said:
        console.say(f"{options.file.name}: {line}", last=True)
    if options.output:
        about = {
            "model": options.file.stem,
            "threads": options.threads,
            "runs": profiled.runs,
            "model_milliseconds": round(profiled.milliseconds, 6),
            "profiled_milliseconds": profiled.profiled and round(profiled.profiled, 6),
            "float32": reference and reference.name,
            "compared_on": on,
        }
        write(options.output, made, about | origin(f"python -m tfigkd.profile {shlex.join(arguments)}"))


if __name__ == "__main__":
    sys.exit(main())
