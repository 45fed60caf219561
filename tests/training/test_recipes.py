"""Short recipes: schedules, learning rates and decays, Muon, averaged weights, mixup, and exact resume under each."""

import dataclasses

import keras
import numpy as np
import pytest

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.fields import ControlConfig, TeacherConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.losses import KLDivergence
from tfigkd.models import with_precision
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint, fingerprint_values
from tfigkd.training.averaging import recompute_statistics
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training, compile_for
from tfigkd.training.optimizers import Triangular, make_optimizer, with_loss_scale

COUNT, BATCH = 50, 16


@pytest.fixture
def examples():
    images = np.random.default_rng(1).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
    return Examples(ids, images, np.arange(COUNT) % 4, ids)


def network(seed, dropout=0.3):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(scale=False, momentum=0.9, name="bn")(x)
    x = keras.layers.Dropout(dropout)(keras.layers.ReLU()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def train(
    examples, folder, epochs=3, stop_after=None, validation=None, callbacks=(), student=None, teacher=None, **recipe
):
    """Train for `epochs`; with `stop_after` the run breaks in the epoch after that one."""
    config = TrainingConfig(epochs=epochs, batch_size=BATCH, **recipe)
    augment = AugmentConfig(crop_padding=1, flip_order="alternate", crop_border="reflect")
    stream = TrainingBatches(examples, config, augment, seed=3, num_classes=4)
    model = with_precision(student or network(0), config.precision)
    model = Distiller(model, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5}, teacher=teacher or network(9))
    folder.mkdir(exist_ok=True)

    def breaking(epoch):
        for number, (images, targets) in enumerate(stream(epoch)):
            broken = stop_after is not None and number >= 4 * (stop_after - epoch)
            yield (images * np.float32(np.nan) if broken else images), targets

    options = {"examples": COUNT, "config": config, "folder": folder, "tensorboard": folder / "tb", "title": "test"}
    options |= {"validation": validation, "callbacks": callbacks}
    training = Training(model, stream if stop_after is None else breaking, fingerprint="f", **options)
    return model.student, training.run()


TIMES = {"seconds": 0.0, "step_ms": 0.0}
"""In the place of what differs between two trainings."""
DECAY = {"weight_decay": 0.01, "weight_decay_form": "coupled", "bias_factor": 4.0}
RECIPES = {  # each with several states that a checkpoint has to hold
    "sgd": {"optimizer": "sgd", "learning_rate": 0.02, "schedule": "triangular", "lookahead": 5, **DECAY},
    "muon": {"optimizer": "muon", "learning_rate": 0.01, "weight_decay": 0.1, "mixup": 0.4},
    "ema": {"optimizer": "adam", "learning_rate": 0.01, "ema": 0.9},
    "bfloat16": {"learning_rate": 0.01, "precision": "mixed_bfloat16", "ema": 0.9},
    "float16": {"learning_rate": 0.01, "precision": "mixed_float16", "lookahead": 3},
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_resumes_to_the_weights_of_an_uninterrupted_run(name, examples, tmp_path):
    whole, history = train(examples, tmp_path / "whole", **RECIPES[name])
    with pytest.raises(UserError, match="NaN"):
        train(examples, tmp_path / "cut", stop_after=2, **RECIPES[name])
    assert (tmp_path / "cut" / "checkpoint-00002.ckpt").is_file()
    resumed, resumed_history = train(examples, tmp_path / "cut", **RECIPES[name])
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for left, right in zip(history, resumed_history, strict=True):
        assert left | TIMES == right | TIMES


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.4), (23, 2.0), (11.5, 1.2), (61.5, 1.07), (100, 0.14), (200, 0.14)]
)
def test_the_triangular_schedule(step, expected):
    np.testing.assert_allclose(float(Triangular(2.0, 100)(step)), expected, rtol=1e-5)


def test_the_triangular_schedule_of_a_recipe_spans_all_its_steps():
    config = TrainingConfig(
        epochs=10, learning_rate=1.0, schedule="triangular", schedule_start=0.0, schedule_peak=0.5, schedule_end=0.0
    )
    optimizer = make_optimizer(config, steps_per_epoch=10)
    optimizer.build([keras.Variable(np.zeros(1, np.float32))])
    for step, expected in ((25, 0.5), (50, 1.0), (75, 0.5)):
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(float(optimizer.learning_rate), expected, atol=1e-6)


def variables():
    """A convolution and a normalization, with what they learn."""
    conv, norm = keras.layers.Conv2D(3, 1), keras.layers.BatchNormalization()
    conv.build((None, 4, 4, 2))
    norm.build((None, 4, 4, 3))
    for variable in (conv.bias, norm.beta):
        variable.assign(np.ones(variable.shape))
    return conv.kernel, conv.bias, norm.gamma, norm.beta


def test_coupled_decay_is_part_of_the_gradient_of_every_weight():
    config = TrainingConfig(
        optimizer="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.5, weight_decay_form="coupled", bias_factor=4.0
    )
    kernel, bias, gamma, beta = known = variables()
    optimizer = make_optimizer(config, 10)
    optimizer.build([*known])
    before = [np.asarray(variable) for variable in known]
    optimizer.apply([keras.ops.ones_like(variable) for variable in known])
    for variable, old in zip((kernel, bias, gamma), before, strict=False):
        np.testing.assert_allclose(np.asarray(variable), old - 0.1 * (1 + 0.5 * old), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(beta), 1 - 0.4 * (1 + 0.125 * 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_the_bias_factor_is_for_biases_of_normalization_alone(name):
    moved = []
    for factor in (1.0, 64.0):
        known = variables()
        before = [np.asarray(variable) for variable in known]
        optimizer = make_optimizer(TrainingConfig(optimizer=name, bias_factor=factor), 10)
        optimizer.build([*known])
        optimizer.apply([keras.ops.ones_like(variable) for variable in known])
        moved.append([np.asarray(variable) - old for variable, old in zip(known, before, strict=True)])
    *same, (slow, fast) = zip(*moved, strict=True)
    np.testing.assert_allclose(fast, 64 * slow, rtol=1e-2)
    if name != "muon":  # kernels are drawn anew, and their update depends on nothing else there
        for one, other in same:
            np.testing.assert_allclose(one, other, rtol=1e-3)


def test_muon_makes_the_update_of_a_kernel_nearly_orthogonal_and_spares_the_head():
    config = TrainingConfig(optimizer="muon", learning_rate=0.1)
    optimizer = make_optimizer(config, 10, head=["logits"])
    conv, head = keras.layers.Conv2D(8, 3), keras.layers.Dense(4, name="logits")
    depthwise = keras.layers.DepthwiseConv2D(3)
    conv.build((None, 4, 4, 4)), head.build((None, 8)), depthwise.build((None, 4, 4, 4))
    known = [conv.kernel, conv.bias, head.kernel, depthwise.kernel]
    optimizer.build(known)
    assert [velocity is not None for velocity in optimizer.adam_velocities] == [False, True, True, True]
    before = np.asarray(conv.kernel)
    optimizer.apply(
        [keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=v.shape), "float32") for v in known]
    )
    update = (np.asarray(conv.kernel) - before).reshape(36, 8) / (0.1 * 0.2 * 36**0.5)
    values = np.linalg.svd(update, compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


class Recorder(keras.callbacks.Callback):
    """The raw weights after each step, and the statistics."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def on_train_batch_end(self, batch, logs=None):
        self.kernels.append(np.asarray(self.model.student.get_layer("conv").kernel))


def test_the_average_is_that_computed_by_hand(examples, tmp_path):
    recorder = Recorder()
    student, _ = train(examples, tmp_path, epochs=2, callbacks=[recorder], optimizer="sgd", learning_rate=0.1, ema=0.5)
    assert len(recorder.kernels) == 8
    average = recorder.kernels[0]
    for step, kernel in enumerate(recorder.kernels[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * kernel
    np.testing.assert_allclose(np.asarray(student.get_layer("conv").kernel), average, rtol=1e-4, atol=1e-6)


def test_lookahead_sets_the_weights_to_their_slow_average(examples, tmp_path):
    recorder = Recorder()
    recipe = {"optimizer": "sgd", "learning_rate": 0.1, "lookahead": 4, "lookahead_decay": 0.9}
    student, _ = train(examples, tmp_path, epochs=2, callbacks=[recorder], **recipe)
    slow = recorder.kernels[0]
    plain = Recorder()
    train(examples, tmp_path / "plain", epochs=2, callbacks=[plain], **recipe | {"lookahead": 0})
    for kernel, same in zip(recorder.kernels[:3], plain.kernels[:3], strict=True):
        np.testing.assert_allclose(kernel, same, rtol=1e-5, atol=1e-6)
    decay = 0.9**4 * (4 / 8) ** 3
    np.testing.assert_allclose(recorder.kernels[3], decay * slow + (1 - decay) * plain.kernels[3], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(student.get_layer("conv").kernel), recorder.kernels[7])


def test_statistics_are_those_of_the_weights_that_are_the_result(examples):
    model = network(0)
    images = examples.images.astype(np.float32) / 255
    model.get_layer("conv").kernel.assign(3 + model.get_layer("conv").kernel)
    state = [np.asarray(variable) for variable in model.variables if "seed" in variable.path]
    recompute_statistics(model, [images[:25], images[25:]])
    outputs = np.asarray(model.get_layer("conv")(images)).reshape(-1, 4)
    layer = model.get_layer("bn")
    np.testing.assert_allclose(np.asarray(layer.moving_mean), outputs.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(layer.moving_variance), outputs.var(axis=0), rtol=1e-3)
    assert layer.momentum == 0.9
    for before, variable in zip(state, (v for v in model.variables if "seed" in v.path), strict=True):
        np.testing.assert_array_equal(before, np.asarray(variable))


@pytest.mark.parametrize("recipe", [{"ema": 0.99}, {"lookahead": 5}])
def test_what_is_validated_is_the_result_and_the_training_is_left_alone(recipe, examples, tmp_path):
    """At a decay of 0.99 Keras's own average would still be near the initial weights."""
    rng = np.random.default_rng(2)
    images = (examples.images // 2 + (examples.labels == 1)[:, None, None, None] * 120).astype(np.uint8)
    examples = dataclasses.replace(examples, images=images)
    teacher = network(9)
    teacher.get_layer("logits").kernel.assign(rng.normal(size=(4, 4)))
    options = {"epochs": 6, "optimizer": "sgd", "learning_rate": 0.1, "teacher": teacher, **recipe}
    student, history = train(examples, tmp_path / "watched", validation=examples, **options)
    logits = np.asarray(student(images.astype(np.float32) / 255, training=False))
    np.testing.assert_allclose(history[-1]["val_accuracy"], np.mean(logits.argmax(axis=1) == examples.labels))
    alone, unwatched = train(examples, tmp_path / "alone", **options)
    for a, b in zip(student.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [epoch["loss"] for epoch in history] == [epoch["loss"] for epoch in unwatched]


def test_the_loss_scale_of_float16_is_at_work(examples, tmp_path):
    model = Distiller(with_precision(network(0), "mixed_float16"))
    compile_for(model, TrainingConfig(precision="mixed_float16", ema=0.9), 4)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    _, history = train(examples, tmp_path, learning_rate=0.01, precision="mixed_float16")
    _, reference = train(examples, tmp_path / "plain", learning_rate=0.01)
    np.testing.assert_allclose([e["loss"] for e in history], [e["loss"] for e in reference], rtol=0.05)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_long_gradient_is_shortened_to_its_norm(precision):
    config = TrainingConfig(optimizer="sgd", momentum=0.0, learning_rate=1.0, clip_norm=0.5, precision=precision)
    weights = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros((1, 1), np.float32))]
    optimizer = with_loss_scale(make_optimizer(config, 10), with_precision(network(0), precision))
    optimizer.build(weights)
    scale = float(optimizer.dynamic_scale) if precision == "mixed_float16" else 1.0
    long, short = ([2.0, 1.0], [[2.0]]), ([0.1, 0.0], [[0.2]])
    for gradients, factor in ((long, 0.5 / 3), (short, 1.0)):  # norms 3 and 0.22
        before = [np.array(weight) for weight in weights]
        optimizer.apply([keras.ops.array(np.float32(gradient) * scale) for gradient in gradients])
        for old, weight, gradient in zip(before, weights, gradients, strict=True):
            np.testing.assert_allclose(old - np.array(weight), factor * np.array(gradient), rtol=1e-5)


def batches(examples, padding=1, mixup=0.0, cutmix=0.0, **options):
    recipe = TrainingConfig(batch_size=BATCH, mixup=mixup, cutmix=cutmix)
    stream = TrainingBatches(examples, recipe, AugmentConfig(padding), seed=3, num_classes=4, **options)
    return [batch for batch, _ in zip(stream(0), range(4), strict=False)]


def test_mixup_mixes_images_and_labels_by_the_same_share(examples):
    for (plain, targets), (mixed, mixed_targets) in zip(batches(examples), batches(examples, mixup=1.0), strict=True):
        hot = np.eye(4)[targets["label"]]
        probabilities = mixed_targets["label_probabilities"]
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        for i, partner in enumerate(reversed(range(len(plain)))):
            difference = (plain[i] - plain[partner]).ravel()
            share = (
                1.0 if i == partner else ((mixed[i] - plain[partner]).ravel() @ difference) / (difference @ difference)
            )
            np.testing.assert_allclose(mixed[i], share * plain[i] + (1 - share) * plain[partner], atol=1e-5)
            np.testing.assert_allclose(probabilities[i], share * hot[i] + (1 - share) * hot[partner], atol=1e-5)
            own = share >= 0.5
            assert mixed_targets["label"][i] == targets["label"][i if own else partner]


def test_cutmix_pastes_a_box_of_the_partner_and_labels_by_its_area(examples):
    boxes = 0
    pairs = zip(batches(examples, padding=0), batches(examples, padding=0, cutmix=1.0), strict=True)
    for (plain, targets), (mixed, mixed_targets) in pairs:
        hot = np.eye(4)[targets["label"]]
        for i, partner in enumerate(reversed(range(len(plain)))):
            own = (mixed[i] == plain[i]).all(axis=-1)
            pasted = (mixed[i] == plain[partner]).all(axis=-1)
            assert (own | pasted).all()
            if i != partner and not own.all():
                rows, columns = np.nonzero(~own)
                assert (~own).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one rectangle
                boxes += 1
            share = 1.0 if i == partner else own.mean()
            expected = share * hot[i] + (1 - share) * hot[partner]
            np.testing.assert_allclose(mixed_targets["label_probabilities"][i], expected, atol=1e-6)
    assert boxes > 20


def test_with_mixup_and_cutmix_each_image_has_one_of_the_two(examples):
    pasted = blended = 0
    both = batches(examples, padding=0, mixup=1.0, cutmix=1.0)
    for (plain, _), (mixed, _) in zip(batches(examples, padding=0), both, strict=True):
        for i, partner in enumerate(reversed(range(len(plain)))):
            own = (mixed[i] == plain[i]).all(axis=-1)
            if i == partner:
                continue
            if own.any() or (mixed[i] == plain[partner]).all(axis=-1).any():
                pasted += 1
                assert (own | (mixed[i] == plain[partner]).all(axis=-1)).all()
            else:
                blended += 1
    assert min(pasted, blended) > 10


@pytest.mark.parametrize("mixing", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_the_teacher_sees_the_very_same_mixed_image(examples, mixing):
    seen = []

    class Spy(keras.layers.Layer):
        def compute_output_shape(self, input_shape):
            return input_shape

        def call(self, inputs):
            seen.append(inputs)
            return inputs

    inputs = keras.Input((6, 6, 3))
    teacher = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(Spy()(inputs))))
    model = Distiller(network(0), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5}, teacher=teacher)
    for images, targets in batches(examples, **mixing, wanted={"teacher_inputs"}):
        seen.clear()
        model.compute_terms(images, targets, training=True)
        np.testing.assert_array_equal(np.asarray(seen[-1]), images)
    logits = keras.ops.log_softmax(model.student(images, training=False))
    hard = float(model.compute_terms(images, targets, training=False)[0]["hard_loss"])
    np.testing.assert_allclose(hard, -np.mean(np.sum(targets["label_probabilities"] * logits, axis=1)), rtol=1e-4)


def test_a_placebo_teacher_sees_a_mixture_of_other_images(examples):
    (own, _), *_ = batches(examples, mixup=1.0, wanted={"teacher_inputs"})
    placebo = {"view": ViewConfig("live"), "control": ControlConfig(logits="shuffled")}
    (images, targets), *_ = batches(examples, mixup=1.0, wanted={"teacher_inputs"}, **placebo)
    np.testing.assert_array_equal(own, images)
    np.testing.assert_array_equal(targets["teacher_inputs"], np.roll(images, 1, axis=0))


def test_new_fields_at_their_default_leave_fingerprints_as_they_were():
    values = fingerprint_values(TrainingConfig())
    assert {*values} == {
        "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "warmup_epochs",
        "label_smoothing", "ema",
    }  # fmt: skip
    assert {*fingerprint_values(AugmentConfig())} == {"crop_padding", "flip"}
    assert not {"widths", "stem_stride"} & {*fingerprint_values(TeacherConfig())}
    assert fingerprint(TrainingConfig()) == "61e7290d09b920fb"
    assert fingerprint(TrainingConfig(precision="mixed_bfloat16")) != fingerprint(TrainingConfig())
    assert fingerprint_values(TrainingConfig(ema=0.9))["ema"] == [0.9, 2]  # the average of before was another one


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"schedule": "triangular", "warmup_epochs": 1}, "warmup_epochs"),
        ({"ema": 0.9, "lookahead": 5}, "lookahead"),
        ({"weight_decay_form": "coupled"}, "weight_decay_form"),
        ({"schedule_peak": 1.5}, "schedule_peak"),
        ({"bias_factor": 0.0}, "bias_factor"),
        ({"mixup": -1.0}, "mixup"),
        ({"cutmix": -1.0}, "cutmix"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": 1.0, "dot": 0.05, "optimizer": "sgd"}, "clip_norm"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe, named):
    with pytest.raises(UserError, match=named):
        TrainingConfig(**recipe)
