"""Decoupled, standardized and correlated logits against values computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from tfigkd.losses import (
    DIST,
    DKD,
    KLDivergence,
    correlation_distance,
    cross_entropy,
    decoupled_kl,
    kl_divergence,
    standardize_logits,
)
from tfigkd.losses.logits import soft_ranks

RNG = np.random.default_rng(0)
TEACHER, STUDENT = RNG.normal(scale=3, size=(2, 6, 10)).astype(np.float32)
LABELS = np.array([0, 3, 9, 1, 1, 4])


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def kl(teacher, student):
    return np.sum(teacher * np.log(teacher / student))


def test_decoupled_kl_by_hand():
    teacher = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    student = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    sure = kl(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    rest = kl(np.array([0.6, 0.4]), np.array([2 / 3, 1 / 3]))
    loss = decoupled_kl(teacher, student, np.array([0]), alpha=2.0, beta=3.0, temperature=1.0)
    np.testing.assert_allclose(numpy_of(loss), [2 * sure + 3 * rest], rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_decoupled_parts_sum_to_kl(temperature):
    """KL = KL(b) + (1 - p_t(y)) · KL(q), the identity that DKD is built on."""
    softened = np.exp(TEACHER.astype(np.float64) / temperature)
    p_label = (softened / softened.sum(1, keepdims=True))[np.arange(6), LABELS]
    sure = decoupled_kl(TEACHER, STUDENT, LABELS, alpha=1.0, beta=0.0, temperature=temperature)
    rest = decoupled_kl(TEACHER, STUDENT, LABELS, alpha=0.0, beta=1.0, temperature=temperature)
    whole = kl_divergence(TEACHER, STUDENT, temperature=temperature)
    np.testing.assert_allclose(numpy_of(sure) + (1 - p_label) * numpy_of(rest), numpy_of(whole), rtol=1e-4)


def test_decoupled_kl_of_a_confident_network():
    """1 - p is 0 in float32 here; its logarithm is -40."""
    sure = np.array([[40.0, 0.0]], np.float32)
    loss = decoupled_kl(np.zeros((1, 2), np.float32), sure, np.array([0]), alpha=1.0, beta=1.0, temperature=1.0)
    np.testing.assert_allclose(numpy_of(loss), [np.log(0.5) + 20], rtol=1e-5)


def test_dkd_needs_one_label_per_example():
    with pytest.raises(ValueError, match="one label per example"):
        DKD().per_example(TEACHER, STUDENT, np.eye(10)[LABELS])
    with pytest.raises(ValueError, match="needs labels"):
        DKD().compute_loss(TEACHER, STUDENT)
    loss = DKD(beta=8.0).compute_loss(TEACHER, STUDENT, labels=LABELS)
    by_function = decoupled_kl(TEACHER, STUDENT, LABELS, alpha=1.0, beta=8.0, temperature=4.0)
    np.testing.assert_allclose(numpy_of(loss), numpy_of(by_function).mean(), rtol=1e-6)


def test_standardized_logits_by_hand():
    logits = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], np.float32)
    np.testing.assert_allclose(numpy_of(standardize_logits(logits)), [[-1, 0, 1], [0, 0, 0]], atol=1e-6)
    one_hot = np.eye(10, dtype=np.float32)[:1]
    np.testing.assert_allclose(numpy_of(standardize_logits(one_hot)).max(), 9 / 10**0.5, rtol=1e-5)


@given(scale=st.floats(0.05, 50), shift=st.floats(-20, 20))
def test_standardized_losses_ignore_scale_and_shift(scale, shift):
    moved = np.float32(scale) * STUDENT + np.float32(shift)
    for loss in (
        lambda student: KLDivergence(2.0, standardize=True).per_example(TEACHER, student),
        lambda student: DKD(standardize=True).per_example(TEACHER, student, LABELS),
    ):
        np.testing.assert_allclose(numpy_of(loss(moved)), numpy_of(loss(STUDENT)), rtol=1e-2, atol=1e-3)


THIRDS = np.array([[3, 2, 1], [1, 3, 2], [2, 1, 3]], np.float32) / 6
SWAPPED = np.array([[2, 3, 1], [1, 2, 3], [3, 1, 2]], np.float32) / 6


def test_correlation_distance_by_hand():
    """Every row and every column of the two has a correlation of one half."""
    teacher, student = np.log(THIRDS), np.log(SWAPPED)
    for weights, expected in (({"inter": 2.0, "intra": 0.0}, 1.0), ({"inter": 0.0, "intra": 4.0}, 2.0)):
        loss = correlation_distance(teacher, student, temperature=1.0, **weights)
        np.testing.assert_allclose(numpy_of(loss), expected, rtol=1e-5)
    teacher, student = 1000 * teacher, 1000 * student  # far above the softness, so that the ranks are whole numbers
    ranks = correlation_distance(teacher, student, temperature=1.0, inter=0.0, intra=0.0, rank=1.0)
    np.testing.assert_allclose(numpy_of(ranks), 0.5, rtol=1e-5)


@given(share=st.floats(0.05, 1))
def test_correlation_distance_ignores_that_a_student_is_less_confident(share):
    """p_s = a · p_t + c, with one a > 0 and one c, is as good as p_t."""
    probabilities = np.exp(TEACHER / 4)
    probabilities /= probabilities.sum(1, keepdims=True)
    student = np.log(share * probabilities + (1 - share) / 10).astype(np.float32)
    loss = correlation_distance(np.log(probabilities), student, temperature=1.0, inter=1.0, intra=1.0)
    np.testing.assert_allclose(numpy_of(loss), 0, atol=1e-5)


def test_correlation_of_a_single_example_has_no_part_over_the_batch():
    alone = DIST(inter=0.0).compute_loss(TEACHER[:1], STUDENT[:1])
    assert numpy_of(alone) == 0


def test_soft_ranks_by_hand():
    np.testing.assert_allclose(numpy_of(soft_ranks(np.array([[300.0, -10.0, 20.0]]))), [[3, 1, 2]], atol=1e-6)
    half = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(numpy_of(soft_ranks(np.array([[0.5, 0.0]]))), [[1 + half, 2 - half]], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DKD(temperature=0), "temperature must be positive, got 0"),
        (lambda: DKD(beta=-1), "beta must not be negative, got -1"),
        (lambda: DIST(intra=float("nan")), "intra must not be negative, got nan"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_in_a_column_are_classes():
    column = LABELS[:, None]
    np.testing.assert_array_equal(cross_entropy(column, STUDENT), cross_entropy(LABELS, STUDENT))
    found = DKD().per_example(TEACHER, STUDENT, column)
    np.testing.assert_array_equal(found, DKD().per_example(TEACHER, STUDENT, LABELS))
    assert found.shape == (6,)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_that_is_no_class_has_no_loss(wrong):
    labels = np.where(np.arange(6) == 2, wrong, LABELS)
    for loss in (
        lambda given: DKD().per_example(TEACHER, STUDENT, given),
        lambda given: cross_entropy(given, STUDENT),
    ):
        found, right = numpy_of(loss(labels)), numpy_of(loss(LABELS))
        np.testing.assert_array_equal(np.isnan(found), np.arange(6) == 2)
        np.testing.assert_array_equal(found[~np.isnan(found)], np.delete(right, 2))


def test_a_class_that_the_teacher_excludes_adds_nothing():
    """As with the class left out for the teacher: 0 · log(0 / q) = 0."""
    excluded = np.where(np.arange(10) == 7, -np.inf, TEACHER)
    p = np.exp(np.delete(TEACHER, 7, axis=1).astype(float))
    p, q = p / p.sum(axis=1, keepdims=True), np.exp(STUDENT.astype(float))
    q = np.delete(q / q.sum(axis=1, keepdims=True), 7, axis=1)
    found = numpy_of(kl_divergence(excluded, STUDENT, temperature=1.0))
    np.testing.assert_allclose(found, np.sum(p * np.log(p / q), axis=1), rtol=1e-4)
    far = np.where(np.arange(10) == 7, np.float32(-1e4), TEACHER)
    found, expected = (numpy_of(DKD().per_example(one, STUDENT, LABELS)) for one in (excluded, far))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
