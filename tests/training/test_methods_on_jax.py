"""The methods that change a training step give the same student on JAX: losses with layers, momenta, phases."""

import keras
import numpy as np
import pytest

from tests.children import on_jax
from tfigkd import models
from tfigkd.incremental import foster
from tfigkd.losses import E2KD, OPDF, OSAKD, RTK, SKT, Hint, KLDivergence, ReviewKD
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import DOT, SGD

IMAGES = np.random.default_rng(0).random((8, 8, 8, 3)).astype(np.float32)
LABELS = np.arange(8) % 4
LOGITS = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
TAPS = {"student_layer": ("first", "second"), "teacher_layer": ("first", "second")}
LOSSES = {"kd": KLDivergence(2.0), "skt": SKT(**TAPS), "reviewkd": ReviewKD(**TAPS), "e2kd": E2KD("second", "second")}
LOSSES["rtk"] = RTK(**TAPS, keys=1, width=3)
LOSSES["osakd"] = OSAKD(neighbors=3, queue=6)
CASES = {
    "losses": {"losses": LOSSES},
    "dot": {"losses": {"kd": KLDivergence(2.0), "hint": Hint("first", "second")}, "delta": 0.1},
    "phases": {"losses": {"kd": KLDivergence(2.0)}, "finetune_from": 2},
    "power": {"losses": {"kd": KLDivergence(2.0)}, "alpha": 1.5, "l1": 1e-3},
    "chain": {"losses": {"kd": KLDivergence(2.0), "opdf": OPDF()}, "tensors": 3},
    "boosting": {},
    "cached": {"losses": {"kd": KLDivergence(2.5)}, "teacher": None, "normalized": True},
}


def network(name, width, seed, normalized=False):
    """Return a small network whose weights do not depend on the backend."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, 3, padding="same", activation="tanh", name="first")(inputs)
    x = keras.layers.BatchNormalization()(x) if normalized else x
    x = keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu", name="second")(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)), name=name)
    fill(model.trainable_weights, seed)
    return model


def fill(variables, seed):
    rng = np.random.default_rng(seed)
    for variable in variables:
        variable.assign(0.3 * rng.normal(size=variable.shape))


def boosted():
    """Return the training of a sibling that starts as its old network; only the classifiers are filled."""

    def network_of(classes):
        inputs = keras.Input((8, 8, 3), name="image")
        x = keras.layers.Conv2D(4, 3, activation="tanh", name="first")(inputs)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        model = keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))
        fill(model.weights, classes)
        return model

    options = {"beta": 0.9, "known_weight": 0.5, "temperature": 2.0}
    model, _ = foster.boosting(network_of(2), lambda: network_of(4), (1, 1, 8, 8), **options)
    fill([variable for variable in model.trainable_variables if "joint_logits" in variable.path], 3)
    return model


def distiller_of(name):
    """Return the distiller of a case, and its optimizer."""
    recipe = {"momentum": 0.8, "nesterov": True}
    if name == "boosting":
        return boosted(), SGD(0.05, **recipe)
    case = {"delta": None, "alpha": 1.0, "tensors": 0, "normalized": False, **CASES[name]}
    delta, alpha, tensors, normalized = (case.pop(key) for key in ("delta", "alpha", "tensors", "normalized"))
    losses = {key: type(loss).from_config(loss.get_config()) for key, loss in case.pop("losses").items()}
    student = models.with_chain(models.with_power(network("student", 4, 1, normalized), alpha), tensors)
    case = {"teacher": network("teacher", 4 if tensors else 6, 2), **case}
    model = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 0.5), **case)
    fill([v for v in model.trainable_variables if all(v is not own for own in student.trainable_variables)], 3)
    return model, SGD(0.05, **recipe) if delta is None else DOT(0.05, **recipe, delta=delta)


def student_of(name):
    """Train a case for four steps and return the weights of the student and of what its losses train."""
    model, optimizer = distiller_of(name)
    model.compile(optimizer)
    targets = {"label": LABELS, "teacher_logits": LOGITS} if name == "cached" else LABELS
    model.fit(IMAGES, targets, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables if "seed" not in variable.path]


PROGRAM = """
import keras, numpy as np
assert keras.backend.backend() == "jax"
from tests.training.test_methods_on_jax import CASES, student_of
for name in CASES:
    np.savez(f"{name}.npz", *student_of(name))
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Return a folder with the students that JAX has trained."""
    pytest.importorskip("jax", reason="NEEDS JAX: pip install jax")
    folder = tmp_path_factory.mktemp("jax")
    on_jax(folder, PROGRAM)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_method_gives_the_same_student_on_jax(name, students):
    with np.load(students / f"{name}.npz", allow_pickle=False) as archive:
        theirs = list(archive.values())
    for a, b in zip(student_of(name), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
