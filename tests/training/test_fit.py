"""Recipes, exact resume from checkpoints (dropout included), damaged checkpoints, and NaN."""

import itertools

import keras
import numpy as np
import pytest

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.losses import KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.training import checkpoint
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training, make_optimizer
from tfigkd.training.inputs import ValidationBatches, training_input, validation_input

RNG = np.random.default_rng(0)
COUNT = 50
TIMES = {"seconds": 0.0, "step_ms": 0.0}
"""In the place of what differs between two trainings."""


def noise(side):
    """Return examples of four classes."""
    images = np.random.default_rng(1).integers(0, 256, (COUNT, side, side, 3), dtype=np.uint8)
    ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
    return Examples(ids, images, np.arange(COUNT) % 4, ids)


@pytest.fixture(scope="module")
def examples():
    return noise(6)


def knowledge_of(examples):
    """Return what a teacher knows that tells each image by its pixels: the map is the image's red channel."""
    return Knowledge(
        logits=examples.images[:, 0, :2, :2].reshape(COUNT, 4).astype(np.float32) / 255,
        maps=examples.images[..., 0].copy(),
        scales=np.ones(COUNT, np.float32),
        errors=np.zeros(COUNT, np.float32),
        usable=np.ones(COUNT, bool),
    )


@pytest.fixture
def knowledge(examples):
    return knowledge_of(examples)


def network(seed, dropout=0.3):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def train(examples, knowledge, folder, epochs, stop_after=None, **recipe):
    """Train for `epochs` of 4 steps; with `stop_after` the run breaks after so many of them, such as 2.5."""
    config = TrainingConfig(epochs=epochs, batch_size=16, schedule="cosine", warmup_epochs=1, **recipe)
    options = {"targets": TeacherTargets(knowledge), "overlay": OverlayConfig(probability=0.5)}
    stream = TrainingBatches(examples, config, AugmentConfig(crop_padding=1), seed=3, **options)
    model = Distiller(network(0), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    folder.mkdir(exist_ok=True)

    def breaking(epoch, skip=0):
        for number, (images, targets) in enumerate(stream(epoch, skip=skip), skip):
            broken = stop_after is not None and number >= 4 * (stop_after - epoch)
            yield (images * np.float32(np.nan) if broken else images), targets

    options = {"examples": COUNT, "config": config, "folder": folder, "tensorboard": folder / "tb", "title": "test"}
    history = Training(model, breaking, fingerprint="f", **options).run()
    return model.student.get_weights(), history


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(uncut, examples, knowledge, tmp_path):
    whole, history = uncut["plain"]
    with pytest.raises(UserError, match="epoch 3"):
        train(examples, knowledge, tmp_path / "cut", 4, stop_after=2)
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.ckpt")) == [
        "checkpoint-00001.ckpt",
        "checkpoint-00002.ckpt",
    ]
    resumed, again = train(examples, knowledge, tmp_path / "cut", 4)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    for left, right in zip(history, again, strict=True):
        assert left | TIMES == right | TIMES


RECIPES = {"plain": {}, "ema": {"ema": 0.9}, "lookahead": {"lookahead": 3}}


@pytest.fixture(scope="module")
def uncut(examples, tmp_path_factory):
    """Return weights and history of four epochs of each recipe, without a break."""
    folder, knowledge = tmp_path_factory.mktemp("uncut"), knowledge_of(examples)
    return {name: train(examples, knowledge, folder / name, 4, **recipe) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stop", [0.75, 2.5, 3.75])
def test_a_run_goes_on_within_an_epoch(uncut, examples, knowledge, tmp_path, stop, name, capsys):
    """Cut after step 3 of 16, 10 and 15, with a checkpoint every other step."""
    whole, history = uncut[name]
    recipe = {**RECIPES[name], "checkpoint_steps": 2}
    epoch, within = divmod(int(4 * stop), 4)
    step = within - within % 2
    with pytest.raises(UserError, match=f"checkpoint of step {step} of epoch {epoch + 1} is kept"):
        train(examples, knowledge, tmp_path / "cut", 4, stop_after=stop, **recipe)
    assert (tmp_path / "cut" / f"checkpoint-{epoch:05d}-{step:07d}.ckpt").is_file()
    resumed, again = train(examples, knowledge, tmp_path / "cut", 4, **recipe)
    assert f"going on after epoch {epoch} of 4 and step {step} of 4" in capsys.readouterr().out
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(again) == 4
    for left, right in zip(history, again, strict=True):
        assert left | TIMES == pytest.approx(right | TIMES, rel=1e-5)


def test_a_run_that_is_cut_twice_in_one_epoch(examples, knowledge, tmp_path):
    whole, history = train(examples, knowledge, tmp_path / "whole", 2)
    for stop in (1.25, 1.75):
        with pytest.raises(UserError, match=f"checkpoint of step {int(4 * stop) - 4} of epoch 2 is kept"):
            train(examples, knowledge, tmp_path / "cut", 2, stop_after=stop, checkpoint_steps=1)
    resumed, again = train(examples, knowledge, tmp_path / "cut", 2, checkpoint_steps=1)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again[1] | TIMES == pytest.approx(history[1] | TIMES, rel=1e-5)


def test_checkpoints_and_threads_are_no_part_of_what_a_run_is():
    plain = TrainingConfig()
    assert fingerprint(plain) == fingerprint(TrainingConfig(checkpoint_steps=5, batch_threads=3))
    assert fingerprint(plain) != fingerprint(TrainingConfig(epochs=5))
    for name in ("checkpoint_steps", "batch_threads"):
        with pytest.raises(UserError, match=f"{name} must be positive"):
            TrainingConfig(**{name: 0})


def test_a_damaged_checkpoint_costs_an_epoch_and_not_the_run(examples, knowledge, tmp_path, capsys):
    whole, _ = train(examples, knowledge, tmp_path / "whole", 3)
    newest = tmp_path / "whole" / "checkpoint-00003.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    again, history = train(examples, knowledge, tmp_path / "whole", 3)
    assert "is damaged" in capsys.readouterr().out
    assert len(history) == 3
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_other_settings_is_refused(examples, knowledge, tmp_path):
    train(examples, knowledge, tmp_path, 1)
    model = Distiller(network(0), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    model.compile(make_optimizer(TrainingConfig(schedule="cosine"), 4), jit_compile=False)
    with pytest.raises(UserError, match="other settings"):
        checkpoint.restore(tmp_path, model, "another")


def test_nan_stops_the_run_names_the_term_and_keeps_the_last_good_checkpoint(examples, knowledge, tmp_path):
    train(examples, knowledge, tmp_path, 2)
    knowledge.logits[7] = np.nan
    with pytest.raises(UserError, match="kd_loss"):
        train(examples, knowledge, tmp_path, 3)
    assert (tmp_path / "checkpoint-00002.ckpt").is_file()
    assert not (tmp_path / "checkpoint-00003.ckpt").exists()


def test_batches_are_a_function_of_seed_and_epoch(examples):
    stream = TrainingBatches(examples, TrainingConfig(batch_size=16), AugmentConfig(2), seed=0)
    first = list(itertools.islice(stream(0), 8))
    second = list(itertools.islice(stream(1), 4))
    for (images, targets), (again, targets_again) in zip(first[4:], second, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(targets["label"], targets_again["label"])
    other = next(TrainingBatches(examples, TrainingConfig(batch_size=16), AugmentConfig(2), seed=1)(0))
    assert (first[0][1]["label"] != other[1]["label"]).any()
    sizes = [len(images) for images, _ in first[:4]]
    assert sizes == [13, 13, 12, 12]  # as three of 16 would leave a last one of 2


def test_map_logits_and_label_in_a_batch_are_those_of_its_image(examples, knowledge):
    """After shuffle, crop and flip, the overlay must be the moved image's own map."""
    config = OverlayConfig(probability=1.0, min_exponent=1.0, max_exponent=1.0)
    given = examples, TrainingConfig(batch_size=16), AugmentConfig(2)
    plain = TrainingBatches(*given, seed=5)(0)
    laid = TrainingBatches(*given, seed=5, targets=TeacherTargets(knowledge), overlay=config)(0)
    found = 0
    for (image, _), (overlaid, targets) in itertools.islice(zip(plain, laid, strict=True), 4):
        red = image[..., :1]
        low, high = red.min(axis=(1, 2), keepdims=True), red.max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(overlaid, 0.5 * image + 0.5 * (red - low) / (high - low), atol=1e-6)
        for logits, label in zip(targets["teacher_logits"], targets["label"], strict=True):
            own = np.flatnonzero((knowledge.logits == logits).all(axis=1))
            assert examples.labels[own[0]] == label
            found += 1
    assert found == COUNT


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [
        ({"schedule": "constant"}, 100, 1.0),
        ({"schedule": "constant", "warmup_epochs": 1}, 5, 0.5),
        ({"schedule": "constant", "warmup_epochs": 1}, 80, 1.0),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine", "warmup_epochs": 1}, 10, 1.0),
        ({"schedule": "cosine", "warmup_epochs": 1}, 100, 0.0),
    ],
)
def test_schedules(recipe, step, expected):
    optimizer = make_optimizer(TrainingConfig(epochs=10, learning_rate=1.0, **recipe), steps_per_epoch=10)
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer.build([variable])
    optimizer.iterations.assign(step)
    np.testing.assert_allclose(float(optimizer.learning_rate), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_spares_biases_and_normalization(name):
    optimizer = make_optimizer(TrainingConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5), 10)
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    layer.bias.assign(np.ones(3))
    before = layer.kernel.numpy()
    optimizer.build(layer.trainable_variables)
    optimizer.apply([keras.ops.zeros_like(v) for v in layer.trainable_variables])
    np.testing.assert_allclose(layer.kernel.numpy(), before * (1 - 0.1 * 0.5), rtol=1e-5)
    np.testing.assert_array_equal(layer.bias.numpy(), np.ones(3))


def test_weight_decay_goes_by_the_variable_and_not_by_its_layers_name():
    """Keras itself spares the kernel of a layer that is named beta_head, as "beta" stands in its path."""
    optimizer = make_optimizer(TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.5), 10)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="beta_head"), keras.layers.Dense(3)])
    before = [kernel.numpy() for kernel in model.trainable_variables[::2]]
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables])
    for kernel, old in zip(model.trainable_variables[::2], before, strict=True):
        np.testing.assert_allclose(kernel.numpy(), old * (1 - 0.1 * 0.5), rtol=1e-5)


def test_the_moving_average_is_the_result_and_survives_a_stop(examples, knowledge, tmp_path):
    recipe = {"optimizer": "sgd", "learning_rate": 0.05, "ema": 0.9}
    averaged, history = train(examples, knowledge, tmp_path / "whole", 3, **recipe)
    plain, _ = train(examples, knowledge, tmp_path / "plain", 3, **recipe | {"ema": None})
    assert any((a != b).any() for a, b in zip(averaged, plain, strict=True))
    with pytest.raises(UserError, match="epoch 3"):
        train(examples, knowledge, tmp_path / "cut", 3, stop_after=2, **recipe)
    resumed, _ = train(examples, knowledge, tmp_path / "cut", 3, **recipe)
    late, again = train(examples, knowledge, tmp_path / "whole", 3, **recipe)  # all epochs done, nothing written yet
    assert again == history
    for a, b, c in zip(averaged, resumed, late, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize(("devices", "sizes"), [(1, [256, 256, 188]), (3, [255, 255, 189]), (300, [300, 300])])
def test_validation_is_shared_evenly_by_any_number_of_devices(devices, sizes):
    ids = np.arange(700).astype("U16")
    many = Examples(ids, np.zeros((700, 2, 2, 3), np.uint8), np.zeros(700, np.int64), ids)
    assert [len(labels) for _, labels in ValidationBatches(many, devices, (0, 1))] == sizes


def test_no_iterator_of_a_training_waits_for_autotuning(examples):
    """Its thread sleeps for longer and longer, and with it whoever ends the iterator: after each validation."""
    stream = TrainingBatches(examples, TrainingConfig(batch_size=8), AugmentConfig(), seed=0)
    batches, held_out = training_input(stream, 1), validation_input(examples, 1, (0, 1))
    assert not batches.options().autotune.enabled and not held_out.options().autotune.enabled
    for (images, targets), (expected, labels) in zip(batches.take(2), stream(1), strict=False):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(targets["label"], labels["label"])
    (whole,) = held_out
    assert len(held_out) == 1 and len(whole[1]) == COUNT
