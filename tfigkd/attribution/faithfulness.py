"""Faithfulness of maps by insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421).

A map is faithful if it is highest at the pixels that decide the model's output. Pixels are inserted or deleted in the
order of the map, highest first, and the probability of the target is recorded. With a faithful map it rises early on
insertion and falls early on deletion. The model is any function from images to scores, so an exported file, which has
no gradient, is measured in the same way as its original model.

A more confident model scores higher on both with any map: compare maps of one model, or compare models by the
difference between insertion and deletion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tfigkd.attribution.baselines import make_baseline
from tfigkd.data import to_model_input
from tfigkd.losses.base import flat_labels


@dataclass(frozen=True)
class Curve:
    """The target's probability after each step of an insertion or deletion.

    Attributes:
        fractions: Share of the pixels that are inserted or deleted, from 0 to 1, [S+1].
        scores: Probability of each image's target, [B,S+1].
    """

    fractions: np.ndarray
    scores: np.ndarray

    @property
    def auc(self) -> np.ndarray:
        """Area under each image's curve by the trapezoid rule, [B], from 0 to 1."""
        return np.trapezoid(self.scores, self.fractions, axis=1)


def insertion(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray | Sequence[int],
    *,
    baseline: str | np.ndarray = "blur",
    steps: int = 16,
    batch_size: int = 1024,
) -> Curve:
    """Insert the pixels of an image into a baseline in the order of its map; a large area under the curve is good.

    Args:
        predict: Function from images [N,H,W,C] of the dtype of `images` to logits [N,classes].
        images: uint8 [B,H,W,C], or float [B,H,W,C] in [0,1].
        maps: [B,H,W]; the highest pixels come first. Pixels of equal value are in a fixed random order, so a constant
            map gives a random order.
        targets: Index of the class whose probability is recorded, int [B] or [B,1].
        baseline: "blur", "black", or an array in [0,1] that broadcasts to the images, such as `make_baseline` gives.
            The default is the blurred image, because pixels on a flat color create new edges, to which models react.
        steps: Number of steps in which the pixels are inserted, at least 1.
        batch_size: Approximate number of images per call of `predict`; it limits the memory.

    Returns:
        The curve of each image.

    Raises:
        ValueError: An argument is not as above.
    """
    pixels, hidden, ranks, targets = _prepare(images, maps, targets, baseline, steps)
    return _curve(predict, hidden, pixels, ranks, targets, steps, batch_size)


def deletion(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray | Sequence[int],
    *,
    baseline: str | np.ndarray = "black",
    steps: int = 16,
    batch_size: int = 1024,
) -> Curve:
    """Replace the pixels of an image by a baseline in the order of its map; a small area under the curve is good.

    The baseline should be black or, as an array, the mean color, because blurred pixels still show part of the image.

    Args:
        predict: As for `insertion`.
        images: uint8, or floats in [0,1], [B,H,W,C].
        maps: float [B,H,W].
        targets: Index of a class for each image, [B] or [B,1].
        baseline: "blur", "black", or an array in [0,1] that broadcasts to the images.
        steps: Number of steps in which the pixels are replaced, at least 1.
        batch_size: Approximate number of images per call of `predict`; it limits the memory.

    Returns:
        The curve of each image.

    Raises:
        ValueError: An argument is not as above.
    """
    pixels, hidden, ranks, targets = _prepare(images, maps, targets, baseline, steps)
    return _curve(predict, pixels, hidden, ranks, targets, steps, batch_size)


def _prepare(
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray | Sequence[int],
    baseline: str | np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Check the arguments; return images and baselines of one dtype [B,H,W,C], pixel ranks [B,P] and targets [B]."""
    images, maps = np.asarray(images), np.asarray(maps, np.float64)
    chosen: np.ndarray = flat_labels(np.asarray(targets))
    if images.ndim != 4 or not len(images) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise ValueError(
            f"images must be uint8, or floats in [0,1], [B,H,W,C] with B > 0; got {images.dtype} of {images.shape}."
        )
    if maps.shape != images.shape[:3] or not np.isfinite(maps).all():
        raise ValueError(f"maps must be finite, of the images' shape {images.shape[:3]}; got shape {maps.shape}.")
    if chosen.shape != (len(images),) or chosen.dtype.kind not in "iu" or chosen.min() < 0:
        raise ValueError(f"targets must be one class index for each of the {len(images)} images, got {chosen!r}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if images.dtype == np.uint8:
        hidden = np.round(255 * make_baseline(baseline, to_model_input(images))).astype(np.uint8)
    else:
        hidden = make_baseline(baseline, images).astype(images.dtype)
    return images, np.broadcast_to(hidden, images.shape), _ranks(maps.reshape(len(maps), -1)), chosen


def _ranks(maps: np.ndarray) -> np.ndarray:
    """Return the rank of each pixel [B,P] in its map, 0 for the highest."""
    # shuffle first: otherwise the equal pixels of a mostly zero map would be ordered from top to bottom
    shuffle = np.random.default_rng(0).permutation(maps.shape[1])
    order = shuffle[np.argsort(-maps[:, shuffle], axis=1, kind="stable")]
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(maps.shape[1])[None], axis=1)
    return ranks


def _curve(
    predict: Callable[[np.ndarray], np.ndarray],
    before: np.ndarray,
    after: np.ndarray,
    ranks: np.ndarray,
    targets: np.ndarray,
    steps: int,
    batch_size: int,
) -> Curve:
    """Return the curve while the pixels of `before` are replaced by those of `after`, both [B,H,W,C]."""
    counts = np.round(np.linspace(0, ranks.shape[1], steps + 1)).astype(int)
    size = max(1, batch_size // len(counts))
    scores = []
    for start in range(0, len(before), size):
        chosen = slice(start, start + size)
        changed = ranks[chosen, None] < counts[:, None]
        mask = changed.reshape(*changed.shape[:2], *before.shape[1:3], 1)
        mixed = np.where(mask, after[chosen, None], before[chosen, None])
        outputs = np.asarray(predict(mixed.reshape(-1, *before.shape[1:])), np.float64)
        if outputs.ndim != 2 or len(outputs) != mixed.shape[0] * mixed.shape[1]:
            raise ValueError(f"predict must give one row of class scores for each image, got shape {outputs.shape}.")
        if targets.max() >= outputs.shape[1]:
            raise ValueError(f"targets must be below the number of classes, {outputs.shape[1]}; got {targets.max()}.")
        probabilities = special.softmax(outputs, axis=1).reshape(*mixed.shape[:2], -1)
        scores.append(np.take_along_axis(probabilities, targets[chosen, None, None], axis=2)[..., 0])
    return Curve(counts / ranks.shape[1], np.concatenate(scores))
