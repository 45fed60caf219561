"""The fields of `[code]`: a rate penalty on the features that a device would send to a classifier."""

from dataclasses import dataclass

from tfigkd.config.declare import require


@dataclass(frozen=True)
class CodeConfig:
    """Rate penalty on the features in front of the student's classifier, as in the compression of facial features (Wang
    et al. 2020, arXiv 2002.03627); the rate is estimated as in Ballé et al. 2017 (arXiv 1611.01704)."""

    weight: float = 0.0
    """Weight of the number of bits per image in the student's loss; 0 switches the code off. Start: 0.0002 to 0.005."""
    step: float = 0.25
    """Step of the code: features are divided by it and rounded. While the student trains, noise of one step stands for
    the rounding; the saved student has neither."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "weight must not be negative", self.weight)
        require(self.step > 0, "step must be positive", self.step)
