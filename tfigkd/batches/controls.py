"""Placebo arms: the same treatment without the information, to measure the effect of the information.

The store is not changed: a control permutes or replaces what was read from it, by a seed of the config, which every
manifest and row records. An arm and its placebo differ in nothing else: in both, the completeness error of an image's
own map decides whether it can carry an overlay.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from tfigkd.config.fields import ControlConfig
from tfigkd.data.disk import pick
from tfigkd.data.knowledge import Knowledge
from tfigkd.data.top_logits import StoredViews

ITERATIONS = 20


def derangement(count: int, seed: int) -> np.ndarray:
    """Draw a permutation of `count` >= 2 places without fixed points (a cyclic shift in random order).

    Raises:
        ValueError: fewer than two places.
    """
    if count < 2:
        raise ValueError(f"a derangement needs at least 2 examples, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    result = np.empty(count, np.int64)
    result[order] = np.roll(order, 1)
    return result


def surrogate_noise(maps: np.ndarray, seed: int) -> np.ndarray:
    """Return noise with each map's pixel values and nearly its power spectrum, at random positions.

    The iterated amplitude-adjusted surrogates of Schreiber and Schmitz (1996, doi:10.1103/PhysRevLett.77.635): the
    spectrum and the values are imposed in turn, the values last. So an overlay of the noise dims a picture as much as
    one of the map does, but for what a crop moves out: a map is brightest in the middle, its noise anywhere, so that
    crops with zeros at the border leave noise a little darker.

    Args:
        maps: uint8 [N,H,W].
        seed: Of the noise that it begins with.

    Returns:
        uint8 [N,H,W], each with the values of its map in another order; a constant map stays as it is.
    """
    generator = np.random.default_rng(seed)
    result = np.empty_like(maps)
    for index, one in enumerate(maps):
        amplitudes, values = np.abs(np.fft.rfft2(one)), np.sort(one, axis=None)
        noise = generator.permutation(one.ravel()).reshape(one.shape).astype(np.float64)
        for _ in range(ITERATIONS):
            phases = np.exp(1j * np.angle(np.fft.rfft2(noise)))
            mixed = np.fft.irfft2(amplitudes * phases, s=one.shape)
            noise.flat[np.argsort(mixed, axis=None, kind="stable")] = values
        result[index] = noise
    return result


def shuffle_views(views: StoredViews, config: ControlConfig) -> StoredViews:
    """Return stored views [N,K,C], permuted across images where the control says so."""
    return pick(views, derangement(len(views), config.seed)) if config.logits == "shuffled" else views


def _with_maps_of_others(knowledge: Knowledge, seed: int) -> Knowledge:
    """Return the knowledge with the usable maps permuted among the images that have one.

    So the very images that carry an overlay in the arm carry one in its placebo. The only image with a usable map
    could get no other than its own, and gets none.
    """
    places = np.flatnonzero(knowledge.usable)
    order, usable = np.arange(len(knowledge.usable)), knowledge.usable
    if len(places) > 1:
        order[places] = places[derangement(len(places), seed)]
    else:
        usable = np.zeros_like(usable)
    fields: dict[str, Any] = {name: pick(getattr(knowledge, name), order) for name in ("maps", "scales", "errors")}
    return replace(knowledge, usable=usable, **fields)


def apply_control(knowledge: Knowledge, config: ControlConfig) -> Knowledge:
    """Return the knowledge that a control arm is given; the teacher's own where there is no control.

    Noise is made of all maps at once, and so held in memory.
    """
    if config.maps == "shuffled":
        knowledge = _with_maps_of_others(knowledge, config.seed)
    elif config.maps == "noise":
        knowledge = replace(knowledge, maps=surrogate_noise(knowledge.maps[:], config.seed))
    if config.logits == "shuffled":
        order = derangement(len(knowledge.logits), config.seed)
        knowledge = replace(knowledge, logits=pick(knowledge.logits, order))
    return knowledge
