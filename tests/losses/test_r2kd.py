"""R2KD by hand: correlations of values and of ranks, and the sum over two teachers."""

import numpy as np
import pytest

from tfigkd.losses import R2KD


def test_values_and_ranks_by_hand():
    teacher = np.log(np.array([[0.1, 0.2, 0.7]])).astype(np.float32)
    student = np.log(np.array([[0.2, 0.1, 0.7]])).astype(np.float32)
    r = np.corrcoef([0.1, 0.2, 0.7], [0.2, 0.1, 0.7])[0, 1]
    value = R2KD(temperature=1.0, rank=0.0, pruned=0.0).per_example(teacher, student)
    np.testing.assert_allclose(value, [1 - r], rtol=1e-4)
    # hard ranks 1 2 3 and 2 1 3 have the correlation 1/2
    rank = R2KD(value=0.0, rank=2.0, pruned=0.0).per_example(100 * teacher, 100 * student)
    np.testing.assert_allclose(rank, [2 * 0.5], rtol=1e-3)


def test_the_second_teacher_is_added():
    rng = np.random.default_rng(0)
    first, second, student = rng.normal(size=(3, 4, 5)).astype(np.float32)
    one = R2KD(pruned=0.0)
    both = R2KD(pruned=0.3, second=0.5).per_example((first, second), student)
    expected = np.asarray(one.per_example(first, student)) + 0.5 * np.asarray(one.per_example(second, student))
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"pruned must be in \[0, 1\), got 1"):
        R2KD(pruned=1)
