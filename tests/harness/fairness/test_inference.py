"""The audit's tests agree with others' code, keep their level, find what is planted, and claim nothing more."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.fairness.inference import (
    Contrast,
    Float,
    benjamini_hochberg,
    contrasts,
    equivalent,
    goodness_of_fit,
    holm,
    homogeneity,
    nested_interval,
    scan,
    smallest_effect,
    verdict,
    wilson,
)
from harness.statistics import gap_test


def rejected(p_value: Callable[[np.random.Generator], float], trials: int) -> float:
    """The share of trials with p < .05."""
    rng = np.random.default_rng(11)
    return float(np.mean([p_value(rng) < 0.05 for _ in range(trials)]))


def faces(rng: np.random.Generator, n: int = 600) -> pd.DataFrame:
    """Labels of n images in two races, two genders and two ages, some unknown."""
    races = rng.choice(["black", "white", "unknown"], n, p=[0.3, 0.6, 0.1])
    return pd.DataFrame({"race": races, "gender": rng.choice(["f", "m"], n), "age": rng.choice(["old", "young"], n)})


# Rates and counts


def test_wilson_is_the_formula_and_stays_within_0_and_1() -> None:
    """The interval is Wilson's; no successes give a lower end of 0; no images give no interval."""
    p, z, n = 0.3, stats.norm.ppf(0.975), 50
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(15, 50) == pytest.approx(((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)))
    assert wilson(0, 10)[0] == 0
    assert all(map(math.isnan, wilson(0, 0)))


def test_rates_of_large_groups_are_compared_by_chi_squared() -> None:
    """With enough expected everywhere the p-value is that of the statistic written out; empty groups count for none."""
    hits, sizes = np.array([40, 55, 70]), np.array([200, 210, 190])
    rate = hits.sum() / sizes.sum()
    statistic = ((hits - sizes * rate) ** 2 / (sizes * rate * (1 - rate))).sum()
    assert homogeneity(list(hits), list(sizes)) == pytest.approx(stats.chi2.sf(statistic, 2))
    assert homogeneity([*hits, 0], [*sizes, 0]) == pytest.approx(stats.chi2.sf(statistic, 2))


def test_rare_events_are_compared_without_chi_squared() -> None:
    """Where few are expected, the p-value is Fisher's within the error of 2,000 draws."""
    assert homogeneity([0, 6], [40, 40]) == pytest.approx(stats.fisher_exact([[0, 6], [40, 34]]).pvalue, abs=0.01)
    assert homogeneity([0, 0], [40, 40]) == 1
    assert math.isnan(homogeneity([3], [40]))


def test_counts_are_compared_with_the_true_mix() -> None:
    """Counts are judged by chi-squared on the true shares, by drawn counts where few are expected."""
    counts, shares = [90, 60, 50], [0.5, 0.3, 0.2]
    assert goodness_of_fit(counts, shares) == pytest.approx(stats.chisquare(counts, [100, 60, 40]).pvalue)
    assert goodness_of_fit([7, 1], [0.5, 0.5]) == pytest.approx(stats.binomtest(7, 8, 0.5).pvalue, abs=0.02)
    assert goodness_of_fit([50, 50, 1], [0.5, 0.5, 0]) == 0
    assert math.isnan(goodness_of_fit([5], [1]))


def test_rates_and_counts_keep_their_level() -> None:
    """Equal rates and true mixes are called different in 3 to 7 % of 1,000 samples, few expected or many."""
    sizes, shares = [200] * 7, [0.4, 0.3, 0.2, 0.1]
    assert 0.03 <= rejected(lambda rng: homogeneity(rng.binomial(200, 0.3, 7), sizes), 1000) <= 0.07
    assert 0.03 <= rejected(lambda rng: homogeneity(rng.binomial(40, 0.05, 7), [40] * 7), 1000) <= 0.07
    assert 0.03 <= rejected(lambda rng: goodness_of_fit(rng.multinomial(500, shares), shares), 1000) <= 0.07
    assert 0.03 <= rejected(lambda rng: goodness_of_fit(rng.multinomial(30, shares), shares), 1000) <= 0.07


# Contrasts


def test_a_contrast_is_against_the_unweighted_mean_of_the_others() -> None:
    """However many images the other groups have, each counts alike; the interval holds the difference."""
    values = np.concatenate([np.full(4, 1.0), np.full(10, 2.0), np.full(100, 6.0)]) + np.tile([-0.5, 0.5], 57)
    first, second, third = contrasts(values, ["a"] * 4 + ["b"] * 10 + ["c"] * 100)
    assert (first.group, first.n) == ("a", 4)
    assert [c.difference for c in (first, second, third)] == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    assert third.low < third.low90 < third.difference < third.high90 < third.high
    assert contrasts(values, ["a"] * 114) == []


def test_two_groups_are_compared_as_by_welch() -> None:
    """For two groups statistic, p-value and interval are those of Welch's t test, up to the draws."""
    rng = np.random.default_rng(12)
    values = np.concatenate([rng.normal(0.3, 1, 150), rng.normal(0, 2, 250)])
    first, second = contrasts(values, ["a"] * 150 + ["b"] * 250)
    theirs = stats.ttest_ind(values[:150], values[150:], equal_var=False)
    assert first.statistic == pytest.approx(theirs.statistic)
    assert second.statistic == pytest.approx(-theirs.statistic)
    assert first.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    interval = theirs.confidence_interval(0.95)
    assert (first.low, first.high) == pytest.approx((interval.low, interval.high), abs=0.03)


def test_unequal_groups_keep_the_level() -> None:
    """A small group that varies more, and has the same mean, is called different in 2 to 8 % of 300 samples."""
    groups = np.repeat(["a", "b", "c"], [30, 150, 150])
    spread = np.repeat([3.0, 1.0, 1.0], [30, 150, 150])
    share = rejected(lambda rng: contrasts(rng.normal(0, spread), list(groups))[0].p_value, 300)
    assert 0.02 <= share <= 0.08


def test_a_planted_bias_is_named_with_its_direction() -> None:
    """The group that is half a standard deviation worse has the strongest contrast, and it is negative."""
    rng = np.random.default_rng(13)
    groups = np.repeat(["a", "b", "c", "d", "e"], 200)
    for _ in range(10):
        found = contrasts(rng.normal(0, 1, 1000) - 0.5 * (groups == "d"), list(groups))
        strongest = max(found, key=lambda contrast: abs(contrast.statistic))
        assert (strongest.group, strongest.difference < 0) == ("d", True)
        assert strongest.p_value == min(contrast.p_value for contrast in found) < 0.01


def test_values_that_do_not_vary_are_no_disparity() -> None:
    """Equal values have a p-value of 1; a group of zeros alone beside mixed ones has a valid one."""
    groups = ["a"] * 40 + ["b"] * 40 + ["c"] * 40
    assert [contrast.p_value for contrast in contrasts(np.full(120, 0.1), groups)] == [1, 1, 1]
    rates = np.array([0.0] * 40 + [1.0] * 40 + [0.0, 1.0] * 20)
    assert [contrast.p_value < 0.01 for contrast in contrasts(rates, groups)] == [True, True, False]


# Families, equivalence, power


def test_adjusted_p_values_are_the_published_ones() -> None:
    """Holm and Benjamini-Hochberg are as written out by hand; NaN stays and is not counted."""
    p = np.array([0.01, math.nan, 0.04, 0.03])
    assert holm(p) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert benjamini_hochberg(p) == pytest.approx([0.03, math.nan, 0.04, 0.04], nan_ok=True)
    assert np.isnan(holm(np.array([math.nan]))).all()


def contrast(low90: float, high90: float) -> Contrast:
    """A contrast with this 90 % interval."""
    return Contrast("a", 100, 0.0, low90, high90, low90, high90, 0.0, 1.0)


def test_equivalence_needs_every_contrast_within_the_margin() -> None:
    """One interval that reaches the margin, or no contrast at all, leaves equivalence unproved."""
    inside = contrast(-0.4, 0.3)
    assert equivalent([inside, inside], 0.5)
    assert not equivalent([inside, contrast(-0.1, 0.5)], 0.5)
    assert not equivalent([inside, contrast(-0.6, 0.1)], 0.5)
    assert not equivalent([], 0.5)


def test_a_difference_of_the_margin_is_seldom_called_equivalent() -> None:
    """A group that differs by just the margin is called equivalent in 2 to 8 % of 300 samples of skewed values."""
    groups = np.repeat(["a", "b", "c"], [60, 120, 120])

    def proved(rng: np.random.Generator) -> bool:
        first = contrasts(rng.gamma(4, 0.5, 300) + (groups == "a"), list(groups))[0]
        return equivalent([first], 1.0)

    rng = np.random.default_rng(14)
    assert 0.02 <= np.mean([proved(rng) for _ in range(300)]) <= 0.08


def test_the_smallest_effect_of_two_groups_is_known() -> None:
    """For two groups it is (1.96 + 0.84) standard errors of their difference, whatever their own difference is."""
    values = np.random.default_rng(15).normal(0, 2, 400)
    groups = ["a"] * 100 + ["b"] * 300
    expected = (1.96 + 0.84) * 2 * math.sqrt(1 / 100 + 1 / 300)
    assert smallest_effect(values, groups) == pytest.approx(expected, rel=0.08)
    moved = values + np.array([9.0] * 100 + [0.0] * 300)
    assert smallest_effect(moved, groups) == pytest.approx(smallest_effect(values, groups))
    assert math.isnan(smallest_effect(values, ["a"] * 400))


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    """The smallest of four groups, shifted by that effect, is found in 72 to 88 % of 200 simulations."""
    groups = np.repeat(["a", "b", "c", "d"], [50, 150, 200, 200])
    rng = np.random.default_rng(16)
    effect = np.mean([smallest_effect(rng.gamma(4, 0.5, 600), list(groups)) for _ in range(5)])
    shifted = ((rng.gamma(4, 0.5, 600) + effect * (groups == "a"), list(groups)) for _ in range(200))
    assert 0.72 <= np.mean([gap_test(*data, 1000).p_value < 0.05 for data in shifted]) <= 0.88


def test_verdicts_claim_no_more_than_was_shown() -> None:
    """Only proved equivalence says "no disparity"; what was not separated from chance alone is inconclusive."""
    assert verdict(0.04, equivalent=False, groups=5) == "disparity"
    assert verdict(0.04, equivalent=True, groups=5) == "disparity"
    assert verdict(0.06, equivalent=True, groups=5) == "no disparity beyond the margin"
    assert verdict(0.9, equivalent=False, groups=5) == "inconclusive"
    assert verdict(0.01, equivalent=True, groups=1) == "insufficient"
    assert verdict(math.nan, equivalent=False, groups=2) == "insufficient"


# The worst subgroup


def test_the_scan_finds_a_crossed_subgroup() -> None:
    """A bias in black women alone is found there, with its size and direction."""
    rng = np.random.default_rng(17)
    labels = faces(rng)
    inside = (labels["race"] == "black") & (labels["gender"] == "f")
    found = scan(rng.normal(size=600) - inside.to_numpy(), labels)
    assert found is not None
    assert found.attributes == {"race": "black", "gender": "f"}
    assert found.n == inside.sum()
    assert found.difference == pytest.approx(-1, abs=0.3)
    assert found.p_value < 0.01


def test_the_scan_searches_only_known_and_large_subgroups() -> None:
    """Neither unknown labels nor groups below the minimum, inside or outside, are searched, however bad."""
    rng = np.random.default_rng(18)
    labels = faces(rng)
    values = rng.normal(size=600) - 5 * (labels["race"] == "unknown").to_numpy()
    found = scan(values, labels)
    assert found is not None
    assert found.searched == 6 + 12
    assert "unknown" not in found.attributes.values()
    labels.loc[:28, "age"] = "baby"
    rare = scan(values - 9 * (labels["age"] == "baby").to_numpy(), labels)
    assert rare is not None
    assert "baby" not in rare.attributes.values()
    assert scan(values[:50], labels[:50], minimum=30) is None


def test_the_scan_pays_for_searching() -> None:
    """Without any difference the worst of 18 subgroups has p < .05 in 2 to 8 % of 300 samples."""
    labels = faces(np.random.default_rng(19), 400)

    def p_value(rng: np.random.Generator) -> float:
        found = scan(rng.gamma(4, 0.5, 400), labels)
        assert found is not None
        return found.p_value

    assert 0.02 <= rejected(p_value, 300) <= 0.08


# Seeds


def nested(rng: np.random.Generator, images: int, between: float, within: float) -> Float:
    """Scores of images with four seeds each, around 0."""
    return rng.normal(0, between, (images, 1)) + rng.normal(0, within, (images, 4))


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.2), (0.1, 1.0)])
def test_intervals_over_seeds_cover(between: float, within: float) -> None:
    """The 95 % interval holds the truth in 91 to 98 % of 400 samples, whether images or seeds vary more."""
    make = partial(nested, np.random.default_rng(20), 60, between, within)
    intervals = [nested_interval(make())[1:3] for _ in range(400)]
    assert 0.91 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_missing_seeds_weigh_nothing() -> None:
    """An image counts once, however many of its seeds are there; one without any is left out."""
    values = np.array([[1.0, 3.0, math.nan], [4.0, math.nan, math.nan], [math.nan] * 3, [6.0, 6.0, 6.0]])
    mean, low, high, sd = nested_interval(values)
    assert mean == pytest.approx((2 + 4 + 6) / 3)
    assert low < mean < high
    assert sd == pytest.approx(math.sqrt((2 + 0) / 2))
    assert all(map(math.isnan, nested_interval(np.full((3, 2), math.nan))))


def test_the_spread_between_seeds_is_reported_apart() -> None:
    """The seed SD is that within images alone."""
    assert nested_interval(nested(np.random.default_rng(21), 500, 5.0, 1.0))[3] == pytest.approx(1, rel=0.05)
