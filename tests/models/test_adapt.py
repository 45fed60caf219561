"""A user's classifier in its own spaces, against plain Keras opening the same file: pixels, dtype, outputs, classes."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd.attribution import integrated_gradients
from tfigkd.data.spaces import output_kind, to_gray
from tfigkd.models import (
    ReferenceClassifier,
    as_classifier,
    cached_classifier,
    load_classifier,
    load_own_classifier,
    user_model,
    with_fresh_weights,
)
from tfigkd.models.adapt import graph_as_classifier, logits_of
from tfigkd.models.cost import count_parameters
from tfigkd.models.flat import flattened
from tfigkd.models.input_range import infer_input_range
from tfigkd.models.keras_file import load_model
from tfigkd.models.precision import with_precision
from tfigkd.models.reinitialize import count_frozen_layers
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller

SHAPE = (8, 8, 3)


def own(*head: Any, end: list[Any] | None = None, dtype: str = "float32") -> keras.Model:
    body = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    last = [keras.layers.Dense(3)] if end is None else end
    return keras.Sequential([keras.Input(SHAPE, dtype=dtype), *head, *body, *last])


def dense(units: int, activation: Any = None) -> list[Any]:
    """Of large weights, so that its probabilities are no even ones."""
    return [keras.layers.Dense(units, activation=activation, kernel_initializer=keras.initializers.RandomNormal(0, 8))]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def softmax(logits: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def adapted(low: float, high: float) -> keras.layers.Layer:
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(1).uniform(low, high, (32, *SHAPE)).astype("float32"))
    return layer


def scaling(*values: float) -> keras.layers.Layer:
    return keras.layers.Rescaling(*values)


def through(*functions: Any) -> keras.Model:
    """A model of operations, which a Functional model has and a Sequential one has not."""
    tensor = image = keras.Input(SHAPE)
    for function in functions:
        tensor = function(tensor)
    return keras.Model(image, own(end=[])(tensor) if tensor.shape[-1] == 3 else tensor)


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ([lambda x: keras.ops.clip(x, 0, 255), lambda x: x / 255.0], (0, 255)),
        ([keras.ops.image.rgb_to_grayscale, lambda x: x / 255.0, keras.layers.GlobalAveragePooling2D()], (0, 255)),
        ([lambda x: x / 16.0], (0, 16)),
    ],
)
def test_the_range_that_the_first_operations_tell(functions: Any, expected: Any) -> None:
    assert infer_input_range(through(*functions)) == expected


@pytest.mark.parametrize(
    ("head", "dtype", "expected"),
    [
        (lambda: [], "float32", None),
        (lambda: [scaling(1 / 255)], "float32", (0, 255)),
        (lambda: [scaling(1 / 127.5, -1)], "float32", (0, 255)),
        (lambda: [keras.layers.RandomFlip(), scaling(1 / 255)], "float32", (0, 255)),
        (lambda: [scaling(2.0, -1)], "float32", (0, 1)),
        (lambda: [scaling(127.5, 127.5), own(scaling(1 / 127.5, -1), end=[])], "float32", (-1, 1)),
        (lambda: [scaling(255.0), keras.Sequential([keras.Input(SHAPE), scaling(1 / 255)])], "float32", (0, 1)),
        (lambda: [adapted(0, 1)], "float32", (0, 1)),
        (lambda: [adapted(0, 255)], "float32", (0, 255)),
        (lambda: [adapted(-1, 1)], "float32", (-1, 1)),
        (lambda: [scaling(1 / 255), adapted(0, 1)], "float32", (0, 255)),
        (lambda: [], "uint8", (0, 255)),
        (lambda: [scaling(1 / 16)], "float32", (0, 16)),  # scikit-learn's digits
        (lambda: [scaling(1 / 8, -1)], "float32", (0, 16)),
        (lambda: [scaling(1 / 65535)], "float32", (0, 65535)),
        (lambda: [scaling(1 / 128)], "float32", (0, 255)),  # to 2
        (lambda: [scaling(1 / 60)], "float32", (0, 255)),
        (lambda: [scaling(1.0, -110)], "float32", (0, 255)),
        (lambda: [scaling(-1 / 255, 1)], "float32", (0, 255)),  # white on black becomes black on white
        (lambda: [scaling(-1 / 16, 1)], "float32", None),
        (lambda: [scaling(1.0, -128), scaling(1 / 128)], "float32", (0, 255)),
        (lambda: [adapted(0, 16)], "float32", None),  # statistics do not tell where the values end
        (lambda: [adapted(0, 90)], "float32", (0, 255)),  # dark pictures
    ],
)
def test_the_range_that_the_first_layers_tell(head: Any, dtype: str, expected: Any) -> None:
    layers = head()
    if layers and isinstance(layers[-1], keras.Sequential) and len(layers[-1].output_shape) == 2:
        model = keras.Sequential([keras.Input(SHAPE), *layers, keras.layers.Dense(3)])
    else:
        model = own(*layers, dtype=dtype)
    assert infer_input_range(model) == expected


def test_a_file_is_read_once_for_its_range_and_again_where_its_content_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "m.keras", []
    monkeypatch.setattr(user_model, "load_model", lambda one: read.append(one) or load_model(one))
    for content, expected in ((scaling(1 / 16), "0 to 16"), (scaling(1 / 255), "0 to 255")):
        own(content).save(path)
        for _ in range(2):
            assert user_model.pixels_said(str(path), None) == f"pixels from {expected}, as its first layers tell"
    assert read == [path, path]
    assert user_model.pixels_said(str(path), (-1, 1)) == "pixels from -1 to 1, as given"


def test_the_range_that_all_models_of_an_ensemble_tell(pixels: np.ndarray, tmp_path: Path) -> None:
    inputs = keras.Input(SHAPE)
    heads = [scaling(1 / 255), scaling(1 / 127.5, -1), scaling(2.0, -1)]
    members = [own(head, end=dense(3, "softmax"))(inputs) for head in heads]
    assert infer_input_range(keras.Model(inputs, keras.layers.Average()([members[0], members[2]]))) is None
    model = keras.Model(inputs, keras.layers.Average()(members[:2]))
    assert infer_input_range(model) == (0, 255)
    model.save(tmp_path / "m.keras")
    expected = model(pixels.astype("float32"))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(
        softmax(load_classifier(tmp_path / "m.keras")(pixels / np.float32(255))), expected, atol=1e-4
    )


def test_the_range_of_an_ensemble_inside_a_model() -> None:
    """What follows the ensemble works on its outputs, and tells nothing of pixels."""
    for low_scale, expected in ((1 / 255, (0, 255)), (1.0, None)):
        inputs = keras.Input(SHAPE)
        members = [keras.layers.Conv2D(3, 1)(scaling(low_scale)(inputs)) for _ in range(2)]
        ensemble = keras.Model(inputs, keras.layers.Average()(members), name="ensemble")
        for behind in (scaling(0.5), scaling(1 / 255), keras.layers.BatchNormalization()):
            model = keras.Sequential(
                [keras.Input(SHAPE), ensemble, behind, keras.layers.Flatten(), keras.layers.Dense(3)]
            )
            assert infer_input_range(model) == expected
        bytes_ = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), ensemble])
        assert infer_input_range(bytes_) == (0, 255)


def test_the_range_of_a_model_that_subtracts_a_mean_image() -> None:
    mean = np.random.default_rng(0).uniform(100, 150, SHAPE).astype("float32")
    inputs = keras.Input(SHAPE)
    for x in ((inputs - mean) / np.float32([60, 58, 62]), keras.layers.BatchNormalization()(inputs / 64.0 - mean / 64)):
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
        assert infer_input_range(model) == (0, 255)


@pytest.mark.parametrize("module", ["mobilenet_v2", "densenet", "vgg16"])
def test_preprocessing_of_keras_inside_the_file(module: str, tmp_path: Path) -> None:
    """Division, subtraction and RGB to BGR, as operations in the graph and as read back."""
    inputs = keras.Input(SHAPE)
    x = getattr(keras.applications, module).preprocess_input(inputs)
    keras.Model(inputs, own()(x)).save(tmp_path / "m.keras")
    assert infer_input_range(keras.saving.load_model(tmp_path / "m.keras")) == (0, 255)


@pytest.mark.parametrize("low_high", [None, (0.0, 255.0), (-1.0, 1.0)])
def test_images_in_0_1_come_as_the_model_takes_them(low_high: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    own(scaling(1 / 255) if low_high is None else keras.layers.Identity(), end=dense(3, "softmax")).save(
        tmp_path / "m.keras"
    )
    plain = keras.saving.load_model(tmp_path / "m.keras")
    low, high = low_high or (0, 255)
    expected = plain(low + (high - low) * (pixels / np.float32(255)))
    loaded = load_classifier(tmp_path / "m.keras", num_classes=3, input_range=low_high)
    np.testing.assert_allclose(softmax(loaded(pixels / np.float32(255))), expected, atol=1e-5)
    assert loaded.input.dtype == "float32"
    # a copy that is saved takes [0,1] and says so
    loaded.save(tmp_path / "again.keras")
    for again in (
        load_classifier(tmp_path / "again.keras"),
        load_own_classifier(tmp_path / "again.keras", num_classes=3, input_shape=SHAPE),
    ):
        np.testing.assert_allclose(softmax(again(pixels / np.float32(255))), expected, atol=1e-5)
    assert count_parameters(loaded) == count_parameters(plain)


@pytest.mark.parametrize("head", [[], [keras.layers.Rescaling(1 / 255)]])
def test_a_model_of_gray_images_takes_rgb_images(head: list[Any], pixels: np.ndarray, tmp_path: Path) -> None:
    """As gray as Pillow and Keras make them; equal channels stay what they are."""
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([keras.Input((8, 8, 1)), *head, *layers, *dense(3, "softmax")]).save(tmp_path / "m.keras")
    plain, white = keras.saving.load_model(tmp_path / "m.keras"), 255 if head else 1
    gray = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]
    np.testing.assert_array_equal(to_gray(pixels), gray)
    loaded = load_classifier(tmp_path / "m.keras", num_classes=3, input_shape=SHAPE, images=pixels)
    assert loaded.input_shape == (None, *SHAPE)
    equal = np.repeat(gray, 3, axis=-1)
    expected = plain(white * (gray / np.float32(255)))
    np.testing.assert_allclose(softmax(loaded(equal / np.float32(255))), expected, atol=1e-5)
    np.testing.assert_allclose(softmax(loaded(pixels / np.float32(255))), expected, atol=0.05)  # gray is not rounded
    np.testing.assert_allclose(
        ReferenceClassifier(tmp_path / "m.keras").logits(pixels), loaded(pixels / np.float32(255)), atol=1e-3
    )
    assert load_classifier(tmp_path / "m.keras").input_shape == (None, 8, 8, 1)
    assert count_parameters(loaded) == count_parameters(plain) and count_frozen_layers(loaded) == 0
    loaded.save(tmp_path / "again.keras")
    again = load_own_classifier(tmp_path / "again.keras", num_classes=3, input_shape=SHAPE)
    np.testing.assert_allclose(again(equal / np.float32(255)), loaded(equal / np.float32(255)), atol=1e-5)


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_of_no_values_is_refused(wrong: tuple[float, float], tmp_path: Path) -> None:
    own().save(tmp_path / "m.keras")
    with pytest.raises(UserError, match="expected different values for black and white, such as 0 255, got"):
        load_classifier(tmp_path / "m.keras", input_range=wrong)


def test_what_is_declared_against_the_layers_stays_so_in_a_copy(pixels: np.ndarray, tmp_path: Path) -> None:
    own(scaling(1 / 255)).save(tmp_path / "m.keras")
    plain = keras.saving.load_model(tmp_path / "m.keras")
    load_classifier(tmp_path / "m.keras", input_range=(0, 1)).save(tmp_path / "again.keras")
    np.testing.assert_allclose(
        load_classifier(tmp_path / "again.keras")(pixels / np.float32(255)), plain(pixels / np.float32(255)), atol=1e-6
    )


def test_a_model_of_bytes(pixels: np.ndarray, tmp_path: Path) -> None:
    """Its input is cast to float32 inside, so floats between 0 and 255 are no zeros."""
    own(scaling(1 / 255), end=dense(3), dtype="uint8").save(tmp_path / "m.keras")
    expected = keras.saving.load_model(tmp_path / "m.keras")(pixels)
    loaded = load_classifier(tmp_path / "m.keras", num_classes=3)
    np.testing.assert_allclose(loaded(pixels / np.float32(255)), expected, atol=1e-4)


def test_outputs_by_their_look() -> None:
    assert output_kind(np.array([[0.2, 0.8], [1.0, 0.0]])) == "probabilities"
    assert output_kind(np.array([[0.2, 0.8], [1.0, 0.5]])) == "logits"
    assert output_kind(np.array([[-0.5, 1.5]])) == "logits"
    assert output_kind(np.array([[0.5], [1.0]])) == "probabilities"
    assert output_kind(np.array([[0.5], [1.1]])) == "logits"


def averaged() -> keras.Model:
    """An ensemble of two softmaxes, which no structure shows."""
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, keras.layers.Average()([own(end=dense(3, "softmax"))(inputs) for _ in range(2)]))


def by_operation() -> keras.Model:
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, keras.ops.softmax(own(end=dense(3))(inputs)))


@pytest.mark.parametrize("make", [averaged, by_operation, lambda: own(end=dense(3, "log_softmax"))])
def test_probabilities_become_logits(make: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    make().save(tmp_path / "m.keras")
    expected = keras.saving.load_model(tmp_path / "m.keras")(pixels / np.float32(255))
    expected = np.exp(expected) if np.min(expected) < 0 else expected
    logits = load_classifier(tmp_path / "m.keras", num_classes=3)(pixels / np.float32(255))
    assert np.ptp(expected) > 0.2  # even shares would hide a softmax of a softmax
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-5)


def test_outputs_as_declared(pixels: np.ndarray) -> None:
    model = averaged()
    images = pixels / np.float32(255)
    np.testing.assert_allclose(graph_as_classifier(model, outputs="logits")(images), model(images), atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_output_is_two_classes(activation: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    own(end=dense(1, activation)).save(tmp_path / "m.keras")
    images = pixels / np.float32(255)
    second = keras.ops.convert_to_numpy(keras.saving.load_model(tmp_path / "m.keras")(images))
    second = second if activation else 1 / (1 + np.exp(-second))
    loaded = load_classifier(tmp_path / "m.keras", num_classes=2)
    np.testing.assert_allclose(softmax(loaded(images)), np.concatenate([1 - second, second], axis=1), atol=1e-5)
    with pytest.raises(UserError, match=r"gives outputs of shape \(1,\), expected \(3,\)"):
        load_classifier(tmp_path / "m.keras", num_classes=3)


POSITIVE = keras.initializers.RandomUniform(0, 0.008)


def small_logit(*end: Any) -> keras.Model:
    """One logit that is between 0 and 1 for every image, as that of an untrained network often is."""
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(1, 8, kernel_initializer=POSITIVE), *end])


@pytest.mark.parametrize(
    "end",
    [
        [keras.layers.Flatten()],
        [keras.layers.GlobalAveragePooling2D()],
        [keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer="ones")],
        [keras.layers.Flatten(), keras.layers.Activation("linear", dtype="float32")],
        [keras.layers.Flatten(), keras.layers.Rescaling(1 / 5)],  # a temperature
    ],
)
def test_a_logit_between_0_and_1_is_none_the_less_one(end: list[Any], pixels: np.ndarray) -> None:
    """The last is the end that Keras recommends for mixed precision."""
    model, images = small_logit(*end), pixels / np.float32(255)
    second = keras.ops.convert_to_numpy(model(images))
    assert second.min() > 0 and second.max() < 1
    expected = np.concatenate([-second / 2, second / 2], axis=1)
    np.testing.assert_allclose(as_classifier(model)(images), expected, atol=1e-6)
    np.testing.assert_allclose(logits_of(model)(model(images)), expected, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
def warm_softmax(values: Any) -> Any:
    return keras.ops.softmax(values / 3.0)


warmer = keras.saving.register_keras_serializable("tests", "softmax")(lambda values: warm_softmax(values))
warmer.__name__ = "softmax"


@pytest.mark.parametrize("activation", [warm_softmax, warmer])
def test_an_activation_of_the_users_is_looked_at(activation: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    """Its name tells nothing; the losses, the file and the model as plain Keras opens it agree on its probabilities."""
    model, images = own(end=dense(3, activation)), pixels / np.float32(255)
    expected = keras.ops.convert_to_numpy(model(images))
    model.save(tmp_path / "m.keras")
    for logits in (
        logits_of(model)(expected),
        load_classifier(tmp_path / "m.keras")(images),
        ReferenceClassifier(tmp_path / "m.keras")(images),
    ):
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-5)


def test_what_is_no_choice_among_classes(tmp_path: Path) -> None:
    ends = [(dense(1, "tanh"), "ends in one tanh"), (dense(3, "sigmoid"), "ends in 3 sigmoids")]
    ends += [(dense(1, "softmax"), "a softmax over one output, which is always 1")]
    ends += [([*dense(1, "sigmoid"), keras.layers.Rescaling(0.5)], "may be a probability or a logit; declare outputs")]
    for end, message in ends:
        own(end=end).save(tmp_path / "m.keras")
        with pytest.raises(UserError, match=message):
            load_classifier(tmp_path / "m.keras")


def test_a_model_in_memory_is_converted_once_and_keeps_up(pixels: np.ndarray) -> None:
    images = pixels / np.float32(255)
    model, plain = own(scaling(1 / 255), end=dense(3, "softmax")), own()
    assert as_classifier(plain) is plain
    first = cached_classifier(model)
    np.testing.assert_allclose(softmax(first(images)), model(pixels.astype("float32")), atol=1e-5)
    model.set_weights([0.5 * values for values in model.get_weights()])
    assert cached_classifier(model) is first
    np.testing.assert_allclose(softmax(first(images)), model(pixels.astype("float32")), atol=1e-5)


def test_what_as_classifier_gives_belongs_to_the_user(pixels: np.ndarray) -> None:
    """It may be trained: no later look at the model that it was made of undoes that."""
    model, images = own(end=dense(3, "softmax")), pixels / np.float32(255)
    mine = as_classifier(model)
    mine.set_weights([0.5 * values for values in model.get_weights()])
    integrated_gradients(model, images, [0] * len(images), n_steps=1)
    assert as_classifier(model) is not mine
    for kept, given in zip(mine.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, 0.5 * given)


def test_a_copy_draws_no_random_numbers_of_the_user() -> None:
    """The next layer that the user makes has the same first weights whether a copy was made before it or not."""
    model = own(end=dense(3, "softmax"))
    drawn = []
    for copies in (0, 1):
        keras.utils.set_random_seed(0)
        for _ in range(copies):
            as_classifier(model)
        drawn.append(own().get_weights()[0])
    np.testing.assert_array_equal(*drawn)


def test_of_a_distiller_the_student_is_meant(pixels: np.ndarray) -> None:
    student, images = own(end=dense(3, "softmax")), pixels / np.float32(255)
    distiller = Distiller(student)
    np.testing.assert_allclose(softmax(as_classifier(distiller)(images)), student(images), atol=1e-5)
    explained = [integrated_gradients(one, images, [0] * len(images), n_steps=2)[0] for one in (distiller, student)]
    np.testing.assert_array_equal(*explained)
    with pytest.raises(ValueError, match=r"is a Distiller; give its student, distiller\.student"):
        with_fresh_weights(distiller)


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.layers.Layer):
    """A layer as beginners write it: without get_config."""

    def __init__(self, times: int = 2, **options: Any):
        super().__init__(**options)
        self.times = times

    def call(self, inputs: Any) -> Any:
        return self.times * inputs


@pytest.mark.parametrize("layer", [lambda: Doubled(name="mine"), lambda: keras.layers.Lambda(lambda x: 3 * x)])
def test_layers_that_do_not_tell_their_configuration_are_copied(layer: Any, pixels: np.ndarray) -> None:
    model, images = own(layer(), end=dense(3, "softmax")), pixels / np.float32(255)
    np.testing.assert_allclose(softmax(as_classifier(model)(images)), model(images), atol=1e-5)


@pytest.mark.parametrize("layer", [lambda: Doubled(name="mine"), lambda: keras.layers.Lambda(lambda x: 3 * x)])
def test_such_layers_in_a_model_inside_can_be_flattened_and_cast(layer: Any, pixels: np.ndarray) -> None:
    images = pixels / np.float32(255)
    outside = keras.Input(SHAPE)
    model = keras.Model(outside, own(layer(), end=dense(3))(outside))
    np.testing.assert_allclose(flattened(model)(images), model(images), atol=1e-5)
    half = with_precision(model, "mixed_bfloat16")
    assert "mixed_bfloat16" in {one.dtype_policy.name for one in half.layers[1].layers}
    np.testing.assert_allclose(half(images), model(images), atol=0.2)
    np.testing.assert_allclose(with_precision(half, "float32")(images), model(images), atol=1e-5)
    fresh = with_fresh_weights(model)
    assert fresh.count_params() == model.count_params() and not np.allclose(fresh(images), model(images), atol=1e-3)


PASSED_ON = {
    "identity": [keras.layers.Identity],
    "float32": [lambda: keras.layers.Activation("linear", dtype="float32")],
    "dropout": [lambda: keras.layers.Dropout(0.5)],
    "flat": [lambda: keras.layers.Reshape((1, 1, 3)), keras.layers.Flatten],
}


@pytest.mark.parametrize("after", PASSED_ON.values(), ids=PASSED_ON)
@pytest.mark.parametrize("squash", [keras.layers.Softmax, lambda: keras.ops.softmax, None])
def test_a_softmax_is_taken_off_before_what_passes_it_on(
    squash: Any, after: Any, pixels: np.ndarray, tmp_path: Path
) -> None:
    """The logits are those that the softmax reads: a logarithm of probabilities would have another mean."""
    body, images = own(end=[]), pixels / np.float32(255)
    (last,) = dense(3)
    logits = last(body.outputs[0])
    expected = keras.ops.convert_to_numpy(keras.Model(body.inputs[0], logits)(images))
    shares = keras.layers.Activation("softmax")(logits) if squash is None else squash()(logits)
    for make in after:
        shares = make()(shares)
    keras.Model(body.inputs[0], shares).save(tmp_path / "m.keras")
    for opened in (load_classifier, ReferenceClassifier):
        np.testing.assert_allclose(opened(tmp_path / "m.keras")(images), expected, atol=1e-4)


def test_a_mean_of_softmaxes_stays(pixels: np.ndarray, tmp_path: Path) -> None:
    tensor = keras.layers.Conv2D(3, 3, activation="softmax")(image := keras.Input(SHAPE))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(tensor))
    model.save(tmp_path / "m.keras")
    images = pixels / np.float32(255)
    np.testing.assert_allclose(softmax(load_classifier(tmp_path / "m.keras")(images)), model(images), atol=1e-5)


FRONTS = {
    "cropping": keras.layers.Cropping2D(1),
    "pooling": keras.layers.AveragePooling2D(2),
    "upsampling": keras.layers.UpSampling2D(2),
    "permuted": keras.layers.Permute((2, 1, 3)),
    "rows": keras.layers.Reshape((4, 16, 3)),
    "resized": lambda x: keras.ops.image.resize(x, (12, 12)),
    "padded": lambda x: keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
    "rounded": keras.ops.round,
    "gray": lambda x: keras.ops.repeat(keras.ops.mean(x, axis=-1, keepdims=True), 3, axis=-1),
    "pipeline": keras.layers.Pipeline([keras.layers.RandomFlip(), keras.layers.RandomFlip()]),
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
@pytest.mark.parametrize(("scale", "expected"), [((1 / 255,), (0, 255)), ((1 / 127.5, -1), (0, 255)), (None, None)])
def test_the_range_is_told_behind_operations_that_leave_one_color_as_it_is(
    front: Any, scale: Any, expected: Any
) -> None:
    tensor = front(image := keras.Input(SHAPE))
    tensor = tensor if scale is None else scaling(*scale)(tensor)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 1)(tensor)))
    assert infer_input_range(model) == expected


def test_the_range_is_told_by_statistics_of_each_pixel() -> None:
    layer = keras.layers.Normalization(axis=(1, 2, 3))
    layer.adapt(np.random.default_rng(0).uniform(0, 255, (64, *SHAPE)).astype("float32"))
    assert infer_input_range(own(layer)) == (0, 255)


def test_channels_that_come_first_are_named(tmp_path: Path) -> None:
    image = keras.Input((3, 16, 16))
    tensor = keras.layers.GlobalAveragePooling2D()(keras.layers.Permute((2, 3, 1))(image))
    keras.Model(image, keras.layers.Dense(3)(tensor)).save(tmp_path / "m.keras")
    with pytest.raises(
        UserError, match=r"takes inputs of shape \(3, 16, 16\), channels first; save it for images whose"
    ):
        load_classifier(tmp_path / "m.keras")


def test_a_kernel_that_keras_does_not_train_is_not_drawn_anew() -> None:
    model = own(end=dense(3))
    model.layers[-1].enable_lora(2)
    with pytest.raises(ValueError, match="does not train, as Keras has quantized it or given it factors of LoRA"):
        with_fresh_weights(model)
    model.layers[-1].trainable = False  # all of it stays
    kept = with_fresh_weights(model).layers[-1]
    np.testing.assert_array_equal(kept.kernel, model.layers[-1].kernel)  # with the factors of LoRA


@pytest.mark.parametrize("wrap", [lambda tensor: {"one": tensor}, lambda tensor: [tensor]])
def test_a_model_in_memory_may_have_its_output_in_a_dictionary_or_list_of_one(wrap: Any, pixels: np.ndarray) -> None:
    bare, images = own(), pixels / np.float32(255)
    found = as_classifier(keras.Model(bare.inputs[0], wrap(bare.outputs[0])))(images)
    np.testing.assert_allclose(found, bare(images), atol=1e-6)


def test_fresh_weights_follow_the_seed_and_frozen_layers_stay() -> None:
    fixed = keras.layers.Conv2D(4, 1, name="fixed", trainable=False)
    seeded = keras.layers.Conv2D(4, 1, name="seeded", kernel_initializer=keras.initializers.GlorotUniform(seed=7))
    model = own(adapted(0, 1), fixed, seeded)

    def fresh(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return with_fresh_weights(model)

    first, again, other = fresh(0), fresh(0), fresh(1)
    assert count_frozen_layers(model) == 1 + 1  # the adapted normalization and the frozen convolution
    for name in ("seeded", "conv2d", "dense"):
        layer = next(each.name for each in model.layers if each.name.startswith(name))
        kernels = [each.get_layer(layer).get_weights()[0] for each in (first, again, other, model)]
        np.testing.assert_array_equal(kernels[0], kernels[1])
        assert not np.allclose(kernels[0], kernels[2]) and not np.allclose(kernels[0], kernels[3])
    np.testing.assert_array_equal(first.get_layer("fixed").get_weights()[0], fixed.get_weights()[0])
