"""Intervals and tests behind every figure: bootstrap means, the noise floor of gaps, percentiles that n allows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

REPLICATES = 2000
INSUFFICIENT = 30
"""Groups below this size are not judged (coverage of the percentile bootstrap falls under 93 %)."""
LOW_PRECISION = 100
"""Groups below this size are judged, and marked."""

ENOUGH = {50: 11, 90: 64, 95: 130, 97: 219, 99: 662}
"""Fewest samples for a latency percentile: MLPerf LoadGen's early-stopping rule at 99 % confidence, none over."""


@lru_cache(maxsize=8)
def _resamples(n: int) -> NDArray[np.int32]:
    return np.random.default_rng(20260101).integers(0, n, (REPLICATES, n), dtype=np.int32)


def bootstrap_interval(values: Float, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values; (NaN, NaN) for fewer than two.

    Groups are resampled one by one, which stratifies; paired differences are formed before they come here.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    means = values[_resamples(len(values))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def jackknife(left_out: Float) -> float:
    """The variance of a statistic, from its values without each observation; an overestimate where it is not linear."""
    return (len(left_out) - 1) * float(np.var(left_out))


@lru_cache(maxsize=2)
def _weights(n: int) -> Float:
    """How much each of n values counts in the mean of each of `_resamples`: (`REPLICATES`, n)."""
    places = _resamples(n) + n * np.arange(REPLICATES)[:, None]
    return np.bincount(places.ravel(), minlength=REPLICATES * n).reshape(REPLICATES, n) / n


def resampled_means(values: Float) -> Float:
    """Means of the columns of (n, k) values over resampled rows: (`REPLICATES`, k); NaN for fewer than two rows.

    All columns of all arrays of n rows have the same resamples, those of `bootstrap_interval`: rows stay paired.
    """
    n, columns = values.shape
    if n < 2:
        return np.full((REPLICATES, columns), math.nan)
    means: Float = _weights(n) @ values
    return means


def mean_intervals(values: Float) -> list[tuple[float, float, float]]:
    """Mean and 95 % interval of each column of finite (n, k) values, as `bootstrap_interval` gives for one; n >= 1."""
    low, high = np.quantile(resampled_means(values), [0.025, 0.975], axis=0)
    return [*zip(values.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)]


def ratio_of_means(above: Float, below: Float) -> tuple[float, float, float]:
    """Mean over k of mean(above[:, k]) / mean(below[:, k]) with its 95 % interval, from paired (n, k) values.

    Percentile bootstrap over rows, all columns of both sides resampled together; NaN or infinite where one of `below`
    has a mean of 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (above.mean(axis=0) / below.mean(axis=0)).mean()
        ratios = (resampled_means(above) / resampled_means(below)).mean(axis=1)
        low, high = np.quantile(ratios, [0.025, 0.975])
    return float(ratio), float(low), float(high)


@dataclass(frozen=True)
class Gap:
    """The largest difference between group means, and what chance alone gives for groups of these sizes.

    `p_value` is (b + 1) / (m + 1) over m permutations of the labels (Phipson and Smyth 2010): never 0.
    """

    observed: float
    null_mean: float
    null_p95: float
    p_value: float


def gap_test(values: Float, groups: Sequence[str] | NDArray[np.str_], permutations: int = REPLICATES) -> Gap:
    """Permutation test of max - min of the group means: labels are shuffled over the images."""
    return gap_tests(values[:, None], groups, permutations)[0]


def gap_tests(values: Float, groups: Sequence[str] | NDArray[np.str_], permutations: int = REPLICATES) -> list[Gap]:
    """The test of `gap_test` for each column of (images, measures) values, all with the same permutations."""
    _, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    observed = _spreads(codes[None], values)[0]
    rng = np.random.default_rng(20260102)
    parts = []
    for count in _portions(permutations, len(values) * (codes.max() + 1)):
        shuffled = rng.permuted(np.broadcast_to(codes, (count, len(codes))), axis=1)
        parts.append(_spreads(shuffled, values))
    null = np.concatenate(parts)
    above = (null >= observed * (1 - 1e-12)).sum(axis=0)
    p_values, p95 = (above + 1) / (permutations + 1), np.quantile(null, 0.95, axis=0)
    figures = zip(observed, null.mean(axis=0), p95, p_values, strict=True)
    return [Gap(*(float(figure) for figure in each)) for each in figures]


def _portions(total: int, cells: int) -> Iterator[int]:
    """`total` in parts of at most some 2^22 cells each, to bound memory."""
    size = max(1, 2**22 // cells)
    return (min(size, total - start) for start in range(0, total, size))


def _spreads(codes: NDArray[np.intp], values: Float) -> Float:
    """Max - min of the group means, for each row of group codes (rows, images) and each column of values."""
    sizes = np.bincount(codes[0])
    members = (codes[:, None, :] == np.arange(len(sizes))[:, None]).astype(np.float64)
    means = (members @ values) / sizes[:, None]
    spread: Float = means.max(axis=1) - means.min(axis=1)
    return spread


def percentile(values: Float, q: int) -> float:
    """The q-th percentile, or NaN when there are too few values to quote it (see `ENOUGH`)."""
    return float(np.percentile(values, q)) if len(values) >= ENOUGH[q] else math.nan


def typical(values: Float) -> float:
    """The median, or the mean where there are too few values to quote a median; NaN for none."""
    if not len(values):
        return math.nan
    return float(np.median(values) if len(values) >= ENOUGH[50] else values.mean())


def ratio_of_medians(first: Float, second: Float, level: float = 0.95) -> tuple[float, float, float]:
    """`typical(first) / typical(second)` of pairs with its percentile bootstrap interval, the pairs resampled.

    The interval is (NaN, NaN) where they are too few for a median.
    """
    ratio = typical(first) / typical(second)
    if len(first) < ENOUGH[50]:
        return ratio, math.nan, math.nan
    chosen = np.random.default_rng(20260103).integers(0, len(first), (REPLICATES, len(first)))
    above, below = (np.median(v[chosen], axis=1) for v in (first, second))
    low, high = np.quantile(above / below, [(1 - level) / 2, (1 + level) / 2])
    return ratio, float(low), float(high)


def verdict(low: float, high: float, *, higher_is_better: bool | None) -> str:
    """What a paired interval of "this minus that" says of this: better, worse, tie, or not measured.

    A metric in which more is neither better nor worse gives higher or lower.
    """
    if math.isnan(low):
        return "not measured"
    if low <= 0 <= high:
        return "tie"
    if higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == higher_is_better else "worse"
