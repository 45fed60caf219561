"""Mixup and CutMix: how much of each pixel stays the image's own, and the rest of its partner in the batch."""

from typing import Any

import numpy as np

from tfigkd.batches.augment import Purpose, uniform


def mixup_shares(keys: np.ndarray, alpha: float, *, seed: int, epoch: int) -> np.ndarray:
    """Return the share of its own image in each mixed image, drawn from Beta(alpha, alpha), float32 [B].

    The draws are a function of the seed, the epoch and the batch's examples in their order.

    Args:
        keys: uint64 [B], from `example_keys`.
        alpha: Of the distribution, > 0; 1 is the uniform one.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """
    if alpha == 1:
        return uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.MIX).astype(np.float32)
    words = [seed, epoch, Purpose.MIX, *np.atleast_1d(keys)[:1].tolist()]
    return np.random.default_rng(words).beta(alpha, alpha, len(keys)).astype(np.float32)


def pasted_boxes(shares: np.ndarray, keys: np.ndarray, size: tuple[int, int], *, seed: int, epoch: int) -> np.ndarray:
    """Return the box that comes from the partner, of the aspect of the image: 0 in it and 1 elsewhere, float32 [B,H,W].

    Its center is anywhere in the image, so that a part may be outside (Yun et al. 2019, arXiv 1905.04899).

    Args:
        shares: Share of the area that stays the image's own, where all of the box is inside, [B].
        keys: uint64 [B], from `example_keys`.
        size: Height and width of the images.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """
    inside = []
    for side, purpose in zip(size, (Purpose.PASTE_Y, Purpose.PASTE_X), strict=True):
        center = uniform(keys, seed=seed, epoch=epoch, purpose=purpose) * side
        half = np.sqrt(1 - shares) * side / 2
        places = np.arange(side) + 0.5
        inside.append(np.abs(places - center[:, None]) < half[:, None])
    return 1 - (inside[0][:, :, None] & inside[1][:, None, :]).astype(np.float32)


def mixing_weights(
    keys: np.ndarray, size: tuple[int, int], mixup: float, cutmix: float, *, seed: int, epoch: int
) -> np.ndarray:
    """Return how much of each pixel is the image's own, for `mix`: float32 [B,1,1], or with cutmix [B,H,W].

    Args:
        keys: uint64 [B], from `example_keys`.
        size: Height and width of the images.
        mixup: Shares are from Beta(mixup, mixup); 0: no image is mixed so.
        cutmix: The same for boxes. With both, each image has one of the two at even odds.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """
    even = mixup_shares(keys, mixup, seed=seed, epoch=epoch)[:, None, None] if mixup else None
    if not cutmix:
        assert even is not None
        return even
    boxes = pasted_boxes(mixup_shares(keys, cutmix, seed=seed, epoch=epoch), keys, size, seed=seed, epoch=epoch)
    if even is None:
        return boxes
    blended = uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.WHICH) < 0.5
    return np.where(blended[:, None, None], even, boxes)


def mix(values: Any, own: np.ndarray) -> Any:
    """Mix what each example has with what its partner has: images, labels or weights; NumPy's arrays or JAX's.

    The partner of example i is example B - 1 - i: batches are shuffled, and the control that takes the example before
    in the batch forms other pairs.

    Args:
        values: [B,...].
        own: How much is the example's own, [B,...], as `mixing_weights` says; it broadcasts to `values`.
    """
    return own * values + (1 - own) * values[::-1]
