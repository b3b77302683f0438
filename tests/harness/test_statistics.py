"""Intervals cover what they should, chance is not called a gap, percentiles need their samples."""

import math

import numpy as np
import pytest

from harness.statistics import bootstrap_interval, gap_test, percentile, ratio_of_medians, typical, verdict


def test_bootstrap_intervals_cover() -> None:
    """The nominal 95 % interval of a mean of 100 covers the truth in 92 to 98 % of 400 samples."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 100))
        hits += low <= 1.0 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_shuffled_labels_are_no_gap() -> None:
    """Without any difference the permutation test says p < 0.05 in 2 to 8 % of 400 trials."""
    rng = np.random.default_rng(6)
    groups = np.repeat(["a", "b", "c", "d"], 50)
    rejected = sum(gap_test(rng.normal(size=200), list(groups), 400).p_value < 0.05 for _ in range(400))
    assert 0.02 <= rejected / 400 <= 0.08


def test_a_planted_gap_is_found() -> None:
    """A group shifted by one standard deviation is told from chance, and the gap is its size."""
    values = np.random.default_rng(7).normal(size=400)
    groups = ["a"] * 200 + ["b"] * 200
    values[200:] += 1.0
    gap = gap_test(values, groups)
    assert gap.p_value < 0.001
    assert gap.observed == pytest.approx(1.0, abs=0.3)
    assert gap.null_mean < gap.null_p95 < gap.observed


def test_the_noise_floor_of_a_gap_is_known() -> None:
    """For 7 groups of 200 pure noise gives a gap of about 0.19 standard deviations, 95th percentile 0.29."""
    values = np.random.default_rng(8).normal(size=1400)
    gap = gap_test(values, [str(i % 7) for i in range(1400)])
    assert gap.null_mean == pytest.approx(0.19, abs=0.02)
    assert gap.null_p95 == pytest.approx(0.29, abs=0.03)


def test_percentiles_need_enough_samples() -> None:
    """p90 needs 64 samples, p95 130 and p99 662: LoadGen's rule."""
    for q, needed in {90: 64, 95: 130, 99: 662}.items():
        values = np.arange(needed, dtype=float)
        assert math.isnan(percentile(values[:-1], q))
        assert percentile(values, q) == pytest.approx(np.percentile(values, q))


def test_verdicts_follow_the_interval() -> None:
    """An interval that holds 0 is a tie, none is not measured; otherwise the metric's direction decides."""
    assert verdict(-1, 1, higher_is_better=True) == "tie"
    assert verdict(math.nan, math.nan, higher_is_better=True) == "not measured"
    assert verdict(0.1, 0.2, higher_is_better=True) == "better"
    assert verdict(0.1, 0.2, higher_is_better=False) == "worse"
    assert verdict(0.1, 0.2, higher_is_better=None) == "higher"
    assert verdict(-0.2, -0.1, higher_is_better=None) == "lower"
    assert verdict(-1, 1, higher_is_better=None) == "tie"


def test_the_typical_value_is_a_median_where_one_can_be_quoted() -> None:
    """From 11 values on the median, before that the mean, for none NaN."""
    values = np.array([100.0, *[1.0] * 10])
    assert typical(values) == pytest.approx(1.0)
    assert typical(values[:10]) == pytest.approx(10.9)
    assert math.isnan(typical(np.empty(0)))


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Of 200 ratios of medians of lognormal times, the 95 % interval holds the true one in at least 90 %."""
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(200):
        _, low, high = ratio_of_medians(rng.lognormal(math.log(3), 0.3, 64), rng.lognormal(0, 0.3, 64))
        covered += low <= 3 <= high
    assert covered >= 180


def test_what_slows_both_of_a_pair_is_not_in_the_interval_of_their_ratio() -> None:
    """Pairs whose ratio is always 3 have an interval of no width, however much both vary."""
    below = np.random.default_rng(2).lognormal(0, 0.5, 40)
    assert ratio_of_medians(3 * below, below) == pytest.approx((3, 3, 3))


def test_few_times_have_a_ratio_without_interval() -> None:
    """With under 11 pairs there is a ratio, of the means, and no interval."""
    ratio, low, high = ratio_of_medians(np.full(2, 6.0), np.array([1.0, 3.0]))
    assert ratio == pytest.approx(3)
    assert math.isnan(low)
    assert math.isnan(high)
