"""Distillation losses: each is a subclass of `keras.distillation.DistillationLoss` around a pure function.

Hint, SKT, ReviewKD, RTK and OSAKD can have an `extra_layer` as well, which training changes: layers that are trained
with the student, or OSAKD's queue of the last examples.
"""

from tfigkd.losses.attention import AttentionTransfer, attention_map, attention_transfer, spatial_attention
from tfigkd.losses.base import Loss, PerExampleLoss
from tfigkd.losses.bkd import BalancedKL, balanced_kl, effective_weights
from tfigkd.losses.explanations import E2KD, IGMatching, grad_cam, input_gradient_map, map_distance
from tfigkd.losses.features import Hint, hint_distance
from tfigkd.losses.logits import (
    DIST,
    DKD,
    R2KD,
    KLDivergence,
    LogitRegression,
    correlation_distance,
    cross_entropy,
    decoupled_kl,
    kl_divergence,
    logit_distance,
    standardize_logits,
)
from tfigkd.losses.opdf import OPDF, tensor_distance
from tfigkd.losses.osakd import OSAKD, neighbor_posteriors
from tfigkd.losses.relation import (
    FSP,
    PKT,
    RKD,
    SP,
    flow_distance,
    probabilistic_distance,
    relational_distance,
    similarity_distance,
)
from tfigkd.losses.reviewkd import ReviewKD, context_distance
from tfigkd.losses.rtk import RTK, attention_difference
from tfigkd.losses.skt import SKT, dense_flow_distance, direction_distance

LOSSES: dict[str, type[Loss]] = {
    "kd": KLDivergence,
    "dkd": DKD,
    "dist": DIST,
    "rkd": RKD,
    "sp": SP,
    "pkt": PKT,
    "at": AttentionTransfer,
    "fsp": FSP,
    "hint": Hint,
    "skt": SKT,
    "reviewkd": ReviewKD,
    "regression": LogitRegression,
    "bkd": BalancedKL,
    "osakd": OSAKD,
    "r2kd": R2KD,
    "rtk": RTK,
    "opdf": OPDF,
    "e2kd": E2KD,
    "ig_match": IGMatching,
}
"""Name of a term, as in `[losses.NAME]`, to its class."""

__all__ = [
    "DIST",
    "DKD",
    "E2KD",
    "FSP",
    "LOSSES",
    "OPDF",
    "OSAKD",
    "PKT",
    "R2KD",
    "RKD",
    "RTK",
    "SKT",
    "SP",
    "AttentionTransfer",
    "BalancedKL",
    "Hint",
    "IGMatching",
    "KLDivergence",
    "LogitRegression",
    "Loss",
    "PerExampleLoss",
    "ReviewKD",
    "attention_difference",
    "attention_map",
    "attention_transfer",
    "balanced_kl",
    "context_distance",
    "correlation_distance",
    "cross_entropy",
    "decoupled_kl",
    "dense_flow_distance",
    "direction_distance",
    "effective_weights",
    "flow_distance",
    "grad_cam",
    "hint_distance",
    "input_gradient_map",
    "kl_divergence",
    "logit_distance",
    "map_distance",
    "neighbor_posteriors",
    "probabilistic_distance",
    "relational_distance",
    "similarity_distance",
    "spatial_attention",
    "standardize_logits",
    "tensor_distance",
]
