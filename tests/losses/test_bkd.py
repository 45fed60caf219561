"""Balanced distillation: weights and loss by hand, its gradient, and plain distillation where classes are equal."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfigkd.losses import BalancedKL, balanced_kl, effective_weights, kl_divergence

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (RNG.normal(size=(5, 4)).astype(np.float32) for _ in range(2))


def test_the_weights_by_hand():
    # (1 - 0.5) / (1 - 0.5^n) is 1 and 2/3, with the mean 5/6
    np.testing.assert_allclose(effective_weights([1, 2], 0.5), [1.2, 0.8])
    np.testing.assert_allclose(effective_weights([1, 0, 2], 0.5), [1.2, 0, 0.8])
    np.testing.assert_array_equal(effective_weights([5000, 50], 0.0), [1, 1])
    few, many = effective_weights([5, 500], 1 - 1e-9)
    assert few / many == pytest.approx(100, rel=1e-5)  # the inverse of the counts


@pytest.mark.parametrize(
    ("counts", "beta"),
    [([1, 2], 1.0), ([1, 2], -0.1), ([0, 0], 0.5), ([1, -2], 0.5), ([1, np.nan], 0.5), ([1, np.inf], 0.5)],
)
def test_weights_that_cannot_be_are_refused(counts, beta):
    with pytest.raises(ValueError, match=r"beta must be in|at least one class|finite and not negative"):
        effective_weights(counts, beta)


def test_counts_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="one number for each of 4 classes, got 3"):
        BalancedKL(counts=[1, 2, 3]).per_example(TEACHER, STUDENT)
    with pytest.raises(ValueError, match="temperature must be positive, got nan"):
        BalancedKL(float("nan"))


def test_the_loss_by_hand():
    teacher, student = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    found = balanced_kl(teacher, student, [0.5, 1.5], temperature=1.0)  # 0.375 : 0.375
    np.testing.assert_allclose(found, [0.0], atol=1e-7)
    found = balanced_kl(teacher, student, [0.5, 4.5], temperature=1.0)  # 0.25 : 0.75
    np.testing.assert_allclose(found, [0.25 * np.log(0.5) + 0.75 * np.log(1.5)], rtol=1e-5)


def test_it_is_the_divergence_of_keras_from_weighted_targets():
    weights, temperature = np.array([0.2, 1.0, 0.8, 2.0], np.float32), 3.0
    targets = weights * keras.ops.softmax(TEACHER / temperature).numpy()
    targets /= targets.sum(axis=1, keepdims=True)
    expected = keras.losses.kl_divergence(targets, keras.ops.softmax(STUDENT / temperature))
    found = balanced_kl(TEACHER, STUDENT, weights, temperature=temperature)
    np.testing.assert_allclose(found, 9 * expected, rtol=1e-4)
    student = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(balanced_kl(TEACHER, student, weights, temperature=temperature))
    softmax = keras.ops.softmax(STUDENT / temperature).numpy()
    np.testing.assert_allclose(tape.gradient(loss, student), temperature * (softmax - targets), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"counts": (7, 7, 7, 7)}, {"counts": (9, 1, 5, 2), "beta": 0.0}])
def test_with_equal_weights_it_is_plain_distillation(options):
    found = BalancedKL(2.0, **options).per_example(TEACHER, STUDENT)
    np.testing.assert_array_equal(found, kl_divergence(TEACHER, STUDENT, temperature=2.0))


def test_a_class_without_examples_has_no_share_in_the_targets():
    found = BalancedKL(1.0, 0.5, counts=(1, 2, 0, 0)).per_example(TEACHER, STUDENT)
    weights = np.array([1.2, 0.8])
    targets = weights * keras.ops.softmax(TEACHER[:, :2]).numpy()
    targets /= targets.sum(axis=1, keepdims=True)
    expected = (targets * (np.log(targets) - keras.ops.log_softmax(STUDENT).numpy()[:, :2])).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
