"""Every loss inside the Distiller: taps, projectors, cached and live teachers, one student pass a step."""

import itertools

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.compress.pruning import sparsity
from tfigkd.losses import (
    DIST,
    DKD,
    E2KD,
    FSP,
    LOSSES,
    OPDF,
    OSAKD,
    PKT,
    R2KD,
    RKD,
    RTK,
    SKT,
    SP,
    AttentionTransfer,
    BalancedKL,
    Hint,
    IGMatching,
    KLDivergence,
    LogitRegression,
    ReviewKD,
)
from tfigkd.models.pruned import pruned_copy
from tfigkd.training.distiller import Distiller
from tfigkd.training.terms import StepComparison, hard_label_weight

RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, 8, 8, 3)).astype(np.float32)
LABELS = RNG.integers(0, 10, 16)
MAPS = RNG.random((16, 8, 8)).astype(np.float32)

CASES = {
    "kd": KLDivergence(4.0, standardize=True),
    "dkd": DKD(),
    "dist": DIST(),
    "rkd": RKD(),
    "sp": SP("block_01", "block_02"),
    "pkt": PKT("block_01", "block_02"),
    "at": AttentionTransfer("block_01", "block_02"),
    "fsp": FSP(("block_00", "block_01"), ("block_00", "block_01")),
    "hint": Hint("block_01", "block_04"),
    "skt": SKT(("block_00", "block_01", "block_02"), ("block_00", "block_02", "block_04")),
    "reviewkd": ReviewKD(("block_00", "block_02"), ("block_00", "block_04")),
    "regression": LogitRegression(),
    "bkd": BalancedKL(counts=range(1, 11)),
    "r2kd": R2KD(pruned=0.5),
    "osakd": OSAKD(neighbors=3, queue=24),
    "rtk": RTK(("block_00", "block_02"), ("block_00", "block_02", "block_04"), keys=3),
    "opdf": OPDF(),
    "e2kd": E2KD("block_02", "block_04"),
    "ig_match": IGMatching(grid=4),
}


def network(drop_blocks, seed=0):
    keras.utils.set_random_seed(seed)
    return models.mobilenet_v2(10, drop_blocks, input_shape=(8, 8, 3), width=0.25)


@pytest.fixture(scope="module")
def teacher():
    return network(14, seed=1)


def student_for(losses):
    """Return a student; for the loss of tensors, one that has them."""
    return models.with_chain(network(16), 3 if "opdf" in losses else 0)


def distiller(losses, teacher=None, *, student=None, **options):
    student = student or student_for(losses)
    losses = {name: type(loss).from_config(loss.get_config()) for name, loss in losses.items()}
    model = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 0.5), teacher=teacher, **options)
    model.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"], jit_compile=False)
    return model


def test_every_loss_has_a_case():
    assert set(CASES) == set(LOSSES)


def test_the_hard_label_has_what_kd_leaves_unless_its_weight_is_given():
    weights = {"kd": 0.25, "at": 5.0}
    assert hard_label_weight(weights, weights, None) == 0.75
    assert hard_label_weight(["at"], weights, None) == 1.0
    assert hard_label_weight(weights, weights, 0.5) == 0.5


def test_a_loss_that_compares_something_unknown_is_refused():
    class Misspelled(KLDivergence):
        compares = "output"

    with pytest.raises(ValueError, match=r"loss 'kd' must compare one of outputs, .*, got 'output'"):
        distiller({"kd": Misspelled()})


def weights_after(losses, teacher, student):
    """Return the weights of a student after two steps in which its losses have weight 0."""
    losses = {name: type(loss).from_config(loss.get_config()) for name, loss in losses.items()}
    model = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 0.0), teacher=teacher)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=False)
    for _ in range(2):
        model.train_on_batch(IMAGES, {"label": LABELS, "teacher_map": MAPS})
    return model.student.get_weights()


@pytest.fixture(scope="module")
def without(teacher):
    """Return the weights of students without any loss of distillation: after one step, and after two of another SGD.

    They are by the loss whose student it is: that of opdf has tensors, all others have the plain one.
    """
    found = {}
    for name in ("", "opdf"):
        one = distiller({}, teacher, student=student_for([name]))
        one.train_on_batch(IMAGES, {"label": LABELS, "teacher_map": MAPS})
        found[name] = one.student.get_weights(), weights_after({}, teacher, student_for([name]))
    return {name: found["opdf" if name == "opdf" else ""] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_each_loss_trains_with_a_live_teacher_and_its_gradient_reaches_the_student(name, teacher, without):
    model = distiller({name: CASES[name]}, teacher)
    logs = model.train_on_batch(IMAGES, {"label": LABELS, "teacher_map": MAPS}, return_dict=True)
    assert np.isfinite(logs[f"{name}_loss"])
    factor = 0.5 if name == "kd" else 1.0
    np.testing.assert_allclose(logs["loss"], factor * logs["hard_loss"] + 0.5 * logs[f"{name}_loss"], rtol=1e-4)
    pairs = zip(model.student.get_weights(), without[name][0], strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
def test_at_weight_zero_the_student_is_that_of_training_without_the_loss(name, teacher, without):
    """Bit for bit, and what a loss trains of its own does not disturb the optimizer of the student."""
    weights = weights_after({name: CASES[name]}, teacher, student_for([name]))
    for a, b in zip(weights, without[name][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_losses_together_run_the_student_once_a_step(teacher):
    model = distiller({name: loss for name, loss in CASES.items() if name != "ig_match"}, teacher)
    passes = []
    original = keras.layers.Conv2D.call
    stem = model.student.get_layer("block_00_conv") if _has(model.student, "block_00_conv") else None
    stem = stem or next(layer for layer in model.student.layers if isinstance(layer, keras.layers.Conv2D))

    def counted(self, *arguments, **options):
        passes.extend([1] if self is stem else [])
        return original(self, *arguments, **options)

    keras.layers.Conv2D.call = counted
    try:
        model.compute_terms(keras.ops.convert_to_tensor(IMAGES), {"label": LABELS}, training=True)
    finally:
        keras.layers.Conv2D.call = original
    assert sum(passes) == 1


def _has(model, name):
    return any(layer.name == name for layer in model.layers)


def test_cached_features_need_no_teacher_and_equal_the_live_ones(teacher):
    losses = {"kd": CASES["kd"], "at": CASES["at"]}
    tapped = keras.Model(teacher.input, [teacher.output, teacher.get_layer("block_02").output])
    logits, features = tapped.predict(IMAGES, verbose=0)
    cached = {"label": LABELS, "teacher_logits": logits, "teacher_features": {"block_02": features}}
    a, b = distiller(losses, teacher), distiller(losses)
    left = a.train_on_batch(IMAGES, LABELS, return_dict=True)
    right = b.train_on_batch(IMAGES, cached, return_dict=True)
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-4)


def test_the_live_teacher_sees_the_view_it_is_given(teacher):
    model = distiller({"kd": KLDivergence()}, teacher)
    overlaid = np.clip(IMAGES + 0.3, 0, 1)
    seen, _ = model.compute_terms(overlaid, {"label": LABELS, "teacher_inputs": IMAGES}, training=False)
    cached, _ = model.compute_terms(
        overlaid, {"label": LABELS, "teacher_logits": teacher(IMAGES, training=False)}, training=False
    )
    np.testing.assert_allclose(float(seen["kd_loss"]), float(cached["kd_loss"]), rtol=1e-5)


@pytest.mark.parametrize(("name", "trained"), [("hint", 2), ("skt", 6), ("reviewkd", 22), ("rtk", 11)])
def test_the_projector_is_trained_saved_and_no_part_of_the_student(name, trained, teacher, tmp_path):
    model = distiller({name: CASES[name]}, teacher)
    (projector,) = model.projectors
    before = [variable.numpy() for variable in projector.trainable_variables]
    model.train_on_batch(IMAGES, LABELS)
    for variable, value in zip(projector.trainable_variables, before, strict=True):
        # the normalization of relations takes off a bias, which the directions still need
        assert (variable.numpy() != value).any(), variable.path
    assert len(model.trainable_variables) == len(model.student.trainable_variables) + trained
    assert model.student.count_params() == network(16).count_params()
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for left, right in zip(loaded.projectors[0].get_weights(), projector.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", ["hint", "skt", "reviewkd", "rtk", "osakd"])
def test_what_a_loss_trains_belongs_to_one_distiller(name, teacher):
    """A second one would start from layers that are trained; a loss that trains none is shared."""
    given = {name: type(CASES[name]).from_config(CASES[name].get_config()), "kd": KLDivergence()}
    options = {"loss_weights": dict.fromkeys(given, 0.5), "teacher": teacher}
    model = Distiller(network(16), losses=given, **options)
    with pytest.raises(ValueError, match=f"loss '{name}' has layers .* give each Distiller its own loss"):
        Distiller(network(16), losses=given, **options)
    again = Distiller.from_config(model.get_config())
    own, other = given[name].extra_layer, again.distillation_losses[name].extra_layer
    assert own is not other and len(other.variables) == len(own.variables)
    Distiller(network(16), losses={"kd": given["kd"]}, loss_weights={"kd": 0.5}, teacher=teacher)


def test_a_projector_that_the_user_built_is_taken(teacher):
    hint = Hint("block_01", "block_04")
    shapes = [tuple(m.get_layer(tap).output.shape) for m, tap in ((teacher, "block_04"), (network(16), "block_01"))]
    hint.build(*([shape] for shape in shapes))
    model = Distiller(network(16), losses={"hint": hint}, loss_weights={"hint": 0.5}, teacher=teacher)
    assert model.projectors == [hint.extra_layer]


def test_a_layer_behind_the_logits_needs_no_shape_of_the_teachers():
    model = distiller({"hint": Hint("logits", "logits")})
    assert [layer.kernel.shape for layer in model.projectors] == [(10, 10)]
    with pytest.raises(ValueError, match=r"needs teacher=, or teacher_shapes=\{'block_04': shape\}"):
        distiller({"hint": CASES["hint"]})


def test_save_load_and_go_on_gives_the_same_numbers(teacher, tmp_path):
    straight, broken = (distiller({"kd": KLDivergence()}, teacher) for _ in range(2))
    for model in (straight, broken):
        model.fit(IMAGES, LABELS, batch_size=8, epochs=1, shuffle=False, verbose=0)
    broken.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    loaded.attach_teacher(teacher)
    for model in (straight, loaded):
        model.fit(IMAGES, LABELS, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(straight.student.get_weights(), loaded.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_mixed_precision_trains(teacher):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = distiller({"kd": KLDivergence(), "at": CASES["at"]}, teacher)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.student.get_layer("block_01").compute_dtype == "bfloat16"
    first = model.train_on_batch(IMAGES, LABELS, return_dict=True)
    for _ in range(10):
        last = model.train_on_batch(IMAGES, LABELS, return_dict=True)
    assert np.isfinite(last["loss"])
    assert last["hard_loss"] < first["hard_loss"]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"at": AttentionTransfer("block_99", "block_02")}, "student .* has no layer 'block_99'"),
        ({"skt": SKT(("block_00", "block_99"), ("block_00", "block_02"))}, "student .* has no layer 'block_99'"),
        ({"at": AttentionTransfer("block_01", "blok_02")}, "teacher .* has no layer 'blok_02'; its nearest: block_02"),
    ],
)
def test_an_unknown_tap_is_refused_at_construction(losses, message, teacher):
    with pytest.raises(ValueError, match=message):
        distiller(losses, teacher)


def test_missing_knowledge_is_named():
    for name, key in (("at", "teacher_features"), ("dkd", "teacher_logits"), ("ig_match", "teacher_map")):
        with pytest.raises(ValueError, match=key):
            distiller({name: CASES[name]}).train_on_batch(IMAGES, LABELS)


def test_explanations_need_a_live_teacher_and_a_tap_that_the_output_passes_through(teacher):
    cached = {"label": LABELS, "teacher_logits": np.zeros((16, 10), np.float32)}
    cached["teacher_features"] = {"block_04": np.zeros((16, 1, 1, 8), np.float32)}
    with pytest.raises(ValueError, match=r"'e2kd' needs a teacher: Distiller\(teacher=\.\.\.\)$"):
        distiller({"e2kd": CASES["e2kd"]}).train_on_batch(IMAGES, cached)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = keras.layers.Conv2D(4, 3, padding="same", name="branch")(x)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    student = keras.Model(inputs, keras.layers.Dense(10)(pooled), name="skipping")
    with pytest.raises(ValueError, match="skipping has a path to its output that bypasses layer 'branch'"):
        Distiller(student, losses={"e2kd": E2KD("branch", "block_04")}, loss_weights={"e2kd": 1.0}, teacher=teacher)


def test_explanations_are_of_the_class_that_the_teacher_predicts(teacher):
    """On a student whose last layers are a mean and a product, Grad-CAM is known from its kernel."""
    model = distiller({"e2kd": E2KD("block_02", "block_04")}, teacher)
    tapped = keras.Model(model.student.input, model.student.get_layer("block_02").output)
    outputs = {"block_02": tapped(IMAGES), "logits": model.student(IMAGES)}
    compared = StepComparison(model._tapped_student, model._live, IMAGES, LABELS, outputs, training=True)
    _, student_map = compared.sides(model.distillation_losses)["e2kd"]
    classes = np.argmax(teacher(IMAGES, training=False), axis=1)
    assert (classes != LABELS).any()
    kernel = model.student.get_layer("logits").kernel.numpy()[:, classes]
    features = outputs["block_02"].numpy()
    expected = np.maximum(np.einsum("bhwd,db->bhw", features, kernel), 0) / np.prod(features.shape[1:3])
    assert expected.max() > 0
    np.testing.assert_allclose(student_map, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])  # as a teacher of a run is
def test_the_second_teacher_is_a_pruned_copy_of_the_first(frozen):
    teacher = network(14, seed=1)
    teacher.trainable = not frozen
    loss = R2KD(pruned=0.5, second=2.0)
    model = distiller({"r2kd": loss}, teacher)
    before = teacher.get_weights()
    terms, _ = model.compute_terms(IMAGES, LABELS, training=False)
    pruned = pruned_copy(teacher, 0.5)
    for a, b in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    logits = [network(IMAGES, training=False) for network in (teacher, pruned, model.student)]
    assert np.abs(logits[0] - logits[1]).max() > 0.1 * np.abs(logits[0]).max()
    first, second = (R2KD(pruned=0.0).per_example(one, logits[2]) for one in logits[:2])
    np.testing.assert_allclose(terms["r2kd_loss"], np.mean(first + 2 * second), rtol=1e-4)
    pruned.trainable = True
    assert sparsity(pruned)["prunable_sparsity"] == pytest.approx(0.5, abs=0.01)
    cached = {"label": LABELS, "teacher_logits": np.asarray(logits[0])}
    with pytest.raises(ValueError, match=r"'r2kd' needs a teacher: Distiller\(teacher=\.\.\.\)$"):
        distiller({"r2kd": loss}).train_on_batch(IMAGES, cached)
    alone = distiller({"r2kd": R2KD(pruned=0.0)})
    found = alone.train_on_batch(IMAGES, cached, return_dict=True)["r2kd_loss"]
    assert found > 0


def test_soft_labels_of_neighbors_need_no_teacher_and_remember_the_batches_of_training(tmp_path):
    model = distiller({"osakd": OSAKD(neighbors=3, queue=24)})
    (queue,) = model.projectors
    model.evaluate(IMAGES, LABELS, verbose=0)
    assert int(queue.count) == 0
    logs = model.train_on_batch(IMAGES, LABELS, return_dict=True)
    assert logs["osakd_loss"] > 0
    assert int(queue.count) == 16
    np.testing.assert_array_equal(queue.labels[:16], LABELS)
    np.testing.assert_array_equal(queue.examples[:16], -1)  # which examples they are was not told
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_array_equal(loaded.projectors[0].logits, queue.logits)
    for each in (model, loaded):
        each.train_on_batch(IMAGES, LABELS)
    # the last 8 places, then the first 8 again
    np.testing.assert_array_equal(queue.labels[:24], np.concatenate([LABELS[8:], LABELS[8:], LABELS[:8]]))
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model.train_on_batch(IMAGES, {"label": LABELS, "example": np.arange(16) + 100})
    np.testing.assert_array_equal(np.sort(queue.examples), [*[-1] * 8, *range(100, 116)])
    with pytest.raises(ValueError, match="osakd needs one label per example"):
        model.train_on_batch(IMAGES, np.eye(10, dtype=np.float32)[LABELS])


def test_a_loss_of_one_label_is_refused_on_mixed_images():
    mixed = {"label": LABELS, "label_probabilities": np.full((len(LABELS), 10), 0.1, np.float32)}
    known = {name: np.full((len(LABELS), 10), 0.1, np.float32) for name in ("teacher_logits", "teacher_posteriors")}
    for loss in (DKD(), OSAKD(3, 24), OSAKD(3, 24, space="teacher")):
        with pytest.raises(ValueError, match="loss 'one' needs one label per example; leave out 'label_probabilities'"):
            distiller({"one": loss}).train_on_batch(IMAGES, mixed | known)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        Distiller(network(16), losses={"dkd": DKD()}, loss_weights={"dkd": -1.0})


def test_pairs_of_losses_do_not_disturb_each_other(teacher):
    """The value of a term does not depend on which other terms are there."""
    alone = {}
    for name in ("kd", "dkd", "at", "rkd"):
        terms, _ = distiller({name: CASES[name]}, teacher).compute_terms(IMAGES, LABELS, training=False)
        alone[name] = float(terms[f"{name}_loss"])
    for pair in itertools.combinations(alone, 2):
        terms, _ = distiller({n: CASES[n] for n in pair}, teacher).compute_terms(IMAGES, LABELS, training=False)
        for name in pair:
            np.testing.assert_allclose(float(terms[f"{name}_loss"]), alone[name], rtol=1e-5)
