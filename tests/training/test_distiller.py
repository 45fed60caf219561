"""The Distiller behaves as any Keras model, respects sample weights, and leaves the teacher alone."""

import keras
import numpy as np
import pytest

from tfigkd.losses import KLDivergence, cross_entropy, kl_divergence
from tfigkd.training.distiller import Distiller
from tfigkd.training.terms import loss_terms

RNG = np.random.default_rng(0)
IMAGES = RNG.random((48, 6, 6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 48)
LOGITS = RNG.normal(size=(48, 4)).astype(np.float32)


def network(dropout=0.0, regularizer=None):
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(dropout)(x) if dropout else x
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, kernel_regularizer=regularizer)(x))


def distiller(student=None, optimizer="sgd", weight=0.5, **options):
    keras.utils.set_random_seed(0)
    model = Distiller(student or network(), losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": weight}, **options)
    model.compile(optimizer, metrics=["accuracy"], jit_compile=False)
    return model


def copies(model):
    return [weight.copy() for weight in model.get_weights()]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_loss_is_the_weighted_sum_of_its_terms():
    sides = {"kd": (LOGITS[::-1], LOGITS)}
    hard = np.mean(cross_entropy(LABELS, LOGITS))
    weights = {"hard": 0.7, "kd": 0.3}
    terms = loss_terms(hard, sides, LABELS, losses={"kd": KLDivergence(2.5)}, weights=weights)
    kd = np.mean(kl_divergence(LOGITS[::-1], LOGITS, temperature=2.5))
    np.testing.assert_allclose(terms["hard_loss"], hard, rtol=1e-5)
    np.testing.assert_allclose(terms["kd_loss"], kd, rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], 0.7 * hard + 0.3 * kd, rtol=1e-5)


def test_a_step_moves_along_the_gradient_of_the_loss():
    """One SGD step on the bias of a linear student, against the gradient worked out by hand."""
    inputs = keras.Input((2, 2, 3))
    student = keras.Model(inputs, keras.layers.Dense(4, kernel_initializer="zeros")(keras.layers.Flatten()(inputs)))
    model = distiller(student, keras.optimizers.SGD(1.0), weight=0.25)
    images = np.zeros((4, 2, 2, 3), np.float32)
    labels, teacher = np.array([0, 1, 1, 3]), LOGITS[:4]
    model.train_on_batch(images, {"label": labels, "teacher_logits": teacher})
    softened = np.exp(teacher / 2.5) / np.exp(teacher / 2.5).sum(1, keepdims=True)
    gradient = 0.75 * (0.25 - np.eye(4)[labels]) + 0.25 * 2.5 * (0.25 - softened)
    np.testing.assert_allclose(student.get_weights()[1], -gradient.mean(0), atol=1e-6)


def test_cached_and_live_teacher_give_the_same_student():
    teacher = network()
    logits = teacher.predict(IMAGES, verbose=0)
    live, cached = distiller(teacher=teacher), distiller()
    live.fit(IMAGES, LABELS, epochs=2, shuffle=False, verbose=0)
    cached.fit(IMAGES, {"label": LABELS, "teacher_logits": logits}, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(live.student.get_weights(), cached.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_teacher_is_neither_trained_nor_tracked_nor_frozen_nor_saved(tmp_path):
    teacher = network(dropout=0.5)
    before = copies(teacher)
    model = distiller(teacher=teacher)
    model.fit(IMAGES, LABELS, epochs=2, verbose=0)
    assert same(before, teacher.get_weights())
    assert teacher.trainable
    assert len(model.weights) == len(model.student.weights)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))
    loaded.attach_teacher(teacher)
    loaded.compile("sgd", jit_compile=False)
    loaded.fit(IMAGES, LABELS, verbose=0)


def test_evaluate_changes_no_weight_and_needs_no_teacher():
    model = distiller(network(dropout=0.5))
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    result = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert set(result) == {"loss", "hard_loss", "accuracy"}
    assert same(before, [keras.ops.convert_to_numpy(v) for v in model.variables])
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(LABELS, model.predict(IMAGES, verbose=0))
    np.testing.assert_allclose(result["hard_loss"], plain, rtol=1e-5)
    full = model.evaluate(IMAGES, {"label": LABELS, "teacher_logits": LOGITS}, verbose=0, return_dict=True)
    assert set(full) == {"loss", "hard_loss", "kd_loss", "accuracy"}


def test_evaluate_weighs_a_smaller_last_batch_by_its_size():
    model = distiller()
    whole = model.evaluate(IMAGES, LABELS, batch_size=48, verbose=0, return_dict=True)
    split = model.evaluate(IMAGES, LABELS, batch_size=20, verbose=0, return_dict=True)
    for name, value in whole.items():
        np.testing.assert_allclose(split[name], value, rtol=1e-5)


def test_sample_weights_are_respected():
    """Weight 0 on one half and 2 on the other trains as on the other half alone."""
    targets = {"label": LABELS, "teacher_logits": LOGITS}
    weights = np.repeat([2.0, 0.0], 24).astype(np.float32)
    inputs = keras.Input((6, 6, 3))
    students = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        students.append(keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs))))
    weighted, half = distiller(students[0]), distiller(students[1])
    weighted.train_on_batch(IMAGES, targets, sample_weight=weights)
    half.train_on_batch(IMAGES[:24], {name: value[:24] for name, value in targets.items()})
    for a, b in zip(students[0].get_weights(), students[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_regularization_of_the_student_counts():
    plain, heavy = distiller(network()), distiller(network(regularizer=keras.regularizers.L2(10.0)))
    targets = {"label": LABELS, "teacher_logits": LOGITS}
    assert heavy.train_on_batch(IMAGES, targets)[0] != plain.train_on_batch(IMAGES, targets)[0]
    assert np.abs(heavy.student.get_weights()[-2]).sum() < np.abs(plain.student.get_weights()[-2]).sum()


def test_training_without_any_teacher_says_what_to_do():
    with pytest.raises(ValueError, match="needs a teacher"):
        distiller().fit(IMAGES, LABELS, verbose=0)


def test_misuse_is_refused():
    inputs = keras.Input((6, 6, 3))
    other = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="same classes, got 5 and 4"):
        distiller(teacher=other)
    with pytest.raises(ValueError, match="same names"):
        Distiller(network(), losses={"kd": KLDivergence()})
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        distiller(weight=2.0)
