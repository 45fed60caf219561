"""The fields of class-incremental training, `[incremental]`: classes come in steps, with a memory of old images."""

from dataclasses import dataclass
from typing import Literal

from tfigkd.config.loss_fields import require

Method = Literal["foster", "kd", "finetune"]
"""How a step learns; not a field of an experiment, so that all methods share its first step."""


@dataclass(frozen=True)
class IncrementalConfig:
    """Classes that come in steps, for `python -m tfigkd.incremental`, and the method FOSTER (Wang et al. 2022, arXiv
    2204.04662): a sibling that fits what the old network misses, then both compressed into one."""

    steps: int = 0
    """Steps, each with as many new classes, in the order of the labels; 0: all classes come at once, as `run` has
    them."""
    memory: int = 500
    """Images of earlier classes that are kept, all classes together; each class has the same share."""
    temperature: float = 2.0
    """Temperature at which the old network's logits are kept, and at which two networks are compressed into one."""
    known_weight: float = 1.0
    """Weight of the divergence from the old network over the classes that it knows."""
    boosting_beta: float = 0.96
    """Of the effective numbers of examples that the logits are divided by while the sibling trains; 0 leaves them."""
    compression_beta: float = 0.97
    """Of the effective numbers of examples in the targets of the compression; 0 weighs all classes alike."""
    compression_epochs: int = 15
    """Epochs of the compression, which follow the training.epochs of the sibling. Networks of other methods train as
    long as both together."""

    def __post_init__(self) -> None:
        require(self.steps == 0 or self.steps > 1, "incremental.steps must be 0, or 2 or more", self.steps)
        require(self.memory >= 0, "incremental.memory must not be negative", self.memory)
        require(self.temperature > 0, "incremental.temperature must be positive", self.temperature)
        require(self.known_weight >= 0, "incremental.known_weight must not be negative", self.known_weight)
        for name in ("boosting_beta", "compression_beta"):
            require(0 <= getattr(self, name) < 1, f"incremental.{name} must be in [0, 1)", getattr(self, name))
        require(self.compression_epochs > 0, "incremental.compression_epochs must be positive", self.compression_epochs)
