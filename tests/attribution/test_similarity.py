"""Similarity of maps against values computed by hand, and what must not affect it."""

import numpy as np
import pytest
from scipy import stats

from tfigkd.attribution.similarity import cosine, rank_correlation, top_overlap

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.random((4, 6, 5)), RNG.random((4, 6, 5))
MEASURES = [rank_correlation, cosine, top_overlap]


@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric_independent_of_scale_and_one_at_equality(measure):
    values = measure(FIRST, SECOND)
    assert values.shape == (4,)
    np.testing.assert_allclose(measure(SECOND, FIRST), values)
    np.testing.assert_allclose(measure(1e-9 * FIRST, 1e9 * SECOND), values)
    np.testing.assert_allclose(measure(FIRST, FIRST), 1)


@pytest.mark.parametrize("measure", MEASURES)
def test_pairs_are_measured_apart_and_wherever_their_pixels_lie(measure):
    coarse = np.round(3 * FIRST), np.round(3 * SECOND)  # many ties
    values = measure(*coarse)
    for index in range(4):
        np.testing.assert_allclose(measure(*(maps[[index]] for maps in coarse)), values[index])
    order = RNG.permutation(30)
    moved = (maps.reshape(4, 30)[:, order].reshape(4, 6, 5) for maps in coarse)
    np.testing.assert_allclose(measure(*moved), values)


def test_rank_correlation_is_that_of_scipy():
    coarse = np.round(4 * FIRST)
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(coarse, SECOND, strict=True)]
    np.testing.assert_allclose(rank_correlation(coarse, SECOND), expected)
    np.testing.assert_allclose(rank_correlation(FIRST, -np.exp(FIRST)), -1)


def test_cosine_by_hand():
    assert cosine(np.array([[[3, 4]]]), np.array([[[4, 3]]])) == pytest.approx([24 / 25])
    assert cosine(np.array([[[1, 0]]]), np.array([[[0, 1]]])) == [0]


def test_top_overlap_by_hand():
    first = np.arange(20.0).reshape(1, 4, 5)
    assert top_overlap(first, first) == [1]
    assert top_overlap(first, -first) == [0]
    # the highest two are 18, 19 in one and 17, 19 in the other
    swapped = first.copy()
    swapped[0, 3, 2:4] = swapped[0, 3, 3:1:-1]
    assert top_overlap(first, swapped) == pytest.approx([1 / 3])
    assert top_overlap(first, swapped, fraction=0.15) == [1]
    assert top_overlap(first, -first, fraction=1) == [1]


def test_ties_share_the_last_places():
    # of two places one goes to the 9, the other to four pixels, a quarter each
    first, second = np.array([[[9.0, 5, 5, 5, 5, 0, 0, 0]]]), np.array([[[9.0, 5, 0, 0, 0, 0, 0, 0]]])
    assert top_overlap(first, second, fraction=0.25) == pytest.approx([1.25 / 2.75])


@pytest.mark.parametrize("measure", MEASURES)
def test_a_constant_map_is_similar_to_none(measure):
    zero = np.zeros_like(FIRST)
    np.testing.assert_array_equal(measure(zero, FIRST), 0)
    np.testing.assert_array_equal(measure(zero, zero), 0)
    if measure is not cosine:
        np.testing.assert_array_equal(measure(FIRST, zero + 0.3), 0)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        top_overlap(FIRST, SECOND, fraction=0)
    with pytest.raises(ValueError, match="one shape"):
        cosine(FIRST, SECOND[:3])
    with pytest.raises(ValueError, match="finite"):
        rank_correlation(FIRST, SECOND * np.nan)
