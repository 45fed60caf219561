"""Does a map name the pixels that the model goes by? Insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421).

Pixels are shown, or taken away, in the order of the map, highest first, and the probability of the target is watched.
Under a faithful map it rises early on insertion and falls early on deletion. The model is any function from images to
scores, so an exported file that has no gradient is measured in the same way as the model it came from.

A model that is sure of itself scores higher on both, whatever its map: compare maps on one model, or models by the
difference between insertion and deletion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tfigkd.attribution.baselines import make_baseline
from tfigkd.data import to_model_input


@dataclass(frozen=True)
class Curve:
    """The target's probability along the way.

    Args:
        fractions: Share of the pixels that are shown (insertion) or taken away (deletion), from 0 to 1, [S+1].
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
    from_logits: bool = True,
    batch_size: int = 1024,
) -> Curve:
    """Show an image pixel by pixel on a baseline, in the order of its map; a large area is good.

    Args:
        predict: From images [N,H,W,C] of the type given here to logits or probabilities [N,classes].
        images: uint8 [B,H,W,C], or float [B,H,W,C] in [0,1].
        maps: [B,H,W]; the highest pixels come first. Pixels of equal value follow in a random order that is always
            the same, so a constant map is a random one.
        targets: Index of the class whose probability is watched, int [B].
        baseline: "blur", "black", or an array in [0,1] that broadcasts to the images, such as `make_baseline` gives.
            A blurred image is the default, because detail that appears on a flat color is news in itself.
        steps: How many parts the pixels are shown in, at least 1.
        from_logits: Whether `predict` gives logits; probabilities are taken as they are.
        batch_size: Images handed to `predict` at once, about; bounds the memory.

    Raises:
        ValueError: An argument is not as above.
    """
    pixels, hidden, ranks, targets = _prepare(images, maps, targets, baseline, steps)
    return _curve(predict, hidden, pixels, ranks, targets, steps, from_logits, batch_size)


def deletion(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray | Sequence[int],
    *,
    baseline: str | np.ndarray = "black",
    steps: int = 16,
    from_logits: bool = True,
    batch_size: int = 1024,
) -> Curve:
    """Replace an image pixel by pixel with a baseline, in the order of its map; a small area is good.

    Arguments as for `insertion`. The baseline is black or, as an array, the mean color: blurred pixels still tell
    what they hide.
    """
    pixels, hidden, ranks, targets = _prepare(images, maps, targets, baseline, steps)
    return _curve(predict, pixels, hidden, ranks, targets, steps, from_logits, batch_size)


def _prepare(
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray | Sequence[int],
    baseline: str | np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and baselines of one type [B,H,W,C], the rank of each pixel [B,P], and the targets, all checked."""
    images, maps, targets = np.asarray(images), np.asarray(maps, np.float64), np.asarray(targets)
    if images.ndim != 4 or not len(images) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise ValueError(
            f"images must be uint8, or floats in [0,1], [B,H,W,C] with B > 0; got {images.dtype} of {images.shape}."
        )
    if maps.shape != images.shape[:3] or not np.isfinite(maps).all():
        raise ValueError(f"maps must be finite, of the images' shape {images.shape[:3]}; got shape {maps.shape}.")
    if targets.shape != (len(images),) or targets.dtype.kind not in "iu" or targets.min() < 0:
        raise ValueError(f"targets must be one class index for each of the {len(images)} images, got {targets!r}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if images.dtype == np.uint8:
        hidden = np.round(255 * make_baseline(baseline, to_model_input(images))).astype(np.uint8)
    else:
        hidden = make_baseline(baseline, images).astype(images.dtype)
    return images, np.broadcast_to(hidden, images.shape), _ranks(maps.reshape(len(maps), -1)), targets


def _ranks(maps: np.ndarray) -> np.ndarray:
    """Place of each pixel [B,P] in the order of its map, 0 for the highest."""
    # shuffled first: in reading order, the pixels of a map that is mostly zero would go from the top down
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
    from_logits: bool,
    batch_size: int,
) -> Curve:
    """The curve on the way from `before` to `after`, both [B,H,W,C]."""
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
        probabilities = special.softmax(outputs, axis=1) if from_logits else outputs
        probabilities = probabilities.reshape(*mixed.shape[:2], -1)
        scores.append(np.take_along_axis(probabilities, targets[chosen, None, None], axis=2)[..., 0])
    return Curve(counts / ranks.shape[1], np.concatenate(scores))
