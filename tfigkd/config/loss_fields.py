"""The fields of `[losses.NAME]`: every term beside the hard label, its weight and its settings."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tfigkd.config.declare import late, require


@dataclass(frozen=True)
class LossConfig:
    """A term beside the hard label; its class says what it uses, which has to be there.

    Raises:
        TypeError: A class does not say it.
    """

    uses: ClassVar[Literal["logits", "features", "map", "weights", "labels"]]
    """What the term uses. logits: stored, or of the live teacher if view.kind = live; features: outputs of taps,
    which need the live teacher; map: the teacher's stored map with the student's; weights: kernels, for which the
    teacher is loaded but does not run; labels: nothing of a teacher."""

    refuses_mixed_labels: ClassVar[bool] = False
    """Whether the term needs one label for each example, which mixed images do not have."""

    weight: float = 0.0
    """Weight of the term; 0 switches it off."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "uses"):
            raise TypeError(f'{cls.__name__} has to declare uses = "logits", "features", "map", "weights" or "labels"')

    @property
    def used(self) -> str:
        """What the term uses with these settings, which may be other than what its class says."""
        return self.uses

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher has to be there in every step."""
        return self.uses in ("features", "weights")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("temperature", "grid"):
                require(value is None or value > 0, f"{name} must be positive", value)
            elif isinstance(value, float):  # all others are weights, or shares
                require(value >= 0, f"{name} must not be negative", value)


@dataclass(frozen=True)
class TapConfig(LossConfig):
    """A term that compares one tap of each network."""

    uses = "features"

    student_layer: str = "block_09"
    """Tap of the student."""
    teacher_layer: str = "block_09"
    """Tap of the teacher."""


@dataclass(frozen=True)
class TapsConfig(LossConfig):
    """A term that compares several taps of each network."""

    uses = "features"

    student_layer: tuple[str, ...] = ("block_03", "block_06", "block_09")
    """Taps of the student, from shallow to deep."""
    teacher_layer: tuple[str, ...] = ("block_03", "block_06", "block_09")
    """As many taps of the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        several = len(self.student_layer) == len(self.teacher_layer) >= 2
        taps = self.student_layer, self.teacher_layer
        require(several, "student_layer and teacher_layer must be lists of equal length, two taps or more", taps)


@dataclass(frozen=True)
class KDConfig(LossConfig):
    """Knowledge distillation from softened logits (Hinton et al. 2015, arXiv 1503.02531)."""

    uses = "logits"

    weight: float = 0.0
    """Weight of the term (the papers' alpha); the hard label's weight is 1 minus this, or training.hard_weight."""
    temperature: float = 2.5
    """Temperature T of teacher and student; the term is multiplied by T squared."""
    standardize: bool = False
    """Divide the logits of each example by their deviation (Sun et al. 2024, arXiv 2403.01427)."""


@dataclass(frozen=True)
class DKDConfig(LossConfig):
    """Decoupled distillation (Zhao et al. 2022, arXiv 2203.08679). Start: weight 1."""

    uses = "logits"
    refuses_mixed_labels = True

    alpha: float = 1.0
    """Weight of the target class's part."""
    beta: float = 2.0
    """Weight of the other classes' part."""
    temperature: float = 4.0
    """Temperature of teacher and student."""
    standardize: bool = False
    """Divide the logits of each example by their deviation."""


@dataclass(frozen=True)
class DISTConfig(LossConfig):
    """Correlation of teacher and student (Huang et al. 2022, arXiv 2205.10536). Start: weight 1."""

    uses = "logits"

    temperature: float = 4.0
    """Temperature of teacher and student."""
    inter: float = 2.0
    """Weight of the correlation over the classes of an example."""
    intra: float = 2.0
    """Weight of the correlation over the examples of a class."""
    rank: float = 0.0
    """Weight of the correlation of soft ranks."""


@dataclass(frozen=True)
class RKDConfig(LossConfig):
    """Relations between examples (Park et al. 2019, arXiv 1904.05068). Start: weight 1."""

    uses = "logits"

    student_layer: str | None = None
    """Tap of the student; the logits when not given."""
    teacher_layer: str | None = None
    """Tap of the teacher; the logits when not given."""
    distance: float = 25.0
    """Weight of the distances."""
    angle: float = 50.0
    """Weight of the angles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        taps = self.student_layer, self.teacher_layer
        both = (taps[0] is None) == (taps[1] is None)
        require(both, "student_layer and teacher_layer must both be given, or neither", taps)

    @property
    def used(self) -> str:
        """Features where there are taps, else logits."""
        return self.uses if self.student_layer is None else "features"

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher has to run in every step: for the outputs of layers, not for the logits."""
        return self.student_layer is not None


@dataclass(frozen=True)
class SPConfig(TapConfig):
    """Similarity of the examples of a batch (Tung, Mori 2019, arXiv 1907.09682). Start: weight 3000 at batch 64."""


@dataclass(frozen=True)
class PKTConfig(TapConfig):
    """Neighborhoods in a batch (Passalis, Tefas 2018, arXiv 1803.10837). Start: weight 30,000 at a batch of 64."""


@dataclass(frozen=True)
class ATConfig(TapConfig):
    """Attention transfer (Zagoruyko, Komodakis 2017, arXiv 1612.03928). Usual weight 1000; the papers' 0.8 is inert."""


@dataclass(frozen=True)
class FSPConfig(LossConfig):
    """Flow between two layers (Yim et al. 2017). The two taps of teacher and student have the same channels."""

    uses = "features"

    student_layer: tuple[str, str] = ("block_04", "block_09")
    """Taps of the student."""
    teacher_layer: tuple[str, str] = ("block_04", "block_09")
    """Taps of the teacher."""


@dataclass(frozen=True)
class HintConfig(TapConfig):
    """Features through a projector that is trained along (Romero et al. 2015, arXiv 1412.6550). Start: weight 100."""


@dataclass(frozen=True)
class IGMatchConfig(LossConfig):
    """The student's input gradient against the teacher's IG map. Start: weight 0.2 to 5."""

    uses = "map"

    times_input: bool = True
    """Multiply the gradient by the image, which suits maps from a black baseline."""
    grid: int | None = 8
    """Rows and columns of the grid on which maps are compared; none: pixel by pixel."""


@dataclass(frozen=True)
class SKTConfig(TapsConfig):
    """Directions of features and relations of all pairs of layers (Liu et al. 2020, arXiv 2003.10120). Start: weight
    1."""

    intra: float = 1.0
    """Weight of one minus the cosine of the channels at each position."""
    inter: float = 10.0
    """Weight of the difference of the layers' relations."""
    pairs: Literal["all", "adjacent"] = "all"
    """Layers that are related: each with each other one, or with the next one."""

    def __post_init__(self) -> None:
        given = self.intra, self.inter
        require(min(given) >= 0 < max(given), "intra and inter must not be negative, nor both zero", given)
        super().__post_init__()


@dataclass(frozen=True)
class E2KDConfig(TapConfig):
    """Explanations of the teacher's decision (Parchami-Araghi et al. 2024, arXiv 2402.03119). Start: weight 0.2 to
    5."""


@dataclass(frozen=True)
class ReviewKDConfig(TapsConfig):
    """Deep levels of the student fused into shallow ones (Chen et al. 2021, arXiv 2104.09044). Start: weight 1; taps of
    the teacher before the activation."""

    fuse: bool = True
    """Fuse deeper levels into shallower ones; false, a control: each level is compared by itself."""


@dataclass(frozen=True)
class RegressionConfig(LossConfig):
    """Regression of the teacher's logits, as in KD-DAGFM (Tian et al. 2023, arXiv 2211.11159). Start: weight 1."""

    uses = "logits"


@dataclass(frozen=True)
class BKDConfig(LossConfig):
    """Distillation whose targets are weighted by the effective number of examples of each class, as in FOSTER (Wang et
    al. 2022, arXiv 2204.04662). Start: weight 0.9 with hard_weight = 0.1."""

    uses = "logits"

    temperature: float = 2.0
    """Temperature T of teacher and student; the term is multiplied by T squared."""
    beta: float = 0.97
    """The weight of a class with n examples is (1 - beta) / (1 - beta^n); 0 weighs all classes alike, which is plain
    distillation. Usual: 0.97 for some dozens of examples a class, 0.999 to 0.9999 for thousands."""

    def __post_init__(self) -> None:
        require(0 <= self.beta < 1, "beta must be in [0, 1)", self.beta)
        super().__post_init__()


@dataclass(frozen=True)
class OSAKDConfig(LossConfig):
    """Soft labels from the nearest neighbors in the student's logits, without a teacher, or in the teacher's (Tzelepi,
    Tefas 2021, arXiv 2108.11798). Start: weight 0.1 to 1."""

    uses = "labels"
    refuses_mixed_labels = True

    neighbors: int = 16
    """Neighbors of an example."""
    queue: int = 1024
    """How many of the most recent training examples are searched for neighbors, besides the batch."""
    space: Literal["student", "teacher"] = late("student")
    """student: neighbors by the student's logits, in every step; teacher: by the teacher's stored logits, computed once
    over all training examples. With several views of an image, the mean of their logits is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.neighbors > 0, "neighbors must be positive", self.neighbors)
        require(self.queue >= self.neighbors, "queue must not be smaller than neighbors", self.queue)

    @property
    def used(self) -> str:
        """Logits of the teacher in its space, else labels."""
        return "logits" if self.space == "teacher" else self.uses


@dataclass(frozen=True)
class R2KDConfig(LossConfig):
    """Correlations of values and ranks with the teacher and a pruned copy of it (Kim et al. 2024, arXiv 2311.13934).
    Start: weight 1."""

    uses = "logits"

    temperature: float = 4.0
    """Temperature of teacher and student."""
    value: float = 1.0
    """Weight of the correlation of probabilities over the classes."""
    rank: float = 1.0
    """Weight of the correlation of soft ranks."""
    pruned: float = 0.3
    """Share of each kernel that the second teacher lacks, without retraining; above 0 it needs view.kind = live. 0:
    only the teacher."""
    second: float = 1.0
    """Weight of the second teacher."""

    def __post_init__(self) -> None:
        require(0 <= self.pruned < 1, "pruned must be in [0, 1)", self.pruned)
        super().__post_init__()


@dataclass(frozen=True)
class RTKConfig(LossConfig):
    """Attention over the teacher's taps (Yang et al. 2022, arXiv 2206.12788). Start: weight 10."""

    uses = "features"

    student_layer: tuple[str, ...] = ("block_03", "block_06", "block_09")
    """Taps of the student."""
    teacher_layer: tuple[str, ...] = ("block_03", "block_06", "block_09")
    """Taps of the teacher, of any number."""
    keys: int = 2
    """Taps of the teacher that count for each of the student's."""
    width: int = 32
    """Length of queries and keys."""
    uniform: bool = False
    """A control: all taps of the teacher count alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.student_layer) > 0, "student_layer must name a tap", self.student_layer)
        fits = 0 < self.keys <= len(self.teacher_layer)
        require(fits, "keys must be from 1 to the number of teacher taps", self.keys)
        require(self.width > 0, "width must be positive", self.width)


@dataclass(frozen=True)
class OPDFConfig(LossConfig):
    """Auxiliary tensors (all but the central one) of decomposed kernels, compared where a student kernel and a teacher
    kernel have the same shape (Zhan et al. 2024, arXiv 2411.06448). Needs training.chain. Start: weight 10 to 100."""

    uses = "weights"

    permuted: bool = False
    """A control: each layer is compared with another of the teacher's."""


@dataclass(frozen=True)
class LossesConfig:
    """The terms beside the hard label."""

    kd: KDConfig = field(default_factory=KDConfig)
    dkd: DKDConfig = field(default_factory=DKDConfig)
    dist: DISTConfig = field(default_factory=DISTConfig)
    rkd: RKDConfig = field(default_factory=RKDConfig)
    at: ATConfig = field(default_factory=ATConfig)
    fsp: FSPConfig = field(default_factory=FSPConfig)
    hint: HintConfig = field(default_factory=HintConfig)
    ig_match: IGMatchConfig = field(default_factory=IGMatchConfig)
    sp: SPConfig = late(SPConfig())
    pkt: PKTConfig = late(PKTConfig())
    skt: SKTConfig = late(SKTConfig())
    reviewkd: ReviewKDConfig = late(ReviewKDConfig())
    regression: RegressionConfig = late(RegressionConfig())
    bkd: BKDConfig = late(BKDConfig())
    osakd: OSAKDConfig = late(OSAKDConfig())
    r2kd: R2KDConfig = late(R2KDConfig())
    rtk: RTKConfig = late(RTKConfig())
    opdf: OPDFConfig = late(OPDFConfig())
    e2kd: E2KDConfig = late(E2KDConfig())

    def active(self) -> dict[str, LossConfig]:
        """Return the terms with a weight above 0, by name."""
        terms = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: term for name, term in terms.items() if term.weight > 0}

    def use(self, what: Literal["logits", "features", "map", "weights"]) -> bool:
        """Return whether a term with a weight uses logits, features, maps or weights."""
        return any(term.used == what for term in self.active().values())
