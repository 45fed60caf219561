"""Teachers and students of other spaces in the library: softmax, one output, other pixels, layers of models inside."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfigkd import Distiller, OverlayStore, integrated_gradients
from tfigkd.losses import OSAKD, AttentionTransfer, Hint, IGMatching, KLDivergence
from tfigkd.models import as_classifier
from tfigkd.models.subclassed import LogitsOf
from tfigkd.training.tapped import TEACHER, TappedNetwork

SHAPE = (8, 8, 3)


def net(*head: Any, units: int = 3, activation: str | None = None, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    init = keras.initializers.RandomNormal(0, 2)
    last = keras.layers.Dense(units, activation=activation, kernel_initializer=init)
    body = [keras.layers.Conv2D(4, 3, strides=2, name=f"conv_{seed}"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(SHAPE), *head, *body, last])


def same_with(model: keras.Model, **options: Any) -> keras.Model:
    """The same weights in a model of another end or beginning."""
    other = net(**options)
    other.set_weights(model.get_weights())
    return other


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)


def one_step(student: keras.Model, teacher: keras.Model, images: np.ndarray, labels: Any, **options: Any) -> Any:
    distiller = Distiller(
        student, losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=teacher, **options
    )
    distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], jit_compile=False)
    logs = distiller.fit(images, labels, epochs=1, batch_size=12, verbose=0, shuffle=False).history
    return logs["kd_loss"][0], student.get_weights()


def test_softmax_at_the_end_of_either_is_no_logit(pixels: np.ndarray) -> None:
    """The same step as with the logits under the softmax, for a teacher and for a student."""
    images, labels = pixels / np.float32(255), np.arange(12) % 3
    teacher = net(seed=1)
    expected = one_step(net(), teacher, images, labels)
    for student, taught in (
        (net(), same_with(teacher, activation="softmax")),
        (net(activation="softmax"), teacher),
    ):
        value, weights = one_step(student, taught, images, labels)
        assert value == pytest.approx(expected[0], rel=1e-3)
        for own, reference in zip(weights, expected[1], strict=True):
            np.testing.assert_allclose(own, reference, atol=1e-4)


def test_one_output_is_two_classes(pixels: np.ndarray) -> None:
    """Binary cross-entropy by hand; one logit of a student moves as its sigmoid does."""
    images, labels = pixels / np.float32(255), np.arange(12) % 2
    for activation in ("sigmoid", None):
        student, teacher = net(units=1, activation=activation), net(units=1, seed=1)
        z = keras.ops.convert_to_numpy(net(units=1)(images)).ravel()
        expected = np.mean(np.log1p(np.exp(-np.where(labels == 1, z, -z))))
        distiller = Distiller(student, losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=teacher)
        distiller.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"], jit_compile=False)
        logs = distiller.evaluate(images, labels, verbose=0, return_dict=True)
        assert logs["hard_loss"] == pytest.approx(expected, rel=1e-4)
        if activation == "sigmoid":  # metrics see what the student itself gives
            assert logs["accuracy"] == pytest.approx(np.mean((z > 0) == labels))


def test_a_compiled_loss_sees_what_the_student_gives(pixels: np.ndarray) -> None:
    """A loss of probabilities on a softmax student, as in plain Keras; a loss by its name takes logits."""
    images, labels = pixels / np.float32(255), np.arange(12) % 3
    expected = float(keras.losses.SparseCategoricalCrossentropy()(labels, net(activation="softmax")(images)))
    for loss in (keras.losses.SparseCategoricalCrossentropy(), "sparse_categorical_crossentropy"):
        distiller = Distiller(net(activation="softmax"))
        distiller.compile("sgd", loss=loss, jit_compile=False)
        logs = distiller.evaluate(images, labels, verbose=0, return_dict=True)
        assert logs["hard_loss"] == pytest.approx(expected, rel=1e-4)


SOFTMAX_LOSSES = ("mse", "mae", "kl_divergence", "poisson", "binary_crossentropy", "binary_focal_crossentropy")
SOFTMAX_LOSSES += (
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "CategoricalCrossentropy",
    "cosine_similarity",
)


@pytest.mark.parametrize(
    ("activation", "units", "loss"),
    [
        *(("softmax", 3, loss) for loss in SOFTMAX_LOSSES),
        *(("sigmoid", 1, loss) for loss in ("mse", "hinge", "binary_crossentropy", "BinaryCrossentropy")),
        *((None, 3, loss) for loss in ("mse", "huber")),
    ],
)
def test_a_loss_by_its_name_trains_as_in_plain_keras(
    pixels: np.ndarray, activation: str, units: int, loss: str
) -> None:
    images, classes = pixels / np.float32(255), np.arange(12) % max(units, 2)
    labels = np.eye(3)[classes] if units == 3 else classes[:, None]
    plain, student = net(units=units, activation=activation), net(units=units, activation=activation)
    plain.compile(keras.optimizers.SGD(0.05), loss=loss)
    history = plain.fit(images, labels, epochs=2, shuffle=False, verbose=0).history["loss"]
    distiller = Distiller(student)
    distiller.compile(keras.optimizers.SGD(0.05), loss=loss, jit_compile=False)
    found = distiller.fit(images, labels, epochs=2, shuffle=False, verbose=0).history["hard_loss"]
    np.testing.assert_allclose(found, history, rtol=2e-4)
    np.testing.assert_allclose(student.get_weights()[0], plain.get_weights()[0], atol=2e-5)


def test_pixels_of_a_batch(pixels: np.ndarray) -> None:
    """A teacher that shows 0 to 255 asks what the batches hold, and gets its own values."""
    labels = np.arange(12) % 3
    teacher = net(keras.layers.Rescaling(1 / 255), seed=1)
    plain = same_with(teacher, seed=1)
    expected = one_step(net(), plain, pixels / np.float32(255), labels)
    with pytest.raises(ValueError, match=r"takes pixels from 0 to 255; say .* input_range=\(0, 1\) or"):
        Distiller(net(), losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=teacher)
    found = one_step(net(), teacher, pixels / np.float32(255), labels, input_range=(0, 1))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    both = net(keras.layers.Rescaling(1 / 255))
    found = one_step(both, teacher, pixels.astype("float32"), labels, input_range=(0, 255))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)


def test_integers_are_no_pixels_in_0_1(pixels: np.ndarray) -> None:
    """Plain Keras would cast them, and train on values of up to 255."""
    labels, teacher = np.arange(12) % 3, net(seed=1)
    with pytest.raises(
        ValueError, match=r"takes floats in \[0,1\], the batches hold images of uint8; divide them by 255"
    ):
        one_step(net(), teacher, pixels, labels)
    found = one_step(net(), teacher, pixels, labels, input_range=(0, 255))
    expected = one_step(net(), teacher, pixels.astype("float32"), labels)
    assert found[0] == expected[0]


def test_maps_and_stores_are_of_logits_and_own_pixels(pixels: np.ndarray, tmp_path: Path) -> None:
    """A softmax teacher of 0 to 255 has the maps and logits of the plain network under it."""
    labels = np.arange(12) % 3
    teacher = net(keras.layers.Rescaling(1 / 255), activation="softmax", seed=1)
    plain = same_with(teacher, seed=1)
    images = pixels / np.float32(255)
    maps, delta = integrated_gradients(teacher, images, labels, n_steps=4)
    reference, _ = integrated_gradients(plain, images, labels, n_steps=4)
    np.testing.assert_allclose(maps, reference, atol=1e-5)
    assert np.abs(delta).max() < 1e-4  # a linear network: exact
    store = OverlayStore.build(tmp_path, teacher, (pixels, labels), n_steps=4)
    row = store._row(pixels[0], 0)
    np.testing.assert_allclose(store.knowledge.logits[row], plain(images[:1])[0], atol=1e-3)
    assert store.verify(teacher, (pixels, labels))["logits"] < 1e-2


def test_maps_of_one_sigmoid_explain_both_classes(pixels: np.ndarray, tmp_path: Path) -> None:
    """By half of the logit z under the sigmoid, and by minus that half; a store holds maps of both."""
    images, labels = pixels / np.float32(255), np.arange(12) % 2
    model = net(units=1, activation="sigmoid")
    z = keras.ops.convert_to_numpy(net(units=1)(images) - net(units=1)(0 * images)).ravel()
    maps, _ = integrated_gradients(model, images, labels, n_steps=4)
    assert maps.shape == images.shape
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), np.where(labels == 1, z / 2, -z / 2), atol=1e-4)
    store = OverlayStore.build(tmp_path, model, (pixels, labels), n_steps=4)
    for index in range(12):
        assert store.knowledge.maps[store._row(pixels[index], labels[index])].any()


def test_a_layer_of_a_model_inside_is_a_tap(pixels: np.ndarray) -> None:
    def nested(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inner = keras.Input(SHAPE)
        x = keras.layers.Conv2D(4 + seed, 3, name="block_01")(inner)
        base = keras.Model(inner, keras.layers.Conv2D(5, 3)(x), name="backbone")
        inputs = keras.Input(SHAPE)
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(base(inputs))))

    student, teacher = nested(0), nested(1)
    tap = "backbone/block_01"
    losses = {"at": AttentionTransfer(tap, tap), "hint": Hint(tap, tap)}
    distiller = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 1.0), teacher=teacher)
    distiller.compile("sgd", jit_compile=False)
    images = pixels / np.float32(255)
    logs = distiller.evaluate(images, np.arange(12) % 3, verbose=0, return_dict=True)
    expected = AttentionTransfer(tap, tap).compute_loss(
        *(model.get_layer("backbone").get_layer("block_01")(images) for model in (teacher, student))
    )
    assert logs["at_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert logs["hint_loss"] > 0


def test_a_layer_named_outputs_and_an_operation_are_taps(pixels: np.ndarray) -> None:
    """What the metrics see stays the model's own output."""

    def network(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(SHAPE)
        x = keras.ops.relu(keras.layers.Conv2D(3, 3, name="outputs")(inputs))
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))

    student, teacher = network(0), network(1)
    relu = [next(one.name for one in model.operations if "relu" in one.name) for model in (student, teacher)]
    losses = {"hint": Hint("outputs", "outputs"), "at": AttentionTransfer(*relu)}
    distiller = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 1.0), teacher=teacher)
    distiller.compile("sgd", metrics=["accuracy"], jit_compile=False)
    images, labels = pixels / np.float32(255), np.arange(12) % 3
    logs = distiller.evaluate(images, labels, verbose=0, return_dict=True)
    right = np.argmax(student.predict(images, verbose=0), axis=1) == labels
    assert logs["accuracy"] == pytest.approx(right.mean()) and logs["at_loss"] > 0
    with pytest.raises(ValueError, match="a metric cannot be named 'at_loss'"):
        distiller.compile("sgd", weighted_metrics=[keras.metrics.Mean(name="at_loss")])


def kd_loss(student: keras.Model, images: np.ndarray, targets: Any, **options: Any) -> float:
    distiller = Distiller(student, losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": 0.5}, **options)
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    return distiller.fit(images, targets, batch_size=12, verbose=0).history["kd_loss"][0]


def test_cached_logits_of_one_output_are_those_of_two_classes(pixels: np.ndarray) -> None:
    images, labels = pixels / np.float32(255), np.arange(12) % 2
    teacher, student = net(units=1, seed=1), net(units=1)
    z = teacher.predict(images, verbose=0)
    p, q = (1 / (1 + np.exp(-one.astype(float) / 2.5)) for one in (z, student.predict(images, verbose=0)))
    expected = np.mean(2.5**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
    both = np.concatenate([-z / 2, z / 2], axis=1)
    assert kd_loss(student, images, labels, teacher=teacher) == pytest.approx(expected, rel=1e-4)
    for own in (student, net(units=2)):
        found, known = (kd_loss(own, images, {"label": labels, "teacher_logits": one}) for one in (z, both))
        assert found == known
        if own is student:
            assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(12, 1), (12, 2), (12,), (12, 3, 1)])
def test_cached_logits_of_another_shape_are_refused(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    images, labels, known = pixels / np.float32(255), np.arange(12) % 3, np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=r"'teacher_logits' must hold one number for each example and class.*, got"):
        kd_loss(net(), images, {"label": labels, "teacher_logits": known})
    distiller = Distiller(net(), losses={"osakd": OSAKD(space="teacher")}, loss_weights={"osakd": 1.0})
    for name in ("teacher_posteriors", "label_probabilities"):
        targets = {"label": labels, "teacher_posteriors": np.full((12, 3), 1 / 3, np.float32), name: known}
        outputs = {"logits": np.zeros((12, 3), np.float32)}
        if name == "label_probabilities":
            distiller = Distiller(net())
        with pytest.raises(ValueError, match=f"'{name}' must hold one number for each example and class"):
            distiller.compare(outputs, images, targets, training=True)


def test_cached_logits_of_a_shape_that_a_graph_does_not_know(pixels: np.ndarray) -> None:
    import tensorflow as tf

    images, labels = pixels / np.float32(255), np.arange(12) % 3
    known = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    expected = kd_loss(net(), images, {"label": labels, "teacher_logits": known})

    def batches(given: np.ndarray) -> Any:
        kinds = {"label": tf.TensorSpec((None,), tf.int64), "teacher_logits": tf.TensorSpec(None)}
        one = lambda: iter([(images, {"label": labels, "teacher_logits": given})])  # noqa: E731
        return tf.data.Dataset.from_generator(one, output_signature=(tf.TensorSpec((None, *SHAPE)), kinds)).repeat()

    distiller = Distiller(net(), losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": 0.5})
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    logs = distiller.fit(batches(known), steps_per_epoch=1, shuffle=False, verbose=0).history
    assert logs["kd_loss"][0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        distiller.fit(batches(known[:, :1]), steps_per_epoch=1, shuffle=False, verbose=0)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_policy_of_the_process_is_not_that_of_the_student(pixels: np.ndarray, policy: str, tmp_path: Path) -> None:
    images = pixels / np.float32(255)
    student, shares = net(), net(activation="softmax")
    expected = student.predict(images, verbose=0)
    distiller = Distiller(student)
    distiller.compile("adam", jit_compile=False)
    distiller.fit(images, np.arange(12) % 3, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    trained = student.predict(images, verbose=0)
    keras.config.set_dtype_policy(policy)
    try:
        under = Distiller(student)
        under.compile("adam", jit_compile=False)
        loaded = keras.saving.load_model(tmp_path / "distiller.keras")
        found = [one.predict(images, verbose=0) for one in (under, loaded)]
        logits = keras.ops.convert_to_numpy(LogitsOf(shares)(images))
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.abs(trained - expected).max() > 0
    for one in found:
        np.testing.assert_array_equal(one, trained)
    for one in (under, loaded):
        assert not isinstance(one.optimizer, keras.optimizers.LossScaleOptimizer)
    for own, other in zip(loaded.optimizer.variables, distiller.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(other))
    np.testing.assert_allclose(logits, np.log(keras.ops.convert_to_numpy(shares(images))), rtol=1e-6)


def of_bytes() -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input(SHAPE, dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(3)(features))


def test_pixels_between_two_integers_go_to_the_nearer_one(pixels: np.ndarray) -> None:
    """As of a resized crop; Keras alone casts to the integers of the input, which rounds down."""
    model = of_bytes()
    images = np.clip(pixels - np.float32(0.3), 0, 255) / np.float32(255)
    logits = TappedNetwork(model, {}, TEACHER, (0, 1))(images, training=False)["logits"]
    np.testing.assert_allclose(logits, model(pixels), rtol=1e-6)
    assert np.abs(np.asarray(model(images * 255)) - np.asarray(model(pixels))).max() > 1e-3


def test_a_student_of_integers_has_no_gradient_of_its_images(pixels: np.ndarray) -> None:
    given: Any = {"losses": {"ig": IGMatching()}, "loss_weights": {"ig": 1.0}, "hard_weight": 0.0}
    with pytest.raises(ValueError, match=r"loss 'ig' needs the gradient .* takes integers; .*as_classifier\(student\)"):
        Distiller(of_bytes(), **given, input_range=(0, 255))
    distiller = Distiller(as_classifier(of_bytes()), **given)
    distiller.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    maps = np.random.default_rng(1).random((12, *SHAPE[:2]), np.float32)
    targets = {"label": np.arange(12) % 3, "teacher_map": maps}
    losses = distiller.fit(pixels / np.float32(255), targets, epochs=3, verbose=0).history["ig_loss"]
    assert losses[2] < losses[1] < losses[0] < 1
