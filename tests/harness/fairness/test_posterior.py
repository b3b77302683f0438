"""CPR: posterior samplers pass for any K, samplers that prefer a group or the likeliest one do not."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.errors import ConfigError
from harness.fairness.posterior import calibration

CLASSES = ["a", "b", "c"]
NAMES = np.array(CLASSES)
Codes = NDArray[np.intp]


def draws(rng: np.random.Generator, posterior: NDArray[np.float64], k: int) -> Codes:
    """(N, k) draws from posteriors (N, 3)."""
    above = rng.random((len(posterior), k, 1)) > posterior.cumsum(axis=1)[:, None, :-1]
    return np.asarray(above.sum(axis=2))


def posteriors(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """(N, 3): some inputs tell the group, some do not; c is rare."""
    return rng.dirichlet([0.6, 0.4, 0.1], n)


def mode_seeking(rng: np.random.Generator, posterior: NDArray[np.float64], k: int) -> Codes:
    """Always the likeliest group."""
    del rng
    return np.repeat(posterior.argmax(axis=1)[:, None], k, axis=1)


def biased(rng: np.random.Generator, posterior: NDArray[np.float64], k: int) -> Codes:
    """One draw in four is turned into group a."""
    return np.where(rng.random((len(posterior), k)) < 0.25, 0, draws(rng, posterior, k))


def test_posterior_samplers_are_rejected_at_the_level() -> None:
    """With K = 4, 3 to 7 % of 300 perfect samplers are rejected at 5 %, and of the bins at most 7 % leave the band."""
    rng = np.random.default_rng(0)
    rejected, means, inside = [], [], []
    for _ in range(300):
        seen = NAMES[draws(rng, posteriors(rng, 100), 5)]
        found = calibration(seen[:, 0], seen[:, 1:], classes=CLASSES, swaps=199)
        rejected.append(found.p_value <= 0.05)
        means.append((found.groups["p_value"] <= 0.05).mean())
        table = found.reliability[found.reliability["n"] >= 10]
        inside += list(table["observed"].between(table["expected_low"] - 1e-9, table["expected_high"] + 1e-9))
    assert 0.03 <= np.mean(rejected) <= 0.07
    assert 0.03 <= np.mean(means) <= 0.07
    assert np.mean(inside) >= 0.93


def test_few_samples_miss_the_diagonal() -> None:
    """A perfect sampler with K = 3 lies off the diagonal beyond its Wilson intervals, and within the band of CPR."""
    rng = np.random.default_rng(5)
    seen = NAMES[draws(rng, posteriors(rng, 2000), 4)]
    found = calibration(seen[:, 0], seen[:, 1:], classes=CLASSES)
    table = found.reliability[found.reliability["group"] == "b"].set_index("share")
    assert list(table.index) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert table["n"].sum() == 2000
    assert table["low"].iloc[0] > 0
    assert table["high"].iloc[-1] < 1
    assert table["observed"].between(table["expected_low"], table["expected_high"]).all()
    assert found.p_value > 0.05


def test_many_samples_approach_the_diagonal() -> None:
    """With 100 samples an input the expectation under CPR is the share of samples to 0.03."""
    rng = np.random.default_rng(2)
    seen = NAMES[draws(rng, posteriors(rng, 1000), 101)]
    found = calibration(seen[:, 0], seen[:, 1:], classes=CLASSES, swaps=200)
    table = found.reliability[found.reliability["n"] >= 30]
    assert (table["expected"] - table["share"]).abs().max() < 0.03


@pytest.mark.parametrize("sampler", [mode_seeking, biased])
@pytest.mark.parametrize("k", [2, 8])
def test_other_samplers_are_found(
    sampler: Callable[[np.random.Generator, NDArray[np.float64], int], Codes], k: int
) -> None:
    """A mode-seeking and a biased sampler are rejected with 300 inputs, K = 2 or 8."""
    rng = np.random.default_rng(3)
    posterior = posteriors(rng, 300)
    truths, samples = draws(rng, posterior, 1)[:, 0], sampler(rng, posterior, k)
    found = calibration(NAMES[truths], NAMES[samples], classes=CLASSES)
    assert found.p_value < 0.01


def test_the_preferred_group_is_named() -> None:
    """A sampler that prefers a shows too many samples in a, its interval below 0, and the smallest p-value."""
    rng = np.random.default_rng(4)
    posterior = posteriors(rng, 300)
    truths, samples = draws(rng, posterior, 1)[:, 0], biased(rng, posterior, 8)
    groups = calibration(NAMES[truths], NAMES[samples], classes=CLASSES).groups
    assert groups["p_value"].idxmin() == "a"
    assert groups["high"]["a"] < 0
    assert groups["difference"]["a"] == pytest.approx(groups["truth"]["a"] - groups["samples"]["a"])


def test_copies_of_the_truth_have_cpr() -> None:
    """Where every sample is in the group of the truth, nothing can be held against the sampler: p = 1."""
    truths = NAMES[np.arange(60) % 2]
    found = calibration(truths, np.repeat(truths[:, None], 4, axis=1), classes=CLASSES, swaps=99)
    assert found.p_value == 1
    assert (found.groups["p_value"] == 1).all()
    assert set(found.reliability["share"]) == {0, 1}


def test_unknown_groups_are_refused() -> None:
    """A sample without a known group is one line that names it."""
    with pytest.raises(ConfigError, match=r"^'' is none of a, b, c; "):
        calibration(["a"], np.array([["a", ""]]), classes=CLASSES)
