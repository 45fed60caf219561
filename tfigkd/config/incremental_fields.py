"""The fields of class-incremental training, `[incremental]`: classes come in steps, with a memory of old images."""

from dataclasses import dataclass
from typing import Literal

from tfigkd.config.declare import require

Method = Literal["foster", "kd", "finetune"]
"""How a step learns; not a field of an experiment, so that all methods share its first step."""


@dataclass(frozen=True)
class IncrementalConfig:
    """Class-incremental learning with `python -m tfigkd.incremental`: classes arrive in steps. FOSTER (Wang et al.
    2022, arXiv 2204.04662) trains a sibling beside the frozen old network, then compresses both into one network."""

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
    """Beta of the class weights (inverse effective numbers of examples, arXiv 1901.05555) that the logits are divided
    by while the sibling trains; 0 leaves the logits as they are."""
    compression_beta: float = 0.97
    """Beta of the class weights of the targets during compression; 0 weights all classes equally."""
    compression_epochs: int = 15
    """Epochs of the compression, after the sibling's training.epochs. The other methods train for the sum of both."""

    def __post_init__(self) -> None:
        require(self.steps == 0 or self.steps > 1, "steps must be 0, or 2 or more", self.steps)
        require(self.memory >= 0, "memory must not be negative", self.memory)
        require(self.temperature > 0, "temperature must be positive", self.temperature)
        require(self.known_weight >= 0, "known_weight must not be negative", self.known_weight)
        for name in ("boosting_beta", "compression_beta"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1)", getattr(self, name))
        require(self.compression_epochs > 0, "compression_epochs must be positive", self.compression_epochs)
