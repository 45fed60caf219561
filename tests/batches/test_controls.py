"""Placebo arms take the information away and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tfigkd.batches.augment import overlay_exponents, overlay_some
from tfigkd.batches.controls import apply_control, derangement, surrogate_noise
from tfigkd.config.fields import ControlConfig, OverlayConfig
from tfigkd.data.knowledge import Knowledge

RNG = np.random.default_rng(0)
COUNT = 40


@pytest.fixture
def knowledge():
    smooth = RNG.random((COUNT, 4, 4)).repeat(3, axis=1).repeat(3, axis=2)
    return Knowledge(
        logits=RNG.normal(size=(COUNT, 10)).astype(np.float32),
        maps=(255 * smooth / smooth.max(axis=(1, 2), keepdims=True)).astype(np.uint8),
        scales=RNG.random(COUNT).astype(np.float32),
        errors=RNG.random(COUNT).astype(np.float32),
        usable=RNG.random(COUNT) < 0.8,
    )


@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_a_derangement_moves_everything_and_loses_nothing(count, seed):
    order = derangement(count, seed)
    assert sorted(order) == list(range(count))
    assert (order != np.arange(count)).all()


def test_one_example_cannot_be_shuffled():
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, 0)


def test_no_control_is_the_knowledge_itself(knowledge):
    assert apply_control(knowledge, ControlConfig()) is knowledge


def test_shuffled_maps_are_usable_ones_of_others_on_the_images_that_have_one(knowledge):
    """An image carries an overlay in the placebo if, and only if, it carries one in the arm."""
    control = apply_control(knowledge, ControlConfig(maps="shuffled"))
    np.testing.assert_array_equal(control.logits, knowledge.logits)
    np.testing.assert_array_equal(control.usable, knowledge.usable)
    assert 0 < knowledge.usable.sum() < COUNT
    sources = [int(np.flatnonzero(knowledge.errors == error)[0]) for error in control.errors]
    assert sorted(sources) == list(range(COUNT))
    for index in np.flatnonzero(knowledge.usable):
        assert sources[index] != index and knowledge.usable[sources[index]]
        np.testing.assert_array_equal(control.maps[index], knowledge.maps[sources[index]])
        assert control.scales[index] == knowledge.scales[sources[index]]


@pytest.mark.parametrize("few", [0, 1])
def test_maps_that_cannot_be_exchanged_are_not_shown(knowledge, few):
    alone = replace(knowledge, usable=np.arange(COUNT) < few)
    assert not apply_control(alone, ControlConfig(maps="shuffled")).usable.any()


def test_shuffled_logits_leave_the_maps(knowledge):
    control = apply_control(knowledge, ControlConfig(logits="shuffled"))
    np.testing.assert_array_equal(control.maps, knowledge.maps)
    assert (control.logits != knowledge.logits).all(axis=1).all()
    np.testing.assert_array_equal(np.sort(control.logits, axis=0), np.sort(knowledge.logits, axis=0))


def test_the_seed_decides(knowledge):
    first = apply_control(knowledge, ControlConfig(logits="shuffled", seed=1)).logits
    np.testing.assert_array_equal(first, apply_control(knowledge, ControlConfig(logits="shuffled", seed=1)).logits)
    assert (first != apply_control(knowledge, ControlConfig(logits="shuffled", seed=2)).logits).any()


def test_noise_has_the_values_and_the_spectrum_of_the_maps_and_nothing_of_their_shape():
    maps = np.stack([gaussian_filter(np.abs(RNG.standard_normal((32, 32))) ** 3, 1) for _ in range(COUNT)])
    maps = (255 * maps / maps.max(axis=(1, 2), keepdims=True)).astype(np.uint8)  # dark and sparse, as maps are
    noise = surrogate_noise(maps, seed=0)
    assert noise.dtype == np.uint8
    np.testing.assert_array_equal(*(np.sort(every.reshape(COUNT, -1)) for every in (noise, maps)))

    def spectrum(maps):
        amplitude = np.abs(np.fft.rfft2(maps / 255.0))
        amplitude[:, 0, 0] = 0  # the mean, which is the same
        return amplitude / np.linalg.norm(amplitude, axis=(1, 2), keepdims=True)

    overlap = (spectrum(noise) * spectrum(maps)).sum(axis=(1, 2))
    assert overlap.min() > 0.98
    similarity = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(noise, maps, strict=True)]
    assert abs(np.mean(similarity)) < 0.1


def test_a_constant_map_stays_constant():
    maps = np.full((1, 6, 6), 9, np.uint8)
    np.testing.assert_array_equal(surrogate_noise(maps, 0), maps)


def test_dimming_touches_the_same_images_as_the_overlay(knowledge):
    images = np.full((COUNT, 12, 12, 3), 0.8, np.float32)
    keys = np.arange(COUNT, dtype=np.uint64) * np.uint64(7919)
    config = OverlayConfig(probability=0.5)
    exponents = overlay_exponents(knowledge.usable, keys, config, seed=0, epoch=0)
    laid = overlay_some(images, knowledge.maps, exponents)
    dimmed = overlay_some(images, None, exponents)
    changed = (dimmed != images).any(axis=(1, 2, 3))
    assert (changed == (laid != images).any(axis=(1, 2, 3))).all()
    np.testing.assert_array_equal(dimmed[changed], 0.5 * images[changed])
