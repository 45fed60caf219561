"""Statistics over the runs of several arms: spread, intervals, tests, and the number of runs needed for a claim.

Values are accuracies in points (percent), one per run. Arms whose runs share seeds are compared in pairs, because runs
with the same seed share initial weights, order and crops. Arms without common seeds are compared by Welch's test, which
assumes only roughly normal means. Several comparisons are corrected by Holm's method.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
POWER = 0.8
FEWEST = 3
"""Fewest runs of an arm, or pairs, for an interval or a test.

With two runs the true standard deviation may be up to 32 times the estimate (95 % interval).
"""
MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1), number of runs and 95 % interval of the mean.

    The deviation is NaN for one run, the interval for fewer than `FEWEST`.
    """

    mean: float
    deviation: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean difference of two arms, its 95 % interval, and a test of the hypothesis that it is zero.

    Attributes:
        difference: First arm minus second, in points.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value, not corrected.
        effect: Standardized difference (Hedges's g for two samples, Cohen's d_z for pairs).
        n: Numbers of runs of the first and second arm; (n, n) for n pairs.
        deviation: Standard deviation of runs within an arm (pooled), or of the differences of pairs.
        by_pairs: Whether runs were compared in pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    effect: float
    n: tuple[int, int]
    deviation: float
    by_pairs: bool = False

    @property
    def tested(self) -> bool:
        """Whether there were enough runs, with some spread, for a test."""
        return not math.isnan(self.p)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the deviation."""
        return self.n[0] - 1 if self.by_pairs else sum(self.n) - 2


def _values(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected at least one finite number, got {values!r}")
    return array


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, spread and interval of the runs of one arm."""
    array = _values(values)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Summary(mean, math.nan, 1, math.nan, math.nan)
    deviation = float(array.std(ddof=1))
    if n < FEWEST:
        return Summary(mean, deviation, n, math.nan, math.nan)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
    return Summary(mean, deviation, n, mean - half, mean + half)


def _without_test(difference: float, n: tuple[int, int], *, by_pairs: bool = False) -> Difference:
    return Difference(difference, math.nan, math.nan, math.nan, math.nan, n, math.nan, by_pairs)


def _rounding(*arrays: np.ndarray) -> float:
    """Return a spread that equal values may have by rounding, which leaves some 1e-15 of them."""
    return 1e-12 * max(1.0, *(float(np.abs(array).max()) for array in arrays))


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two arms of independent runs (Welch 1947); with fewer than `FEWEST` in one of them, without a test.

    The effect size is Hedges's g: the difference over the pooled deviation, corrected for small samples.
    """
    a, b = _values(first), _values(second)
    difference, n = float(a.mean() - b.mean()), (len(a), len(b))
    if min(n) < FEWEST:
        return _without_test(difference, n)
    pooled = math.sqrt(((n[0] - 1) * a.var(ddof=1) + (n[1] - 1) * b.var(ddof=1)) / (sum(n) - 2))
    if pooled <= _rounding(a, b):
        return _without_test(difference, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss of precision, if one arm is constant
        test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(1 - LEVEL)
    correction = 1 - 3 / (4 * (sum(n) - 2) - 1)
    return Difference(
        difference, float(low), float(high), float(test.pvalue), correction * difference / pooled, n, pooled
    )


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two arms run by run: the i-th values of both must share a seed.

    Fewer than `FEWEST` pairs, or pairs that all differ by the same amount, give the difference without a test.

    Raises:
        ValueError: The numbers of values differ.
    """
    a, b = _values(first), _values(second)
    if len(a) != len(b):
        raise ValueError(f"pairs need the same number of runs in both arms, got {len(a)} and {len(b)}")
    delta, n = a - b, (len(a), len(a))
    difference = float(delta.mean())
    deviation = float(delta.std(ddof=1)) if len(a) > 1 else 0.0
    if len(a) < FEWEST or deviation <= _rounding(a, b):
        return _without_test(difference, n, by_pairs=True)
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(1 - LEVEL)
    effect = difference / deviation
    return Difference(difference, float(low), float(high), float(test.pvalue), effect, n, deviation, by_pairs=True)


@dataclass(frozen=True)
class SeedComparison:
    """Two arms whose runs are known by seed.

    Attributes:
        leading: In pairs of common seeds if these allow a test, otherwise `welch`.
        welch: Welch's test, which ignores the seeds.
    """

    leading: Difference
    welch: Difference


def compare_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> SeedComparison:
    """Compare two arms whose runs are known by seed.

    Args:
        first: Seed to value.
        second: Seed to value.
    """
    unpaired = welch(list(first.values()), list(second.values()))
    shared = sorted(first.keys() & second.keys())
    if len(shared) < FEWEST:
        return SeedComparison(unpaired, unpaired)
    pairs = paired([first[seed] for seed in shared], [second[seed] for seed in shared])
    return SeedComparison(pairs if pairs.tested else unpaired, unpaired)


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (1979); NaN, a comparison without a test, stays NaN.

    Args:
        p_values: Of the comparisons.
        family: How many comparisons were planned, with those that are not among `p_values` or without a test; None
            stands for those with a test.
    """
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    count = max(family or 0, len(tested))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _power(n: int, effect: float, *, pairs: bool) -> float:
    """Return the power of a two-sided t test of n runs per arm, or n pairs, at a standardized difference."""
    freedom, squared = (n - 1, n * effect**2) if pairs else (2 * n - 2, n * effect**2 / 2)
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)
    # the square of a noncentral t is a noncentral F, which SciPy computes where its noncentral t gives NaN
    return float(stats.ncf.sf(critical**2, 1, freedom, squared))


def seeds_needed(deviation: float, difference: float, *, pairs: bool = False) -> int | None:
    """Return the number of runs per arm, or of pairs, that show a difference with 80 % power at the 5 % level.

    Args:
        deviation: Standard deviation of runs, or of the differences of pairs.
        difference: The difference to detect, in the same unit.
        pairs: Whether the deviation is that of pairs.

    Returns:
        The number; None if the deviation is unknown (NaN) or the number is above `MOST_SEEDS`.

    Raises:
        ValueError: The difference is not positive, or the deviation is negative.
    """
    if not difference > 0:
        raise ValueError(f"the difference to detect must be positive, got {difference}")
    if deviation < 0:
        raise ValueError(f"the deviation must not be negative, got {deviation}")
    if math.isnan(deviation):
        return None
    if deviation == 0:
        return 2
    low, high = 1, 2
    while _power(high, difference / deviation, pairs=pairs) < POWER:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(middle, difference / deviation, pairs=pairs) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def deviation_interval(deviation: float, freedom: int) -> tuple[float, float]:
    """Return the 95 % interval of a standard deviation that was estimated from normal values."""
    if math.isnan(deviation) or freedom < 1:
        return math.nan, math.nan
    low, high = (math.sqrt(freedom / stats.chi2.ppf(share, freedom)) for share in (1 - LEVEL / 2, LEVEL / 2))
    return deviation * low, deviation * high


def seeds_between(found: Difference, difference: float) -> tuple[int | None, int | None, int | None]:
    """Return the number of runs per arm, or of pairs, that show a difference, with its uncertainty.

    Args:
        found: A comparison; its deviation is that of the runs, or of the pairs.
        difference: The difference to detect, in the same unit.

    Returns:
        The number for the deviation as estimated, and for both ends of the deviation's 95 % interval, each as from
        `seeds_needed`.
    """
    ends = deviation_interval(found.deviation, found.freedom)
    best, low, high = (seeds_needed(one, difference, pairs=found.by_pairs) for one in (found.deviation, *ends))
    return best, low, high


def normality(values: Sequence[float]) -> float:
    """Return the p-value of Shapiro and Wilk's test (1965); NaN below three runs or without spread.

    With few runs the test detects only large deviations from normality.
    """
    array = _values(values)
    if len(array) < 3 or np.ptp(array) <= _rounding(array):
        return math.nan
    return float(stats.shapiro(array).pvalue)


def winner(arms: Mapping[str, Mapping[int, float]]) -> tuple[str | None, list[str]]:
    """Return the arm with the highest mean if it is significantly better than every other arm.

    Args:
        arms: Name to values by seed; arms with common seeds are compared in pairs.

    Returns:
        The winner and an empty list; or None and the arms, best first, that are not significantly worse than the
        best: the test against it, corrected over all other arms, does not reach the 5 % level, or an arm has too few
        runs.

    Raises:
        ValueError: There are no arms, or an arm has no runs.
    """
    if not arms:
        raise ValueError("expected at least one arm, got none")
    order = sorted(arms, key=lambda arm: -summarize(list(arms[arm].values())).mean)
    best, others = order[0], order[1:]
    compared = [compare_by_seed(arms[best], arms[arm]).leading for arm in others]
    adjusted = holm([one.p for one in compared])
    # on the seeds that two arms share, the one with the lower mean of all may be the better one
    beaten = [p < LEVEL and one.difference > 0 for p, one in zip(adjusted, compared, strict=True)]
    level = [arm for arm, lower in zip(others, beaten, strict=True) if not lower]
    return (best, []) if others and not level else (None, [best, *level])


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n independent trials (Wilson 1927), also valid near 0 and 1.

    Args:
        share: Share of successful trials, from 0 to 1; a multiple of 1/n.
        n: Number of trials.
    """
    interval = stats.binomtest(round(share * n), n).proportion_ci(1 - LEVEL, "wilson")
    return float(interval.low), float(interval.high)
