"""`python -m tfigkd.evaluate MODEL`: measure any model on the test split of a data set, or on all of it.

python -m tfigkd.evaluate resnet56 --weights FILE.npz --normalization imagenet --data cifar10
python -m tfigkd.evaluate runs/ig_kd/0/export/student.int8.tflite
python -m tfigkd.evaluate student.keras --data imagenet_cifar10 --image-size 32 --split all --per-class
python -m tfigkd.evaluate student.keras --teacher teacher.keras --maps 64
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from tyro.conf import Positional, arg

from tfigkd.config.data_fields import Reading
from tfigkd.config.fields import AttributionConfig, is_application, is_file
from tfigkd.config.flags import DataOptions, SpaceOptions, read_all_options
from tfigkd.data.spaces import Outputs, Range
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_folder_of
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.quiet import quiet_stderr
from tfigkd.runtime.rows import append_row, require_columns
from tfigkd.runtime.text import column_width, percent

PROG = "python -m tfigkd.evaluate"
Predict = Callable[[Any], np.ndarray]
FILES = (".tflite", ".keras")
OF_MAPS = ("maps", "attribution_completeness_error")
"""Columns that only this command writes: the number of explained images, and the median error of the model's maps."""
TRIED = 256
"""Images on which other input ranges and class orders are tried."""


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions, SpaceOptions):
    """Measure a model on the test split of a data set, or on all of one that no model was trained on."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """mobilenet_v2, resnet8|14|20|32|44|56, convnet, keras/NAME, or a .keras or .tflite file."""
    data: str = "cifar10"
    """A tfds name, "digits", the path of an .npz file, of a .csv list or of an image folder."""
    weights: str | None = None
    """Published PyTorch weights (.npz) for a named architecture; a local .h5 or .keras file for keras/NAME."""
    drop_blocks: int = 0
    """Blocks dropped from mobilenet_v2."""
    normalization: Literal["none", "cifar10", "imagenet"] = "none"
    """Input normalization inside a named architecture."""
    split: Literal["test", "all"] = "test"
    """all: every picture of the data set."""
    mirrored: bool = False
    """Test-time augmentation: also show the accuracy of the mean of the logits of each image and its mirror image."""
    per_class: bool = False
    """Show the recall of each class."""
    teacher: str | None = None
    """A .keras or .tflite file to compare with: agreement of the classes, KL divergence of the probabilities."""
    maps: int = 0
    """Explain this number of images by Integrated Gradients: insertion and deletion by the model's own maps and, with
    --teacher, their similarity to the teacher's. Not of .tflite files, which have no gradient."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """How these maps are computed, as in an experiment."""
    rows: Path | None = None
    """Append the result to this .csv."""


def _opened(
    options: Options, data: Any, input_range: Range | None, outputs: Outputs | None = None
) -> tuple[Predict, Any]:
    """Return the model as a function from uint8 images to the logits of the data's classes, and as a Keras model.

    The Keras model takes float32 images in [0,1]; it is None for a .tflite file.
    """
    from tfigkd import models
    from tfigkd.edge.classifier_files import file_predictor
    from tfigkd.measure.chance import probe_examples
    from tfigkd.measure.metrics import predict_logits

    spaces: dict[str, Any] = {"input_range": input_range, "outputs": outputs or options.outputs}
    if options.model.endswith(".tflite"):
        return file_predictor(Path(options.model), data.class_names, **spaces), None
    published = bool(options.weights) and not is_application(options.model)
    model = models.build(
        options.model,
        num_classes=data.num_classes,
        input_shape=data.image_shape,
        weights=None if published else options.weights,
        drop_blocks=options.drop_blocks,
        normalization=options.normalization,
        images=probe_examples(data).images[: models.PROBED_IMAGES] if is_file(options.model) else None,
        **spaces,
    )
    if published:
        models.load_torch_weights(model, str(options.weights))
    return partial(predict_logits, model), model


def _reading(options: Options) -> Reading:
    """Return how the data are read: as given, else as in the model's training; a named network takes any size."""
    from tfigkd import models
    from tfigkd.edge.classifier_files import reading_for
    from tfigkd.stages.workdir import reading_of_model

    if options.model.endswith(".tflite"):
        return reading_for(Path(options.model), options)
    if not is_file(options.model):
        return options.reading
    reading = reading_of_model(options.model, options)
    return replace(reading, image_size=options.image_size or models.image_size_of(options.model) or reading.image_size)


def _measure(options: Options) -> tuple[dict[str, Any], str | None]:
    """Return what is known of the model: data, number of images and metrics, and what to try where it is at chance."""
    from tfigkd.data import concatenate, load, mean_color
    from tfigkd.data.spaces import RANGES
    from tfigkd.measure.chance import near_chance, suggest_fix, suggest_order
    from tfigkd.measure.metrics import comparison, measure, mirrored_accuracy, per_class

    data = load(options.data, _reading(options), directory=options.data_dir)
    examples = data.test if options.split == "test" else concatenate([data.train, data.validation, data.test])
    predict, network = _opened(options, data, options.input_range)
    values, logits = measure(predict, examples)
    teacher = None
    if options.teacher is not None:
        predict_by_teacher, teacher = _opened(Options(model=options.teacher), data, None)
        taught, reference = measure(predict_by_teacher, examples)
        console.say(f"teacher: accuracy {percent(taught['accuracy'])}")
        if reference.shape != logits.shape:
            raise UserError(
                f"{options.model} has {logits.shape[1]} classes and {options.teacher} {reference.shape[1]}; "
                "give a teacher of the same classes"
            )
        values |= comparison(logits, reference)
    if options.mirrored:
        values["mirrored_accuracy"] = mirrored_accuracy(predict, examples.images, logits, examples.labels)
    if options.per_class:
        recalls = per_class(logits, examples.labels, data.num_classes)[: data.num_classes]
        width = column_width(data.class_names)
        for name, one in zip(data.class_names, recalls, strict=True):
            recall = "no images" if one["recall"] is None else f"{100 * one['recall']:6.2f} % of {one['examples']:,}"
            console.say(f"{name:<{width}}  {recall}")
    if options.maps:
        color = mean_color(data.train)
        values |= _maps(examples.take(slice(options.maps)), network, predict, teacher, options.attribution, color)
    guesses = near_chance(logits[:, : data.num_classes], examples.labels)
    some = examples.take(slice(TRIED))
    others = {}
    if options.model.endswith(FILES) and (guesses or options.input_range is None):
        others = {
            f"--input-range {one[0]:g} {one[1]:g}": partial(_logits_in, options, data, one, some.images[:])
            for one in RANGES
            if one != options.input_range
        }
        kinds = get_args(Outputs) if options.outputs is None else ()
        others |= {
            f"--outputs {kind}": partial(_logits_in, options, data, options.input_range, some.images[:], kind)
            for kind in kinds
        }
    advice = suggest_fix(logits[: len(some)], some.labels, data.class_names, others)
    advice = advice or suggest_order(logits, examples.labels, data.class_names)
    if guesses:
        advice = advice or "look at the values of its pixels (--input-range) and at the order of its classes"
        advice = f"no better than guessing; {advice}"
    return {"data": data.name, "data_fingerprint": data.fingerprint, "n_test": len(examples), **values}, advice


def _maps(
    examples: Any, network: Any, predict: Predict, teacher: Any, attribution: AttributionConfig, color: np.ndarray
) -> dict[str, float]:
    """Return how faithful the maps of a model are to it, and how alike those of its teacher.

    Args:
        examples: Images and labels.
        network: The Keras model.
        predict: The same, from uint8 images to logits.
        teacher: The teacher's Keras model, or None.
        attribution: How the maps are computed.
        color: Mean of the training images, float32 [3] in [0,1].
    """
    from tfigkd.attribution.examples import explain
    from tfigkd.config.measure_fields import EvaluationConfig
    from tfigkd.measure.map_metrics import faithfulness_metrics, similarity_metrics

    settings = EvaluationConfig()
    maps, errors = explain(network, examples, attribution, color)
    values: dict[str, float] = dict(zip(OF_MAPS, (len(examples), float(np.median(errors))), strict=True))
    values |= faithfulness_metrics(predict, examples, maps, mean_color=color, steps=settings.curve_steps)
    if teacher is not None:
        reference, _ = explain(teacher, examples, attribution, color)
        values |= similarity_metrics(maps, reference, top_fraction=settings.top_fraction)
    return values


def _logits_in(
    options: Options, data: Any, input_range: Range | None, images: np.ndarray, outputs: Outputs | None = None
) -> np.ndarray:
    return _opened(options, data, input_range, outputs)[0](images)


def _compared(options: Options, values: dict[str, Any]) -> Iterator[str]:
    """Yield the lines on the teacher and on the maps, where they were asked for."""
    if options.teacher is not None:
        yield (
            f"agreement with {options.teacher} {percent(values['agreement'])}  "
            f"KL(teacher ‖ model) {values['kl']:.4f} nats"
        )
    if options.maps:
        yield (
            f"maps of {values['maps']:,} images: insertion AUC {values['attribution_insertion']:.3f}  deletion AUC "
            f"{values['attribution_deletion']:.3f}  median completeness error "
            f"{values['attribution_completeness_error']:.3f}"
        )
    if options.maps and options.teacher is not None:
        yield (
            f"compared with the teacher's maps: rank correlation {values['attribution_rank_correlation']:.3f}  "
            f"(with its maps of other images {values['attribution_rank_correlation_chance']:.3f})"
        )


def _pixels(options: Options) -> Iterator[str]:
    """Yield which pixel values the .keras files were given, and why."""
    from tfigkd.models.user_model import pixels_said

    if is_file(options.model):
        yield f"({pixels_said(options.model, options.input_range)})"
    if options.teacher is not None and is_file(options.teacher):
        remedy = "else save tfigkd.models.as_classifier(teacher, input_range=...)"
        yield f"(teacher: {pixels_said(options.teacher, None, remedy=remedy)})"


def _is_named(model: str) -> bool:
    from tfigkd.models import MODELS

    return model in MODELS or is_application(model)


def check(options: Options) -> None:
    """Check what can be checked before the work.

    Raises:
        UserError: an option has no effect on a file, or --rows has other columns.
    """
    if options.model.endswith(FILES):
        named = {name: getattr(options, name) for name in ("weights", "drop_blocks", "normalization")}
        given = [f"--{name.replace('_', '-')}" for name, value in named.items() if value not in (None, 0, "none")]
        if given:
            raise UserError(
                f"{', '.join(given)}: only a named network takes this; leave it out for the file {options.model}"
            )
    elif Path(options.model).exists() and not _is_named(options.model):
        raise UserError(f"{options.model} is no {' or '.join(FILES)} file; open it in Keras and save it as .keras")
    if options.teacher is not None and not options.teacher.endswith(FILES):
        raise UserError(f"--teacher {options.teacher} is no {' or '.join(FILES)} file")
    _check_maps(options)
    if options.rows is not None and options.rows.exists():
        from tfigkd.measure.map_metrics import FAITHFULNESS, similarity_metrics
        from tfigkd.measure.metrics import MANY_CLASSES, comparison, metrics

        logits, maps = np.zeros((2, MANY_CLASSES + 1)), np.random.default_rng(0).random((2, 2, 2))
        measured = [name for name, _ in metrics(logits, np.arange(2))]
        if options.teacher is not None:
            measured += [name for name, _ in comparison(logits, logits)]
        measured += ["mirrored_accuracy"] * options.mirrored
        if options.maps:
            measured += [*OF_MAPS, *FAITHFULNESS]
            compared = similarity_metrics(maps, maps, top_fraction=0.5) if options.teacher is not None else ()
            measured += [name for name, _ in compared]
        known = ("model", "weights", "data", "data_fingerprint", "n_test")
        require_columns(options.rows, [*known, *measured, *origin("")], maybe=["top5_accuracy"])


def _check_maps(options: Options) -> None:
    """Check the options of the maps.

    Raises:
        UserError: there are too few to compare, a file has none, or a setting has no effect.
    """
    if options.maps < 0 or options.maps == 1:
        raise UserError(f"--maps must be at least 2, got {options.maps}; maps are compared with those of other images")
    files = [path for path in (options.model, options.teacher or "") if path.endswith(".tflite")]
    if options.maps and files:
        raise UserError(f"--maps: {files[0]} has no gradient; give the .keras file that it was made from")
    default = AttributionConfig()
    names = ("shard_size", "grid") if options.maps else tuple(vars(default))
    given = [f"--attribution.{name}" for name in names if getattr(options.attribution, name) != getattr(default, name)]
    if given:
        wrong = "has an effect on stores only; leave it out" if options.maps else "has no effect without --maps"
        raise UserError(f"{', '.join(given)}: {wrong}")


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.evaluate`."""
    options = read_all_options(Options, arguments, prog=PROG)
    require_folder_of(options.rows, "--rows")
    check(options)
    with quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
        values, advice = _measure(options)
    figures = f"accuracy {percent(values['accuracy'])}  balanced {percent(values['balanced_accuracy'])}"
    figures += f"  nll {values['nll']:.4f}  ece {percent(values['ece'])}"
    if options.mirrored:
        figures += f"  with mirror images {percent(values['mirrored_accuracy'])}"
    console.say(f"{figures}  ({values['n_test']:,} images)")
    for line in _compared(options, values):
        console.say(line)
    for line in _pixels(options):
        console.say(line)
    if advice is not None:
        console.say(f"warning: {advice}")
    if options.rows:
        named = {"model": options.model, "weights": options.weights or ""}
        append_row(options.rows, named | values | origin(f"{PROG} {shlex.join(arguments)}"))


if __name__ == "__main__":
    sys.exit(main())
