"""Verification: thresholds hold their rate, too few pairs say so, indices are those of their formulas."""

import math

import numpy as np
import pandas as pd
import pytest

from harness.fairness.verification import (
    at_group_thresholds,
    at_one_threshold,
    disparity,
    genuine_distances,
    gini,
    impostor_distances,
    max_geomean,
    threshold_at,
)


def test_a_threshold_holds_its_rate() -> None:
    """At most the chosen share lies below the threshold, also with ties; one step more would exceed it."""
    distances = np.arange(4000) / 4000
    threshold = threshold_at(distances, 0.001)
    assert (distances < threshold).mean() == 0.001
    tied = np.repeat([0.5, 1.0], 2000)
    assert (tied < threshold_at(tied, 0.1)).mean() == 0


def test_a_low_rate_needs_many_pairs() -> None:
    """A rate of 1e-3 needs 3,000 pairs: 2,999 give no threshold."""
    distances = np.random.default_rng(0).random(3000)
    assert math.isnan(threshold_at(distances[1:], 0.001))
    assert threshold_at(distances, 0.001) == np.sort(distances)[3]


def test_pairs_are_of_one_group_and_of_different_photos() -> None:
    """Impostor pairs are counted once, within the group; an output that is its photo is at distance 0."""
    rng = np.random.default_rng(1)
    photos = rng.normal(size=(7, 8))
    groups = ["a"] * 4 + ["b"] * 3
    impostors = impostor_distances(photos, photos, groups=groups)
    assert {group: len(d) for group, d in impostors.items()} == {"a": 6, "b": 3}
    cosine = photos[4] @ photos[6] / np.linalg.norm(photos[4]) / np.linalg.norm(photos[6])
    assert impostors["b"][1] == pytest.approx(1 - cosine)
    assert genuine_distances(2 * photos, photos, groups=groups)["b"] == pytest.approx([0, 0, 0])


def test_one_threshold_shows_the_group_that_it_fails() -> None:
    """A group whose people look alike has a high FMR at one threshold, and a high FNMR at its own."""
    rng = np.random.default_rng(2)
    genuine = {group: rng.normal(0.4, 0.1, 500) for group in "ab"}
    impostors = {"a": rng.normal(1.0, 0.1, 20000), "b": rng.normal(0.8, 0.1, 20000)}
    one = at_one_threshold(genuine, impostors, photos=impostors, fmr=0.01)
    own = at_group_thresholds(genuine, impostors, photos=impostors, fmr=0.01)
    assert one["fmr_high"]["a"] < 0.01 < one["fmr_low"]["b"]
    assert one["false_matches"].sum() == 400
    assert list(own["fmr"]) == pytest.approx([0.01, 0.01])
    assert own["fnmr_low"]["b"] > own["fnmr_high"]["a"]
    assert disparity(one, alpha=1).garbe > 0.9


def test_outputs_that_look_like_others_are_counted() -> None:
    """The threshold stays that of the photos: outputs that come nearer to other people's photos match them more."""
    rng = np.random.default_rng(4)
    genuine, photos = {"a": rng.normal(0.4, 0.1, 500)}, {"a": rng.normal(1.0, 0.1, 20000)}
    nearer = at_one_threshold(genuine, {"a": photos["a"] - 0.1}, photos=photos, fmr=0.01)
    assert nearer["threshold"]["a"] == threshold_at(photos["a"], 0.01)
    assert nearer["fmr_low"]["a"] > 0.05


def test_no_error_is_bounded() -> None:
    """No false match among m pairs is bounded by 3 / m."""
    genuine = {"a": np.zeros(50), "b": np.zeros(50)}
    impostors = {"a": np.linspace(0.1, 1, 1000), "b": np.full(500, 2.0)}
    rates = at_one_threshold(genuine, impostors, photos=impostors, fmr=0.01)
    assert rates[["fmr", "fmr_high"]].T["b"].tolist() == [0, 3 / 500]


def test_groups_too_small_are_not_judged() -> None:
    """Too few impostor pairs or images say so, keep their counts, and do not enter the indices."""
    rng = np.random.default_rng(3)
    genuine = {"a": rng.random(40), "b": rng.random(40), "c": rng.random(40), "d": rng.random(12)}
    impostors = {g: 1 + rng.random(m) for g, m in zip("abcd", (600, 600, 200, 600), strict=True)}
    for rated in (at_one_threshold, at_group_thresholds):
        rates = rated(genuine, impostors, photos=impostors, fmr=0.01)
        assert list(rates["status"]) == ["ok", "ok", "insufficient pairs", "insufficient"]
        assert disparity(rates, alpha=0.5).groups == 2
        assert math.isnan(disparity(rates.iloc[1:], alpha=0.5).garbe)
    assert math.isnan(at_group_thresholds(genuine, impostors, photos=impostors, fmr=0.01)["fnmr"]["c"])


def test_indices_are_those_of_their_formulas() -> None:
    """GARBE, FDR, IR and Max/GeoMean of two groups, worked out by hand."""
    rates = pd.DataFrame(
        {"fmr": [0.01, 0.03], "fnmr": [0.1, 0.1], "false_matches": [10, 30], "pairs": [1000, 1000]}, ["a", "b"]
    ).assign(false_non_matches=10, n=100, status="ok")
    found = disparity(rates, alpha=0.25)
    assert found.garbe == pytest.approx(0.25 * 0.5)
    assert found.fdr == pytest.approx(1 - 0.25 * 0.02)
    assert found.ir == pytest.approx(3**0.25)
    assert found.max_geomean_fmr == pytest.approx(30.5 / math.sqrt(30.5 * 10.5))
    assert found.max_geomean_fnmr == pytest.approx(1)


def test_the_ends_of_the_indices() -> None:
    """One group with all errors has Gini 1, none with any 0; a rate of 0 has no IR, and a finite Max/GeoMean."""
    assert gini(pd.Series([0, 0, 0, 0.2])) == pytest.approx(1)
    assert gini(pd.Series([0.0, 0.0])) == 0
    assert max_geomean(pd.Series([0, 0]), pd.Series([100, 100])) == pytest.approx(1)
    rates = pd.DataFrame({"fmr": [0.0, 0.1], "fnmr": [0.1, 0.1], "false_matches": [0, 1]})
    rates = rates.assign(pairs=10, false_non_matches=10, n=100, status="ok")
    assert math.isnan(disparity(rates, alpha=0.5).ir)
    assert disparity(rates, alpha=0.5).max_geomean_fmr == pytest.approx(math.sqrt(3))
