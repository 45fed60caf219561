"""The student's gradient maps: by hand, to second order, and through the usual layers of students."""

import keras
import numpy as np
import pytest
from keras import ops

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.losses import E2KD, IGMatching, grad_cam, input_gradient_map, map_distance
from tfigkd.models.adapt import logits_of
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.models.input_range import INPUT_RANGE
from tfigkd.training.distiller import Distiller

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 3, 0])


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def network(activation="relu6"):
    """Return a small network with every kind of layer of a MobileNet."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation(activation)(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Activation("tanh")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def weights_of(model):
    """Return the variables that a map depends on: all but the bias of the logits, which changes no gradient."""
    return model.trainable_variables[:-1]


def linear():
    inputs = keras.Input((2, 1, 3))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))


def test_the_map_of_a_linear_model_by_hand():
    model = linear()
    weights = np.array([[1, 9], [-2, 9], [3, 9], [0, 1], [0.5, -1], [0, 1]], np.float32)
    model.set_weights([weights, np.zeros(2)])
    images = np.array([0.5, 1.0, 0.0, 1.0, 1.0, 1.0], np.float32).reshape(1, 2, 1, 3).repeat(2, axis=0)
    labels = np.array([0, 1])
    gradients = numpy_of(input_gradient_map(model, images, labels, times_input=False))[..., 0]
    np.testing.assert_allclose(gradients, [[6, 0.5], [27, 3]], rtol=1e-6)
    products = numpy_of(input_gradient_map(model, images, labels, times_input=True))[..., 0]
    np.testing.assert_allclose(products, [[2.5, 0.5], [13.5, 3]], rtol=1e-6)


def test_grad_cam_by_hand():
    features = np.array([[[[1.0, 2.0], [3.0, 0.0]]], [[[1.0, 2.0], [3.0, 0.0]]]], np.float32)
    kernel = np.array([[2.0, -1.0], [-1.0, 4.0]], np.float32)
    # the logits are those of the squared mean, [4, 1], whose derivatives are [2, 1] for each position's half
    maps = grad_cam(lambda f: ops.matmul(ops.square(ops.mean(f, (1, 2))), kernel), features, np.array([0, 1]))
    # class 0: weights [4, -2] · ½ · mean [2, 1] -> [4, -1]; class 1: [-2, 4]
    np.testing.assert_allclose(numpy_of(maps)[:, 0], [[2, 12], [6, 0]], rtol=1e-6)


def test_explanations_are_compared_at_the_larger_resolution():
    teacher = np.array([[[1.0]], [[2.0]], [[0.0]]], np.float32)
    student = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[1.0, 1.0]]], np.float32)
    loss = E2KD("a", "b")
    np.testing.assert_allclose(numpy_of(loss.per_example(teacher, student)), [1 - 0.5**0.5, 0, 0], atol=1e-6)
    shuffled = E2KD("a", "b", shuffled=True)
    np.testing.assert_allclose(numpy_of(shuffled.per_example(teacher, student)), [0, 0, 0], atol=1e-6, err_msg="")


def test_map_distance_by_hand():
    teacher = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[3.0, 1.0]]], np.float32)
    student = np.array([[[1.0, 1.0]], [[0.0, 2.0]], [[0.0, 0.0]], [[0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(numpy_of(map_distance(teacher, student)), [1 - 0.5**0.5, 1, 0, 1], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
def test_scale_and_a_flip_of_both_maps_do_not_matter(scale):
    teacher, student = RNG.random((2, 5, 8, 8)).astype(np.float32)
    loss = IGMatching(grid=4)
    flipped = loss.per_example(np.float32(scale) * teacher[:, :, ::-1], student[:, :, ::-1])
    np.testing.assert_allclose(numpy_of(flipped), numpy_of(loss.per_example(teacher, student)), rtol=1e-4)


def test_the_grid_tolerates_a_shift_to_a_neighboring_pixel():
    teacher, student = np.zeros((2, 1, 16, 16), np.float32)
    teacher[0, 4, 6] = student[0, 5, 7] = 1
    assert numpy_of(IGMatching(grid=None).per_example(teacher, student)) == 1
    np.testing.assert_allclose(numpy_of(IGMatching(grid=8).per_example(teacher, student)), 0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_the_second_derivative_is_that_of_finite_differences(fused):
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = network("tanh")
    if fused:
        model = with_fused_batch_norm(model)
    teacher = RNG.random((6, 8, 8)).astype(np.float32)
    loss = IGMatching()
    compute = tf.function(lambda: loss.compute_loss(teacher, loss.student_map(model, IMAGES, LABELS)))
    with tf.GradientTape() as tape:
        value = compute()
    variables = weights_of(model)
    gradients = [numpy_of(gradient) for gradient in tape.gradient(value, variables)]
    before, size = model.get_weights(), np.sqrt(sum(np.square(g).sum() for g in gradients))
    assert size > 1e-4
    values = []
    for step in (0.02, -0.02):
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign(variable + step / size * gradient)
        values.append(numpy_of(compute()))
        model.set_weights(before)
    np.testing.assert_allclose((values[0] - values[1]) / 0.04, size, rtol=0.03)


def test_the_map_of_pixels_from_minus_one_is_that_of_pixels_from_zero():
    """Black is the baseline, whatever value it has: by hand |w · (x - black)| / range for a linear network."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    weights = numpy_of(model.layers[-1].kernel).T[LABELS].reshape(IMAGES.shape)
    expected = np.abs(weights * IMAGES).sum(axis=-1)
    loss = IGMatching()
    np.testing.assert_allclose(numpy_of(loss.student_map(model, IMAGES, LABELS)), expected, rtol=1e-4)
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (1.0, 0.0)):
        seen = {"take": lambda z, low=low, high=high: (z - low) / (high - low), "black": low}
        found = loss.student_map(model, low + (high - low) * IMAGES, LABELS, **seen)
        np.testing.assert_allclose(numpy_of(found), expected, rtol=1e-4, atol=1e-6)


def test_training_makes_the_maps_similar_and_keeps_the_moving_averages():
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model, loss = network(), IGMatching()
    teacher = np.zeros((6, 8, 8), np.float32)
    teacher[:, 2:6, :4] = 1
    moving = [v.numpy() for v in model.non_trainable_variables]
    optimizer = keras.optimizers.Adam(0.03)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss.compute_loss(teacher, loss.student_map(model, IMAGES, LABELS))
        optimizer.apply(tape.gradient(value, weights_of(model)), weights_of(model))
        return value

    values = [float(step()) for _ in range(40)]
    assert values[-1] < 0.8 * values[0]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(moving, model.non_trainable_variables, strict=True))


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="one label per example"):
        input_gradient_map(network(), IMAGES, np.eye(4)[LABELS])
    with pytest.raises(ValueError, match="grid must be positive"):
        IGMatching(grid=0)


def test_a_map_over_the_completeness_gate_is_not_matched() -> None:
    """The stream gives a zero map for it, and a zero map has neither loss nor gradient."""
    maps = np.random.default_rng(0).integers(1, 256, (4, 8, 8), dtype=np.uint8)
    usable = np.array([True, False, True, False])
    ones = np.ones(4, np.float32)
    knowledge = Knowledge(np.zeros((4, 2), np.float32), maps, ones, np.where(usable, 0.0, 1.0), usable)
    ids = np.array([f"{index:016x}" for index in range(4)])
    examples = Examples(ids, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), ids)
    options = {"seed": 0, "targets": TeacherTargets(knowledge), "wanted": {"teacher_map"}}
    stream = TrainingBatches(examples, TrainingConfig(batch_size=4), AugmentConfig(0, False), **options)
    _, targets = next(stream(0))
    order = np.asarray(targets["label"])
    given = np.asarray(targets["teacher_map"])
    np.testing.assert_array_equal(given, maps[order] * usable[order, None, None])
    student = np.random.default_rng(1).random((4, 8, 8)).astype(np.float32)
    losses = np.asarray(IGMatching(grid=None).per_example(given, student))
    assert (losses[~usable[order]] == 0).all() and (losses[usable[order]] > 0).all()


def test_a_student_of_other_pixels_has_the_map_of_its_plain_twin() -> None:
    """The map is by the pixels of the batch, whatever the student takes; of probabilities, of their logarithm."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    hidden = keras.layers.Conv2D(5, 3, activation="tanh")(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    scaled = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Rescaling(1 / 255), plain])
    rng = np.random.default_rng(0)
    images, maps = rng.random((6, 4, 4, 3)).astype("f"), rng.random((6, 4, 4)).astype("f")
    targets = {"label": np.arange(6) % 3, "teacher_map": maps}
    found = []
    for student in (plain, scaled):
        losses = {"map": IGMatching(grid=None)}
        model = Distiller(student, losses=losses, loss_weights={"map": 1.0}, input_range=(0, 1))
        terms, _ = model.compute_terms(images, targets, training=True)
        found.append({name: float(value) for name, value in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0]["map_loss"] > 0.01
    takes_unit = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Rescaling(1.0, name=INPUT_RANGE), plain])
    signed = Distiller(
        takes_unit, losses={"map": IGMatching(grid=None)}, loss_weights={"map": 1.0}, input_range=(-1, 1)
    )
    terms, _ = signed.compute_terms(2 * images - 1, targets, training=True)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(found[0], rel=1e-4)
    shares = keras.Sequential([scaled, keras.layers.Softmax()])
    of_shares = {"take": lambda pixels: 255 * pixels, "to_logits": logits_of(shares)}
    expected = input_gradient_map(plain, images, targets["label"], to_logits=ops.log_softmax)
    np.testing.assert_allclose(
        input_gradient_map(shares, images, targets["label"], **of_shares), expected, rtol=1e-3, atol=1e-6
    )
