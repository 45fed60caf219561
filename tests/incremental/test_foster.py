"""Networks that grow by classes: what they start from, their losses by hand, what trains, and the images kept."""

import keras
import numpy as np
import pytest
from scipy import special

from tfigkd.incremental import foster
from tfigkd.losses import balanced_kl, effective_weights
from tfigkd.runtime.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((9, 5)).astype(np.float32)
LABELS = np.arange(9) % 4
KNOWN, TOTAL = 2, 4
COUNTS = (3, 3, 40, 40)


def network(classes):
    inputs = keras.Input((5,), name="image")
    features = keras.layers.Dense(6, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits", bias_initializer="normal")(features))


def make():
    return network(TOTAL)


@pytest.fixture
def old():
    keras.utils.set_random_seed(0)
    return network(KNOWN)


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def sibling(old, known_weight=0.7):
    options = {"beta": 0.9, "known_weight": known_weight, "temperature": 2.0}
    return foster.boosting(old, make, COUNTS, **options)


def step(model):
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return model.train_on_batch(IMAGES, {"label": LABELS}, return_dict=True)


def test_a_wider_network_says_of_known_classes_what_the_old_one_said(old):
    wide = make()
    fresh = weights_of(wide)
    foster.widened(old, wide)
    np.testing.assert_array_equal(wide(IMAGES)[:, :KNOWN], old(IMAGES))
    for before, after in zip(fresh[-2:], wide.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(before[..., KNOWN:], after[..., KNOWN:])


def test_the_joint_network_by_hand(old):
    new, weights = make(), np.array([2.0, 1.0, 0.5, 0.5])
    joint, aligned = foster.boosted(old, new, KNOWN, weights)
    (front, ours), (other, _) = (model.get_weights()[::2] for model in (old, new))
    before, after = old.get_weights()[1], new.get_weights()[1]
    features = np.concatenate([np.tanh(IMAGES @ front + before), np.tanh(IMAGES @ other + after)], axis=1)
    kernel, bias = joint.get_layer("joint_logits").get_weights()
    np.testing.assert_array_equal(kernel[:6, :KNOWN], ours)
    np.testing.assert_array_equal(bias, [*old.get_weights()[3], 0, 0])
    np.testing.assert_allclose(joint(IMAGES), features @ kernel + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aligned(IMAGES), joint(IMAGES) / weights, rtol=1e-5)


def test_the_loss_of_the_sibling_is_that_of_its_parts_by_keras(old):
    model, joint = sibling(old)
    model.compile("sgd", jit_compile=False)
    terms, _ = model.compute_terms(IMAGES, {"label": LABELS}, training=True)
    crossed = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    logits = joint(IMAGES).numpy()
    expected = {"hard_loss": crossed(LABELS, logits / effective_weights(COUNTS, 0.9))}
    known = (keras.ops.softmax(each / 2.0) for each in (old(IMAGES), logits[:, :KNOWN]))
    expected["known_loss"] = keras.ops.mean(keras.losses.kl_divergence(*known))
    features = joint.get_layer("new")(IMAGES)
    expected["auxiliary_loss"] = crossed(LABELS, model.projectors[0](features))
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
    total = expected["hard_loss"] + 0.7 * expected["known_loss"] + expected["auxiliary_loss"]
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-4)


def test_the_sibling_and_the_classifiers_train_and_the_old_network_does_not(old):
    model, joint = sibling(old)
    frozen, new, head = (joint.get_layer(name) for name in ("old", "new", "joint_logits"))
    for before, after in zip(frozen.get_weights(), new.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)  # it starts from the old one
    parts = (frozen, new, head, model.projectors[0])
    before = [weights_of(part) for part in parts]
    step(model)
    same = [
        [np.array_equal(one, other) for one, other in zip(one, part.get_weights(), strict=True)]
        for one, part in zip(before, parts, strict=True)
    ]
    assert same == [[True, True], [False, False], [False, False], [False, False]]
    for one, other in zip(before[0], weights_of(old)[:2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_compression_is_balanced_distillation_without_labels_into_a_plain_network(old):
    _, joint = sibling(old)
    model = foster.compression(old, joint, make, COUNTS, beta=0.9, temperature=2.0)
    start, teacher = weights_of(model.student), joint(IMAGES)
    np.testing.assert_array_equal(model.student(IMAGES)[:, :KNOWN], old(IMAGES))
    target = effective_weights(COUNTS, 0.9) * special.softmax(teacher / 2, axis=1)
    target /= target.sum(axis=1, keepdims=True)
    student = special.log_softmax(model.student(IMAGES) / 2, axis=1)
    logs = step(model)
    # the authors' cross-entropy without a factor T², less the entropy of the targets, which trains nothing
    expected = np.sum(target * (np.log(target) - student), axis=1)
    np.testing.assert_allclose(logs["loss"], np.mean(expected), rtol=1e-4)
    first = weights_of(model.student)
    assert model.student.count_params() == make().count_params()
    model.student.set_weights(start)
    model.train_on_batch(IMAGES, {"label": LABELS[::-1]})
    for one, other in zip(first, model.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_memory_a_class_weighs_as_one_of_a_single_example(old):
    one = effective_weights((1, 1, 40, 40), 0.9)
    options = {"beta": 0.9, "known_weight": 0.7, "temperature": 2.0}
    model, joint = foster.boosting(old, make, (0, 0, 40, 40), **options)
    np.testing.assert_allclose(model.student(IMAGES), joint(IMAGES) / one, rtol=1e-5)
    assert np.isfinite(step(model)["loss"])
    model = foster.compression(old, joint, make, (0, 0, 40, 40), beta=0.9, temperature=2.0)
    expected = balanced_kl(joint(IMAGES), model.student(IMAGES), one, temperature=2.0) / 2.0**2
    np.testing.assert_allclose(step(model)["loss"], np.mean(expected), rtol=1e-5)


def test_without_weight_the_old_network_is_not_heard(old):
    students = []
    for build in (
        lambda: foster.distillation(old, make, known_weight=0.0, temperature=2.0),
        lambda: foster.fine_tuning(old, make),
        lambda: foster.distillation(old, make, known_weight=1.0, temperature=2.0),
    ):
        keras.utils.set_random_seed(1)
        model = build()
        step(model)  # the first step of a network that starts as its teacher: the divergence is 0
        step(model)
        students.append(model.student.get_weights())
    assert all(np.array_equal(one, other) for one, other in zip(*students[:2], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(*students[1:], strict=True))


def test_herding_by_hand():
    # directions of 0, 90, 45 and 40 degrees: their mean is at 44; 45 comes first, then 40 keeps nearest to it
    angles = np.radians([0, 90, 45, 40])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1], [5], [2], [3]])
    assert foster.herded(features, 1).tolist() == [2]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    second = min((0, 1, 3), key=lambda other: np.linalg.norm(unit.mean(axis=0) - (unit[2] + unit[other]) / 2))
    assert foster.herded(features, 2).tolist() == [2, second]
    assert sorted(foster.herded(features, 9)) == [0, 1, 2, 3]
    assert len(foster.herded(features, 0)) == 0


def test_a_network_without_a_dense_end_is_refused():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(2, name="logits")(inputs)))
    with pytest.raises(UserError, match="whose last layer is dense and named 'logits'"):
        foster.front_of(model, "front")
