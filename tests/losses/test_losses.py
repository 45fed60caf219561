"""Losses against values computed by hand, and inside Keras's own Distiller."""

import keras
import numpy as np
import pytest

from tfigkd.losses import KLDivergence, cross_entropy, kl_divergence


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    np.testing.assert_allclose(numpy_of(cross_entropy(np.array([0, 1]), logits)), [np.log(2), -np.log(0.8)], rtol=1e-5)


def test_label_smoothing_by_hand():
    logits = np.log(np.array([[0.5, 0.5]], np.float32))
    np.testing.assert_allclose(
        numpy_of(cross_entropy(np.array([0]), logits, label_smoothing=0.4)), np.log(2), rtol=1e-5
    )
    skewed = np.log(np.array([[0.8, 0.2]], np.float32))
    expected = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    np.testing.assert_allclose(numpy_of(cross_entropy(np.array([0]), skewed, label_smoothing=0.4)), expected, rtol=1e-5)


def test_probabilities_as_labels_equal_integers():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 1])
    np.testing.assert_allclose(
        numpy_of(cross_entropy(labels, logits)),
        numpy_of(cross_entropy(np.eye(4, dtype=np.float32)[labels], logits)),
        rtol=1e-6,
    )


def test_kl_divergence_by_hand():
    teacher = np.log(np.array([[0.5, 0.5]], np.float32))
    student = np.log(np.array([[0.75, 0.25]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    np.testing.assert_allclose(numpy_of(kl_divergence(teacher, student, temperature=1.0)), [expected], rtol=1e-5)


def test_temperature_divides_the_logits_and_its_square_multiplies():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 6, 10)).astype(np.float32)
    softened = numpy_of(kl_divergence(teacher / 2.5, student / 2.5, temperature=1.0))
    np.testing.assert_allclose(numpy_of(kl_divergence(teacher, student, temperature=2.5)), 6.25 * softened, rtol=1e-4)


def test_kl_is_zero_for_equal_logits_and_finite_where_probabilities_underflow():
    logits = np.array([[1000.0, -1000.0, 0.0]], np.float32)
    assert numpy_of(kl_divergence(logits, logits, temperature=1.0))[0] == 0
    assert np.isfinite(numpy_of(kl_divergence(logits, -logits, temperature=1.0))).all()


def test_it_works_in_the_distiller_of_keras():
    def network():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

    keras.utils.set_random_seed(0)
    distiller = keras.distillation.Distiller(
        teacher=network(), student=network(), distillation_losses=KLDivergence(2.5), student_loss_weight=0.5
    )
    distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    history = distiller.fit(np.random.rand(8, 4).astype(np.float32), np.arange(8) % 3, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive"):
        KLDivergence(0)
