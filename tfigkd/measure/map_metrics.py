"""Metrics of maps, averaged over images, by name; the same for Keras models and LiteRT files."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from tfigkd.attribution.faithfulness import deletion, insertion
from tfigkd.attribution.similarity import cosine, rank_correlation, top_overlap
from tfigkd.data import Examples
from tfigkd.measure.metrics import Predict

FAITHFULNESS = ("attribution_insertion", "attribution_deletion")
"""The names of what `faithfulness_metrics` measures."""


def similarity_metrics(maps: np.ndarray, reference: np.ndarray, *, top_fraction: float) -> Iterator[tuple[str, float]]:
    """Yield mean similarities of two models' maps [B,H,W] of the same images, by name.

    Each is followed by its `_chance`: the same measure with the reference's map of another image. Objects are in the
    middle of most images, so even unrelated maps are clearly similar.

    Args:
        maps: float [B,H,W].
        reference: float [B,H,W], with which they are compared.
        top_fraction: Share of the pixels that counts for the overlap of the largest values.
    """
    other = np.roll(reference, 1, axis=0)
    measures: dict[str, Callable[..., np.ndarray]] = {
        "attribution_rank_correlation": rank_correlation,
        "attribution_cosine": cosine,
        "attribution_top_overlap": partial(top_overlap, fraction=top_fraction),
    }
    for name, compare in measures.items():
        yield name, float(compare(maps, reference).mean())
        yield f"{name}_chance", float(compare(maps, other).mean())


def faithfulness_metrics(
    predict: Predict, examples: Examples, maps: np.ndarray, *, mean_color: np.ndarray, steps: int
) -> Iterator[tuple[str, float]]:
    """Yield the mean area under the insertion curve (from the blurred image) and the deletion curve (to mean color).

    Args:
        predict: From uint8 images [N,H,W,3] to logits [N,C].
        examples: N images with labels.
        maps: float [N,H,W].
        mean_color: Of the training images, float32 [3] in [0,1].
        steps: Steps of each curve.
    """
    images = examples.images[:]
    arguments = predict, images, maps, examples.labels
    color = np.broadcast_to(mean_color, images.shape[1:])
    curves = insertion(*arguments, steps=steps), deletion(*arguments, baseline=color, steps=steps)
    for name, curve in zip(FAITHFULNESS, curves, strict=True):
        yield name, float(curve.auc.mean())
