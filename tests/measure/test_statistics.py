"""Statistics against cases computed by hand, and against the papers' ten runs per arm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfigkd.measure.statistics import (
    compare_by_seed,
    deviation_interval,
    holm,
    normality,
    paired,
    seeds_between,
    seeds_needed,
    summarize,
    welch,
    wilson,
    winner,
)

# arXiv 2506.14440, the ten runs per arm of its ablation at 4.12x, test accuracy in percent
STUDENT = [91.19, 90.50, 91.32, 91.28, 91.36, 91.35, 91.43, 91.05, 90.86, 91.50]
KD = [91.73, 91.45, 91.19, 91.37, 92.29, 91.88, 92.01, 91.41, 92.01, 90.88]
IG = [91.27, 92.01, 91.22, 91.42, 91.11, 91.58, 91.09, 91.57, 91.38, 90.85]
KD_IG = [92.58, 91.73, 92.08, 92.45, 91.96, 91.58, 91.82, 91.62, 92.13, 92.23]


def independent(**arms):
    """Return the values of each arm by seed; no two arms have a common seed."""
    return {
        arm: {100 * number + seed: value for seed, value in enumerate(values)}
        for number, (arm, values) in enumerate(arms.items())
    }


samples = st.lists(st.floats(0, 100), min_size=3, max_size=12).filter(lambda values: np.std(values) > 1e-3)


def test_summary_of_three_runs_by_hand():
    # mean 2, variance (1 + 0 + 1) / 2 = 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt 3
    summary = summarize([1, 2, 3])
    assert (summary.mean, summary.deviation, summary.n) == (2, 1, 3)
    assert (summary.low, summary.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_one_run_has_no_spread():
    summary = summarize([91.5])
    assert summary.mean == 91.5
    assert summary.n == 1
    assert all(map(math.isnan, (summary.deviation, summary.low, summary.high)))
    assert math.isnan(welch([91.5], [90, 91]).p)


def test_two_runs_give_no_interval_and_no_test():
    # t at one degree of freedom is 12.7: the interval of 70 and 90 would reach from -47 to 207 %
    summary = summarize([70, 90])
    assert summary.mean == 80 and summary.deviation == pytest.approx(math.sqrt(200))
    assert math.isnan(summary.low) and math.isnan(summary.high)
    assert not welch([70, 90], [10, 20, 30]).tested
    assert not paired([70, 90], [10, 20]).tested


def test_welch_by_hand():
    # means 2 and 5, variances 1 and 4, n 3: se^2 = 1/3 + 4/3 = 5/3, t = -3 / 1.29099 = -2.32379,
    # df = (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.94118; t(0.975, 2.94118) = 3.2182
    result = welch([1, 2, 3], [3, 5, 7])
    assert result.difference == -3
    assert result.p == pytest.approx(0.1045, abs=5e-4)
    assert (result.low, result.high) == pytest.approx((-3 - 4.155, -3 + 4.155), abs=5e-3)
    # pooled variance 2.5; g = -3 / 1.58114 * (1 - 3 / 15)
    assert result.deviation == pytest.approx(math.sqrt(2.5))
    assert result.effect == pytest.approx(-3 / math.sqrt(2.5) * 0.8)


def test_pairs_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt 3 = 3.4641 at 2 degrees of freedom:
    # p = 1 - t / sqrt(2 + t^2) = 1 - 3.4641 / sqrt 14 = 0.07418
    result = paired([2, 4, 6], [1, 2, 3])
    assert (result.difference, result.deviation, result.effect) == (2, 1, 2)
    assert result.p == pytest.approx(0.07418, abs=1e-5)
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("first", "second", "difference", "p_welch", "p_paired"),
    [
        (KD_IG, KD, 0.396, 0.037, 0.069),
        (KD, STUDENT, 0.438, 0.019, 0.030),
        (IG, STUDENT, 0.166, 0.25, 0.40),
        (KD_IG, STUDENT, 0.834, 1.9e-5, 1.1e-4),
        (KD_IG, IG, 0.668, 3e-4, None),
    ],
)
def test_the_papers_runs_give_the_known_figures(first, second, difference, p_welch, p_paired):
    result = welch(first, second)
    assert result.difference == pytest.approx(difference, abs=5e-4)
    assert result.p == pytest.approx(p_welch, rel=0.08)
    if p_paired is not None:
        assert paired(first, second).p == pytest.approx(p_paired, rel=0.05)


def test_the_papers_interval_of_kd_ig_against_kd():
    result = welch(KD_IG, KD)
    assert (round(result.low, 2), round(result.high, 2)) == (0.03, 0.76)


def test_arms_of_common_seeds_are_compared_in_pairs():
    # the seeds differ by 10 points, the arms by 0.9 to 1.1: pairs see it, Welch's test does not
    first, second = {0: 51.0, 1: 61.1, 2: 70.9, 7: 1.0}, {2: 70.0, 0: 50.0, 1: 60.0}
    compared = compare_by_seed(first, second)
    leading, unpaired = compared.leading, compared.welch
    assert leading == paired([51.0, 61.1, 70.9], [50.0, 60.0, 70.0])
    assert leading.by_pairs and leading.p < 0.01
    assert unpaired == welch(list(first.values()), list(second.values())) and unpaired.p > 0.3
    # two common seeds are no pairs to speak of
    compared = compare_by_seed({0: 1.0, 1: 2.0, 2: 3.0}, {1: 5.0, 2: 6.5, 3: 8.0})
    assert compared.leading == compared.welch and not compared.leading.by_pairs
    assert winner({"first": {0: 51.0, 1: 61.1, 2: 70.9}, "second": second}) == ("first", [])
    assert winner(independent(first=[51.0, 61.1, 70.9], second=[50.0, 60.0, 70.0]))[0] is None


def test_pairs_that_all_differ_alike_have_no_test():
    assert not paired([1.1, 2.1, 3.1], [1, 2, 3]).tested  # rounding leaves a deviation of 1e-16


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: times 3, 2, 1 gives 0.03, 0.06, 0.04, made monotone: 0.03, 0.06, 0.06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    assert holm([0.04], 3) == pytest.approx([0.12])  # two of the planned comparisons have no runs yet
    assert holm([0.01, 0.03], 4) == pytest.approx([0.04, 0.09])
    adjusted = holm([0.04, math.nan, 0.01])
    assert adjusted[0] == pytest.approx(0.04)
    assert adjusted[2] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


@pytest.mark.parametrize(
    ("deviation", "difference", "pairs", "expected"),
    # the textbook's sizes for 80 % power: effects 0.5, 0.8 and 1 need 64, 26 and 17 per arm; 34 and 15 pairs
    [(1, 0.5, False, 64), (1, 0.8, False, 26), (0.4, 0.4, False, 17), (1, 0.5, True, 34), (1, 0.8, True, 15)],
)
def test_seeds_needed_are_the_textbooks(deviation, difference, pairs, expected):
    assert seeds_needed(deviation, difference, pairs=pairs) == expected


@pytest.mark.parametrize(
    ("effect", "expected"), [(8.75, 3), (9.7, 3), (9.75, 3), (9.8, 3), (10.15, 3), (13, 2), (1e4, 2)]
)
def test_seeds_needed_of_large_differences_are_those_of_a_simulation(effect, expected):
    # SciPy's noncentral t is NaN for some of these; the power of two pairs is simulated here
    draws = np.random.default_rng(0).normal(effect, 1, (200_000, 2))
    t = np.abs(draws.mean(1)) / (draws.std(1, ddof=1) / math.sqrt(2))
    assert (np.mean(t > 12.7062) >= 0.8) == (expected == 2)
    assert seeds_needed(1.0, effect, pairs=True) == expected


def test_seeds_needed_carry_the_uncertainty_of_the_deviation():
    # 4 s² / chi²(0.975, 4) to 4 s² / chi²(0.025, 4), chi² = 11.1433 and 0.484419 from the tables
    low, high = deviation_interval(2.0, 4)
    assert (low, high) == pytest.approx((2 * math.sqrt(4 / 11.1433), 2 * math.sqrt(4 / 0.484419)), rel=1e-5)
    found = paired([2, 4, 6, 8, 11], [1, 2, 3, 4, 5])
    ends = deviation_interval(found.deviation, 4)
    needed = tuple(seeds_needed(one, 0.5, pairs=True) for one in (found.deviation, *ends))
    assert seeds_between(found, 0.5) == needed
    assert needed[1] < needed[0] < needed[2]
    assert seeds_between(paired([1, 2], [2, 4]), 0.5) == (None, None, None)


def test_seeds_needed_at_the_ends():
    assert seeds_needed(math.nan, 0.2) is None
    assert seeds_needed(0, 0.2) == 2
    assert seeds_needed(1e6, 0.2) is None
    with pytest.raises(ValueError, match="positive"):
        seeds_needed(0.3, 0)


def test_normality_tells_a_mixture_from_one_sample():
    # the papers' Monte Carlo sample mixes two files of different protocols; the gap between them must be detected
    quantiles = np.linspace(-2, 2, 37)
    assert normality(90.9 + 0.15 * quantiles) > 0.05
    assert normality([*(90.9 + 0.15 * quantiles), *(93 + 0.1 * quantiles[:23])]) < 0.01
    assert math.isnan(normality([1, 2]))
    assert math.isnan(normality([1, 1, 1]))


def test_no_winner_inside_the_noise():
    assert winner(independent(a=[91.0, 91.4, 91.2], b=[91.1, 91.3, 91.5])) == (None, ["b", "a"])
    assert winner(independent(a=[91.0], b=[99.0])) == (None, ["b", "a"])
    assert winner(independent(a=[91.0, 91.1])) == (None, ["a"])
    # more seeds have the higher mean, which on the common ones is a point lower
    more, fewer = {0: 90.0, 1: 90.1, 2: 90.2, 3: 93.0, 4: 93.0, 5: 93.0}, {0: 91.0, 1: 91.12, 2: 91.19}
    assert winner({"more": more, "fewer": fewer}) == (None, ["more", "fewer"])


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="expected at least one arm, got none"):
        winner({})
    with pytest.raises(ValueError, match="the deviation must not be negative, got -1"):
        seeds_needed(-1, 1)


def test_a_winner_beyond_the_noise():
    arms = independent(a=[91.0, 91.1, 91.2], b=[95.0, 95.1, 95.2], c=[80.0, 80.1, 80.2])
    assert winner(arms) == ("b", [])


def test_the_papers_winner_is_one_among_four_arms_and_none_among_eight():
    # KD&IG against KD, p = 0.037, is the last step of Holm's method and stays as it is
    assert winner(independent(student=STUDENT, kd=KD, ig=IG, ig_kd=KD_IG)) == ("ig_kd", [])
    # KD&AT has p = 0.07: KD&IG is beyond neither
    kd_at = [91.48, 92.05, 91.49, 91.69, 91.58, 91.92, 92.20, 91.62, 92.06, 91.39]
    assert winner(independent(kd=KD, ig_kd=KD_IG, kd_at=kd_at))[0] is None


@given(samples, samples)
def test_welch_is_antisymmetric(first, second):
    one, other = welch(first, second), welch(second, first)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p, nan_ok=True)
    assert one.low == pytest.approx(-other.high, nan_ok=True)


@given(samples)
def test_the_interval_holds_the_mean_and_more_runs_narrow_it(values):
    once, twice = summarize(values), summarize(values * 2)
    assert once.low <= once.mean <= once.high
    assert twice.high - twice.low < once.high - once.low


def test_wilsons_interval_by_hand():
    """8 of 10: center (0.8 + z²/20) / (1 + z²/10), half width z sqrt(0.016 + z²/400) / (1 + z²/10)."""
    z = 1.959964
    center, half = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * (0.016 + z**2 / 400) ** 0.5 / (1 + z**2 / 10)
    assert wilson(0.8, 10) == pytest.approx((center - half, center + half), abs=1e-6)
    assert wilson(1.0, 5)[1] == pytest.approx(1) and wilson(0.0, 5)[0] == pytest.approx(0)
