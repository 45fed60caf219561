"""The fields of what is measured and changes no weight: `[ledger]`, `[tensorboard]`, `[evaluation]`, `[benchmark]`."""

from dataclasses import dataclass

from tfigkd.config.declare import late, require


@dataclass(frozen=True)
class LedgerConfig:
    """How often each loss term's value and share of the gradient are measured; it changes no weight."""

    every: int = 200
    """Steps between two measurements; 0 switches them off."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "every must not be negative", self.every)


@dataclass(frozen=True)
class TensorBoardConfig:
    """What TensorBoard shows of a training beside its curves; it changes no weight."""

    pictures: int = 5
    """How often in a training maps and confusion matrix are drawn, evenly over its epochs; 0 leaves them out."""
    examples: int = 8
    """Validation images that are shown with their maps, the first by id."""
    profile_steps: tuple[int, ...] = ()
    """First and last step of each training that TensorFlow's profiler records, such as 10 20; none when not given."""

    def __post_init__(self) -> None:
        require(self.pictures >= 0, "pictures must not be negative", self.pictures)
        require(self.examples > 0, "examples must be positive", self.examples)
        steps = self.profile_steps
        fits = not steps or (len(steps) == 2 and 0 < steps[0] <= steps[1])
        require(fits, "profile_steps must be a first and a last step, from 1", steps)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on test besides the predictions: whether the explanation survived compression."""

    attribution_examples: int = 64
    """Test images whose maps are compared and checked by insertion and deletion; 0 leaves it out."""
    curve_steps: int = 16
    """Parts in which the pixels are inserted or deleted; each is a forward pass."""
    top_fraction: float = 0.1
    """Share of the pixels that counts as highest in the overlap of two maps."""
    gallery_examples: int = 12
    """Validation images that the report shows with their maps; 0 leaves them out."""
    mirrored: bool = late(False)
    """Test-time augmentation: also measure the accuracy of the mean of the logits of each image and its mirror image,
    by a second forward pass. It stands beside the accuracy, as mirrored_accuracy, and never in its place."""

    def __post_init__(self) -> None:
        for name in ("attribution_examples", "gallery_examples"):
            count = getattr(self, name)
            require(count == 0 or count > 1, f"{name} must be 0, or 2 or more: maps are compared with others", count)
        require(self.curve_steps > 0, "curve_steps must be positive", self.curve_steps)
        require(0 < self.top_fraction <= 1, "top_fraction must be in (0, 1]", self.top_fraction)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Latency on this machine, batch 1, teacher and student alternating in one runtime."""

    runs: int = 200
    """Timed inferences of each file, after warm-up."""
    warmup: int = 20
    """Inferences before the clock starts."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of the interpreter; the files are timed with each of these numbers."""

    def __post_init__(self) -> None:
        require(self.runs > 0, "runs must be positive", self.runs)
        require(self.warmup >= 0, "warmup must not be negative", self.warmup)
        once = 0 < len(self.threads) == len({*self.threads})
        require(once and min(self.threads) > 0, "threads must be positive numbers, each once", self.threads)
