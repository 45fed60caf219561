"""Separate momenta of hard label and distillation: by hand, at difference zero, resumed, and with projectors."""

import keras
import numpy as np
import pytest

from tfigkd.config.experiment import Config, override
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import Hint, KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import DOT, SGD, make_optimizer

RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 4)).astype(np.float32)
TARGETS = {"label": np.arange(12) % 3, "teacher_logits": 3 * RNG.normal(size=(12, 3)).astype(np.float32)}


def network(seed=0, name=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(hidden), name=name)


def distiller(optimizer, losses=None, teacher=None):
    losses = losses or {"kd": KLDivergence(2.0)}
    model = Distiller(network(), losses=losses, loss_weights=dict.fromkeys(losses, 0.75), teacher=teacher)
    model.compile(optimizer, jit_compile=False)
    return model


def test_two_steps_by_hand():
    """Task gradients 1 and 2, distillation gradients 4 and 8, momenta 0.4 and 0.6, rate 0.1."""
    variable = keras.Variable([1.0])
    optimizer = DOT(0.1, momentum=0.5, delta=0.1)
    optimizer.build([variable])
    for task, taught in ((1.0, 4.0), (2.0, 8.0)):
        with optimizer.with_distillation_gradients([np.float32([taught])], ()):
            optimizer.apply([keras.ops.convert_to_tensor([task])], [variable])
    first = 0.1 * (1 + 4)
    second = 0.1 * (0.4 * 1 + 2 + 0.6 * 4 + 8)
    np.testing.assert_allclose(variable, [1 - first - second], rtol=1e-6)
    nesterov = DOT(0.1, momentum=0.5, delta=0.1, nesterov=True)
    variable = keras.Variable([1.0])
    nesterov.build([variable])
    with nesterov.with_distillation_gradients([np.float32([4.0])], ()):
        nesterov.apply([keras.ops.convert_to_tensor([1.0])], [variable])
    np.testing.assert_allclose(variable, [1 - 0.1 * (1 + 0.4 + 4 * (1 + 0.6))], rtol=1e-6)


def test_what_only_the_distillation_trains_keeps_the_momentum():
    variable = keras.Variable([0.0])
    optimizer = DOT(0.1, momentum=0.5, delta=0.25)
    optimizer.build([variable])
    for _ in range(2):
        with optimizer.with_distillation_gradients([np.float32([1.0])], [0]):
            optimizer.apply([keras.ops.zeros(1)], [variable])
    np.testing.assert_allclose(variable, [-0.1 * (1 + 1.5)], rtol=1e-6)


def trained(optimizer, steps=4, **options):
    model = distiller(optimizer, **options)
    for _ in range(steps):
        model.train_on_batch(IMAGES, TARGETS)
    return model


@pytest.mark.parametrize("teacher", [False, True])
def test_a_student_with_difference_zero_is_that_of_sgd_and_another_is_not(teacher):
    options = {}
    if teacher:  # a projector, which has no gradient of the hard label
        options = {"teacher": network(1, "teacher")}
    results = []
    for optimizer in (
        SGD(0.1, momentum=0.8, nesterov=True),
        *(DOT(0.1, momentum=0.8, nesterov=True, delta=d) for d in (0, 0.1)),
    ):
        losses = {"kd": KLDivergence(2.0), "hint": Hint("hidden", "hidden")} if teacher else None
        results.append(trained(optimizer, losses=losses, **options).get_weights())
    for plain, zero, other in zip(*results, strict=True):
        np.testing.assert_allclose(zero, plain, rtol=1e-4, atol=1e-6)
        assert not np.allclose(other, plain, rtol=1e-3, atol=1e-5)


def test_the_gradients_are_those_of_hard_label_and_distillation():
    """The first step is that of SGD whatever the difference; the second shows which gradient has which momentum."""
    start = distiller(SGD(0.1)).student.get_weights()

    def gradients(weights):
        import tensorflow as tf

        model = distiller(SGD(0.1))
        model.student.set_weights(weights)
        with tf.GradientTape(persistent=True) as tape:
            terms, _ = model.compute_terms(IMAGES, TARGETS, training=True)
            parts = 0.25 * terms["hard_loss"], 0.75 * terms["kd_loss"]
        return [[g.numpy() for g in tape.gradient(part, model.student.trainable_variables)] for part in parts]

    task, taught = gradients(start)
    middle = [w - 0.1 * (a + b) for w, a, b in zip(start, task, taught, strict=True)]
    task_2, taught_2 = gradients(middle)
    end = [
        w - 0.1 * (0.4 * a + a2 + 0.6 * b + b2)
        for w, a, a2, b, b2 in zip(middle, task, task_2, taught, taught_2, strict=True)
    ]
    found = trained(DOT(0.1, momentum=0.5, delta=0.1), steps=2).student.get_weights()
    for a, b in zip(found, end, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_recipe_makes_it_and_without_difference_the_plain_optimizer():
    recipe = TrainingConfig(optimizer="sgd", dot=0.075, momentum=0.9, weight_decay=5e-3)
    optimizer = make_optimizer(recipe, 10)
    assert isinstance(optimizer, DOT)
    assert (optimizer.delta, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.075, 0.9, True, 5e-3)
    assert type(make_optimizer(TrainingConfig(optimizer="sgd"), 10)) is SGD
    model = trained(optimizer, steps=2)
    # two momenta of each variable are in a checkpoint
    names = [variable.path for variable in model.optimizer.variables]
    assert sum("taught_momentum" in name for name in names) == len(model.trainable_variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.dot": 0.2}, r"training\.dot must be 0, or below momentum and 1 minus it, got 0\.2"),
        ({"training.optimizer": "adam"}, r"training\.dot must be 0 unless the optimizer is sgd"),
        ({"losses.kd.weight": 0.0}, r"training\.dot must be 0 without a term beside the hard label"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_line(changes, message):
    base = {"training.optimizer": "sgd", "training.dot": 0.075, "losses.kd.weight": 0.5}
    with pytest.raises(UserError, match=message) as caught:
        override(Config(), base | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.0}, {"clipnorm": 1.0}, {"clipvalue": 1.0}, {"gradient_accumulation_steps": 2}]
)
def test_what_would_change_only_one_of_the_gradients_is_refused(options):
    with pytest.raises(ValueError, match="separate momenta need a momentum, and take none of clipnorm"):
        DOT(0.1, **{"momentum": 0.5, "delta": 0.0, **options})


def test_what_separate_momenta_cannot_do_is_refused():
    with pytest.raises(ValueError, match="train in float32 or bfloat16, not in float16"):
        distiller(keras.optimizers.LossScaleOptimizer(DOT(0.1, momentum=0.5, delta=0.1)))
    model = Distiller(network(), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5}, finetune_from=3)
    with pytest.raises(ValueError, match="leave out finetune_from"):
        model.compile(DOT(0.1, momentum=0.5, delta=0.1), jit_compile=False)
