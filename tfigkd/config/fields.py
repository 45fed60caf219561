"""The fields of data, networks, maps, overlays, placebos and views. The defaults are the papers'."""

from dataclasses import dataclass, field
from typing import Literal

from tfigkd.config.data_fields import BACKGROUND, Fit, Reading, Resident, SplitsConfig
from tfigkd.config.declare import forbid, free, late, require, require_seed, settled
from tfigkd.config.training_fields import TrainingConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and which of them train."""

    name: str = "cifar10"
    """A tfds name, "digits" (embedded), the path of an image folder, of an .npz file, or of a .csv file with columns
    path, label and, if there are any, split and group."""
    dir: str | None = free(None)
    """Prepared tfds directory; without it TFDS_DATA_DIR, then tfds's own default."""
    image_size: int | None = None
    """Height and width in pixels after resizing; the source's own size when not given."""
    limit: int | None = None
    """Keep only the first examples of each split, by id."""
    train_split: Literal["train", "train+validation"] = "train"
    """What trains: train without the held-out validation tenth, or all of it (for final figures)."""
    train_fraction: float = 1.0
    """Share of each class of what trains that the student gets; the teacher, validation and test keep everything."""
    subset_seed: int = 0
    """Seed of that share, drawn by id; --seed does not move it."""
    imbalance: float = late(1.0)
    """Long-tailed data: ratio of the examples of the first class to those of the last, for teacher and student alike;
    from class to class the number falls by a constant factor (Cui et al. 2019, arXiv 1901.05555; usual: 10 to 100).
    Drawn by subset_seed; train_fraction is a share of what is left. 1 leaves the classes as they are."""
    stored: Literal["all", "training"] = "all"
    """What the stores cover. all: train and validation, so that every subset shares one store; training: only what the
    student trains on."""
    background: str = late(BACKGROUND)
    """Color that transparent pictures are composited on: white, gray, black or "#rrggbb"."""
    group: str | None = late(None)
    """What groups pictures, such as patient or camera; a group is never divided when a split is held out. A column of a
    CSV file (not given: its column group), a feature of a tfds set, arrays NAME_train (and NAME_test) of an .npz file,
    or "folder": the folder below the class folder."""
    splits: SplitsConfig = late(SplitsConfig())
    resident: Resident = free("auto", late=True)
    """Where decoded pictures are kept; batches are the same. auto: in memory if a split fits into a quarter of what is
    free, else on disk."""
    cache: str | None = free(None, late=True)
    """Folder of the pictures that are kept on disk; not given: the folder .tfigkd beside the data."""
    fit: Fit = late("stretch")
    """How pictures come to image_size. stretch: each side by itself, with antialiasing; crop, for photographs: the
    shorter side is resized and the middle of the longer one is kept, so that nothing is distorted; keras: stretched
    without antialiasing, as keras.utils.image_dataset_from_directory does by default."""

    def __post_init__(self) -> None:
        self.reading  # noqa: B018 - its ranges are checked when it is made
        require(self.limit is None or self.limit > 0, "limit must be positive", self.limit)
        require(0 < self.train_fraction <= 1, "train_fraction must be in (0, 1]", self.train_fraction)
        require(self.imbalance >= 1, "imbalance must be at least 1", self.imbalance)
        require_seed(self.subset_seed, "subset_seed")

    @property
    def reading(self) -> Reading:
        """How the pictures are read."""
        return Reading.of(self)


APPLICATIONS = "keras/"
"""Beginning of the names of networks that are of keras.applications."""


def is_file(network: str) -> bool:
    """Return whether the name of a network is the path of a .keras file."""
    return network.endswith(".keras")


def is_application(network: str) -> bool:
    """Return whether the name of a network is that of one of keras.applications, such as keras/MobileNetV3Small."""
    return network.startswith(APPLICATIONS)


@dataclass(frozen=True)
class NetworkConfig:
    """An architecture by name, or the user's own model."""

    model: str = "mobilenet_v2"
    """mobilenet_v2, resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, convnet; keras/NAME for a classifier of
    keras.applications, such as keras/MobileNetV3Small, with its own preprocessing inside; or the path of a .keras file.
    The settings of the architecture below do not apply to keras/NAME and files."""
    drop_blocks: int = 0
    """How many of MobileNet-V2's 19 feature blocks are dropped from the end."""
    width: float = 1.0
    """Multiplies the channels of MobileNet-V2, of a resnet and of convnet, rounded to multiples of 8."""
    dropout: float | None = None
    """Dropout before the classifier; not given: 0.2 for the whole MobileNet-V2, none for a truncated one."""
    normalization: Literal["none", "cifar10", "imagenet"] = "none"
    """Input normalization inside the model, by the mean and deviation of that data set."""
    widths: tuple[int, ...] = late((64, 256, 256))
    """Channels of each block of convnet."""
    depth: int = late(2)
    """Convolutions per block of convnet; with three or more the block has a shortcut."""
    stem_stride: int | None = late(None)
    """Stride of the first convolution of MobileNet-V2 or a resnet, 1 or 2; not given: 1, and 2 for images above 64
    pixels."""
    input_range: tuple[float, float] | None = late(None)
    """The values of a black and of a white pixel that a .keras file takes, such as 0 255 or -1 1; not given: what its
    first layers tell (Rescaling, Normalization, preprocessing of keras.applications, an integer input), else 0 1."""
    image_size: int | None = late(None)
    """Height and width of the images that the network itself takes, where those of the data are others: it then begins
    with resizing them. So a teacher of 224 pixels teaches a student of 96; maps have the size of the data's images."""
    outputs: Literal["logits", "probabilities"] | None = late(None)
    """What a .keras file gives; not given: probabilities where it ends in softmax or sigmoid, or where its outputs on
    images are not negative and sum to 1, else logits. One output is the second of two classes."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_blocks < 19, "drop_blocks must be in 0..18", self.drop_blocks)
        require(self.width > 0, "width must be positive", self.width)
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        require(len(self.widths) > 0 and min(self.widths) > 0, "widths must be positive", self.widths)
        require(self.depth > 0, "depth must be positive", self.depth)
        require(self.image_size is None or self.image_size > 0, "image_size must be positive", self.image_size)
        require(self.stem_stride in (None, 1, 2), "stem_stride must be 1 or 2", self.stem_stride)
        equal = self.input_range is not None and self.input_range[0] == self.input_range[1]
        forbid(equal, "input_range must be two different numbers", self.input_range)

    def own_shape(self, images: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (H,W,C) of what the network itself takes of images of a shape."""
        return images if self.image_size is None else (self.image_size, self.image_size, images[2])

    @property
    def own_file(self) -> bool:
        """Whether the model is a .keras file."""
        return is_file(self.model)

    @property
    def application(self) -> bool:
        """Whether the model is one of keras.applications."""
        return is_application(self.model)


@dataclass(frozen=True)
class TeacherConfig(NetworkConfig):
    """The large network, trained once and shared by every arm and seed."""

    normalization: Literal["none", "cifar10", "imagenet"] = "cifar10"
    """Input normalization inside the model, by the mean and deviation of that data set."""
    weights: str | None = None
    """Published PyTorch weights (.npz) to load; the teacher is then not trained. Of keras/NAME a local .weights.h5, .h5
    or .keras file, from which training starts. A bare name is looked for in the folder $TFIGKD_WEIGHTS_DIR as well."""
    train: bool | None = settled(None, lambda teacher: teacher.trains)
    """Train the teacher; not given: an architecture by name is trained, a .keras file is taken as it is. true trains a
    file further."""
    accept_chance: bool = late(False)
    """Use a teacher from a file or with published weights even if it is no better than guessing, or clearly better with
    another input range or class order."""
    seed: int = 0
    """Seed of the teacher's own training; --seed moves only the student."""
    count: int = 1
    """Teachers trained with the seeds from `seed` on; several teach together, as one model that averages logits."""
    weighting: Literal["mean", "confidence", "label"] = "mean"
    """mean: all teachers count equally; confidence: weighted for each image by confidence (negative entropy); label: in
    the logits that the student learns from, weighted by the label (negative cross-entropy; needs view.kind = views),
    and equally everywhere else."""
    label_temperature: float = late(1.0)
    """With weighting = label: what cross-entropies are divided by before the softmax over the teachers; with a small
    one only the best teacher of an image counts."""
    shards: int = late(1)
    """Number of parts into which the training data are divided, class by class; the teacher with seed s trains on part
    s modulo this number only. With count = shards, all teachers together cost as much as one (after arXiv
    2303.09494)."""
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
        require_seed(self.seed, "seed")
        forbid(
            self.train is False and not self.own_file and self.weights is None,
            "train = false needs teacher.weights or a .keras teacher.model",
            self.model,
        )
        forbid(
            self.train is True and not self.trained,
            "train must be unset or false with published PyTorch weights, which are taken as they are",
            self.train,
        )
        for name in ("power", "chain", "l1", "dot", "finetune_epochs"):
            given, unset = getattr(self.training, name), getattr(TrainingConfig(), name)
            forbid(given != unset, f"training.{name} must be {unset}, it applies to the student only", given)
        require(self.count > 0, "count must be at least 1", self.count)
        require(self.label_temperature > 0, "label_temperature must be positive", self.label_temperature)
        forbid(
            self.shards < 1 or (self.shards > 1 and not self.trained),
            "shards must be at least 1, and 1 for a teacher that is not trained here",
            self.shards,
        )
        forbid(
            self.count > 1 and not self.trained,
            "count above 1 trains its teachers; models that are there are joined by models.ensemble into one .keras "
            "file for teacher.model",
            self.count,
        )

    @property
    def by_label(self) -> bool:
        """Whether several teachers are weighted by the label."""
        return self.count > 1 and self.weighting == "label"

    @property
    def trains(self) -> bool:
        """What `train` comes to."""
        return not self.own_file if self.train is None else self.train

    @property
    def trained(self) -> bool:
        """Whether the teacher is trained here: published PyTorch weights are taken as they are."""
        return self.trains and (self.weights is None or self.application)


@dataclass(frozen=True)
class StudentConfig(NetworkConfig):
    """The small network: as in the papers, the teacher's architecture without its last five blocks."""

    drop_blocks: int = 5
    """How many of MobileNet-V2's 19 feature blocks are dropped from the end."""
    init: Literal["random", "teacher", "file"] = "random"
    """Initial weights. random: drawn by the seed, also for a .keras file, whose frozen layers keep theirs; teacher: the
    teacher's own first blocks (and its normalization); file: those of the .keras file."""
    weights: str | None = late(None)
    """A local .weights.h5, .h5 or .keras file from which a student keras/NAME starts, for every seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        forbid(self.init == "file" and not self.own_file, "init = file needs a .keras student.model", self.model)
        forbid(
            self.weights is not None and not self.application,
            "weights needs a student.model keras/NAME",
            self.model,
        )


@dataclass(frozen=True)
class AttributionConfig:
    """How Integrated Gradients maps of the teacher are computed."""

    baseline: Literal["black", "mean", "blur"] = "black"
    """Where the path starts: black, the training split's mean color, or the image blurred by 1/8 of its short side."""
    rule: Literal["gauss_legendre", "midpoint", "trapezoid", "left", "right", "nested"] = "midpoint"
    """Quadrature rule along the path."""
    n_steps: int | None = None
    """A fixed number of steps; not given: as many as the tolerance asks for."""
    tolerance: float = 0.05
    """Largest accepted completeness error. A map above it is recomputed with more steps; if it is still above it at
    max_steps, it is never overlaid."""
    max_steps: int = 128
    """Most steps for one image."""
    batch_size: int = free(128)
    """Gradient evaluations at once; bounds the memory and nothing else."""
    shard_size: int = 512
    """Examples per shard of the overlay store; an interrupted store loses at most one."""
    grid: int | None = late(None)
    """Rows and columns of the stored maps, such as 56 for images of 224: each cell has the mean of its pixels, maps
    take a sixteenth of the space, and overlays show cells instead of pixels. Not given: every pixel."""

    def __post_init__(self) -> None:
        require(self.n_steps is None or self.n_steps > 0, "n_steps must be positive", self.n_steps)
        require(self.tolerance > 0, "tolerance must be positive", self.tolerance)
        require(self.max_steps > 0, "max_steps must be positive", self.max_steps)
        steps = self.n_steps or self.max_steps
        forbid(
            self.rule == "trapezoid" and steps < 2,
            "n_steps or max_steps must be at least 2 with rule = trapezoid",
            steps,
        )
        require(self.batch_size > 0, "batch_size must be positive", self.batch_size)
        require(self.shard_size > 0, "shard_size must be positive", self.shard_size)
        require(self.grid is None or self.grid > 0, "grid must be positive", self.grid)


@dataclass(frozen=True)
class OverlayConfig:
    """How maps are overlaid on training images: 0.5 image + 0.5 map ** s, s log-uniform."""

    probability: float = 0.0
    """Share of training images that carry an overlay (the papers' p = 0.1), of those whose map is within
    attribution.tolerance; 0 switches it off."""
    min_exponent: float = 1.0
    """Smallest exponent s."""
    max_exponent: float = 2.0
    """Largest exponent s."""

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, "probability must be in [0, 1]", self.probability)
        require(
            0 < self.min_exponent <= self.max_exponent,
            "min_exponent and max_exponent must be 0 < min <= max",
            (self.min_exponent, self.max_exponent),
        )


@dataclass(frozen=True)
class ControlConfig:
    """Placebo arms: the same treatment without the information."""

    maps: Literal["own", "shuffled", "noise", "none"] = "own"
    """Which map is overlaid or matched. own: the image's own; shuffled: that of another image whose map is within
    attribution.tolerance, and with losses.e2kd that of another image of the batch; noise: noise with the map's pixel
    values and power spectrum; none: no map, the image is dimmed as an overlay would dim it."""
    logits: Literal["own", "shuffled"] = "own"
    """own; shuffled across images. With view.kind live, all that the live teacher says is shuffled within the batch."""
    seed: int = 77
    """Seed of the permutation or the noise."""

    def __post_init__(self) -> None:
        require_seed(self.seed, "seed")


@dataclass(frozen=True)
class ViewConfig:
    """Which view of an image the teacher's logits and features are of."""

    kind: Literal["plain", "views", "live"] = "plain"
    """plain: the stored logits of the unaugmented image, as the papers intend; views: each image is one of K fixed
    crops and flips, with the stored logits of exactly that view (a student without a teacher sees the same crops);
    live: the teacher runs on the student's own crop and flip, never on the overlay. Losses on features run the teacher
    in every step; for attention transfer see `attention`."""
    attention: Literal["live", "views", "moved"] = "live"
    """Where attention transfer takes the teacher's maps from. live: the teacher runs in every step; views: stored of
    the K views; moved: stored of the unaugmented image, cropped and flipped with it, which is close but not the same
    (experiments/README.md has the difference)."""
    views: int = 16
    """K, the number of stored views per image."""
    seed: int = 0
    """Seed of the stored views; it belongs to the teacher, not to the student."""
    top_logits: int | None = late(None)
    """For many classes: stores keep only so many of the largest logits, as float16, and the mass of all others, which
    is spread evenly over them where a loss reads it. Not given: all logits."""

    def __post_init__(self) -> None:
        require(self.views > 0, "views must be positive", self.views)
        forbid(
            self.attention == "views" and self.kind != "views",
            "attention = views needs view.kind = views, so that the student sees the stored views",
            self.kind,
        )
        require_seed(self.seed, "seed")
        require(self.top_logits is None or self.top_logits > 0, "top_logits must be positive", self.top_logits)
