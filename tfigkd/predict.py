"""`python -m tfigkd.predict MODEL.tflite IMAGE…`: the likeliest classes of pictures, by LiteRT, Pillow and NumPy.

python -m tfigkd.predict runs/ig_kd/0/export/student.int8.tflite cat.png dog.png --top 3
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.data_fields import BACKGROUND, Fit
from tfigkd.data.pictures import bombs_refused, decode, is_hidden, is_picture, scaled
from tfigkd.data.spaces import UNIT, Outputs, Range, require_finite_outputs, to_logits
from tfigkd.edge.classifier_files import background_of, fit_of, infer_spaces
from tfigkd.edge.contract import contract_path, verified_contract
from tfigkd.edge.input_range import assumption
from tfigkd.edge.litert import class_count, dequantize, input_details, input_values, open_classifier, output_details
from tfigkd.edge.options import add_background_option, add_space_options, given_spaces
from tfigkd.edge.package import model_file
from tfigkd.runtime.command import Parser, command
from tfigkd.runtime.errors import UserError, plain, readable
from tfigkd.runtime.text import column_width, shortened

NAMED = 5
"""Unusable pictures that the error names."""


def read_labels(path: Path) -> list[str]:
    """Return class names from a text file, one a line.

    Raises:
        UserError: the file is missing or no text.
    """
    if not path.is_file():
        raise UserError(f"no label file {path}; give a text file with one class name a line")
    with readable(f"label file {path}", "save it as UTF-8 text with one class name a line"):
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # editors on Windows write a byte-order mark


def class_names(
    model: Path, classes: int, contract: Mapping[str, Any] | None = None, labels: Path | None = None
) -> list[str]:
    """Return the names of the classes: from a label file, else from the contract beside the model, else their numbers.

    Raises:
        UserError: there is not one name for each class.
    """
    if labels is not None:
        names, where = read_labels(labels), labels
    elif contract is not None and contract["class_names"] is not None:
        names, where = contract["class_names"], contract_path(model)
    else:
        return [f"class {index}" for index in range(classes)]
    if len(names) != classes:
        raise UserError(f"{where} names {len(names)} classes, {model} has {classes}; give one name for each, in order")
    return names


def read_picture(
    path: Path,
    shape: Sequence[int],
    *,
    resize: bool = False,
    drop_alpha: bool = False,
    background: str = BACKGROUND,
    fit: Fit = "stretch",
) -> np.ndarray:
    """Read a picture as a model takes it: upright by its EXIF data, transparent pixels over the background.

    Args:
        path: One of `pictures.FORMATS`, whatever its name ends in.
        shape: (H, W, C), with one channel or three.
        resize: Bring a picture of another size to that of the model; without it such a one is refused.
        drop_alpha: Read the colors of transparent pixels as if they were opaque.
        background: Color behind transparent pixels: white, gray, black or "#rrggbb".
        fit: How a picture is resized, as for `tfigkd.data.pictures.scaled`.

    Returns:
        uint8 [H,W,C].

    Raises:
        UserError: the picture cannot be read, or has another size.
    """
    from PIL import Image

    if not path.is_file():
        raise UserError(f"no picture {path}; give the path of a file")
    with bombs_refused():
        picture = Image.fromarray(decode(path, str(path), background=background, drop_alpha=drop_alpha))
    height, width, channels = (int(size) for size in shape)
    if picture.size != (width, height):
        if not resize:
            size = f"{picture.width}x{picture.height}"
            raise UserError(f"picture {path} is {size}, the model takes {width}x{height}; give --resize to {fit} it")
        picture = scaled(picture, (width, height), fit)
    return np.asarray(picture.convert("L"))[..., None] if channels == 1 else np.asarray(picture)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits [K]."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Return pictures; a folder stands for all pictures in it and in its folders, in the order of their names.

    Raises:
        UserError: A folder has no pictures.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(_inside(path))
        if not inside:
            raise UserError(f"folder {path} has no pictures; give pictures or a folder of them")
        found += inside
    return found


def _inside(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the pictures in a folder and its folders, also behind links, as training reads a class folder."""
    above |= {os.path.realpath(folder)}
    for child in folder.iterdir():
        if is_hidden(child):
            continue
        if child.is_dir():
            if os.path.realpath(child) not in above:  # a link to a folder above would be followed for ever
                yield from _inside(child, above)
        elif child.is_file() and is_picture(child):
            yield child


def refusal_in_one_line(unusable: Sequence[UserError], count: int) -> UserError:
    """Return one error for all pictures that cannot be used, so that they can be replaced at once.

    Args:
        unusable: An error for each; at least one.
        count: All pictures.
    """
    if len(unusable) == 1:
        return unusable[0]
    named = shortened([str(error) for error in unusable], NAMED, "; ")
    return UserError(f"{len(unusable)} of {count} pictures cannot be used: {named}")


def predictions(
    interpreter: Any, pictures: Sequence[np.ndarray], input_range: Range = UNIT, outputs: Outputs = "logits"
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield probabilities [K] and milliseconds of each picture, uint8 [H,W,C].

    Raises:
        UserError: The model gives NaN or infinity.
    """
    source, sink = input_details(interpreter), output_details(interpreter)
    for picture in pictures:
        interpreter.set_tensor(source["index"], input_values(picture[None], source, input_range))
        start = time.perf_counter()
        interpreter.invoke()
        milliseconds = 1e3 * (time.perf_counter() - start)
        values = require_finite_outputs(dequantize(interpreter.get_tensor(sink["index"]), sink), "the model")
        yield probabilities(to_logits(values, outputs)[0]), milliseconds


def run(options: argparse.Namespace) -> None:
    """Print the likeliest classes of each picture.

    Raises:
        UserError: the file, its contract, the labels or a picture do not fit.
    """
    if options.top < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--top and --threads must be at least 1")
    with model_file(options.model, options.file) as model:
        classify(model, options)


def classify(model: Path, options: argparse.Namespace) -> None:
    """Print the likeliest classes of each picture by a .tflite file.

    Raises:
        UserError: as `run`.
    """
    contract = verified_contract(model)
    interpreter = open_classifier(model, threads=options.threads)
    source, sink = input_details(interpreter), output_details(interpreter)
    given = given_spaces(options)
    space = infer_spaces(interpreter, contract, **given)
    if note := assumption(interpreter, contract, given["input_range"]):
        print(note, file=sys.stderr)
    names = class_names(model, class_count(sink), contract, options.labels)
    color = background_of(contract, options.background)
    adapt = {"resize": options.resize, "drop_alpha": options.drop_alpha, "fit": fit_of(contract)}
    images = pictures_in(options.images)
    pictures, unusable = [], []
    for path in images:
        try:
            pictures.append(read_picture(path, source["shape"][1:], background=color, **adapt))
        except UserError as error:
            unusable.append(error)
    if unusable:
        raise refusal_in_one_line(unusable, len(images))
    for path, (shares, milliseconds) in zip(images, predictions(interpreter, pictures, *space), strict=True):
        print(f"{plain(str(path))}  ({milliseconds:.2f} ms)")
        likeliest = np.argsort(-shares, kind="stable")[: options.top]
        width = column_width(names[index] for index in likeliest)
        for index in likeliest:
            print(f"  {names[index]:<{width}}  {100 * shares[index]:6.2f} %")


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.predict`; argparse, since an edge board need not have tyro."""
    parser = Parser(prog="python -m tfigkd.predict", description="The likeliest classes of pictures, by a LiteRT file.")
    parser.add_argument("model", type=Path, help="a .tflite classifier, beside its .json, or a .zip of tfigkd.pack")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="pictures, or folders of them")
    add_space_options(parser)
    parser.add_argument("--file", metavar="NAME", help="which .tflite file of a .zip (default: its smallest)")
    parser.add_argument("--top", type=int, default=5, help="classes to show for each picture (default: 5)")
    parser.add_argument("--labels", type=Path, help="text file with one class name a line")
    parser.add_argument("--resize", action="store_true", help="stretch (or crop, as in training) to the model's size")
    add_background_option(parser)
    parser.add_argument(
        *("--drop-alpha", "--drop_alpha"), action="store_true", help="read transparent pixels as if they were opaque"
    )
    parser.add_argument("--threads", type=int, help="threads of the interpreter (default: all cores)")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
