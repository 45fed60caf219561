"""The fields of a training: how images are augmented, and the recipe of a network. The defaults are the papers'."""

import math
from dataclasses import dataclass
from typing import Literal

from tfigkd.config.declare import forbid, inert, late, require, revised

Devices = Literal["one", "all"]


@dataclass(frozen=True)
class AugmentConfig:
    """Random geometry, drawn once per (seed, epoch, id) and applied to image and map alike."""

    crop_padding: int = 4
    """Zero padding in pixels before a random crop of the original size; 0 switches cropping off."""
    flip: bool = True
    """Flip left to right with probability one half."""
    flip_order: Literal["random", "alternate"] = late("random")
    """random: a draw in each epoch; alternate: in exactly every other epoch, a random half of the images first."""
    crop_border: Literal["zeros", "reflect"] = late("zeros")
    """What comes in at the border of a crop: zeros, or the image mirrored at its edge."""
    crop_area: tuple[float, float] = late((1.0, 1.0))
    """For photographs, in place of crop_padding: the crop has a share of the image's area between these two, and is
    resized to the whole image (Szegedy et al. 2015, arXiv 1409.4842; usual for ImageNet: 0.08 to 1). 1 and 1 switch it
    off."""
    crop_aspect: tuple[float, float] = late((0.75, 4 / 3))
    """Least and largest width of such a crop as a multiple of its height; drawn evenly on a logarithmic scale."""

    @property
    def resizes(self) -> bool:
        """Whether crops have another size than the image, and are resized."""
        return self.crop_area != (1.0, 1.0)

    def __post_init__(self) -> None:
        least, most = self.crop_area
        narrow, wide = self.crop_aspect
        require(self.crop_padding >= 0, "crop_padding must not be negative", self.crop_padding)
        require(0 < least <= most <= 1, "crop_area must be two numbers in (0, 1], rising", self.crop_area)
        require(0 < narrow <= wide, "crop_aspect must be two positive numbers, rising", self.crop_aspect)
        both = self.resizes and self.crop_padding > 0
        forbid(both, "crop_padding must be 0 with augment.crop_area, which replaces it", self.crop_padding)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. The defaults are the papers' recipe."""

    epochs: int = 100
    """Passes over the training split; the last epoch's weights are the result."""
    batch_size: int = 64
    """Examples per step. The last batch of an epoch may be smaller; where it would have fewer than 8, all are nearly
    equal."""
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Adam, AdamW, SGD with Nesterov momentum, or Muon for kernels of convolutions and hidden dense layers with AdamW
    for all else."""
    learning_rate: float = 1e-3
    """The peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD and Muon; Adam and AdamW ignore it."""
    weight_decay: float = 0.0
    """Weight decay, with every optimizer. Decoupled, as by default, it spares biases and normalization; see
    weight_decay_form."""
    weight_decay_form: Literal["decoupled", "coupled"] = late("decoupled")
    """decoupled: shrinks kernels by learning rate times weight decay; coupled: added to the gradient of every weight,
    biases and normalization included, as in PyTorch's SGD."""
    bias_factor: float = late(1.0)
    """Learning rate of the biases of normalization layers as a multiple of the others'; their coupled weight decay is
    divided by it (airbench: 64)."""
    schedule: Literal["constant", "cosine", "triangular"] = "constant"
    """Learning rate over the steps after warm-up; triangular: linear from schedule_start up to the peak and down to
    schedule_end."""
    schedule_start: float = late(0.2)
    """First learning rate of the triangular schedule, as a share of the peak."""
    schedule_peak: float = late(0.23)
    """Where the triangular schedule has its peak, as a share of all steps."""
    schedule_end: float = late(0.07)
    """Last learning rate of the triangular schedule, as a share of the peak."""
    warmup_epochs: float = 0.0
    """Linear warm-up from zero, in epochs."""
    label_smoothing: float = 0.0
    """Share of the hard label's mass spread evenly over the classes."""
    hard_weight: float | None = late(None)
    """Weight of the hard label; not given: 1 minus losses.kd.weight, which is then at most 1."""
    ema: float | None = revised(None, 2)
    """Decay, such as 0.999, of a moving average of the weights over the steps; its last value, with batch-normalization
    statistics of its own, is then the result. In step n the decay is at most (1 + n) / (10 + n)."""
    lookahead: int = late(0)
    """Lookahead: after every this many steps the weights are set to their slow average, which is also the result (Zhang
    et al. 2019, arXiv 1907.08610; airbench: 5). 0 switches it off."""
    lookahead_decay: float = late(0.95)
    """Decay per step of the slow average at the end of training; earlier it is multiplied by the cube of the share of
    steps done."""
    mixup: float = late(0.0)
    """Alpha of mixup: each image is mixed with another of its batch by a share from Beta(mixup, mixup), the labels by
    the same share; with 1 the share is uniform. 0 switches it off. A live teacher sees the very same mixed image (Zhang
    et al. 2017, arXiv 1710.09412; Beyer et al. 2021, arXiv 2106.05237)."""
    cutmix: float = late(0.0)
    """Paste a box of another image of its batch into each image, labels by area; its share is drawn from Beta(cutmix,
    cutmix), and 1 is usual. 0 switches it off; with mixup, each image has one of the two. A live teacher sees the very
    same mixed image (Yun et al. 2019, arXiv 1905.04899)."""
    cutout: int = late(0)
    """Side in pixels of a square at a random place of each training image that is filled with gray, the same in what a
    live teacher sees; the map is zero there. 0 switches it off (DeVries and Taylor 2017, arXiv 1708.04552)."""
    randaugment: int = late(0)
    """Operations of Keras's RandAugment (rotation, shear, contrast, solarization and others; usual for photographs: 2)
    on each training image after crop and flip, the same in what a live teacher sees; stored logits and maps are of the
    image without them, and the overlay is laid where the map was. 0 switches it off (Cubuk et al. 2019, arXiv
    1909.13719)."""
    randaugment_strength: float = late(0.5)
    """Largest strength of these operations, 0 to 1."""
    clip_norm: float | None = late(None)
    """Largest L2 norm of the gradient of all weights together; a longer one is scaled down to it."""
    power: float = late(1.0)
    """Powerpropagation: the student's kernels are θ·|θ|^(power - 1); θ is what is trained and decayed, so that small
    weights learn slowly and can be pruned later. Files hold the kernels. 1 switches it off (Schwarz et al. 2021, arXiv
    2110.00296). Start: 1.25 to 3."""
    chain: int = late(0)
    """Over-parameterization: in training each kernel of the student, except depthwise ones, is the product of this many
    tensors; files hold plain kernels. Odd and at least 3; 0 switches it off (Zhan et al. 2024, arXiv 2411.06448).
    Start: 3 or 5, with 1, 0.3 and 0.1 times the plain learning rate."""
    dot: float = late(0.0)
    """Distillation-oriented trainer (DOT), sgd only: the gradient of the distillation has the momentum
    training.momentum + dot, that of the hard label training.momentum - dot. 0: one momentum for the sum of both (Zhao
    et al. 2023, arXiv 2307.08436; the authors use 0.075)."""
    finetune_epochs: int = late(0)
    """Number of epochs at the end in which the student learns only from the hard label, at finetune_rate; the schedule
    ends before them. With losses.regression and hard_weight = 0 this is the two-phase training of KD-DAGFM (Tian et al.
    2023, arXiv 2211.11159)."""
    finetune_rate: float = late(0.01)
    """Learning rate of these epochs as a share of the peak."""
    l1: float = late(0.0)
    """L1 penalty: weight of the sum of the absolute values of the student's kernels in its loss. It is the control for
    power = 2, where coupled weight decay of θ acts as an L1 penalty of half its weight on the kernel."""
    class_weight: str | dict[str, float] | None = late(None)
    """Weight of each class in the loss: "balanced" weighs it by the inverse of its share of what trains, so that the
    mean is 1; or a table of class name to weight, such as {cat = 2, dog = 1}, where a class not named has 1. It
    multiplies every loss term that has one value per example."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = late("float32")
    """What the layers compute in while training; weights, logits and saved models are float32. auto: mixed_bfloat16
    where a short measurement finds this network's training step faster in it, else float32; the choice is written to
    the run's precision.json, and holds for every start of that run."""
    devices: Devices = late("one")
    """one: a single device. all: every GPU (or other device of the Keras backend) of this machine, or of all hosts that
    train together, computes an equal part of each batch. The batch size must be a multiple of their number, and up to
    that number minus one examples are left out of each epoch, different ones each time. A run must be continued on as
    many devices as it began on."""
    checkpoint_steps: int | None = inert(None)
    """Steps between two checkpoints within an epoch; not given: one after each epoch."""
    batch_threads: int | None = inert(None)
    """Threads that crop, overlay and mix, each a batch of its own, ahead of the training; the batches are the same. Not
    given: one when training runs on the CPU, else one a core, at most 8. RandAugment gains nothing by them, and on
    JAX the batches of data in memory are made on its device, without them."""

    def __post_init__(self) -> None:
        self._check_steps()
        self._check_optimizer()
        self._check_augmentation()
        self._check_class_weight()
        self._check_kernels()
        self._check_dot()

    def _check_steps(self) -> None:
        """Check epochs, batches and the learning rate over them."""
        for name in ("epochs", "batch_size", "checkpoint_steps", "batch_threads"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive", value)
        require(self.warmup_epochs >= 0, "warmup_epochs must not be negative", self.warmup_epochs)
        for name in ("schedule_start", "schedule_peak", "schedule_end"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be in [0, 1]", value)
        triangular = self.schedule == "triangular"
        forbid(
            triangular and self.warmup_epochs > 0,
            "warmup_epochs must be 0 with the triangular schedule",
            self.warmup_epochs,
        )
        among = 0 <= self.finetune_epochs < self.epochs
        require(among, "finetune_epochs must not be negative, and below epochs", self.finetune_epochs)
        require(self.finetune_rate > 0, "finetune_rate must be positive", self.finetune_rate)

    def _check_optimizer(self) -> None:
        """Check the optimizer, the averages of weights and the weight of the hard label."""
        require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
        require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay)
        require(self.bias_factor > 0, "bias_factor must be positive", self.bias_factor)
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be positive", self.clip_norm)
        coupled = self.weight_decay_form == "coupled"
        forbid(
            coupled and self.optimizer != "sgd",
            "weight_decay_form must be decoupled unless the optimizer is sgd",
            self.weight_decay_form,
        )
        require(self.ema is None or 0 < self.ema < 1, "ema must be in (0, 1)", self.ema)
        require(self.lookahead >= 0, "lookahead must not be negative", self.lookahead)
        require(0 <= self.lookahead_decay < 1, "lookahead_decay must be in [0, 1)", self.lookahead_decay)
        forbid(self.lookahead > 0 and self.ema is not None, "lookahead must be 0 with ema", self.lookahead)
        forbid(
            self.hard_weight is not None and self.hard_weight < 0, "hard_weight must not be negative", self.hard_weight
        )
        require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)", self.label_smoothing)

    def _check_augmentation(self) -> None:
        """Check what is done to images beside crop and flip."""
        for name in ("mixup", "cutmix", "cutout", "randaugment"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must not be negative", value)
        strength = self.randaugment_strength
        require(0 < strength <= 1, "randaugment_strength must be in (0, 1]", strength)

    def _check_class_weight(self) -> None:
        """Check the weights of classes, as far as they can be checked without the names of the classes."""
        weights = self.class_weight
        if isinstance(weights, dict):
            usable = bool(weights) and all(math.isfinite(one) and one >= 0 for one in weights.values())
            require(usable, "class_weight must name weights that are finite and not negative", weights)
        else:
            known = weights is None or weights == "balanced"
            require(known, 'class_weight must be "balanced" or a table of class name to weight', weights)

    def _check_kernels(self) -> None:
        """Check the student's kernels: how they are computed from what is trained, and their penalty."""
        require(self.power >= 1, "power must be at least 1", self.power)
        odd = self.chain >= 3 and self.chain % 2 == 1
        require(self.chain == 0 or odd, "chain must be 0, or odd and at least 3", self.chain)
        forbid(self.chain > 0 and self.power != 1, "power must be 1 with chain", self.power)
        # decay of only the center is that of the kernel, but as a part of the gradient it is not
        forbid(
            self.chain > 0 and self.weight_decay_form == "coupled",
            "weight_decay_form must be decoupled with chain",
            self.weight_decay_form,
        )
        require(self.l1 >= 0, "l1 must not be negative", self.l1)

    def _check_dot(self) -> None:
        """Check the distillation-oriented trainer, which has two momenta in plain SGD."""
        if not self.dot:
            return
        limit = min(self.momentum, 1 - self.momentum)
        require(0 < self.dot < limit, "dot must be 0, or below momentum and 1 minus it", self.dot)
        forbid(
            self.optimizer != "sgd" or self.precision == "mixed_float16",
            "dot must be 0 unless the optimizer is sgd, in float32 or bfloat16",
            self.dot,
        )
        forbid(self.finetune_epochs > 0, "dot must be 0 with finetune_epochs", self.dot)
        forbid(self.clip_norm is not None, "clip_norm must be unset with dot", self.clip_norm)


@dataclass(frozen=True)
class FeaturesConfig:
    """Phases before the student's training: its front learns the teacher's features without labels, then the rest of it
    learns labels (Spirit Distillation, Wu et al. 2021, arXiv 2103.13733 and 2104.14696)."""

    epochs: int = 0
    """Epochs in which only the layers up to student_layer are trained, to give the features of teacher_layer behind a
    1x1 convolution, which is dropped afterwards; no label is used. The recipe is that of [training]; 0 switches the
    phases off."""
    head_epochs: int = 0
    """Epochs after them, where there are any, in which only the layers behind student_layer are trained, with labels;
    training.epochs follow."""
    student_layer: str = "block_09"
    """Where the student is cut."""
    teacher_layer: str = "block_09"
    """Where the teacher is cut."""
    pictures: Literal["all", "labeled"] = "all"
    """What the first phase sees. all: all that may train, of which data.train_fraction have labels; labeled, a control:
    these alone."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "epochs must not be negative", self.epochs)
        require(self.head_epochs >= 0, "head_epochs must not be negative", self.head_epochs)
