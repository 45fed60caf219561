"""The fields of `[compress]`: how the finished student is made smaller."""

from dataclasses import dataclass, field
from typing import Literal

from tfigkd.config.declare import require
from tfigkd.config.loss_fields import KDConfig, LossesConfig

Method = Literal[
    "none", "prune", "prune_tfmot", "prune_channels", "cluster", "qat", "prune_qat", "qat_tfmot", "pqat", "cqat"
]


@dataclass(frozen=True)
class CompressConfig:
    """How stage `compress` makes the student smaller: one method, and fine-tuning by distillation."""

    method: Method = "none"
    """prune: weights by magnitude; prune_channels: whole channels between two convolutions, which shrinks the graph;
    cluster: few distinct weights; qat: quantization-aware training; prune_qat: qat that keeps the zeros of prune.
    By tfmot, for MobileNet-V2 and other plain chains: prune_tfmot, cluster, qat_tfmot, and pqat and cqat, which keep
    zeros or clusters through quantization-aware training."""
    teacher: Literal["student", "teacher"] = "student"
    """Which network the losses below compare the student with. student: the student as it was before compression, which
    runs in every step; teacher: the experiment's teacher, as its `view` says."""
    sparsity: float = 0.5
    """Share of zeros in each pruned kernel, or of channels cut from each pruned layer."""
    clusters: int = 16
    """Distinct values of each clustered kernel."""
    steps: int = 500
    """Steps of fine-tuning; methods of two phases (prune_qat, pqat, cqat) take as many for each."""
    batch_size: int = 64
    """Examples per step."""
    learning_rate: float = 1e-4
    """Peak learning rate of Adam, falling to zero by a cosine."""
    losses: LossesConfig = field(default_factory=lambda: LossesConfig(kd=KDConfig(weight=0.9, temperature=4.0)))
    """The terms beside the hard label."""

    def __post_init__(self) -> None:
        require(0 < self.sparsity < 1, "sparsity must be in (0, 1)", self.sparsity)
        require(self.clusters > 1, "clusters must be 2 or more", self.clusters)
        require(self.steps > 0, "steps must be positive", self.steps)
        require(self.batch_size > 0, "batch_size must be positive", self.batch_size)
        require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
