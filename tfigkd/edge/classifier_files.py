"""A LiteRT file of any origin as a function from pictures to the logits of a data set's classes; without TensorFlow."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tfigkd.config.data_fields import BACKGROUND, Fit, Reading, is_color
from tfigkd.config.reading import refused_as
from tfigkd.config.training_splits import with_splits_of_training
from tfigkd.data.spaces import (
    SUM_TOLERANCE,
    UNIT,
    Outputs,
    Range,
    check_range,
    in_range,
    output_kind,
    probe_images,
    require_finite_outputs,
    to_gray,
)
from tfigkd.edge.contract import verified_contract
from tfigkd.edge.input_range import infer_input_range
from tfigkd.edge.litert import (
    TYPE_CONVERSIONS,
    class_count,
    dequantize,
    file_operations,
    input_details,
    litert_predictor,
    open_classifier,
    output_details,
    tensor_values,
)
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.text import shortened

GIVES: dict[str, Outputs] = {
    **dict.fromkeys(("SOFTMAX", "LOGISTIC"), "probabilities"),
    **dict.fromkeys(("FULLY_CONNECTED", "CONV_2D", "LOG_SOFTMAX"), "logits"),
}
"""What a file gives, by its last operation. Values do not always show it: a single logit may be in [0, 1]."""
KEEPS_LOGITS = (*TYPE_CONVERSIONS, "RESHAPE")
SCALES = ("MUL", "DIV", "ADD", "SUB")
"""Operations that, with a constant, leave logits logits, as a temperature does."""


def image_side(path: Path) -> int | None:
    """Return height and width of the images that a file takes; None where they differ.

    Raises:
        UserError: The file is damaged or is no classifier of images.
    """
    verified_contract(path)
    return _side(path)


def _side(path: Path) -> int | None:
    height, width = map(int, input_details(open_classifier(path))["shape"][1:3])
    return height if height == width else None


def reading_for(path: Path, options: Any) -> Reading:
    """Return how a data set is read for a file: as the options say, else as in the file's training.

    Args:
        path: The .tflite file, whose contract tells of its training.
        options: Those of `options.add_data_options` or `config.flags.DataOptions`.

    Raises:
        UserError: The file is damaged or is no classifier of images, its contract makes no sense, or an option is out
            of range.
    """
    contract = verified_contract(path)
    with refused_as("--"):
        reading = Reading.of(options)
    reading = replace(
        reading,
        image_size=_side(path) if options.image_size is None else options.image_size,
        background=background_of(contract, options.background),
        fit=fit_of(contract, options.fit),
    )
    try:
        return with_splits_of_training(reading, options.data, (contract or {}).get("data") or {})
    except (AttributeError, TypeError) as error:
        raise UserError(f"the contract of {path} has no valid data.splits; export it anew") from error


def background_of(contract: Mapping[str, Any] | None, given: str | None) -> str:
    """Return the color that transparent pictures are composited on: the given one, else that of the model's training.

    Raises:
        UserError: it is no color.
    """
    color = given if given is not None else (contract or {}).get("background", BACKGROUND)
    if not isinstance(color, str) or not is_color(color):
        where = "the contract's background" if given is None else "--background"
        raise UserError(f'{where} must be white, gray, black or "#rrggbb", got {color!r}')
    return color


def fit_of(contract: Mapping[str, Any] | None, given: Fit | None = None) -> Fit:
    """Return how pictures come to the size of a model: the given way, else that of its training, else "stretch".

    Raises:
        UserError: the contract says something else.
    """
    fit = given or (contract or {}).get("fit", "stretch")
    if fit not in get_args(Fit):
        raise UserError(f"the contract's fit must be {' or '.join(get_args(Fit))}, got {fit!r}")
    return fit


def infer_spaces(
    interpreter: Any,
    contract: Mapping[str, Any] | None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
) -> tuple[Range, Outputs]:
    """Return the range of pixels that a file takes, and whether it gives logits or probabilities.

    What the user gives is used first, then what the contract says. Without either, the scale of an integer input or the
    first operations show the range, and the last operation, or the outputs on noise, black and white, show what the
    file gives.

    Args:
        interpreter: From `open_classifier`.
        contract: From `verified_contract`, or None.
        input_range: As given by the user.
        outputs: As given by the user.

    Raises:
        UserError: The given range is none, or a single output may be a probability or a logit.
    """
    if input_range is not None:
        try:
            check_range(input_range)
        except ValueError as error:
            raise UserError(f"--input-range: {error}") from error
    sink = output_details(interpreter)
    about = contract or {}
    taken = input_range or infer_input_range(interpreter, contract) or UNIT
    means = about.get("output", {}).get("means") if isinstance(about.get("output"), Mapping) else None
    known = means if means in get_args(Outputs) else None
    given = outputs or known or _infer_outputs_by_end(interpreter, int(sink["index"]))
    if given is None:
        seen = probe(interpreter, taken)
        # each of the quantized shares is off by up to half a step
        rounding = len(seen[0]) * float(sink["quantization"][0]) / 2
        given = output_kind(seen, min(max(SUM_TOLERANCE, rounding), 0.5))
        if len(seen[0]) == 1 and given == "probabilities":
            raise UserError(
                "the single output of the file may be a probability or a logit; give --outputs probabilities or "
                "--outputs logits"
            )
    return taken, given


def probe(interpreter: Any, input_range: Range) -> np.ndarray:
    """Return the outputs [N,K] of a file on noise, black and white.

    Raises:
        UserError: They are not finite.
    """
    source, sink = input_details(interpreter), output_details(interpreter)
    seen = []
    for image in in_range(probe_images(tuple(map(int, source["shape"][1:]))), input_range):
        interpreter.set_tensor(source["index"], tensor_values(image[None], source))
        interpreter.invoke()
        seen.append(dequantize(interpreter.get_tensor(sink["index"]), sink)[0])
    return require_finite_outputs(np.stack(seen), "the file")


def _infer_outputs_by_end(interpreter: Any, tensor: int) -> Outputs | None:
    """Return what a tensor holds, by the operation that computes it; None if that operation does not show it."""
    writers = {int(index): one for one in file_operations(interpreter) for index in one["outputs"]}
    while tensor in writers and writers[tensor]["op_name"] in (*KEEPS_LOGITS, *SCALES):
        computed = [int(index) for index in writers[tensor]["inputs"] if int(index) in writers]
        if len(computed) != 1:
            break
        (tensor,) = computed
    return GIVES.get(writers[tensor]["op_name"]) if tensor in writers else None


def file_predictor(
    path: Path,
    class_names: Sequence[str],
    *,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
) -> Callable[[Any], np.ndarray]:
    """Return a function from uint8 images [N,H,W,C] to logits [N,K], the columns in the order of a data set's classes.

    RGB images are converted for a file that takes gray ones. Classes absent from the data come last; predicting one
    counts as an error.

    Args:
        path: A .tflite file, of this package or of another tool.
        class_names: Of the data.
        input_range: The values of a black and of a white pixel that it takes; see `infer_spaces`.
        outputs: What it gives; see `infer_spaces`.

    Raises:
        UserError: The file is damaged, is no classifier, or has other classes.
    """
    contract = verified_contract(path)
    interpreter = open_classifier(path)
    taken, given = infer_spaces(interpreter, contract, input_range, outputs)
    source, sink = input_details(interpreter), output_details(interpreter)
    order = class_order(path, class_count(sink), (contract or {}).get("class_names"), class_names)
    predict = litert_predictor(path, input_range=taken, outputs=given)
    gray = int(source["shape"][-1]) == 1

    def in_order(images: np.ndarray) -> np.ndarray:
        logits = predict(to_gray(images) if gray and images.shape[-1] == 3 else images)
        return require_finite_outputs(logits, str(path))[:, order]

    return in_order


def class_order(path: Path, count: int, own: Sequence[str] | None, wanted: Sequence[str]) -> list[int]:
    """Return the outputs of a file in the order of a data set's classes, then the others.

    Names may differ in capital letters where only one class then fits, and in how Unicode composes accents.

    Args:
        path: The file.
        count: Number of its classes.
        own: Their names, or None.
        wanted: The data's class names.

    Raises:
        UserError: It has no names and another number of classes, or it does not know a class of the data.
    """
    if own is None:
        if count != len(wanted):
            raise UserError(
                f"{path} has {count} classes without names, the data have {len(wanted)} ({shortened(wanted)}); give "
                "the data that it was made for, or export it with --data"
            )
        return list(range(count))
    if len(own) != count:
        raise UserError(f"the contract of {path} names {len(own)} classes, it has {count}; export it anew")
    own, wanted = ([unicodedata.normalize("NFC", name) for name in names] for names in (own, wanted))
    places = {name: index for index, name in enumerate(own)}
    folded: dict[str, list[int]] = {}
    for index, name in enumerate(own):
        folded.setdefault(name.casefold(), []).append(index)
    missing = []
    order: dict[int, None] = {}  # a set that keeps its order
    for name in wanted:
        place, alike = places.get(name), folded.get(name.casefold(), [])
        if place is None and len(alike) == 1:
            place = alike[0]
        if place is None or place in order:
            missing.append(name)
        else:
            order[place] = None
    if missing:
        raise UserError(
            f"{path} does not know the classes {shortened(missing)} of the data; it knows {shortened(own)}: rename "
            "the class folders accordingly"
        )
    return [*order, *(index for index in range(count) if index not in order)]
