"""Attribution of a model's output to the pixels: Integrated Gradients, their error, and measures of quality."""

from tfigkd.attribution.baselines import blur_sigma, make_baseline
from tfigkd.attribution.faithfulness import Curve, deletion, insertion
from tfigkd.attribution.integrated_gradients import (
    Attribution,
    attribute,
    completeness_error,
    integrated_gradients,
    saliency_map,
)
from tfigkd.attribution.quadrature import nodes_and_weights
from tfigkd.attribution.similarity import cosine, rank_correlation, top_overlap

__all__ = [
    "Attribution",
    "Curve",
    "attribute",
    "blur_sigma",
    "completeness_error",
    "cosine",
    "deletion",
    "insertion",
    "integrated_gradients",
    "make_baseline",
    "nodes_and_weights",
    "rank_correlation",
    "saliency_map",
    "top_overlap",
]
