"""The search space: fields of an experiment and their ranges or values, as given by `--vary` or `--student`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tfigkd.config.experiment import Config, override, to_mapping
from tfigkd.config.fields import NetworkConfig
from tfigkd.config.reading import dotted_names, value_at
from tfigkd.runtime.errors import UserError, closest
from tfigkd.stages.runner import FREE

# default without --vary; fields of loss terms that the experiment switches off are left out
SPACE = (
    "losses.kd.weight=0.01:0.95",
    "losses.kd.temperature=1:8:log",
    "overlay.probability=0.02:0.5:log",
    "overlay.max_exponent=1:3",
    "losses.at.weight=0.1:3000:log",
    "training.learning_rate",
)
ADAM_RATES = "3e-4:1e-2:log"
"""Learning rates to try with Adam and AdamW."""

BLOCKS = "student.model"
RESIDUAL = ("resnet8", "resnet14", "resnet20")
STUDENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (f"{BLOCKS}=mobilenet_v2,{','.join(RESIDUAL)},convnet", ()),
    ("student.width=0.25,0.375,0.5,0.75,1.0,1.5", ()),
    ("student.stem_stride=1,2", ("mobilenet_v2", *RESIDUAL)),
    ("student.drop_blocks=3,5,7,9,11,13", ("mobilenet_v2",)),
    ("student.depth=2,3", ("convnet",)),
)
"""The space of `--student`: kind of block, width, stride of the stem and depth, with the networks that have them."""
OF_ALL = ("model", "width", "normalization", "image_size")
"""Options of a student that all networks of `STUDENTS` take."""
JUDGING = ("data.name", "data.limit", "data.train_split", "data.splits", "data.group")
"""Fields that decide which images train and which judge: trials that differ in them cannot be compared."""
PIXELS = ("data.image_size", "data.fit", "data.background")
"""Fields that change the pixels of images: where validation is held out by their hashes, it has other images too."""
UNREAD = (*FREE, "incremental.")
"""Fields on which no student of a trial depends."""


@dataclass(frozen=True)
class Dimension:
    """The values to try for one field: a range of numbers, on a linear or logarithmic scale, or a list of values.

    Attributes:
        field: Dotted name.
        values: The lowest and the highest, or all.
        scale: Of a range; "choice" for a list.
        networks: Values of `student.model` with which the field is varied; none: with all.
    """

    field: str
    values: tuple[Any, ...]
    scale: Literal["choice", "linear", "log"]
    networks: tuple[str, ...] = ()


def _value(text: str) -> Any:
    """Convert text to a number, true or false, or keep it as a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def dimension(text: str, config: Config) -> Dimension:
    """Read one `--vary` option.

    Raises:
        UserError: the text has another form, the field is unknown or none that trials can differ in, or a value is
            outside the field's range.
    """
    field, _, values = text.partition("=")
    low_high, separator, scale = values, "", ""
    if values.count(":") == 2:
        low_high, separator, scale = values.rpartition(":")
    ranged = low_high.count(":") == 1
    if not values or (separator and scale not in ("log", "linear")) or (values.count(":") and not ranged):
        raise UserError(f"--vary {text}: expected FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C")
    parts = tuple(_value(part) for part in low_high.split(":" if ranged else ","))
    settings = to_mapping(config)
    try:
        value_at(settings, field)
    except KeyError:
        raise UserError(f"--vary {text}: unknown field {field!r}; {closest(field, dotted_names(settings))}") from None
    remedy = f"give one value, --{field} VALUE"
    if f"{field}.".startswith(UNREAD):
        raise UserError(f"--vary {text}: the student of a trial does not depend on {field}; {remedy}")
    held_out = config.data.splits.validation is None
    if field.startswith(JUDGING + PIXELS if held_out else JUDGING):
        named = ", or name the validation split, --data.splits.validation" if field.startswith(PIXELS) else ""
        raise UserError(f"--vary {text}: trials of different {field} are judged on different images; {remedy}{named}")
    taken = [value_at(to_mapping(override(config, {field: part})), field) for part in parts]
    if not ranged:
        return Dimension(field, parts, "choice")
    low, high = parts
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in parts)
    if not numbers or not low < high or (scale == "log" and low <= 0):
        raise UserError(f"--vary {text}: expected a lower and a higher number, both above 0 for a log scale")
    if any(isinstance(value, float) for value in taken):
        parts = (float(low), float(high))
    return Dimension(field, parts, "log" if scale == "log" else "linear")


def dimensions(vary: Sequence[str], config: Config) -> list[Dimension]:
    """Read all `--vary` options.

    Raises:
        UserError: One of them is wrong, or a field is given twice.
    """
    space = [dimension(text, config) for text in vary]
    names = [one.field for one in space]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--vary: {twice} is given twice; give all its values in one --vary")
    return space


def usual_space(config: Config) -> list[Dimension]:
    """Return the default search space of an experiment: fields of the features that it switches on."""
    active = config.losses.active()
    off = {f"losses.{name}." for name in ("kd", "at") if name not in active}
    if config.overlay.probability == 0:
        off.add("overlay.")
    space = [f"{one}={_rates(config)}" if "=" not in one else one for one in SPACE]
    return [dimension(text, config) for text in space if not text.startswith(tuple(off))]


def neutral_student(config: Config) -> Config:
    """Return an experiment whose student has the neutral value of every option that not all of `STUDENTS` take."""
    neutral = NetworkConfig()
    changes = {f"student.{one.name}": getattr(neutral, one.name) for one in fields(neutral) if one.name not in OF_ALL}
    changes["student.weights"] = None
    if config.student.init == "file":
        changes["student.init"] = "random"
    return override(config, changes)


def student_space(config: Config, vary: Sequence[str]) -> list[Dimension]:
    """Return the search space of the student's architecture, with what `--vary` adds or sets in its place.

    Args:
        config: The experiment, from `neutral_student`.
        vary: Options `--vary`.
    """
    given = {one.field: one for one in dimensions(vary, config)}
    space = []
    for text, networks in STUDENTS:
        one = dimension(text, config)
        space.append(replace(given.pop(one.field, one), networks=networks))
    models = space[0].values
    return [one for one in space if not one.networks or {*one.networks} & {*models}] + list(given.values())


def _rates(config: Config) -> str:
    """Return the learning rates to try: those of Adam, and with SGD or Muon values around the experiment's own."""
    if config.training.optimizer in ("adam", "adamw"):
        return ADAM_RATES
    rate = config.training.learning_rate
    return f"{rate / 10:g}:{3 * rate:g}:log"


def decoded(value: Any) -> Any:
    """Return a value that KerasTuner chose as the field takes it; `hyperparameters` writes some as text."""
    return _value(value) if isinstance(value, str) else value


def hyperparameters(space: Sequence[Dimension]) -> Any:
    """Convert a search space to KerasTuner's HyperParameters."""
    import keras_tuner

    found = keras_tuner.HyperParameters()
    for one in space:
        only: dict[str, Any] = {"parent_name": BLOCKS, "parent_values": list(one.networks)} if one.networks else {}
        if one.scale == "choice":
            # KerasTuner takes neither true and false, nor null, nor integers beside floats
            plain = {type(value) for value in one.values} in ({int}, {float}, {str})
            found.Choice(one.field, list(one.values) if plain else [json.dumps(value) for value in one.values], **only)
        elif all(isinstance(value, int) for value in one.values):
            found.Int(one.field, *one.values, sampling=one.scale, **only)
        else:
            found.Float(one.field, *one.values, sampling=one.scale, **only)
    return found


def changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a trial sets, including the number of epochs that hyperband gives it."""
    found = {name: decoded(value) for name, value in values.items() if not name.startswith("tuner/")}
    return found | ({"training.epochs": values["tuner/epochs"]} if "tuner/epochs" in values else {})


def trial_config(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config of one trial from its KerasTuner values.

    Warm-up and fine-tuning keep their share of the epochs that hyperband gives a trial, and never outlast them.
    """
    changed = changes(values)
    share = values.get("tuner/epochs", config.training.epochs) / config.training.epochs
    if share < 1:
        for name, kind in (("training.warmup_epochs", float), ("training.finetune_epochs", int)):
            changed[name] = kind(share * changed.get(name, value_at(to_mapping(config), name)))
    return override(config, changed)


def format_values(values: Mapping[str, Any]) -> str:
    """Return the values of a trial on one line."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return "  ".join(f"{key} {value}" for key, value in shown.items())
