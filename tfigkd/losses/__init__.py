"""Distillation losses: each a pure function first, a `keras.distillation.DistillationLoss` second."""

from tfigkd.losses.logits import KLDivergence, hard_label_loss, kl_divergence

__all__ = ["KLDivergence", "hard_label_loss", "kl_divergence"]
