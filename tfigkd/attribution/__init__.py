"""Which pixels made the model say what it says: Integrated Gradients, and how far to trust them."""

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
