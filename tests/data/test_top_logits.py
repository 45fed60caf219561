"""The largest logits and the mass of the rest: probabilities that are kept, and what is spread."""

import numpy as np
import pytest
from scipy.special import softmax

from tfigkd.data.top_logits import TopLogits, finite, pack, unpack
from tfigkd.losses import KLDivergence

LOGITS = np.random.default_rng(0).normal(0, 3, (6, 4, 50)).astype(np.float32)


def test_the_largest_keep_their_probability_and_the_rest_its_mass():
    logits = np.log([[0.5, 0.02, 0.3, 0.08, 0.1]])
    np.testing.assert_allclose(
        softmax(unpack(pack(logits, 2)), axis=-1), [[0.5, 0.2 / 3, 0.3, 0.2 / 3, 0.2 / 3]], atol=1e-3
    )
    kept = softmax(unpack(pack(LOGITS, 5)).astype(np.float32), axis=-1)
    largest = np.argsort(LOGITS, axis=-1)[..., -5:]
    expected = np.take_along_axis(softmax(LOGITS, axis=-1), largest, axis=-1)
    np.testing.assert_allclose(np.take_along_axis(kept, largest, axis=-1), expected, rtol=2e-2)


def test_all_of_the_classes_are_the_logits_themselves():
    np.testing.assert_array_equal(unpack(pack(LOGITS, 50)), LOGITS.astype(np.float16))


def test_more_logits_are_nearer_to_the_loss_of_all():
    student = np.random.default_rng(1).normal(0, 3, (24, 50)).astype(np.float32)
    losses = [
        float(KLDivergence(2.0).compute_loss(unpack(pack(LOGITS, count)).astype(np.float32).reshape(24, 50), student))
        for count in (1, 5, 25, 50)
    ]
    assert (np.diff(np.abs(np.subtract(losses, losses[-1]))) < 0).all()
    assert losses[-1] == pytest.approx(float(KLDivergence(2.0).compute_loss(LOGITS.reshape(24, 50), student)), rel=1e-3)


def test_they_are_indexed_as_an_array_is():
    full, packed = unpack(pack(LOGITS, 3)), TopLogits(pack(LOGITS, 3))
    assert packed.shape == full.shape and len(packed) == 6
    for key in (slice(2, 4), np.array([3, 0]), (np.array([1, 5]), np.array([0, 3])), 2):
        np.testing.assert_array_equal(packed[key], full[key])
    np.testing.assert_array_equal(packed.pick(np.array([5, 1]))[:], full[[5, 1]])


def test_nan_and_infinity_are_found():
    broken = LOGITS.copy()
    broken[1, 0, 0], broken[3, 2, 7] = np.inf, 1e6  # beyond float16
    with np.errstate(over="ignore", invalid="ignore"):
        assert finite(pack(broken, 3)).tolist() == [True, False, True, False, True, True]


def test_more_classes_than_uint16_counts_are_refused():
    with pytest.raises(ValueError, match=r"at most 65535 classes, got 65536\."):
        pack(np.zeros((1, 65_536), np.float32), 2)
    logits = np.zeros((1, 65_535), np.float32)
    logits[0, -1] = 9.0
    assert unpack(pack(logits, 2)).argmax() == 65_534
