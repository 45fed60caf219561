"""Weights of classes: as scikit-learn balances, as Keras applies them, with cached knowledge too."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.utils.class_weight import compute_class_weight

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config, override
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples, identify, to_model_input
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.losses import KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.stages.data import class_weights
from tfigkd.training.distiller import Distiller
from tfigkd.training.ledger import gradient_norms

STILL = AugmentConfig(crop_padding=0, flip=False)
NAMES = ("cat", "dog", "owl")
WEIGHTS = np.array([1.0, 2.0, 4.0])


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 12, 6])
    return identify(rng.integers(0, 256, (48, 6, 6, 3), dtype=np.uint8), labels)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((6, 6, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    )


def compiled(model: keras.Model, **options) -> keras.Model:
    model.compile(keras.optimizers.SGD(0.5), jit_compile=False, **options)
    return model


def test_balanced_weights_are_those_of_scikit_learn(examples):
    found = class_weights(TrainingConfig(class_weight="balanced"), examples, NAMES)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=examples.labels)
    np.testing.assert_allclose(found, expected)
    assert found[examples.labels].mean() == pytest.approx(1)
    rare = class_weights(TrainingConfig(class_weight="balanced"), examples, (*NAMES, "yak"))
    np.testing.assert_allclose(rare, [*expected, 0])  # a class without pictures weighs nothing


def test_a_table_names_classes_and_the_others_weigh_one(examples):
    assert class_weights(TrainingConfig(), examples, NAMES) is None
    named = TrainingConfig(class_weight={"owl": 4, "dog": 2})
    np.testing.assert_array_equal(class_weights(named, examples, NAMES), WEIGHTS)
    for table in ("training", "teacher.training"):
        with pytest.raises(UserError, match=rf"^{table}\.class_weight: no class 'dgo' in the data; did you mean 'dog'"):
            class_weights(TrainingConfig(class_weight={"dgo": 2}), examples, NAMES, table)


@pytest.mark.parametrize("wrong", ["equal", {}, {"cat": -1.0}, {"cat": float("nan")}, 3])
def test_other_values_are_refused(wrong):
    with pytest.raises(UserError, match=r"training\.class_weight"):
        override(Config(), {"training.class_weight": wrong})


def test_training_with_weights_is_keras_training_with_class_weight(examples):
    stream = TrainingBatches(examples, TrainingConfig(batch_size=16), STILL, seed=3, class_weights=WEIGHTS)
    batches = [batch for batch, _ in zip(stream(0), range(6), strict=False)]
    ours, plain = compiled(Distiller(network())), network()
    compiled(plain, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    unweighted = compiled(Distiller(network()))
    for images, targets, weights in batches:
        np.testing.assert_array_equal(weights, WEIGHTS[targets["label"]])
        ours.train_on_batch(images, targets, sample_weight=weights)
        plain.train_on_batch(images, targets["label"], class_weight=dict(enumerate(WEIGHTS)))
        unweighted.train_on_batch(images, targets)
    for one, other in zip(ours.student.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    differences = zip(ours.student.get_weights(), unweighted.student.get_weights(), strict=True)
    assert max(np.abs(one - other).max() for one, other in differences) > 1e-3


def knowledge_of(examples: Examples) -> Knowledge:
    count = len(examples)
    logits = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    maps = np.zeros((count, 6, 6), np.uint8)
    return Knowledge(logits, maps, np.ones(count, np.float32), np.zeros(count, np.float32), np.ones(count, bool))


def test_cached_knowledge_is_weighted_alike(examples):
    options = {"seed": 0, "targets": TeacherTargets(knowledge_of(examples)), "class_weights": WEIGHTS}
    stream = TrainingBatches(examples, TrainingConfig(batch_size=48), STILL, **options)
    images, targets, weights = next(stream(0))
    model = Distiller(network(), losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": 0.3})
    terms, logits = model.compute_terms(images, targets, weights, training=True)
    student, own = keras.ops.convert_to_numpy(logits).astype(np.float64), WEIGHTS[targets["label"]]
    hard = -log_softmax(student, axis=1)[np.arange(48), targets["label"]]
    teacher = targets["teacher_logits"] / 2.5
    soft = 2.5**2 * (
        softmax(teacher, axis=1) * (log_softmax(teacher, axis=1) - log_softmax(student / 2.5, axis=1))
    ).sum(1)
    assert float(terms["hard_loss"]) == pytest.approx((own * hard).mean(), rel=1e-5)
    assert float(terms["kd_loss"]) == pytest.approx((own * soft).mean(), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx((own * (0.7 * hard + 0.3 * soft)).mean(), rel=1e-5)
    # Keras's own fit takes the batches as they are, and the ledger weighs what training weighs
    compiled(model).fit(stream(0), steps_per_epoch=2, epochs=1, shuffle=False, verbose=0)
    plain, doubled = (gradient_norms(model, images, targets, factor * np.ones(48, np.float32)) for factor in (1, 2))
    for term, (value, norm) in plain.items():
        assert doubled[term] == pytest.approx((2 * value, 2 * norm), rel=1e-4)


def test_mixed_images_have_the_mixed_weight(examples):
    mixed, plain = (
        next(TrainingBatches(examples, recipe, STILL, seed=0, num_classes=3, class_weights=WEIGHTS)(0))
        for recipe in (TrainingConfig(batch_size=48, mixup=1.0), TrainingConfig(batch_size=48))
    )
    images, targets, weights = mixed
    np.testing.assert_allclose(weights, targets["label_probabilities"] @ WEIGHTS, rtol=1e-5)
    assert not np.array_equal(plain[0], images) and len({*plain[2].tolist()}) == 3
    np.testing.assert_allclose(np.sort(plain[0], axis=None), np.sort(to_model_input(examples.images), axis=None))
