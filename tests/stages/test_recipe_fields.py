"""Every field of a recipe changes training as its text says, through the stages: compared with steps done by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfigkd.config.experiment import override, read_experiment
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data import to_model_input
from tfigkd.stages import distill, teacher
from tfigkd.stages.data import dataset
from tfigkd.stages.workdir import TEACHER_FILE, Workdir
from tfigkd.training import fit

COUNT, BATCH = 48, 24  # images, and images a step
NETWORK = {"model": "convnet", "drop_blocks": 0, "width": 1.0, "widths": (4,), "depth": 1, "normalization": "none"}
PLAIN = {
    "data.limit": COUNT,
    "losses.kd.weight": 0.0,
    "overlay.probability": 0.0,
    **{f"{role}.{name}": value for role in ("teacher", "student") for name, value in NETWORK.items()},
    "tensorboard.pictures": 0,
}
UNSET = {
    "batch_size": BATCH,
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 0.2,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
}
ELSEWHERE = ("epochs", "batch_size", "class_weight", "mixup", "precision")
TABLES = {"teacher": "teacher.training", "student": "training"}
LEARNED = ("block_01_conv1/kernel", "block_01_bn1/beta", "logits/kernel")
CLASS_WEIGHT = {"0": 4.0, "3": 0.0, "7": 2.5}

RECIPES = {
    "sgd": {
        "epochs": 3,
        "learning_rate": 0.3,
        "momentum": 0.85,
        "weight_decay": 0.4,
        "weight_decay_form": "coupled",
        "bias_factor": 16.0,
        "schedule": "triangular",
        "schedule_start": 0.4,
        "schedule_peak": 0.35,
        "schedule_end": 0.3,
        "label_smoothing": 0.2,
        "hard_weight": 0.7,
        "class_weight": CLASS_WEIGHT,
        "lookahead": 2,
        "lookahead_decay": 0.8,
    },
    "adamw": {
        "epochs": 3,
        "optimizer": "adamw",
        "learning_rate": 0.02,
        "weight_decay": 2.0,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "ema": 0.4,
        "mixup": 1.0,
        "class_weight": "balanced",
    },
    "muon": {"epochs": 2, "optimizer": "muon", "learning_rate": 0.05, "momentum": 0.8, "weight_decay": 1.0},
    "decoupled": {"epochs": 2, "weight_decay": 0.8, "batch_size": 16},
    "bfloat16": {"epochs": 1, "precision": "mixed_bfloat16"},
}
TRAININGS = [(side, name) for side in TABLES for name in ("sgd", "adamw")]
TRAININGS += [("teacher", "muon"), ("teacher", "decoupled")]  # the optimizers are the same for both sides
AUGMENT = {
    "sgd": {"crop_padding": 2, "crop_border": "reflect", "flip": True, "flip_order": "alternate"},
    "adamw": {"crop_padding": 1, "flip": False},
    "bfloat16": {"crop_padding": 0, "flip": True},
}


class Training:
    """What one training through a stage was given, and what it left.

    Attributes:
        before: Variable to value before the first step.
        batches: Those of all epochs.
        after: Variable to value in the file that the stage wrote.
        history: Of the epochs.
        layers: Name to layer of the network that was trained.
        model: The file, opened by plain Keras.
    """

    def __init__(self, side, name, folder, monkeypatch):
        table = TABLES[side]
        recipe = UNSET | RECIPES[name]
        changes = PLAIN | {f"{table}.{field}": value for field, value in recipe.items()}
        changes |= {f"augment.{field}": value for field, value in AUGMENT.get(name, {}).items()}
        config = override(read_experiment("quickstart")[1], changes)
        self.data = dataset(config.data)
        workdir, run = Workdir(folder / "run", folder / "teachers", seed=3), fit.Training.run
        steps = -(-len(self.data.train) // recipe["batch_size"])

        def spied(training):
            model, endless = training.model, training.stream(0)
            self.batches = [next(endless) for _ in range(steps * recipe["epochs"])]
            self.before = values(model.student)
            self.layers = {layer.name: layer for layer in model.student.layers}
            self.history = run(training)
            return self.history

        monkeypatch.setattr(fit.Training, "run", spied)
        if side == "teacher":
            teacher.train_teacher(config, workdir)
            path = teacher.teacher_folder(config, workdir) / TEACHER_FILE
        else:
            distill.distill(config, workdir)
            path = workdir.student
        self.model = keras.saving.load_model(path, compile=False)
        self.after = values(self.model)
        clone = keras.models.clone_model(self.model)
        clone.set_weights(self.model.get_weights())  # the whitening stays as it is
        self.gradients = gradients_of(clone)


def values(model):
    return {f"{layer.name}/{v.name}": np.array(v) for layer in model.layers for v in layer.weights}


def one_hot(labels, classes=10):
    return np.eye(classes)[labels]


def gradients_of(model):
    """Return a function to the gradients of the weighted cross-entropy of a model in training mode, by variable."""
    known = {f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.trainable_weights}

    @tf.function(reduce_retracing=True, jit_compile=False)
    def compute(images, probabilities, weights):
        with tf.GradientTape() as tape:
            logs = tf.nn.log_softmax(model(images, training=True))
            loss = tf.reduce_mean(-weights * tf.reduce_sum(probabilities * logs, axis=1))
        return tape.gradient(loss, [variable.value for variable in known.values()])

    def gradients(weights, batch, recipe):
        images, targets, *sample = batch
        for name, variable in known.items():
            variable.assign(weights[name])
        smooth = recipe.label_smoothing
        probabilities = targets.get("label_probabilities", one_hot(targets["label"]))
        probabilities = (1 - smooth) * probabilities + smooth / 10
        sample = np.asarray(sample[0] if sample else np.ones(len(images)), np.float64)
        sample = sample * (1.0 if recipe.hard_weight is None else recipe.hard_weight)
        arrays = [tf.constant(array, tf.float32) for array in (images, probabilities, sample)]
        return {name: np.array(one, np.float64) for name, one in zip(known, compute(*arrays), strict=True)}

    return gradients


def rate_of(recipe, step, steps):
    """Return the learning rate of a step, from 0, out of all steps."""
    peak, warm = recipe.learning_rate, recipe.warmup_epochs * steps / recipe.epochs
    if recipe.schedule == "triangular":
        shares = [recipe.schedule_start, 1.0, recipe.schedule_end]
        return peak * np.interp(step / steps, [0.0, recipe.schedule_peak, 1.0], shares)
    if step < warm:
        return peak * step / warm
    if recipe.schedule == "cosine":
        return peak * (1 + np.cos(np.pi * (step - warm) / (steps - warm))) / 2
    return peak


def orthogonal(matrix):
    """Return a matrix with its singular values replaced as by five steps of Jordan's Newton-Schulz iteration."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    singular = singular / np.linalg.norm(singular)
    for _ in range(5):
        singular = 3.4445 * singular - 4.775 * singular**3 + 2.0315 * singular**5
    return left @ np.diag(singular) @ right


def by_hand(training, recipe):
    """Return the weights after all steps of a recipe, as its fields' texts say."""
    weights = {name: value.astype(np.float64) for name, value in training.before.items()}
    first, second, average = {}, {}, {}
    steps = len(training.batches)
    for step, batch in enumerate(training.batches):
        rate = rate_of(recipe, step, steps)
        for name, gradient in training.gradients(weights, batch, recipe).items():
            own = rate * (recipe.bias_factor if name.endswith("beta") else 1.0)
            decay = 0.0 if name.endswith(("beta", "gamma", "bias")) else recipe.weight_decay
            if recipe.weight_decay_form == "coupled":
                decay = 0.0
                factor = recipe.bias_factor if name.endswith("beta") else 1.0
                gradient = gradient + recipe.weight_decay / factor * weights[name]
            start = weights[name] * (1 - rate * decay)
            m, v = first.get(name, 0.0), second.get(name, 0.0)
            if recipe.optimizer == "sgd":
                first[name] = m = recipe.momentum * m - own * gradient
                ahead = recipe.momentum * m - own * gradient if recipe.momentum else m
                weights[name] = start + ahead
            elif recipe.optimizer == "muon" and gradient.ndim == 4:
                first[name] = m = recipe.momentum * m + gradient
                matrix = (gradient + recipe.momentum * m).reshape(-1, gradient.shape[-1])
                scale = own * 0.2 * max(matrix.shape) ** 0.5
                weights[name] = start - scale * orthogonal(matrix).reshape(gradient.shape)
            else:
                first[name], second[name] = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                own *= (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
                weights[name] = start - own * first[name] / (second[name] ** 0.5 + 1e-7)
            if recipe.ema:
                keep = 0.0 if step == 0 else min(recipe.ema, (1 + step) / (10 + step))
                average[name] = keep * average.get(name, 0.0) + (1 - keep) * weights[name]
            if recipe.lookahead and step == 0:
                average[name] = weights[name]
            elif recipe.lookahead and (step + 1) % recipe.lookahead == 0:
                keep = recipe.lookahead_decay**recipe.lookahead * ((step + 1) / steps) ** 3
                average[name] = weights[name] = keep * average[name] + (1 - keep) * weights[name]
    return weights | average


def largest_difference(one, other):
    """Return the largest difference of two sets of weights, as a share of the largest of each variable."""
    return max(np.abs(one[name] - other[name]).max() / np.abs(other[name]).max() for name in LEARNED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training for each side and recipe, done once."""
    found = {}

    def of(side, name):
        if (side, name) not in found:
            with pytest.MonkeyPatch.context() as patch:
                found[side, name] = Training(side, name, tmp_path_factory.mktemp(name), patch)
        return found[side, name]

    return of


def whole(name):
    return TrainingConfig(**UNSET | RECIPES[name])


@pytest.mark.parametrize(("side", "name"), TRAININGS)
def test_the_result_of_a_stage_is_that_of_its_recipe_by_hand(side, name, trained):
    training, recipe = trained(side, name), whole(name)
    assert {len(images) for images, *_ in training.batches} == {recipe.batch_size}
    steps = len(training.batches)
    rates = [rate_of(recipe, steps * (epoch + 1) / recipe.epochs, steps) for epoch in range(recipe.epochs)]
    np.testing.assert_allclose([epoch["learning_rate"] for epoch in training.history], rates, rtol=1e-5, atol=1e-9)
    expected = by_hand(training, recipe)
    for variable in LEARNED:
        size = np.abs(expected[variable]).max()
        np.testing.assert_allclose(training.after[variable], expected[variable], atol=2e-3 * size, err_msg=variable)


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, recipe in RECIPES.items() for field in recipe if field not in ELSEWHERE],
)
def test_a_recipe_without_one_of_its_fields_has_another_result(name, field, trained):
    """So the test above fails where a stage does not read the field."""
    training, default = trained("teacher", name), TrainingConfig.__dataclass_fields__[field].default
    changes = {field: UNSET.get(field, default)}
    if field == "schedule":
        changes["warmup_epochs"] = 0.0
    if field in ("optimizer", "weight_decay_form"):
        changes |= {"weight_decay_form": "decoupled"}
    other = TrainingConfig(**UNSET | RECIPES[name] | changes)
    assert largest_difference(by_hand(training, other), by_hand(training, whole(name))) > 0.01


@pytest.mark.parametrize("side", TABLES)
def test_mixed_precision_is_of_the_training_alone(side, trained):
    training = trained(side, "bfloat16")
    computed = {name: layer.compute_dtype for name, layer in training.layers.items() if layer.weights}
    assert computed == {
        "whitening": "bfloat16", "block_01_conv1": "bfloat16", "block_01_bn1": "bfloat16", "logits": "float32",
    }  # fmt: skip
    assert {v.dtype for layer in training.layers.values() for v in layer.weights} == {"float32"}
    assert {layer.compute_dtype for layer in training.model.layers} == {"float32"}
    exact = by_hand(training, whole("bfloat16"))
    assert largest_difference(training.after, exact) > 1e-4  # rounded to eight bits


@pytest.mark.parametrize("side", TABLES)
def test_examples_weigh_what_their_class_does(side, trained):
    for _, targets, weights in trained(side, "sgd").batches:
        expected = [CLASS_WEIGHT.get(str(label), 1.0) for label in targets["label"]]
        np.testing.assert_array_equal(weights, np.float32(expected))
    training = trained(side, "adamw")
    labels = training.data.train.labels
    counts = np.bincount(labels, minlength=10)
    balanced = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    for _, targets, weights in training.batches:
        np.testing.assert_allclose(weights, targets["label_probabilities"] @ balanced, rtol=1e-5)


def windows(training, padding, mode, *, flipped):
    """Return every crop of every training image, mirrored or not, as bytes, with its image's number."""
    found = {}
    for number, image in enumerate(to_model_input(training.data.train.images)):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = padded[top : top + image.shape[0], left : left + image.shape[1]]
                crop = crop[:, ::-1] if flipped else crop
                found.setdefault(crop.tobytes(), set()).add(number)
    return found


def mirrored(training, images, padding=0, mode="constant"):
    """Return image number to whether its crop in a batch is mirrored, but for images that are like their mirror."""
    plain, turned = (windows(training, padding, mode, flipped=flipped) for flipped in (False, True))
    found = {}
    for image in images:
        straight, turned_over = plain.get(image.tobytes(), set()), turned.get(image.tobytes(), set())
        assert straight | turned_over, "no crop of a training image"
        if len(straight | turned_over) == 1 and bool(straight) != bool(turned_over):
            found[(straight | turned_over).pop()] = bool(turned_over)
    return found


@pytest.mark.parametrize("side", TABLES)
def test_alternate_flips_turn_every_image_in_every_other_epoch(side, trained):
    training = trained(side, "sgd")
    epochs = [np.concatenate([images for images, *_ in training.batches[start : start + 2]]) for start in (0, 2, 4)]
    first, second, third = (mirrored(training, images, 2, "reflect") for images in epochs)
    shared = first.keys() & second.keys() & third.keys()
    assert len(shared) > COUNT / 2
    assert all(first[number] != second[number] and first[number] == third[number] for number in shared)
    assert 0.2 < np.mean([*first.values()]) < 0.8
    seen = {image.tobytes() for image in np.concatenate(epochs)}
    assert len(seen - windows(training, 2, "constant", flipped=False).keys()) > COUNT / 2  # no zeros at the border


@pytest.mark.parametrize("side", TABLES)
def test_random_flips_and_crops_with_zeros_at_the_border(side, trained):
    training = trained(side, "bfloat16")
    turned = mirrored(training, np.concatenate([images for images, *_ in training.batches]))
    assert len(turned) > COUNT / 2 and 0.2 < np.mean([*turned.values()]) < 0.8


@pytest.mark.parametrize("side", TABLES)
def test_mixed_images_hold_two_crops_in_the_shares_of_their_labels(side, trained):
    training = trained(side, "adamw")
    known = windows(training, 1, "constant", flipped=False)
    crops = np.array([np.frombuffer(content, np.float32) for content in known])
    classes = np.array([training.data.train.labels[min(numbers)] for numbers in known.values()])
    images, targets, _ = training.batches[0]
    solved = 0
    for index in range(len(images) // 2):  # the partner of an image is the one at the same place from the end
        pair = images[[index, -1 - index]].reshape(2, -1).astype(np.float64)
        probabilities = targets["label_probabilities"][[index, -1 - index]]
        present = np.flatnonzero(probabilities.sum(axis=0))
        if len(present) == 1 or abs(probabilities[0, present[0]] - probabilities[1, present[0]]) < 0.2:
            continue
        for image, label in zip(np.linalg.solve(probabilities[:, present], pair), present, strict=True):
            distance = np.abs(crops - image).max(axis=1)
            assert distance.min() < 1e-4 and classes[distance.argmin()] == label
        solved += 1
    assert solved > 3
