"""Distillation, then fine-tuning on the hard label: weights and learning rate of each step, and the loss by hand."""

import keras
import numpy as np

from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import LogitRegression, logit_distance
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import SGD, make_optimizer, make_schedule

RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 4)).astype(np.float32)
TARGETS = {"label": np.arange(12) % 3, "teacher_logits": 3 * RNG.normal(size=(12, 3)).astype(np.float32)}


def distiller(losses, weights, optimizer, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = Distiller(
        keras.Model(inputs, keras.layers.Dense(3)(inputs)), losses=losses, loss_weights=weights, **options
    )
    model.compile(optimizer, jit_compile=False)
    return model


def test_regression_by_hand():
    teacher, student = np.array([[1.0, 2.0, 6.0]], np.float32), np.array([[11.0, 9.0, 13.0]], np.float32)
    # centered: -2 -1 3 and 0 -2 2
    np.testing.assert_allclose(logit_distance(teacher, student), [(4 + 1 + 1) / 3], rtol=1e-6)


def test_the_first_steps_have_the_teacher_and_the_last_the_hard_label_alone():
    one = {"regression": LogitRegression()}
    phased = distiller(one, {"regression": 0.7}, SGD(0.1), hard_weight=0.0, finetune_from=2)
    taught = distiller(one, {"regression": 0.7}, SGD(0.1), hard_weight=0.0)
    assert phased.term_weights == {"hard": 0.0, "regression": 0.7}
    for _ in range(2):
        logs = phased.train_on_batch(IMAGES, TARGETS, return_dict=True)
        taught.train_on_batch(IMAGES, TARGETS)
        np.testing.assert_allclose(logs["loss"], 0.7 * logs["regression_loss"], rtol=1e-5)
    for a, b in zip(phased.get_weights(), taught.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert phased.term_weights == {"hard": 1.0, "regression": 0.0}
    plain = distiller({}, {}, SGD(0.1))
    plain.student.set_weights(phased.student.get_weights())
    for _ in range(2):
        phased.train_on_batch(IMAGES, TARGETS)
        plain.train_on_batch(IMAGES, TARGETS)
    for a, b in zip(phased.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_saved_distiller_goes_on_in_its_phase(tmp_path):
    model = distiller({"regression": LogitRegression()}, {"regression": 1.0}, "sgd", hard_weight=0.0, finetune_from=1)
    model.train_on_batch(IMAGES, TARGETS)
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.finetune_from == 1
    logs = loaded.train_on_batch(IMAGES, TARGETS, return_dict=True)
    np.testing.assert_allclose(logs["loss"], logs["hard_loss"], rtol=1e-6)


def test_the_schedule_ends_before_the_fine_tuning_at_its_rate():
    recipe = TrainingConfig(
        epochs=4, learning_rate=0.2, schedule="cosine", finetune_epochs=1, finetune_rate=0.05, optimizer="sgd"
    )
    schedule = make_schedule(recipe, 10)
    rates = [float(schedule(step)) for step in (0, 15, 29, 30, 39)]
    expected = [0.2, 0.1, 0.1 * (1 + np.cos(np.pi * 29 / 30)), 0.01, 0.01]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    constant = make_schedule(TrainingConfig(epochs=2, learning_rate=0.5, finetune_epochs=1), 3)
    np.testing.assert_allclose([float(constant(step)) for step in (2, 3)], [0.5, 0.005])
    optimizer = make_optimizer(recipe, 10)
    optimizer.iterations.assign(35)
    np.testing.assert_allclose(float(optimizer.learning_rate), 0.01, rtol=1e-5)
