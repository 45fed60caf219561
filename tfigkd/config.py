"""What an experiment is: frozen dataclasses, read from TOML, strict about names and types.

An experiment is one TOML file with at most one level of `base = "other"`. Any field can be overridden by its
dotted name, on the command line (`--losses.kd.temperature 4`) and by `override()`.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tfigkd.errors import UserError

FINGERPRINT_DIGITS = 16


def _require(condition: bool, what: str, value: Any) -> None:
    if not condition:
        raise UserError(f"config: {what}, got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and which of them train."""

    name: str = "cifar10"
    """A tfds name, "digits" (embedded), the path of an .npz file or of an image folder."""
    dir: str | None = None
    """Prepared tfds directory; without it TFDS_DATA_DIR, then tfds's own default."""
    image_size: int | None = None
    """Height and width in pixels after resizing; the source's own size when not given."""
    limit: int | None = None
    """Keep only the first examples of each split, by id."""
    train_split: Literal["train", "train+validation"] = "train"
    """What trains: train without the held-out validation tenth, or all of it (for final figures)."""

    def __post_init__(self) -> None:
        _require(self.limit is None or self.limit > 0, "data.limit must be positive", self.limit)
        _require(
            self.image_size is None or self.image_size > 0,
            "data.image_size must be positive",
            self.image_size,
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Random geometry, drawn once per (seed, epoch, id) and applied to image and map alike."""

    crop_padding: int = 4
    """Zero padding in pixels before a random crop of the original size; 0 switches cropping off."""
    flip: bool = True
    """Flip left to right with probability one half."""

    def __post_init__(self) -> None:
        _require(self.crop_padding >= 0, "augment.crop_padding must not be negative", self.crop_padding)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. The defaults are the papers' recipe."""

    epochs: int = 100
    """Passes over the training split; the last epoch's weights are the result."""
    batch_size: int = 64
    """Examples a step; the last batch of an epoch may be smaller."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, AdamW, or SGD with Nesterov momentum."""
    learning_rate: float = 1e-3
    """The peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; Adam ignores it."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW, SGD) of kernels; biases and normalization are left alone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps after warm-up."""
    warmup_epochs: float = 0.0
    """Linear warm-up from zero, in epochs."""
    label_smoothing: float = 0.0
    """Share of the hard label's mass spread evenly over the classes."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "training.epochs must be positive", self.epochs)
        _require(self.batch_size > 0, "training.batch_size must be positive", self.batch_size)
        _require(self.learning_rate > 0, "training.learning_rate must be positive", self.learning_rate)
        _require(0 <= self.momentum < 1, "training.momentum must be in [0, 1)", self.momentum)
        _require(self.weight_decay >= 0, "training.weight_decay must not be negative", self.weight_decay)
        _require(self.warmup_epochs >= 0, "training.warmup_epochs must not be negative", self.warmup_epochs)
        _require(0 <= self.label_smoothing < 1, "training.label_smoothing must be in [0, 1)", self.label_smoothing)


@dataclass(frozen=True)
class NetworkConfig:
    """An architecture by name, or the user's own model."""

    model: str = "mobilenet_v2"
    """mobilenet_v2, resnet20, resnet32, resnet44, resnet56, or the path of a .keras file."""
    drop_blocks: int = 0
    """How many of MobileNet-V2's 19 feature blocks are dropped from the end."""
    width: float = 1.0
    """Multiplies MobileNet-V2's channels."""
    dropout: float | None = None
    """Dropout before the classifier; not given: 0.2 for the whole MobileNet-V2, none for a truncated one."""
    normalization: Literal["none", "cifar10", "imagenet"] = "none"
    """Input normalization inside the model, by the mean and deviation of that data set."""

    def __post_init__(self) -> None:
        _require(0 <= self.drop_blocks < 19, "drop_blocks must be in 0..18", self.drop_blocks)
        _require(self.width > 0, "width must be positive", self.width)
        _require(self.dropout is None or 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)


@dataclass(frozen=True)
class TeacherConfig(NetworkConfig):
    """The large network, trained once and shared by every arm and seed."""

    normalization: Literal["none", "cifar10", "imagenet"] = "cifar10"
    """Input normalization inside the model, by the mean and deviation of that data set."""
    weights: str | None = None
    """Published PyTorch weights (.npz) to load; the teacher is then not trained."""
    train: bool = True
    """Train the teacher; false takes a .keras model as it is."""
    seed: int = 0
    """Seed of the teacher's own training; --seed moves only the student."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-3,  # decoupled; PyTorch's 5e-4 inside a momentum of 0.9
            schedule="cosine",
            warmup_epochs=5,
        )
    )
    """The teacher's recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.model.endswith(".keras")
        _require(
            self.train or own or self.weights is not None,
            "teacher.train = false needs teacher.weights or a .keras teacher.model",
            self.model,
        )


@dataclass(frozen=True)
class StudentConfig(NetworkConfig):
    """The small network: as in the papers, the teacher's architecture without its last five blocks."""

    drop_blocks: int = 5
    """How many of MobileNet-V2's 19 feature blocks are dropped from the end."""
    init: Literal["random", "teacher"] = "random"
    """Initial weights; "teacher" copies the teacher's own first blocks (and its normalization)."""


@dataclass(frozen=True)
class AttributionConfig:
    """How Integrated Gradients maps of the teacher are computed."""

    baseline: Literal["black", "mean", "blur"] = "black"
    """Where the path starts: black, the training split's mean color, or the blurred image."""
    rule: Literal["gauss_legendre", "midpoint", "trapezoid", "left", "right"] = "midpoint"
    """Quadrature rule along the path."""
    n_steps: int | None = None
    """A fixed number of steps; not given: as many as the tolerance asks for."""
    tolerance: float = 0.05
    """Completeness error above which a map is recomputed with more steps, and at last never overlaid."""
    max_steps: int = 128
    """Most steps for one image."""
    batch_size: int = 128
    """Gradient evaluations at once; bounds the memory and nothing else."""
    shard_size: int = 512
    """Examples a shard of the overlay store; an interrupted store loses at most one."""

    def __post_init__(self) -> None:
        _require(self.n_steps is None or self.n_steps > 0, "attribution.n_steps must be positive", self.n_steps)
        _require(self.tolerance > 0, "attribution.tolerance must be positive", self.tolerance)
        _require(self.max_steps > 0, "attribution.max_steps must be positive", self.max_steps)
        _require(self.batch_size > 0, "attribution.batch_size must be positive", self.batch_size)
        _require(self.shard_size > 0, "attribution.shard_size must be positive", self.shard_size)


@dataclass(frozen=True)
class OverlayConfig:
    """How maps are laid over training images: 0.5 image + 0.5 map ** s, s log-uniform."""

    probability: float = 0.0
    """Share of training images that carry an overlay (the papers' p = 0.1); 0 switches it off."""
    min_exponent: float = 1.0
    """Smallest exponent s."""
    max_exponent: float = 2.0
    """Largest exponent s."""

    def __post_init__(self) -> None:
        _require(0 <= self.probability <= 1, "overlay.probability must be in [0, 1]", self.probability)
        ordered = 0 < self.min_exponent <= self.max_exponent
        _require(ordered, "overlay exponents must be 0 < min <= max", (self.min_exponent, self.max_exponent))


@dataclass(frozen=True)
class ControlConfig:
    """Placebo arms: the same treatment without the information."""

    maps: Literal["own", "shuffled", "noise", "none"] = "own"
    """own; shuffled across images; noise with each map's power spectrum; none: dimmed as by an overlay, no map."""
    logits: Literal["own", "shuffled"] = "own"
    """own; shuffled across images."""
    seed: int = 77
    """Seed of the permutation or the noise."""


@dataclass(frozen=True)
class KDConfig:
    """Knowledge distillation from softened logits (Hinton et al. 2015, arXiv 1503.02531)."""

    weight: float = 0.0
    """Weight of the term (the papers' alpha); the hard label's weight is 1 minus this."""
    temperature: float = 2.5
    """Temperature T of teacher and student; the term is multiplied by T squared."""

    def __post_init__(self) -> None:
        _require(0 <= self.weight <= 1, "losses.kd.weight must be in [0, 1]", self.weight)
        _require(self.temperature > 0, "losses.kd.temperature must be positive", self.temperature)


@dataclass(frozen=True)
class LossesConfig:
    """The terms beside the hard label; each has a weight, and a weight of 0 switches it off."""

    kd: KDConfig = field(default_factory=KDConfig)
    """Softened logits."""


@dataclass(frozen=True)
class ExportConfig:
    """LiteRT files and the bounds inside which they must say what the student says."""

    calibration_examples: int = 256
    """Validation images that calibrate int8."""
    max_float32_difference: float = 1e-3
    """Largest difference of a float32 logit, relative to the largest logit, on validation."""
    min_int8_agreement: float = 0.9
    """Smallest share of validation images with the same top-1 class."""

    def __post_init__(self) -> None:
        positive = self.calibration_examples > 0
        _require(positive, "export.calibration_examples must be positive", self.calibration_examples)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Latency on this machine, batch 1, teacher and student alternating in one runtime."""

    runs: int = 200
    """Timed inferences of each file, after warm-up."""
    warmup: int = 20
    """Inferences before the clock starts."""
    threads: int = 1
    """Threads of the interpreter."""

    def __post_init__(self) -> None:
        _require(self.runs > 0, "benchmark.runs must be positive", self.runs)
        _require(self.warmup >= 0, "benchmark.warmup must not be negative", self.warmup)
        _require(self.threads > 0, "benchmark.threads must be positive", self.threads)


@dataclass(frozen=True)
class Config:
    """One experiment, whole."""

    description: str = ""
    """One line for --list."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    @property
    def needs_teacher(self) -> bool:
        """Whether the student learns anything from a teacher."""
        return self.needs_store or self.student.init == "teacher"

    @property
    def needs_store(self) -> bool:
        """Whether the student's training reads the overlay store."""
        return self.losses.kd.weight > 0 or self.overlay.probability > 0


def fingerprint(*parts: Any) -> str:
    """Hash of configs, strings and plain JSON values: equal parts, equal fingerprint, on any machine."""
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def to_mapping(config: Config) -> dict[str, Any]:
    """The resolved config as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two config mappings differ."""
    names = []
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name, or all the names there are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _convert(value: Any, expected: Any, where: str) -> Any:
    """Check one value against its annotation; an integer is welcome where a float is expected."""
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise UserError(f"config: {where} is a table, got {value!r}")
        return from_mapping(typing.cast(type, expected), value, where)
    origin = typing.get_origin(expected)
    if origin is Literal:
        if value not in typing.get_args(expected):
            choices = ", ".join(map(repr, typing.get_args(expected)))
            raise UserError(f"config: {where} must be one of {choices}, got {value!r}")
        return value
    options = typing.get_args(expected) if origin in (types.UnionType, typing.Union) else (expected,)
    if type(value) in options:
        return value
    if float in options and type(value) is int:
        return float(value)
    wanted = " or ".join(option.__name__ for option in options if option is not type(None))
    raise UserError(f"config: {where} must be of type {wanted}, got {value!r} ({type(value).__name__})")


def from_mapping(cls: type, mapping: Mapping[str, Any], where: str = "", base: Any = None) -> Any:
    """Build a config dataclass from nested plain values, over `base` where one is given.

    Raises:
        UserError: an unknown key (with the closest known one), a wrong type or a value out of range.
    """
    hints = typing.get_type_hints(cls)
    start = base if base is not None else cls()
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{where}.{key}" if where else key
        if key not in hints:
            raise UserError(f"config: unknown field {dotted!r}; {closest(key, hints)}")
        current = getattr(start, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = from_mapping(type(current), value, dotted, current)
        else:
            changes[key] = _convert(value, hints[key], dotted)
    return replace(start, **changes)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with dotted fields replaced, e.g. `{"losses.kd.temperature": 4.0}`."""
    nested: dict[str, Any] = {}
    for dotted, value in changes.items():
        *tables, last = dotted.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return from_mapping(Config, nested, base=config)


def smoke(config: Config) -> Config:
    """The same experiment, shrunk to a few steps of a small slice; the code path is the same."""
    limit = min(config.data.limit or 128, 128)
    return override(
        config,
        {
            "data.limit": limit,
            "teacher.training.epochs": 1,
            "teacher.training.batch_size": 32,
            "teacher.training.warmup_epochs": 0.0,
            "training.epochs": 2,
            "training.batch_size": 32,
            "training.warmup_epochs": 0.0,
            "attribution.max_steps": min(config.attribution.max_steps, 16),
            "attribution.shard_size": 64,
            # a few steps leave logits that are nearly equal, so the top class of an int8 file is a matter of chance
            "export.min_int8_agreement": 0.0,
            "export.calibration_examples": 32,
            "benchmark.runs": 20,
            "benchmark.warmup": 2,
        },
    )


def experiments_folder() -> Path:
    """Where the shipped experiments lie: in the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "experiments", here.parent / "experiments") if path.is_dir())


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"experiment {path}: {error}") from error


def read_experiment(name_or_file: str) -> tuple[str, Config]:
    """Read an experiment by its shipped name or from a TOML file.

    Returns:
        The experiment's name (the file's stem) and its config.

    Raises:
        UserError: no such experiment, malformed TOML, unknown keys, wrong types, or more than one level of `base`.
    """
    folder = experiments_folder()
    path = Path(name_or_file) if name_or_file.endswith(".toml") else folder / f"{name_or_file}.toml"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.toml")]
        raise UserError(f"unknown experiment {name_or_file!r}; {closest(name_or_file, known)} (or a .toml file)")
    table = _read_toml(path)
    config = Config()
    base = table.pop("base", None)
    if base is not None:
        beside = path.parent / f"{base}.toml"
        parent = _read_toml(beside if beside.is_file() else folder / f"{base}.toml")
        if "base" in parent:
            raise UserError(f"experiment {path}: base {base!r} has a base itself; one level is the most")
        config = from_mapping(Config, parent)
    return path.stem, from_mapping(Config, table, base=config)
