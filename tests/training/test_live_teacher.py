"""A live teacher that changes between two calls teaches as it is then, on TensorFlow and on JAX."""

import keras
import numpy as np
import pytest

from tfigkd.losses import R2KD, KLDivergence
from tfigkd.training.distiller import Distiller

RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, 6)).astype(np.float32)
LABELS = np.arange(16) % 4


def net(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Dense(5, activation="tanh")(inputs)))


def distiller(teacher, **losses):
    losses = losses or {"kd": KLDivergence(1.0)}
    model = Distiller(net(0), losses=losses, loss_weights=dict.fromkeys(losses, 0.5), teacher=teacher)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=keras.backend.backend() == "jax")
    return model


def divergence(teacher):
    """Return the mean of KL(teacher ‖ student) by NumPy."""
    taught, own = (keras.ops.convert_to_numpy(keras.ops.log_softmax(one(IMAGES))) for one in (teacher, net(0)))
    return np.mean(np.sum(np.exp(taught) * (taught - own), axis=-1))


def losses_of(model):
    """Return the loss of distillation in training, in evaluation, and in a single batch of both."""
    options = {"batch_size": 16, "verbose": 0}
    found = [
        model.fit(IMAGES, LABELS, shuffle=False, **options).history["kd_loss"][0],
        model.evaluate(IMAGES, LABELS, return_dict=True, **options)["kd_loss"],
    ]
    single = (model.train_on_batch, model.test_on_batch)
    return found + [float(run(IMAGES, LABELS, return_dict=True)["kd_loss"]) for run in single]


def check_attached():
    """Another teacher, attached after the first training, is the one that teaches."""
    first, second = net(1), net(2)
    model = distiller(first)
    np.testing.assert_allclose(losses_of(model), divergence(first), rtol=1e-4)
    model.attach_teacher(second)
    assert abs(divergence(first) - divergence(second)) > 1e-2
    np.testing.assert_allclose(losses_of(model), divergence(second), rtol=1e-4)
    model.attach_teacher(None)
    assert "kd_loss" not in model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)


def check_attached_within_fit():
    """A callback may attach it at the end of an epoch, between training and evaluation."""
    first, second = net(1), net(2)
    model = distiller(first)
    swap = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: model.attach_teacher(second))
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0, "callbacks": [swap]}
    history = model.fit(IMAGES, LABELS, validation_data=(IMAGES, LABELS), **options).history
    expected = [divergence(first), divergence(second)]
    np.testing.assert_allclose(history["kd_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(history["val_kd_loss"], expected, rtol=1e-4)


def check_retrained():
    """The same teacher with other weights is the one that teaches; unchanged, the steps are not traced again."""
    teacher, other = net(1), net(2)
    model = distiller(teacher)
    losses_of(model)
    traced = model.train_function, model.test_function
    np.testing.assert_allclose(losses_of(model), divergence(teacher), rtol=1e-4)
    assert (model.train_function, model.test_function) == traced
    teacher.set_weights(other.get_weights())
    np.testing.assert_allclose(losses_of(model), divergence(other), rtol=1e-4)
    assert abs(divergence(net(1)) - divergence(other)) > 1e-2


def check_pruned_copy():
    """The same teacher attached again renews the pruned copy: the terms are those of a new distiller."""
    teacher = net(1)
    model = distiller(teacher, kd=R2KD(pruned=0.5))
    before = losses_of(model)
    teacher.set_weights(net(2).get_weights())
    model.attach_teacher(teacher)
    expected = losses_of(distiller(net(2), kd=R2KD(pruned=0.5)))
    np.testing.assert_allclose(losses_of(model), expected, rtol=1e-4)
    assert abs(expected[0] - before[0]) > 1e-3


CHECKS = {check.__name__: check for check in (check_attached, check_attached_within_fit, check_retrained)}
CHECKS["check_pruned_copy"] = check_pruned_copy


@pytest.mark.parametrize("name", CHECKS)
def test_the_teacher_of_the_moment_teaches(name):
    CHECKS[name]()
