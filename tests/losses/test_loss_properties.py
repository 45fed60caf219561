"""Properties of every loss: zero at equality, correct and finite gradients in edge cases, equal values on JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from tests.children import on_jax
from tfigkd import losses

RNG = np.random.default_rng(0)
LABELS = np.array([0, 3, 1, 1, 4])


class Case(NamedTuple):
    """A loss as a function of teacher and student."""

    function: Callable[[Any, Any], Any]
    teacher: np.ndarray
    student: np.ndarray


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def standardized(teacher, student):
    return losses.KLDivergence(2.0, standardize=True).per_example(teacher, student)


def flow(teacher, student):
    # one tensor of two taps, so that it has one gradient
    return losses.flow_distance((teacher[..., :3], teacher[..., 3:]), (student[..., :3], student[..., 3:]))


HEAD = normal(4, 6)


def explanations(teacher, student):
    # the head is not linear, so that the map has a gradient through the gradient
    maps = [
        losses.grad_cam(lambda f: ops.matmul(ops.tanh(ops.mean(f, (1, 2))), HEAD), x, LABELS)
        for x in (teacher, student)
    ]
    return losses.E2KD("s", "t").per_example(*maps)


def dense_flow(teacher, student):
    # one tensor of three taps, so that it has one gradient
    return losses.dense_flow_distance(*([x[..., :2], x[:, ::2, ::2, 2:3], x[..., 3:]] for x in (teacher, student)))


CASES = {
    "kd": Case(lambda t, s: losses.kl_divergence(t, s, temperature=2.5), normal(5, 6), normal(5, 6)),
    "standardized": Case(standardized, normal(5, 6), normal(5, 6)),
    "r2kd": Case(losses.R2KD(pruned=0.0).per_example, normal(5, 6), normal(5, 6)),
    "regression": Case(losses.logit_distance, normal(5, 6), normal(5, 6)),
    "dkd": Case(
        lambda t, s: losses.decoupled_kl(t, s, LABELS, alpha=1.0, beta=2.0, temperature=4.0), normal(5, 6), normal(5, 6)
    ),
    "dist": Case(losses.DIST(rank=1.0).compute_loss, normal(5, 6), normal(5, 6)),
    "rkd": Case(losses.RKD().compute_loss, normal(5, 6), normal(5, 6)),
    "rkd_maps": Case(losses.RKD().compute_loss, normal(5, 4, 4, 3), normal(5, 2, 2, 6)),
    "at": Case(losses.attention_transfer, normal(5, 4, 4, 3), normal(5, 4, 4, 3)),
    "at_pooled": Case(losses.attention_transfer, normal(5, 8, 8, 3), normal(5, 4, 4, 6)),
    "at_resized": Case(losses.attention_transfer, normal(5, 5, 4, 3), normal(5, 3, 8, 2)),
    "fsp": Case(flow, normal(5, 4, 4, 5), normal(5, 4, 4, 5)),
    "directions": Case(losses.direction_distance, normal(5, 6, 6, 4), normal(5, 3, 3, 4)),
    "dense_flow": Case(dense_flow, normal(5, 4, 4, 6), normal(5, 4, 4, 6)),
    "context": Case(losses.context_distance, normal(5, 7, 7, 3), normal(5, 7, 7, 3)),
    "hint": Case(losses.hint_distance, normal(5, 4, 4, 3), normal(5, 4, 4, 3)),
    "e2kd": Case(explanations, normal(5, 4, 4, 4), normal(5, 4, 4, 4)),
    "ig_match": Case(losses.map_distance, normal(5, 6, 6) ** 2, normal(5, 6, 6) ** 2),
    "ig_match_grid": Case(losses.IGMatching(grid=4).per_example, normal(5, 8, 6) ** 2, normal(5, 8, 6) ** 2),
}


def value_and_gradient(function: Callable[[Any, Any], Any]) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """Return a function from teacher and student to the summed loss and its gradient for the student, as NumPy."""
    if keras.backend.backend() == "jax":
        import jax

        compute = jax.jit(jax.value_and_grad(lambda student, teacher: ops.sum(function(teacher, student))))
        return lambda teacher, student: tuple(np.asarray(result) for result in compute(student, teacher))
    import tensorflow as tf

    def run(teacher: np.ndarray, student: np.ndarray) -> tuple:
        student = tf.constant(student)
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = ops.sum(function(tf.constant(teacher), student))
        return value.numpy(), tape.gradient(value, student).numpy()

    return run


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def test_it_is_zero_at_equality_and_never_negative(case):
    assert np.all(ops.convert_to_numpy(case.function(case.teacher, case.student)) > 0)
    value, gradient = value_and_gradient(case.function)(case.teacher, case.teacher)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences(case):
    value, gradient = value_and_gradient(case.function)(case.teacher, case.student)
    direction = np.random.default_rng(1).normal(size=case.student.shape).astype(np.float32)
    direction /= np.linalg.norm(direction)
    step = np.float32(2e-3) * np.linalg.norm(case.student)
    ahead, behind = (
        value_and_gradient(case.function)(case.teacher, case.student + sign * step * direction)[0] for sign in (1, -1)
    )
    expected = (gradient * direction).sum()
    assert abs((ahead - behind) / (2 * step) - expected) < 0.02 * abs(expected) + 0.005 * np.linalg.norm(gradient)
    downhill = case.student - step * gradient / np.linalg.norm(gradient)
    assert value_and_gradient(case.function)(case.teacher, downhill)[0] < value


def edges(array: np.ndarray) -> dict[str, np.ndarray]:
    alike = np.repeat(array[:1], len(array), axis=0)
    some_zero = array.copy()
    some_zero[1:3] = 0
    return {
        "zero": np.zeros_like(array),
        "constant": np.full_like(array, 0.3),
        "equal examples": alike,
        "some zero": some_zero,
        "tiny": array * np.float32(1e-12),
        "large": array * np.float32(1e3),
    }


def assert_finite_at_the_edges(case: Case) -> None:
    compute = value_and_gradient(case.function)
    for what, teacher in {"usual": case.teacher, **edges(case.teacher)}.items():
        for which, student in edges(case.student).items():
            value, gradient = compute(teacher, student)
            assert np.isfinite(value), (what, which)
            assert np.isfinite(gradient).all(), (what, which)


def test_it_is_finite_with_finite_gradients_in_edge_cases(case):
    assert_finite_at_the_edges(case)


JAX_RUN = """
import keras, numpy as np, sys
assert keras.backend.backend() == "jax"
from tests.losses.test_loss_properties import CASES, assert_finite_at_the_edges, value_and_gradient
from tests.losses.test_ig_matching import IMAGES, LABELS, network, weights_of
results = {}
for name, case in CASES.items():
    results[name], results[name + " gradient"] = value_and_gradient(case.function)(case.teacher, case.student)
    assert_finite_at_the_edges(case)

import jax
from tfigkd.losses import IGMatching
model, loss = network(), IGMatching()
with np.load("weights.npz") as archive:
    model.set_weights(list(archive.values()))

@jax.jit
def total(values):
    with keras.StatelessScope(state_mapping=zip(weights_of(model), values)):
        return loss.student_map(model, IMAGES, LABELS).sum()

values = [variable.value for variable in weights_of(model)]
results["map"] = loss.student_map(model, IMAGES, LABELS)
for index, gradient in enumerate(jax.grad(total)(values)):
    results[f"map gradient {index}"] = gradient
assert "tensorflow" not in sys.modules
np.savez("result.npz", **results)
"""


def test_jax_gives_the_same_values_and_gradients(tmp_path):
    pytest.importorskip("jax", reason="NEEDS JAX: pip install jax")
    import tensorflow as tf

    from tests.losses.test_ig_matching import IMAGES, network, weights_of
    from tests.losses.test_ig_matching import LABELS as TARGETS

    model, loss = network(), losses.IGMatching()
    np.savez(tmp_path / "weights.npz", *model.get_weights())
    on_jax(tmp_path, JAX_RUN, fresh=True)

    expected = {}
    for name, case in CASES.items():
        expected[name], expected[f"{name} gradient"] = value_and_gradient(case.function)(case.teacher, case.student)
    with tf.GradientTape() as tape:
        student_map = loss.student_map(model, IMAGES, TARGETS)
        total = ops.sum(student_map)
    expected["map"] = student_map.numpy()
    for index, gradient in enumerate(tape.gradient(total, weights_of(model))):
        expected[f"map gradient {index}"] = ops.convert_to_numpy(gradient)
    with np.load(tmp_path / "result.npz", allow_pickle=False) as actual:
        assert set(actual) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
