"""Attribution of a model's output to the pixels: Integrated Gradients, their error, and measures of quality."""

from tfigkd.attribution.baselines import make_baseline
from tfigkd.attribution.integrated_gradients import (
    Attribution,
    attribute,
    completeness_error,
    integrated_gradients,
    saliency_map,
)
from tfigkd.attribution.quadrature import nodes_and_weights

__all__ = [
    "Attribution",
    "attribute",
    "completeness_error",
    "integrated_gradients",
    "make_baseline",
    "nodes_and_weights",
    "saliency_map",
]
