import gc
import weakref
from importlib import util
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.children import on_jax
from tfigkd import models
from tfigkd.attribution import attribute, completeness_error, integrated_gradients, nodes_and_weights, saliency_map
from tfigkd.attribution.quadrature import RULES

SHAPE = (6, 5, 3)
IMAGES = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
TARGETS = np.array([0, 3, 1, 2, 2, 0, 1])


class RecordsShape(keras.layers.Layer):
    """A layer that returns its input and records the shapes it is traced with."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[int | None, ...]] = []

    def call(self, inputs: Any) -> Any:
        self._seen.append(tuple(inputs.shape))
        return inputs


def curved(*extra: keras.layers.Layer) -> keras.Model:
    """Return a small convolutional network whose gradient changes strongly along the path."""
    keras.utils.set_random_seed(0)
    normal, wide = keras.initializers.RandomNormal(stddev=0.4), keras.initializers.RandomNormal(stddev=4)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            *extra,
            keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=normal, bias_initializer=normal),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(8, 3, activation="tanh", kernel_initializer=normal),
            keras.layers.Dropout(0.5),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, kernel_initializer=wide),
        ]
    )


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return curved()


@pytest.mark.parametrize("rule", RULES)
def test_exact_on_a_linear_model(rule: str) -> None:
    linear = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)])
    start = np.float32([0.2, 0.4, 0.6])
    attributions, delta = integrated_gradients(linear, IMAGES, TARGETS, baseline=start, n_steps=2, rule=rule)
    kernel = linear.layers[-1].get_weights()[0].T.reshape(4, *SHAPE)
    np.testing.assert_allclose(attributions, kernel[TARGETS] * (IMAGES - start), atol=1e-6)
    np.testing.assert_allclose(delta, 0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_equals_a_plain_reference(rule: str) -> None:
    two_layers = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu", bias_initializer="normal"),
            keras.layers.Dense(4),
        ]
    )
    first, bias, second, _ = two_layers.get_weights()
    nodes, weights = nodes_and_weights(rule, 9)
    expected = np.zeros((7, first.shape[0]))
    for image, target, row in zip(IMAGES.reshape(7, -1), TARGETS, expected, strict=True):
        for node, weight in zip(nodes, weights, strict=True):
            active = (node * image) @ first + bias > 0
            row += weight * image * (first @ (active * second[:, target]))
    attributions, delta = integrated_gradients(two_layers, IMAGES, TARGETS, n_steps=9, rule=rule)
    assert attributions.dtype == delta.dtype == np.float32
    np.testing.assert_allclose(attributions.reshape(7, -1), expected, atol=1e-5)
    logits = two_layers(IMAGES).numpy() - two_layers(np.zeros_like(IMAGES)).numpy()
    np.testing.assert_allclose(delta, expected.sum(axis=1) - logits[np.arange(7), TARGETS], atol=1e-5)


def test_completeness(model: keras.Model) -> None:
    attributions, delta = integrated_gradients(model, IMAGES, TARGETS, n_steps=256)
    logits = model(IMAGES, training=False).numpy() - model(np.zeros_like(IMAGES), training=False).numpy()
    difference = logits[np.arange(7), TARGETS]
    assert (np.abs(difference) > 1).any()
    np.testing.assert_allclose(attributions.sum(axis=(1, 2, 3)), difference, atol=0.02 * np.abs(difference).max())
    np.testing.assert_allclose(
        completeness_error(attributions, delta), np.abs(delta) / np.maximum(np.abs(difference), 1), atol=1e-4
    )


def test_completeness_error_by_hand() -> None:
    attributions = np.zeros((3, 2, 2, 1), np.float32)
    attributions[:, 0, 0, 0] = [4.5, 0.5, -9]
    errors = completeness_error(attributions, np.float32([0.5, 0.25, 1]))  # dF = 4, 0.25, -10
    np.testing.assert_allclose(errors, [0.125, 0.25, 0.1], rtol=1e-6)


def test_fixed_steps_do_not_depend_on_the_batch_size(model: keras.Model) -> None:
    results = [integrated_gradients(model, IMAGES, TARGETS, n_steps=11, batch_size=size) for size in (1, 4, 13, 200)]
    for attributions, delta in results[1:]:
        np.testing.assert_allclose(attributions, results[0][0], atol=1e-4)
        np.testing.assert_allclose(delta, results[0][1], atol=1e-4)


def test_adaptive_steps_honor_tolerance_and_max_steps(model: keras.Model) -> None:
    result = attribute(model, IMAGES, TARGETS, tolerance=0.01, max_steps=50)
    errors = completeness_error(result.attributions, result.convergence_delta)
    assert result.n_steps.min() < result.n_steps.max() <= 50
    assert ((errors <= 0.01) | (result.n_steps == 50)).all()
    for image in range(7):  # each stopped at its first success, and is what that many fixed steps give
        fixed = integrated_gradients(
            model, IMAGES[image : image + 1], TARGETS[image : image + 1], n_steps=int(result.n_steps[image])
        )
        np.testing.assert_allclose(result.attributions[image], fixed[0][0], atol=1e-4)
    strict = attribute(model, IMAGES, TARGETS, tolerance=1e-9, max_steps=20)
    assert (strict.n_steps == 20).all()
    assert (attribute(model, IMAGES, TARGETS, tolerance=1e-9, max_steps=3).n_steps == 3).all()


def test_the_nested_rule_reuses_its_evaluations_when_it_doubles(model: keras.Model) -> None:
    result = attribute(model, IMAGES, TARGETS, rule="nested", tolerance=1e-9, max_steps=64)
    fixed = attribute(model, IMAGES, TARGETS, rule="nested", n_steps=64)
    assert (result.n_steps == 64).all()
    np.testing.assert_allclose(result.attributions, fixed.attributions, atol=1e-5)
    np.testing.assert_allclose(result.convergence_delta, fixed.convergence_delta, atol=1e-4)
    loose = attribute(model, IMAGES, TARGETS, rule="nested", tolerance=0.02)
    for image, steps in enumerate(loose.n_steps):
        alone = attribute(model, IMAGES[[image]], TARGETS[[image]], rule="nested", n_steps=int(steps))
        np.testing.assert_allclose(loose.attributions[image], alone.attributions[0], atol=1e-4)


def test_adaptive_results_do_not_depend_on_the_other_images(model: keras.Model) -> None:
    together = attribute(model, IMAGES, TARGETS, tolerance=0.02)
    for chosen in (slice(2, 3), slice(0, 4), slice(None, None, -1)):
        apart = attribute(model, IMAGES[chosen], TARGETS[chosen], tolerance=0.02)
        np.testing.assert_array_equal(apart.n_steps, together.n_steps[chosen])
        np.testing.assert_allclose(apart.attributions, together.attributions[chosen], atol=1e-4)


def test_labels_of_keras_datasets_are_targets(model: keras.Model) -> None:
    """They are uint8 [B,1]."""
    expected, _ = integrated_gradients(model, IMAGES, TARGETS, n_steps=4)
    found, _ = integrated_gradients(model, IMAGES, TARGETS[:, None].astype(np.uint8), n_steps=4)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"an int array \[\d+\]; got <U3 of shape"):
        integrated_gradients(model, IMAGES, ["cat"] * len(IMAGES), n_steps=4)


def test_logits_are_returned(model: keras.Model) -> None:
    result = attribute(model, IMAGES, TARGETS, n_steps=2)
    np.testing.assert_allclose(result.logits, model(IMAGES, training=False).numpy(), atol=1e-4)


def test_no_attribution_where_the_image_equals_the_baseline(model: keras.Model) -> None:
    start = np.full(SHAPE, 0.3, np.float32)
    images = IMAGES.copy()
    images[:, 2:4] = 0.3
    attributions, _ = integrated_gradients(model, images, TARGETS, baseline=start, n_steps=4)
    assert not attributions[:, 2:4].any()
    assert attributions[:, :2].any()
    same, delta = integrated_gradients(model, start[None], [1], baseline=start, n_steps=4)
    assert not same.any() and not delta.any()


def test_no_attribution_to_a_channel_the_model_does_not_read() -> None:
    first = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4, activation="tanh")])
    kernel = first.layers[-1].get_weights()[0].reshape(*SHAPE, 4)
    kernel[..., 1, :] = 0
    first.layers[-1].set_weights([kernel.reshape(-1, 4), np.zeros(4, np.float32)])
    attributions, _ = integrated_gradients(first, IMAGES, TARGETS, n_steps=3)
    assert not attributions[..., 1].any() and attributions[..., 0].all()


def test_memory_is_bounded_and_repeated_calls_do_not_trace_again() -> None:
    recorder = RecordsShape()
    network = curved(recorder)
    models.cached_classifier(network)  # looks once at the outputs of a model, and remembers what it has seen
    recorder._seen.clear()
    for count, steps in ((7, 5), (2, 3), (1, None)):
        integrated_gradients(network, IMAGES[:count], TARGETS[:count], n_steps=steps, batch_size=6)
    assert recorder._seen == [(6, *SHAPE)] * 2  # one trace for the logits, one for the gradient


def test_the_cache_keeps_no_model_alive() -> None:
    network = curved()
    integrated_gradients(network, IMAGES[:1], TARGETS[:1], n_steps=2)
    watcher = weakref.ref(network)
    del network
    keras.backend.clear_session()
    gc.collect()
    assert watcher() is None


def test_a_cached_function_uses_new_weights() -> None:
    network = curved()
    before, _ = integrated_gradients(network, IMAGES, TARGETS, n_steps=4)
    network.layers[-1].kernel.assign(2 * network.layers[-1].kernel)
    after, _ = integrated_gradients(network, IMAGES, TARGETS, n_steps=4)
    np.testing.assert_allclose(after, 2 * before, rtol=1e-3, atol=1e-5)


def test_the_model_runs_in_inference_mode_and_is_not_changed() -> None:
    network = curved()
    network(IMAGES, training=True)  # moving statistics that differ from those of any batch
    before = network.get_weights()
    first, second = (integrated_gradients(network, IMAGES, TARGETS, n_steps=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)  # dropout draws nothing
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_float16_models_are_attributed_in_float32() -> None:
    previous = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        network = curved()
    finally:
        keras.mixed_precision.set_dtype_policy(previous)
    result = attribute(network, IMAGES, TARGETS, n_steps=8)
    assert result.attributions.dtype == result.logits.dtype == np.float32


def test_saliency_map_is_the_sum_of_absolute_values() -> None:
    attributions = np.float32([[[[1, -2, 3], [0, 0, 0]]]])
    np.testing.assert_array_equal(saliency_map(attributions), [[[6, 0]]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": (255 * IMAGES).astype(np.uint8)}, "got uint8"),
        ({"images": 255 * IMAGES}, r"\[0,1\]"),
        ({"images": IMAGES * np.nan}, r"\[0,1\]"),
        ({"images": IMAGES[0]}, r"\[B,H,W,C\]"),
        ({"images": IMAGES[:0], "targets": TARGETS[:0]}, "B > 0"),
        ({"images": np.zeros((7, *SHAPE), int)}, "floats"),
        ({"targets": TARGETS[:3]}, "each of the 7 images"),
        ({"targets": TARGETS.astype(float)}, "float64"),
        ({"targets": TARGETS - 1}, "index of a logit"),
        ({"targets": TARGETS + 1}, "number of logits, 4"),
        ({"rule": "simpson"}, "gauss_legendre"),
        ({"tolerance": 0}, "tolerance must be positive"),
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"n_steps": 2.5}, "n_steps must be an integer, got 2.5"),
        ({"max_steps": 20.5}, "max_steps must be an integer"),
        ({"images": IMAGES[:, :-1]}, "the model takes images"),
        ({"baseline": "mean"}, "mean_color"),
        ({"baseline": "white"}, "black, mean, blur"),
    ],
)
def test_misuse_is_refused(model: keras.Model, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integrated_gradients(model, **{"images": IMAGES, "targets": TARGETS, **changes})


def test_outputs_that_are_not_finite_are_refused() -> None:
    network = curved()
    network.layers[-1].kernel.assign(ops.full(network.layers[-1].kernel.shape, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        integrated_gradients(network, IMAGES, TARGETS)


@pytest.mark.parametrize("cut", [lambda x: ops.cast(ops.cast(255 * x, "uint8"), "float32"), ops.stop_gradient])
def test_a_model_without_gradients_by_its_pixels_is_refused(cut: Any) -> None:
    image = keras.Input(SHAPE)
    network = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(cut(image))))
    with pytest.raises(ValueError, match="no gradient by the pixels"):
        integrated_gradients(network, IMAGES, TARGETS, input_range=(0, 1))


def test_two_outputs_are_refused() -> None:
    image = keras.Input(SHAPE)
    features = keras.layers.Flatten()(image)
    network = keras.Model(image, [keras.layers.Dense(4)(features), keras.layers.Dense(4)(features)])
    with pytest.raises(ValueError, match="one output, got 2"):
        integrated_gradients(network, IMAGES, TARGETS)


def test_outputs_that_are_not_logits_are_refused() -> None:
    network = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match=r"logits \[B,classes\]"):
        integrated_gradients(network, IMAGES, TARGETS)


ON_JAX = """
import sys
import keras
import numpy as np
from tfigkd.attribution import attribute
assert keras.backend.backend() == "jax"
assert "tensorflow" not in sys.modules
model = keras.saving.load_model("model.keras")
inputs = np.load("inputs.npz")
for _ in range(2):
    result = attribute(model, inputs["images"], inputs["targets"], tolerance=0.02, batch_size=16)
np.savez("outputs.npz", **vars(result))
"""


def test_jax_gives_the_same(model: keras.Model, tmp_path: Path) -> None:
    if util.find_spec("jax") is None:
        pytest.skip('NEEDS JAX: install it with "pip install jax"')
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", images=IMAGES, targets=TARGETS)
    on_jax(tmp_path, ON_JAX, fresh=True)
    expected = attribute(model, IMAGES, TARGETS, tolerance=0.02)
    with np.load(tmp_path / "outputs.npz") as outputs:
        np.testing.assert_array_equal(outputs["n_steps"], expected.n_steps)
        for name in ("attributions", "convergence_delta", "logits"):
            np.testing.assert_allclose(outputs[name], getattr(expected, name), atol=1e-3)


@pytest.mark.slow
def test_the_share_of_real_images_within_tolerance_is_what_the_readme_states(cifar10_dir, weights_dir):
    """The README states: all of 256 validation images for ResNet-56 from black; here a sample of them is checked."""
    from tfigkd import models
    from tfigkd.data import load, to_model_input

    examples = load("cifar10", directory=str(cifar10_dir)).validation.take(slice(24))
    teacher = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    models.load_torch_weights(teacher, weights_dir / "resnet56.npz")
    folded = models.fold_batch_norm(teacher)
    result = attribute(folded, to_model_input(examples.images), examples.labels)
    errors = completeness_error(result.attributions, result.convergence_delta)
    assert (errors <= 0.05).mean() >= 23 / 24
    assert result.n_steps.max() <= 128
