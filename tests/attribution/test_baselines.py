from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tfigkd.attribution import make_baseline

IMAGES = np.random.default_rng(0).random((3, 8, 6, 3)).astype(np.float32)


def test_black_is_zero() -> None:
    baseline = make_baseline("black", IMAGES, mean_color=[0.1, 0.2, 0.3])
    assert baseline.shape == (1, 8, 6, 3) and baseline.dtype == np.float32
    assert not baseline.any()


def test_mean_is_the_color_everywhere() -> None:
    baseline = make_baseline("mean", IMAGES, mean_color=[0.1, 0.2, 0.3])
    assert baseline.shape == (1, 8, 6, 3) and baseline.dtype == np.float32
    np.testing.assert_array_equal(baseline.reshape(-1, 3), np.float32([[0.1, 0.2, 0.3]] * 48))


def test_blur_keeps_each_images_channels_apart_and_flat_images_as_they_are() -> None:
    baseline = make_baseline("blur", IMAGES, sigma=100)
    means = np.broadcast_to(IMAGES.mean(axis=(1, 2), keepdims=True), IMAGES.shape)
    np.testing.assert_allclose(baseline, means, atol=0.05)
    flat = np.full_like(IMAGES, 0.7)
    np.testing.assert_allclose(make_baseline("blur", flat), flat, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (8, 6, 3), (1, 8, 6, 3), (3, 8, 6, 3), (3, 1, 1, 1)])
def test_arrays_broadcast(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).random(shape)
    baseline = make_baseline(array, IMAGES)
    assert baseline.dtype == np.float32
    np.testing.assert_array_equal(baseline + 0 * IMAGES, np.float32(array) + 0 * IMAGES)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mean", {}, "make_baseline"),
        ("mean", {"mean_color": [0.5]}, "3 numbers"),
        ("mean", {"mean_color": [125, 123, 114]}, r"\[0,1\]"),
        ("white", {}, "black, mean, blur"),
        ("blur", {"sigma": 0}, "positive"),
        (np.zeros((2, 8, 6, 3)), {}, "broadcast"),
        (np.zeros((8, 6, 3), np.uint8), {}, "uint8"),
        (np.nan, {}, "finite"),
        (np.full((8, 6, 3), 128.0), {}, "divide pixels from 0 to 255 by 255"),
        (np.full((8, 6, 3), -1.0), {}, r"range \[0,1\], got -1.0 to -1.0"),
        (np.zeros((8, 6, 3), np.int64), {}, "must be floats"),
        (None, {}, "must be floats"),
    ],
)
def test_what_does_not_fit_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_baseline(kind, IMAGES, **options)


def test_the_blur_removes_the_same_detail_at_any_size() -> None:
    """A picture of twice the size has a baseline of twice the size: SciPy's filter with an eighth of the side."""
    for side in (32, 96):
        images = np.random.default_rng(0).random((2, side, side + 8, 3)).astype(np.float32)
        expected = ndimage.gaussian_filter(images, (0, side / 8, side / 8, 0), mode="reflect")
        np.testing.assert_allclose(make_baseline("blur", images), expected, atol=1e-6)
    small = np.random.default_rng(1).random((1, 32, 32, 1)).astype(np.float32)
    large = np.kron(small, np.ones((1, 3, 3, 1), np.float32))
    shrunk = make_baseline("blur", large).reshape(1, 32, 3, 32, 3, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(shrunk, make_baseline("blur", small), atol=0.02)
