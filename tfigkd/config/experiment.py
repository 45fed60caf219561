"""One experiment: the whole `Config`, read from a TOML file, overridden by dotted names, shrunk for a smoke run.

Only `stages/`, `study/`, `search/` and the commands import this module; everything below them takes its own table of
fields from `fields.py` and its neighbors.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfigkd.config.code_fields import CodeConfig
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.config.declare import forbid, free, late, require, require_finite
from tfigkd.config.export_fields import ExportConfig
from tfigkd.config.fields import (
    AttributionConfig,
    ControlConfig,
    DataConfig,
    NetworkConfig,
    OverlayConfig,
    StudentConfig,
    TeacherConfig,
    ViewConfig,
)
from tfigkd.config.incremental_fields import IncrementalConfig
from tfigkd.config.loss_fields import HintConfig, LossesConfig
from tfigkd.config.measure_fields import BenchmarkConfig, EvaluationConfig, LedgerConfig, TensorBoardConfig
from tfigkd.config.reading import from_mapping, read_toml, value_at
from tfigkd.config.training_fields import AugmentConfig, FeaturesConfig, TrainingConfig
from tfigkd.runtime.errors import UserError, closest

MIXED = (
    "training.mixup and training.cutmix must be 0 with losses on stored teacher outputs, which are of unmixed images; "
    "view.kind = live computes the teacher's logits of the mixed images"
)


@dataclass(frozen=True)
class Config:
    """All fields of one experiment."""

    description: str = free("")
    """One line for --list."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    features: FeaturesConfig = late(FeaturesConfig())
    training: TrainingConfig = field(default_factory=TrainingConfig)
    code: CodeConfig = late(CodeConfig())
    incremental: IncrementalConfig = late(IncrementalConfig())
    ledger: LedgerConfig = field(default_factory=LedgerConfig, metadata={"free": True})
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig, metadata={"free": True})
    compress: CompressConfig = field(default_factory=CompressConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def __post_init__(self) -> None:
        require_finite(self)
        self._check_mixing()
        self._check_hard_label()
        self._check_losses()
        self._check_phases()
        self._check_teacher()
        self._check_compression()

    def _check_mixing(self) -> None:
        """Check that images are mixed only where what the student learns from them is of the mixed images."""
        mixed = {name: share for name in ("mixup", "cutmix") if (share := getattr(self.training, name))}
        if not mixed:
            return
        forbid(self.needs_single_images, MIXED, mixed)
        for name, term in self.losses.active().items():
            forbid(
                term.refuses_mixed_labels,
                f"training.mixup and cutmix must be 0 with losses.{name}, which needs one label",
                mixed,
            )

    def _check_hard_label(self) -> None:
        """Check that the weight of the hard label is not negative."""
        forbid(
            self.losses.kd.weight > 1 and self.training.hard_weight is None,
            "losses.kd.weight must be in [0, 1], or training.hard_weight given",
            self.losses.kd.weight,
        )
        forbid(
            self.compress.losses.kd.weight > 1,
            "compress.losses.kd.weight must be in [0, 1]",
            self.compress.losses.kd.weight,
        )

    def _check_teacher(self) -> None:
        """Check what the student takes of the teacher: first weights, and logits weighted by the label."""
        forbid(
            self.teacher.by_label and self.view.kind != "views",
            "teacher.weighting = label needs view.kind = views, logits of each teacher",
            self.view.kind,
        )
        if self.student.init != "teacher":
            return
        forbid(
            self.teacher.count > 1,
            "student.init = teacher needs a single teacher, got teacher.count",
            self.teacher.count,
        )
        for name in (one.name for one in dataclasses.fields(NetworkConfig) if one.name != "drop_blocks"):
            given, unset, theirs = (getattr(one, name) for one in (self.student, StudentConfig(), self.teacher))
            message = f"student.{name} must be unset or equal to teacher.{name} with student.init = teacher"
            require(given in (unset, theirs), message, given)

    def _check_losses(self) -> None:
        """Check what single losses need of other tables."""
        forbid(
            self.training.dot > 0 and not self.losses.active(),
            "training.dot must be 0 without a term beside the hard label",
            self.training.dot,
        )
        live = self.view.kind == "live"
        forbid(
            self.losses.r2kd.weight > 0 and self.losses.r2kd.pruned > 0 and not live,
            "losses.r2kd.pruned must be 0 unless view.kind = live, in which both teachers run",
            self.losses.r2kd.pruned,
        )
        osakd = self.losses.osakd
        forbid(
            osakd.weight > 0 and osakd.space == "teacher" and live,
            "losses.osakd.space = teacher needs stored logits, view.kind = plain or views",
            self.view.kind,
        )
        forbid(
            osakd.weight > 0 and osakd.space == "student" and osakd.queue < self.training.batch_size,
            "losses.osakd.queue must be at least training.batch_size",
            osakd.queue,
        )
        forbid(
            self.losses.e2kd.weight > 0 and self.control.maps in ("noise", "none"),
            "control.maps must be own or shuffled with losses.e2kd",
            self.control.maps,
        )
        forbid(
            self.losses.ig_match.weight > 0 and self.control.maps == "none",
            "control.maps must be own, shuffled or noise with losses.ig_match",
            self.control.maps,
        )
        forbid(
            self.losses.opdf.weight > 0 and self.training.chain == 0,
            "losses.opdf.weight must be 0 without training.chain",
            self.losses.opdf.weight,
        )

    def _check_phases(self) -> None:
        """Check the phases before the student's training."""
        if not self.features.epochs:
            return
        forbid(
            self.student.init == "teacher",
            "features.epochs must be 0 with student.init = teacher: the student already has the teacher's first layers",
            self.features.epochs,
        )
        forbid(
            self.code.weight > 0,
            "code.weight must be 0 with features.epochs, which train without it",
            self.code.weight,
        )

    def _check_compression(self) -> None:
        """Check what stage `compress` trains with."""
        forbid(
            self.compress.losses.opdf.weight > 0,
            "compress.losses.opdf.weight must be 0, because the student then has plain kernels",
            self.compress.losses.opdf.weight,
        )
        forbid(
            self.compress.teacher == "teacher" and not self.needs_teacher,
            "compress.teacher = teacher needs an experiment with a teacher",
            self.compress.teacher,
        )

    @property
    def needs_single_images(self) -> bool:
        """Whether a loss compares with what is stored of single images; maps that are only overlaid do not count."""
        of_logits = self.view.kind == "plain" and self.losses.use("logits")
        return self.losses.use("map") or of_logits or self.needs_views or self.needs_attention

    @property
    def needs_live_teacher(self) -> bool:
        """Whether the teacher runs in every step, or has its weights compared in it."""
        active = self.losses.active()
        if self.needs_attention:
            del active["at"]
        live = self.view.kind == "live"
        return any(term.runs_teacher or (live and term.used == "logits") for term in active.values())

    @property
    def needs_store(self) -> bool:
        """Whether the student's training reads the overlay store."""
        of_logits = self.view.kind == "plain" and self.losses.use("logits")
        return self.overlay.probability > 0 or self.losses.use("map") or of_logits

    @property
    def needs_views(self) -> bool:
        """Whether the student's training reads stored views."""
        return self.view.kind == "views" and self.losses.use("logits")

    @property
    def needs_attention(self) -> bool:
        """Whether the student's training reads stored attention maps."""
        return "at" in self.losses.active() and self.view.attention != "live"

    @property
    def needs_stored(self) -> bool:
        """Whether the student's training reads anything stored of the teacher."""
        return self.needs_store or self.needs_views or self.needs_attention

    @property
    def needs_teacher(self) -> bool:
        """Whether the student learns anything from a teacher."""
        taught = self.needs_stored or self.needs_live_teacher
        return taught or self.student.init == "teacher" or self.features.epochs > 0


def fine_tuning(config: Config) -> Config:
    """Return the experiment as stage `compress` trains it: with the losses, batches and teacher of `[compress]`."""
    own = config.compress.teacher == "student"
    # the student that is compressed is the only teacher, so that there are no teachers to weigh
    weighting = "mean" if own and config.teacher.by_label else config.teacher.weighting
    return replace(
        config,
        teacher=replace(config.teacher, weighting=weighting),
        losses=config.compress.losses,
        training=replace(
            config.training,
            batch_size=config.compress.batch_size,
            label_smoothing=0.0,
            hard_weight=None,
            power=1.0,
            chain=0,
            l1=0.0,
            dot=0.0,
            finetune_epochs=0,
            devices="one",
        ),
        view=replace(config.view, kind="live", attention="live") if own else config.view,
        control=replace(config.control, logits="own") if own else config.control,
        features=FeaturesConfig(),
        compress=CompressConfig(),
    )


def early_phases(config: Config) -> dict[str, Config]:
    """Return the experiment as each phase of `[features]` trains the student: `"features"`, and `"head"` after it."""
    chosen = config.features
    if not chosen.epochs:
        return {}
    hint = HintConfig(weight=1.0, student_layer=chosen.student_layer, teacher_layer=chosen.teacher_layer)
    plain = replace(config.training, finetune_epochs=0)
    unlabeled = replace(
        config,
        data=replace(config.data, train_fraction=1.0) if chosen.pictures == "all" else config.data,
        overlay=OverlayConfig(),
        losses=LossesConfig(hint=hint),
        training=replace(plain, epochs=chosen.epochs, hard_weight=0.0, class_weight=None, dot=0.0),
        features=FeaturesConfig(),
    )
    found = {"features": unlabeled}
    if chosen.head_epochs:
        recipe = replace(plain, epochs=chosen.head_epochs)
        found["head"] = replace(config, training=recipe, features=FeaturesConfig(), compress=CompressConfig())
    return found


def trainings(config: Config) -> tuple[Config, ...]:
    """Return the experiment as each of its stages trains a student: once, or twice where the student is compressed."""
    return (config,) if config.compress.method == "none" else (config, fine_tuning(config))


def to_mapping(config: Config) -> dict[str, Any]:
    """Return the resolved config as nested plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # as it reads back: lists, no tuples


def _holds(values: Mapping[str, Any], dotted: str, value: float) -> bool:
    """Return whether a field already has this number, as an integer or a float."""
    try:
        return type(found := value_at(values, dotted)) in (int, float) and found == value
    except KeyError:
        return False


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return the config with dotted fields replaced, e.g. `{"losses.kd.temperature": 4.0}`."""
    nested: dict[str, Any] = {}
    values = to_mapping(config)
    for dotted, value in changes.items():
        if isinstance(value, float) and _holds(values, dotted, value):
            continue  # an option 5.0 for a field that is 5 already changes no fingerprint
        *tables, last = dotted.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return from_mapping(Config, nested, base=config)


def smoke(config: Config) -> Config:
    """Return the same experiment, shrunk to a few steps of a small slice; the code path is the same."""
    limit = min(config.data.limit or 128, 128)
    precisions = {"training.precision": config.training, "teacher.training.precision": config.teacher.training}
    return override(
        config,
        {
            # measuring which one is faster would take longer than the training
            **{name: "float32" for name, recipe in precisions.items() if recipe.precision == "auto"},
            "data.limit": limit,
            "teacher.training.epochs": 1,
            "teacher.training.batch_size": min(config.teacher.training.batch_size, 32),
            "teacher.training.warmup_epochs": 0.0,
            "features.epochs": min(config.features.epochs, 1),
            "features.head_epochs": min(config.features.head_epochs, 1),
            "incremental.memory": min(config.incremental.memory, 40),
            "incremental.compression_epochs": min(config.incremental.compression_epochs, 1),
            "training.epochs": min(config.training.epochs, 2),
            "training.finetune_epochs": min(config.training.finetune_epochs, 1),
            "training.batch_size": min(config.training.batch_size, 32),
            "training.warmup_epochs": 0.0,
            "attribution.n_steps": config.attribution.n_steps and min(config.attribution.n_steps, 16),
            "attribution.max_steps": min(config.attribution.max_steps, 16),
            "attribution.shard_size": min(config.attribution.shard_size, 64),
            "compress.steps": min(config.compress.steps, 4),
            "compress.batch_size": min(config.compress.batch_size, 16),
            # a few steps leave logits that are nearly equal, so the top class of an int8 file is a matter of chance
            "export.min_int8_agreement": 0.0,
            "export.calibration_examples": min(config.export.calibration_examples, 32),
            "evaluation.attribution_examples": min(config.evaluation.attribution_examples, 8),
            "benchmark.runs": min(config.benchmark.runs, 20),
            "benchmark.warmup": min(config.benchmark.warmup, 2),
        },
    )


def experiments_folder() -> Path:
    """Return where the shipped experiments lie: in the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return next(path for path in (here / "experiments", here.parent / "experiments") if path.is_dir())


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
        if name_or_file.endswith(".toml"):
            raise UserError(
                f"unknown experiment {name_or_file!r}: no such file; give the path of a .toml file, or a name that "
                "--list shows"
            )
        if (folder / "studies" / path.name).is_file():
            raise UserError(f"{name_or_file} is a study: python -m tfigkd.study --experiment {name_or_file}")
        raise UserError(f"unknown experiment {name_or_file!r}; {closest(name_or_file, known)} (or a .toml file)")
    table = read_toml(path, "experiment")
    config = Config()
    base = table.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"experiment {path}: base must be the name of an experiment, got {base!r}")
        file = base if base.endswith(".toml") else f"{base}.toml"
        places = path.parent / file, folder / file
        found = next((place for place in places if place.is_file() and place.resolve() != path.resolve()), None)
        if found is None:
            known = [one.stem for near in (path.parent, folder) for one in near.glob("*.toml")]
            raise UserError(f"experiment {path}: no base {base!r} beside it or shipped; {closest(base, known)}")
        parent = read_toml(found, "experiment")
        if "base" in parent:
            raise UserError(f"experiment {path}: base {base!r} has a base itself; one level is the most")
        config = from_mapping(Config, parent)
    return path.stem, from_mapping(Config, table, base=config)
