"""Placebo arms: the same treatment without the information, to tell what the information did.

The store is never falsified: a control permutes or replaces what was read from it, by a seed that stands in the
config and so in every manifest and row. An arm and its placebo differ in nothing else.
"""

from dataclasses import replace

import numpy as np

from tfigkd.batches import Knowledge
from tfigkd.fields import ControlConfig


def derangement(count: int, seed: int) -> np.ndarray:
    """A random permutation of `count` >= 2 places that leaves nothing where it was (a cyclic shift in random order).

    Raises:
        ValueError: fewer than two places.
    """
    if count < 2:
        raise ValueError(f"a derangement needs at least 2 examples, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    result = np.empty(count, np.int64)
    result[order] = np.roll(order, 1)
    return result


def spectrum_noise(maps: np.ndarray, seed: int) -> np.ndarray:
    """Noise with each map's own power spectrum: its Fourier amplitudes under the phases of white noise.

    Args:
        maps: uint8 [N,H,W].
        seed: Of the phases.

    Returns:
        uint8 [N,H,W], each scaled to 0..255; a constant map stays constant.
    """
    generator = np.random.default_rng(seed)
    result = np.empty_like(maps)
    for index, one in enumerate(maps):
        phase = np.angle(np.fft.rfft2(generator.standard_normal(one.shape)))
        noise = np.fft.irfft2(np.abs(np.fft.rfft2(one)) * np.exp(1j * phase), s=one.shape)
        noise -= noise.min()
        peak = noise.max()
        result[index] = np.round(255 * noise / peak) if peak > 1e-9 and one.min() < one.max() else one
    return result


def shuffle_views(views: np.ndarray, config: ControlConfig) -> np.ndarray:
    """Stored views [N,K,C], permuted across images where the control says so."""
    return views[derangement(len(views), config.seed)] if config.logits == "shuffled" else views


def apply_control(knowledge: Knowledge, config: ControlConfig) -> Knowledge:
    """What a control arm is given in place of the teacher's knowledge; the knowledge itself without a control."""
    if config.maps == "shuffled":
        order = derangement(len(knowledge.maps), config.seed)
        fields = {name: getattr(knowledge, name)[order] for name in ("maps", "scales", "errors", "usable")}
        knowledge = replace(knowledge, **fields)
    elif config.maps == "noise":
        knowledge = replace(knowledge, maps=spectrum_noise(knowledge.maps, config.seed))
    if config.logits == "shuffled":
        knowledge = replace(knowledge, logits=knowledge.logits[derangement(len(knowledge.logits), config.seed)])
    return knowledge
