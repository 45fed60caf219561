"""Draws are stateless and uniform; image and map share one geometry; the overlay is the papers'."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_jax import NEEDS_JAX
from tfigkd.batches.augment import (
    FINE,
    Purpose,
    crop_and_flip,
    cut_square,
    example_keys,
    geometry,
    overlay,
    overlay_exponents,
    overlay_some,
    uniform,
)
from tfigkd.batches.mixing import pasted_boxes
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.runtime.errors import UserError

KEYS = np.arange(1, 4001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def test_keys_read_hex_ids_and_ordinals():
    ids = np.array(["00000000000000ff", "00000000000000ff-1", "ffffffffffffffff"])
    assert example_keys(ids).tolist() == [255, 256, 2**64 - 1]


def test_draws_are_uniform_and_independent_of_neighbors():
    draws = uniform(KEYS, seed=1, epoch=2, purpose=3)
    assert 0 <= draws.min() <= draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 45  # chi-square, 19 degrees of freedom: p = 0.0007
    assert draws[7] == uniform(KEYS[7:8], seed=1, epoch=2, purpose=3)[0]


def test_draws_are_those_of_earlier_versions():
    """A run that an earlier version began goes on with the same draws: values of the commit 148ebd5."""
    keys = example_keys(np.array(["00000000000000ab", "ffffffffffffffff-1"]))
    earlier = {
        Purpose.ORDER: [0.691917449814305, 0.0575222654387707],
        Purpose.MIX: [0.4582147223382098, 0.1114120025220604],
        Purpose.OPERATION: [0.8922714265105844, 0.3575805087354925],
    }
    for purpose, expected in earlier.items():
        assert uniform(keys, seed=3, epoch=7, purpose=purpose).tolist() == expected


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 3}, {"purpose": 4}])
def test_draws_differ_by_seed_epoch_and_purpose(other):
    base = {"seed": 1, "epoch": 2, "purpose": 3}
    correlation = np.corrcoef(uniform(KEYS, **base), uniform(KEYS, **(base | other)))[0, 1]
    assert abs(correlation) < 0.06


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_a_map_that_rides_along_gets_the_geometry_of_its_image(batch, height, width, padding, flip, epoch):
    images = np.random.default_rng(epoch).integers(1, 255, (batch, height, width, 3), dtype=np.uint8)
    four = np.concatenate([images, images[..., :1]], axis=-1)
    moved = crop_and_flip(four, KEYS[:batch], AugmentConfig(padding, flip), seed=0, epoch=epoch)
    assert moved.shape == four.shape
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(moved[..., 3], moved[..., 0])


def test_every_shift_and_flip_is_a_true_crop_of_the_padded_image():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    moved = crop_and_flip(np.repeat(image, 4000, 0), KEYS, AugmentConfig(1, True), seed=0, epoch=0)
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    views = {}
    for y in range(3):
        for x in range(3):
            crop = padded[y : y + 3, x : x + 3]
            views[crop.tobytes()] = 0
            views[crop[:, ::-1].tobytes()] = 0
    for result in moved:
        views[result.tobytes()] += 1  # a KeyError is a result that is no crop
    assert len(views) == 18
    assert min(views.values()) > 4000 / 18 * 0.6


def test_no_padding_and_no_flip_is_the_identity():
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_and_flip(images, KEYS[:5], AugmentConfig(0, False), seed=3, epoch=1), images)


def test_overlay_by_hand():
    image = np.full((1, 1, 2, 3), 0.5, np.float32)
    result = overlay(image, np.array([[[0.0, 10.0]]]), np.array([1.0]))
    np.testing.assert_allclose(result[0, 0, :, 0], [0.25, 0.75])
    middle = overlay(np.zeros((1, 1, 3, 3), np.float32), np.array([[[0.0, 5.0, 10.0]]]), np.array([2.0]))
    np.testing.assert_allclose(middle[0, 0, :, 1], [0.0, 0.125, 0.5])


def test_the_unit_of_a_map_does_not_matter():
    rng = np.random.default_rng(0)
    images, maps = rng.random((4, 5, 5, 3), np.float32), rng.random((4, 5, 5), np.float32)
    exponents = np.array([1.0, 1.3, 1.7, 2.0])
    np.testing.assert_allclose(overlay(images, maps, exponents), overlay(images, 200 * maps, exponents), atol=1e-5)


@pytest.mark.parametrize("xp", [np, pytest.param("jax.numpy", marks=NEEDS_JAX)])
def test_no_exponent_is_too_large_for_a_map_of_bytes(xp):
    """255 ** 16.01 is no float32: such maps are divided by their maximum first, all others are left as they are."""
    xp = importlib.import_module(xp) if isinstance(xp, str) else xp
    images = xp.zeros((4, 1, 4, 1), dtype=xp.float32)
    values = np.array([0, 204, 250, 255], np.uint8)
    exponents = np.array([2.0, 15.5, 17.0, 400.0], np.float32)
    maps = xp.asarray(np.broadcast_to(values, (4, 1, 4)).copy())
    laid = np.asarray(overlay(images, maps, xp.asarray(exponents)))[:, 0, :, 0]
    expected = 0.5 * (values / 255.0) ** exponents[:, None]
    np.testing.assert_allclose(laid, expected, rtol=1e-4, atol=1e-7)
    assert (laid[:, -1] == 0.5).all()
    if xp is np:
        powered = values.astype(np.float32) ** exponents[:2, None]
        np.testing.assert_array_equal(laid[:2], np.float32(0.5) * (powered / powered[:, -1:]))
    tiny = np.array([[[0, 1e-9, 2e-9, 4e-9]]], np.float32)  # its sixth power is no float32 either
    laid = overlay(np.zeros((1, 1, 4, 1), np.float32), tiny, np.array([6.0], np.float32))
    np.testing.assert_allclose(laid[0, 0, :, 0], [0, 0.5 / 4**6, 0.5 / 2**6, 0.5], rtol=1e-5)


def test_a_constant_map_gives_no_overlay():
    images = np.random.default_rng(0).random((2, 3, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(overlay(images, np.ones((2, 3, 3)), np.ones(2)), images)


def test_flip_then_overlay_equals_overlay_then_flip():
    rng = np.random.default_rng(1)
    images, maps, exponents = rng.random((3, 4, 4, 3), np.float32), rng.random((3, 4, 4)), np.array([1.0, 1.5, 2.0])
    flipped = overlay(images[:, :, ::-1], maps[:, :, ::-1], exponents)
    np.testing.assert_array_equal(flipped, overlay(images, maps, exponents)[:, :, ::-1])


def test_overlays_come_with_their_probability_and_never_on_unusable_maps():
    images = np.full((4000, 2, 2, 3), 0.5, np.float32)
    maps = np.tile(np.array([[0, 1], [2, 3]], np.uint8), (4000, 1, 1))
    usable = np.arange(4000) % 2 == 0
    config = OverlayConfig(probability=0.1)
    result = overlay_some(images, maps, overlay_exponents(usable, KEYS, config, seed=0, epoch=0))
    changed = (result != images).any(axis=(1, 2, 3))
    assert not changed[~usable].any()
    assert 0.08 < changed[usable].mean() < 0.12
    again = overlay_some(images, maps, overlay_exponents(usable, KEYS, config, seed=0, epoch=0))
    np.testing.assert_array_equal(result, again)
    other = overlay_some(images, maps, overlay_exponents(usable, KEYS, config, seed=0, epoch=1))
    assert ((other != images).any(axis=(1, 2, 3)) != changed).any()


def test_alternate_mirrors_each_image_in_exactly_every_other_epoch():
    config = AugmentConfig(0, True, flip_order="alternate")
    images = np.random.default_rng(0).integers(0, 256, (len(KEYS), 4, 4, 3), dtype=np.uint8)
    mirrored = np.array(
        [(crop_and_flip(images, KEYS, config, seed=1, epoch=epoch) != images).any(axis=(1, 2, 3)) for epoch in range(6)]
    )
    np.testing.assert_array_equal(mirrored[1:], ~mirrored[:-1])
    assert 0.45 < mirrored[0].mean() < 0.55
    each = crop_and_flip(images, KEYS, config, seed=1, epoch=np.arange(len(KEYS)) % 2)
    np.testing.assert_array_equal(
        (each != images).any(axis=(1, 2, 3)), mirrored[np.arange(len(KEYS)) % 2, range(len(KEYS))]
    )


def test_a_reflected_border_repeats_the_image_and_brings_no_zeros():
    images = np.random.default_rng(0).integers(1, 256, (len(KEYS), 6, 6, 3), dtype=np.uint8)
    moved = crop_and_flip(images, KEYS, AugmentConfig(2, False, crop_border="reflect"), seed=0, epoch=0)
    zeros = crop_and_flip(images, KEYS, AugmentConfig(2, False), seed=0, epoch=0)
    assert moved.min() > 0 and zeros.min() == 0
    np.testing.assert_array_equal(moved[zeros > 0], zeros[zeros > 0])
    left = next(index for index in range(len(KEYS)) if not zeros[index, :, :2].any() and zeros[index, :, 2].any())
    np.testing.assert_array_equal(moved[left, :, 0], moved[left, :, 4])
    np.testing.assert_array_equal(moved[left, :, 1], moved[left, :, 3])


RESIZED = AugmentConfig(crop_padding=0, flip=False, crop_area=(0.2, 1.0))


def crops(config, height, width, **drawn):
    """Return top, left, height and width of the crops in pixels, [B] each, from where the resized pixels lie."""
    rows, columns = (places / FINE for places in geometry(KEYS, (height, width), config, seed=0, epoch=0, **drawn))
    found = []
    for places, side in ((rows, height), (columns, width)):
        step = places[:, side // 2 + 1] - places[:, side // 2 - 1]  # at the border places are held inside
        middle = (places[:, side // 2] + places[:, side // 2 - 1]) / 2 + 0.5
        found.append((middle - step * side / 4, step * side / 2))
    return found[0][0], found[1][0], found[0][1], found[1][1]


def test_resized_crops_are_those_of_pillow():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((24, 32), Image.Resampling.BICUBIC)
    image = np.asarray(smooth)
    moved = crop_and_flip(np.repeat(image[None], len(KEYS), 0), KEYS, RESIZED, seed=0, epoch=0)
    assert moved.dtype == np.uint8 and moved.shape[1:] == image.shape
    for index, (top, left, height, width) in enumerate(np.transpose(crops(RESIZED, 32, 24))[:200]):
        box = left, top, left + width, top + height
        assert min(left, top) > -0.2 and box[2] < 24.2 and box[3] < 32.2
        box = np.clip(box, 0, (24, 32, 24, 32))
        expected = np.asarray(smooth.resize((24, 32), Image.Resampling.BILINEAR, box=tuple(box))).astype(int)
        inside = np.s_[2:-2, 2:-2]  # at its border Pillow does not look beyond the box
        assert np.abs(moved[index].astype(int) - expected)[inside].max() <= 4


def test_areas_and_aspects_of_resized_crops_are_drawn_as_they_say():
    _, _, height, width = crops(AugmentConfig(0, False, crop_area=(0.2, 0.6)), 64, 64)
    area, aspect = height * width / 64**2, width / height
    assert 0.19 < area.min() < 0.22 and 0.58 < area.max() < 0.61 and abs(area.mean() - 0.4) < 0.01
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35 and abs(np.log(aspect).mean()) < 0.02
    top, _, height, _ = crops(AugmentConfig(0, False, crop_area=(0.25, 0.25), crop_aspect=(1.0, 1.0)), 64, 64)
    np.testing.assert_allclose(height, 32, atol=0.3)
    assert top.min() < 0.5 and top.max() > 31.5 and abs(top.mean() - 16) < 0.6


def test_a_crop_of_the_whole_image_is_the_image():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    config = AugmentConfig(0, False, crop_area=(0.999, 1.0), crop_aspect=(1.0, 1.0))
    moved = crop_and_flip(images, KEYS[:5], config, seed=0, epoch=0).astype(int)
    assert np.abs(moved - images).max() <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_a_map_is_resized_with_its_image_and_a_flip_mirrors_both(batch, height, width, flip, epoch):
    images = np.random.default_rng(epoch).integers(1, 255, (batch, height, width, 3), dtype=np.uint8)
    four = np.concatenate([images, images[..., :1]], axis=-1)
    config = AugmentConfig(0, flip, flip_order="alternate", crop_area=(0.3, 0.9))
    drawn = {"seed": 0, "epoch": epoch}
    moved = crop_and_flip(four, KEYS[:batch], config, **drawn)
    np.testing.assert_array_equal(moved[..., 3], moved[..., 0])
    still = crop_and_flip(four, KEYS[:batch], AugmentConfig(0, False, crop_area=(0.3, 0.9)), **drawn)
    for one, other in zip(moved, still, strict=True):
        assert np.array_equal(one, other) or (flip and np.array_equal(one, other[:, ::-1]))


def test_floats_are_resized_without_rounding():
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 1), dtype=np.uint8)
    drawn = {"seed": 0, "epoch": 0}
    whole = crop_and_flip(images, KEYS[:50], RESIZED, **drawn)
    fine = crop_and_flip(images.astype(np.float32), KEYS[:50], RESIZED, **drawn)
    np.testing.assert_allclose(fine, whole, atol=0.51)
    assert (fine != whole).any()


def test_a_cut_square_of_a_resized_crop_has_its_side_in_pixels_of_the_result():
    places = geometry(KEYS, (12, 12), RESIZED, seed=0, epoch=0)
    rows, columns = cut_square(*places, KEYS, 4, seed=0, epoch=0)
    assert max((rows < 0).sum(axis=1)) == max((columns < 0).sum(axis=1)) == 4


def test_pasted_boxes_have_the_area_of_their_share():
    shares = np.full(len(KEYS), 0.75, np.float32)
    boxes = pasted_boxes(shares, KEYS, (32, 64), seed=0, epoch=0)
    assert set(np.unique(boxes)) == {0.0, 1.0}
    own = boxes.mean(axis=(1, 2))
    assert own.min() == pytest.approx(0.75)  # the whole box is inside: 16 of 32 rows, 32 of 64 columns
    assert (boxes[own == own.min()] == 0).sum() == (own == own.min()).sum() * 16 * 32
    # a box over an edge has less: the mean over all places of the center is 1 - (1/2 - 1/16)^2, by integration
    assert own.mean() == pytest.approx(1 - (1 / 2 - 1 / 16) ** 2, abs=0.01)
    assert pasted_boxes(np.ones(3), KEYS[:3], (4, 4), seed=0, epoch=0).all()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"crop_area": (0.08, 1.0)}, "crop_padding must be 0 with augment.crop_area"),
        ({"crop_area": (0.0, 1.0)}, r"crop_area must be two numbers in \(0, 1\]"),
        ({"crop_area": (0.9, 0.2)}, "crop_area"),
        ({"crop_aspect": (-1.0, 1.0)}, "crop_aspect"),
    ],
)
def test_crops_that_make_no_sense_are_refused(fields, named):
    with pytest.raises(UserError, match=named):
        AugmentConfig(**fields)
