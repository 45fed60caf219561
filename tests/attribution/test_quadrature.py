import numpy as np
import pytest

from tfigkd.attribution.quadrature import RULES, added_by_doubling, nodes_and_weights


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_steps", [2, 3, 8, 128])
def test_nodes_ascend_in_the_unit_interval_and_weights_sum_to_one(rule: str, n_steps: int) -> None:
    nodes, weights = nodes_and_weights(rule, n_steps)
    assert nodes.shape == weights.shape == (n_steps,)
    assert (np.diff(nodes) > 0).all() and nodes[0] >= 0 and nodes[-1] <= 1
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2, 5, 16])
def test_gauss_legendre_is_exact_to_degree_2n_minus_1_and_no_further(n_steps: int) -> None:
    nodes, weights = nodes_and_weights("gauss_legendre", n_steps)
    for degree in range(2 * n_steps):
        assert weights @ nodes**degree == pytest.approx(1 / (degree + 1), abs=1e-12)
    if n_steps <= 5:  # above, the difference is smaller than rounding errors
        assert abs(weights @ nodes ** (2 * n_steps) - 1 / (2 * n_steps + 1)) > 1e-7


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid"])
def test_midpoint_and_trapezoid_are_exact_for_straight_lines(rule: str) -> None:
    nodes, weights = nodes_and_weights(rule, 4)
    assert weights @ (3 * nodes - 1) == pytest.approx(0.5, abs=1e-12)


def test_values_by_hand() -> None:
    np.testing.assert_allclose(nodes_and_weights("left", 4), ([0, 0.25, 0.5, 0.75], [0.25] * 4))
    np.testing.assert_allclose(nodes_and_weights("right", 4), ([0.25, 0.5, 0.75, 1], [0.25] * 4))
    np.testing.assert_allclose(nodes_and_weights("midpoint", 2), ([0.25, 0.75], [0.5, 0.5]))
    np.testing.assert_allclose(nodes_and_weights("trapezoid", 3), ([0, 0.5, 1], [0.25, 0.5, 0.25]))


@pytest.mark.parametrize(("rule", "n_steps"), [("simpson", 8), ("midpoint", 0), ("trapezoid", 1)])
def test_unknown_rules_and_too_few_steps_are_refused(rule: str, n_steps: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        nodes_and_weights(rule, n_steps)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 8, 12, 64])
def test_doubling_the_nested_rule_adds_nodes_and_keeps_the_old_ones(n_steps: int) -> None:
    before, old_weights = nodes_and_weights("nested", n_steps)
    after, weights = nodes_and_weights("nested", 2 * n_steps)
    new, new_weights, kept = added_by_doubling("nested", 2 * n_steps)
    np.testing.assert_allclose(np.sort(np.concatenate([before, new])), after, atol=1e-15)
    for values in (np.exp, np.sin):  # an average is the kept one and what is added
        halved = old_weights @ values(before)
        assert kept * halved + new_weights @ values(new) == pytest.approx(weights @ values(after), abs=1e-12)


def test_a_rule_that_is_not_nested_starts_again() -> None:
    nodes, weights, kept = added_by_doubling("midpoint", 8)
    np.testing.assert_array_equal([nodes, weights], nodes_and_weights("midpoint", 8))
    assert kept == 0
