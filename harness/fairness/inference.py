"""Tests and intervals of the fairness audit: pure functions of per-image values and group labels.

Values are finite, one an image, and every group has two at least; the caller leaves out groups below
`statistics.INSUFFICIENT`. The unit is the image. Random draws are seeded: the same input gives the same figures.
A p-value from m random draws is (b + 1) / (m + 1), b of them as extreme as what was observed (Phipson and Smyth
2010): never 0, and a test of level .05 exactly.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from harness.datasets import UNKNOWN
from harness.statistics import INSUFFICIENT, REPLICATES, bootstrap_interval

Float = NDArray[np.float64]

LEVEL = 0.05
POWER = 0.8
ENOUGH_EXPECTED = 5
"""Expected counts from which a chi-squared statistic follows its distribution closely enough (Cochran 1954)."""

_CELLS = 2**19  # values shuffled or resampled at a time
_TIE = 1 - 1e-9  # equal statistics differ by rounding


# Rates and counts


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927); (NaN, NaN) for n = 0."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, method="wilson") if n else (math.nan, math.nan)
    return float(low), float(high)


def wilson_rates(hits: pd.Series, n: pd.Series) -> pd.DataFrame:
    """Rates hits / n with their intervals by `wilson`, columns rate, low, high; NaN for n = 0."""
    pairs = zip(hits, n.fillna(0), strict=True)
    bounds = pd.DataFrame([wilson(a, b) for a, b in pairs], hits.index, ["low", "high"], float)
    bounds.insert(0, "rate", hits / n.where(n > 0))
    return bounds


def homogeneity(successes: ArrayLike, sizes: ArrayLike) -> float:
    """p-value of equal rates in K groups: Pearson's chi-squared on the K x 2 table; NaN for fewer than two groups.

    Where a count below `ENOUGH_EXPECTED` is expected, labels are shuffled instead (tables of the same margins).
    """
    from scipy.stats import chi2_contingency

    n, hits = np.asarray(sizes), np.asarray(successes)
    n, hits = n[n > 0], hits[n > 0]
    if len(n) < 2:
        return math.nan
    if hits.sum() in (0, n.sum()):
        return 1.0
    expected = hits.sum() * n / n.sum()
    if min(expected.min(), (n - expected).min()) >= ENOUGH_EXPECTED:
        return float(chi2_contingency([hits, n - hits], correction=False).pvalue)
    drawn = np.random.default_rng(20260104).multivariate_hypergeometric(n, hits.sum(), REPLICATES)
    weights = n / (expected * (n - expected))
    return _p_value((drawn - expected) ** 2 @ weights, (hits - expected) ** 2 @ weights)


def goodness_of_fit(counts: ArrayLike, shares: ArrayLike) -> float:
    """p-value of `counts` as independent draws from groups of these true `shares`; NaN for fewer than two groups.

    Pearson's chi-squared; drawn multinomial counts give its distribution where fewer than `ENOUGH_EXPECTED` are
    expected. Counts in a group of share 0 cannot be such draws: p = 0. Labels predicted for images of a fixed mix vary
    less than independent draws the more they follow the truth, so there the test rejects less than its level.
    """
    from scipy.stats import chisquare

    observed, share = np.asarray(counts), np.asarray(shares) / np.sum(np.asarray(shares))
    if observed[share == 0].any():
        return 0.0
    observed, share = observed[share > 0], share[share > 0]
    expected = observed.sum() * share
    if len(share) < 2 or not observed.any():
        return math.nan
    if expected.min() >= ENOUGH_EXPECTED:
        return float(chisquare(observed, expected).pvalue)
    drawn = np.random.default_rng(20260105).multinomial(observed.sum(), share, REPLICATES)
    return _p_value((drawn - expected) ** 2 @ (1 / expected), (observed - expected) ** 2 @ (1 / expected))


def _p_value(null: Float, observed: float) -> float:
    return float((np.count_nonzero(null >= observed * _TIE) + 1) / (len(null) + 1))


# Scores by group


@dataclass(frozen=True)
class Contrast:
    """A group's mean minus the unweighted mean of the other groups' means, in the unit of the values.

    `low` and `high` bound the 95 % interval, `low90` and `high90` that of 90 %; `statistic` is the difference in
    standard errors. Of two groups the contrasts mirror each other: they are one claim, and count once in a family.
    """

    group: str
    n: int
    difference: float
    low: float
    high: float
    low90: float
    high90: float
    statistic: float
    p_value: float


def contrasts(values: Float, groups: Sequence[str] | NDArray[np.str_]) -> list[Contrast]:
    """The contrast of each group, by name; none for fewer than two groups.

    Intervals are percentile bootstrap, each group resampled by itself. The two-sided p-values come from shuffled
    labels and the studentised difference, which keeps the level also where groups differ in size and in variance
    (Chung and Romano 2013).
    """
    names, members = _groups(groups)
    if len(names) < 2:
        return []
    centred = _centred(values)
    statistic = partial(_contrast_statistics, members=members)
    observed, null = statistic(centred[None])[0], np.abs(_shuffled(centred, statistic))
    differences = _against_others(values @ members / members.sum(axis=0))
    rng = np.random.default_rng(20260106)
    means = np.stack([_resampled_means(values[column > 0], rng) for column in members.T], axis=1)
    low, low90, high90, high = np.quantile(_against_others(means), [0.025, 0.05, 0.95, 0.975], axis=0)
    return [
        Contrast(
            name,
            n=int(members[:, i].sum()),
            difference=float(differences[i]),
            low=float(low[i]),
            high=float(high[i]),
            low90=float(low90[i]),
            high90=float(high90[i]),
            statistic=float(observed[i]),
            p_value=_p_value(null[:, i], abs(observed[i])),
        )
        for i, name in enumerate(names)
    ]


def any_difference(values: Float, groups: Sequence[str] | NDArray[np.str_]) -> float:
    """p-value of equal means in all groups: the largest studentised contrast under shuffled labels; NaN for one group.

    The plain largest gap would reject too often where the smallest group varies most, and too seldom where it varies
    least.
    """
    _, members = _groups(groups)
    if members.shape[1] < 2:
        return math.nan
    centred = _centred(values)
    statistic = partial(_largest_contrast, members=members)
    return _p_value(_shuffled(centred, statistic), float(statistic(centred[None])[0]))


def _largest_contrast(rows: Float, members: Float) -> Float:
    largest: Float = np.abs(_contrast_statistics(rows, members)).max(axis=1)
    return largest


def _groups(groups: Sequence[str] | NDArray[np.str_]) -> tuple[list[str], Float]:
    """The groups' names in order, and who is in which: an (images, groups) array of 0 and 1."""
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return names.tolist(), np.eye(len(names))[codes]


def _centred(values: Float) -> Float:
    """Values around 0, so that sums of squares lose no digits; equal values become exactly 0."""
    return np.asarray(values, dtype=np.float64) - np.median(values)


def _contrast_statistics(rows: Float, members: Float) -> Float:
    """Studentised contrasts, (rows, groups), of values that are arranged differently in each row."""
    sizes = members.sum(axis=0)
    means = rows @ members / sizes
    variances = (rows**2 @ members / sizes - means**2) / (sizes - 1)
    others = variances.sum(axis=-1, keepdims=True) - variances
    return _in_errors(_against_others(means), variances + others / (len(sizes) - 1) ** 2)


def _against_others(means: Float) -> Float:
    """Each group's mean minus the mean of the others', along the last axis."""
    result: Float = (means - means.mean(axis=-1, keepdims=True)) * means.shape[-1] / (means.shape[-1] - 1)
    return result


def _in_errors(difference: Float, variance: Float) -> Float:
    """Differences in standard errors: 0 for none, infinite where nothing varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = difference / np.sqrt(np.maximum(variance, 0))
    return np.nan_to_num(ratio, nan=0.0, posinf=np.inf, neginf=-np.inf)


@lru_cache(maxsize=48)
def _shuffle(n: int, start: int) -> NDArray[np.int32]:
    """Some of the `REPLICATES` permutations of n images, from number `start` on: `_CELLS` indices, if n allows."""
    rows = min(max(1, _CELLS // n), REPLICATES - start)
    rng = np.random.default_rng((20260107, start))
    return rng.permuted(np.broadcast_to(np.arange(n, dtype=np.int32), (rows, n)), axis=1)


def _shuffled(values: Float, statistic: Callable[[Float], Float]) -> Float:
    """The statistic of every permutation of the values: (`REPLICATES`, ...)."""
    return np.concatenate([statistic(values[block]) for block in _shuffles(len(values))])


def _shuffles(n: int) -> Iterator[NDArray[np.int32]]:
    start = 0
    while start < REPLICATES:
        block = _shuffle(n, start)
        start += len(block)
        yield block


def _resampled_means(values: Float, rng: np.random.Generator) -> Float:
    n = len(values)
    rows = max(1, _CELLS // n)
    sizes = [(min(rows, REPLICATES - start), n) for start in range(0, REPLICATES, rows)]
    return np.concatenate([values[rng.integers(0, n, size, dtype=np.int32)].mean(axis=1) for size in sizes])


# Families of claims


def holm(p: Float) -> Float:
    """p-values adjusted for the error rate of the family (Holm 1979); NaN stays NaN and is not counted."""
    return _adjusted(p, "holm")


def benjamini_hochberg(p: Float) -> Float:
    """p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995); NaN stays NaN, not counted."""
    return _adjusted(p, "fdr_bh")


def _adjusted(p: Float, method: str) -> Float:
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p, dtype=np.float64)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], method=method)[1]
    return adjusted


# What may be said


def equivalent(found: Sequence[Contrast], margin: float) -> bool:
    """Whether every group differs from the others by less than `margin`, at level .05.

    Two one-sided tests (Schuirmann 1987): each 90 % interval lies inside (-margin, margin). Never for no contrasts.
    """
    return bool(found) and all(-margin < contrast.low90 and contrast.high90 < margin for contrast in found)


def smallest_effect(values: Float, groups: Sequence[str] | NDArray[np.str_], level: float = LEVEL) -> float:
    """The true gap that the gap test at `level` finds with 80 % power, whichever group alone has it; NaN for none.

    In the unit of the values. Labels are shuffled over the deviations from the group means, which gives means that
    differ by chance alone, and the gap c that chance exceeds with probability `level`. Group g shifted by
    c + (least other mean) - (its mean) has the gap c: the 80 % quantile of that shift is what g needs. The largest over
    the groups is returned.
    """
    names, members = _groups(groups)
    if len(names) < 2:
        return math.nan
    sizes = members.sum(axis=0)
    noise = values - members @ (values @ members / sizes)
    means = _shuffled(noise, lambda rows: rows @ members / sizes)
    critical = float(np.quantile(np.ptp(means, axis=1), 1 - level))
    return max(_needed_shift(means, group, critical) for group in range(len(names)))


def _needed_shift(means: Float, group: int, critical: float) -> float:
    others = np.delete(means, group, axis=1)
    shift = critical + others.min(axis=1) - means[:, group]
    return float(np.quantile(np.where(np.ptp(others, axis=1) >= critical, 0, shift), POWER))


def verdict(p_adjusted: float, *, equivalent: bool, groups: int) -> str:
    """What an audit says of one measure and attribute, from `groups` groups that are large enough.

    Disparity goes first: a difference that is certain, but within the margin, is still told.
    """
    if groups < 2 or math.isnan(p_adjusted):
        return "insufficient"
    if p_adjusted < LEVEL:
        return "disparity"
    return "no disparity beyond the margin" if equivalent else "inconclusive"


# The worst subgroup


@dataclass(frozen=True)
class Scan:
    """The subgroup that differs most from all other images; `searched` subgroups were looked at, and p allows for it.

    `difference` is its mean minus the mean of the other images.
    """

    attributes: dict[str, str]
    n: int
    difference: float
    p_value: float
    searched: int


def scan(
    values: Float, labels: pd.DataFrame, minimum: int = INSUFFICIENT, *, higher_is_better: bool | None = None
) -> Scan | None:
    """The group, of one column of `labels` or of two crossed, whose studentised difference from the rest is worst.

    Where neither direction is better, it is the largest of either sign.
    Only subgroups of `minimum` images, with as many outside, are searched, and none that is "unknown"; None if there
    are none. Its p-value is that of the largest difference over all of them under shuffled labels (the max-T of
    Westfall and Young 1993).
    """
    found = _subgroups(labels, minimum)
    if not found:
        return None
    members = np.stack([mask for _, mask in found], axis=1).astype(np.float64)
    statistic = partial(_badness, members=members, higher_is_better=higher_is_better)
    centred = _centred(values)
    differences = statistic(centred[None])[0]
    worst = int(differences.argmax())
    inside = found[worst][1]
    return Scan(
        found[worst][0],
        n=int(inside.sum()),
        difference=float(values[inside].mean() - values[~inside].mean()),
        p_value=_p_value(_shuffled(centred, lambda rows: statistic(rows).max(axis=1)), differences[worst]),
        searched=len(found),
    )


def _subgroups(labels: pd.DataFrame, minimum: int) -> list[tuple[dict[str, str], NDArray[np.bool_]]]:
    single = [
        ({str(column): str(group)}, (labels[column] == group).to_numpy())
        for column in labels
        for group in sorted(set(labels[column]) - {UNKNOWN})
    ]
    pairs = itertools.combinations(single, 2)
    crossed = [(one | other, here & there) for (one, here), (other, there) in pairs if one.keys() != other.keys()]
    return [(about, mask) for about, mask in single + crossed if minimum <= mask.sum() <= len(labels) - minimum]


def _badness(rows: Float, members: Float, *, higher_is_better: bool | None) -> Float:
    differences = _against_rest(rows, members)
    if higher_is_better is None:
        return np.abs(differences)
    return -differences if higher_is_better else differences


def _against_rest(rows: Float, members: Float) -> Float:
    """Welch's t of each subgroup against all other images, (rows, subgroups)."""
    sums, squares, sizes = rows @ members, rows**2 @ members, members.sum(axis=0)
    rest, rest_squares, rest_sizes = (
        total - part
        for total, part in (
            (rows.sum(axis=1, keepdims=True), sums),
            ((rows**2).sum(axis=1, keepdims=True), squares),
            (len(members), sizes),
        )
    )
    variance = _variance_of_mean(sums, squares, sizes) + _variance_of_mean(rest, rest_squares, rest_sizes)
    return _in_errors(sums / sizes - rest / rest_sizes, variance)


def _variance_of_mean(sums: Float, squares: Float, sizes: Float) -> Float:
    result: Float = (squares / sizes - (sums / sizes) ** 2) / (sizes - 1)
    return result


# Several seeds an image


def nested_interval(values: Float) -> tuple[float, float, float, float]:
    """Mean over images of (images, seeds) values, its 95 % interval, and the SD from seed to seed in one image.

    NaN is a missing output; an image without any is left out. Images are resampled, each with all its seeds: their
    means vary between images and between seeds both, and seeds resampled a second time would count their noise twice
    (Davison and Hinkley 1997, section 3.8). The SD is the root of the mean variance within images of two seeds or more.
    """
    present = ~np.isnan(values)
    counts = present.sum(axis=1)
    means = np.nansum(values, axis=1)[counts > 0] / counts[counts > 0]
    repeated = values[counts > 1]
    spread = math.sqrt(np.nanvar(repeated, axis=1, ddof=1).mean()) if len(repeated) else math.nan
    return float(means.mean()) if len(means) else math.nan, *bootstrap_interval(means), spread
