"""Conditional Proportional Representation, from K sampled outputs of each input.

CPR (Jalal et al. 2021, section 3): P(X^ in X_a | Y = y) = P(X in X_a | Y = y) for all groups a and inputs y; sampling
from the posterior has it. Read as calibration: among inputs whose share of samples in a is s, the truth should be in a
with probability s. That diagonal holds for K -> infinity only: the share of few samples varies about its mean, so even
for a perfect sampler the truth lies nearer to the overall share of a than s does (regression to the mean).

Exact for any K: under CPR the truth and the K samples of one input are K + 1 exchangeable draws. The null swaps the
truth of each input with one of its draws, chosen at random; what the reliability table would show is then known too.
The truth is what the same network sees in the photo, not its label, so that its errors are in all draws alike.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.fairness.parity import Texts, codes, wilson
from harness.statistics import REPLICATES, bootstrap_interval

Float = NDArray[np.float64]
Integers = NDArray[np.intp]
Flags = NDArray[np.bool_]

TENTHS = 10
"""Shares of samples are binned to the nearest tenth; for K <= 10 each share has its own bin."""


@dataclass(frozen=True)
class Calibration:
    """Whether the samples have CPR; p-values are (b + 1) / (m + 1) over m swaps.

    groups       a row for each group: n, `truth` and `samples`, the shares of both in the group, their `difference`
                 with its bootstrap interval `low`, `high` and its p-value, two-sided, not adjusted for several groups
    reliability  a row for each group and bin that occurs: n, `share`, the mean share of samples, `observed`, the share
                 of truths in the group with its Wilson interval `low`, `high`, and `expected` with the 95 % band
                 `expected_low`, `expected_high`: what CPR gives for this K
    p_value      of the reliability of all groups and bins together
    n            the number of inputs
    """

    groups: pd.DataFrame
    reliability: pd.DataFrame
    p_value: float
    n: int


@dataclass(frozen=True)
class _Bins:
    """One group, for the truths as they are and after each swap: (swaps + 1, bins) each.

    n, number of inputs; hits, truths in the group; shares, sum of the inputs' shares of samples in the group.
    """

    n: Float
    hits: Float
    shares: Float

    @property
    def expected(self) -> Float:
        """Share of truths in the group for each bin under the null, NaN where nothing falls."""
        n = self.n.sum(axis=0)
        return np.asarray(np.divide(self.hits.sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0))

    def distances(self) -> Float:
        """Squared distances from the null's mean, each bin in units of the null's variance, summed: (swaps + 1,)."""
        squares = np.square(self.hits - np.nan_to_num(self.expected) * self.n)
        variance = squares.mean(axis=0)
        distances: Float = (squares / np.where(variance > 0, variance, 1)).sum(axis=1)
        return distances


def calibration(
    truths: Texts, samples: NDArray[np.str_], *, classes: Sequence[str], swaps: int = REPLICATES
) -> Calibration:
    """Test CPR on the groups seen in N photos, `truths`, and in their (N, K) samples.

    Raises:
        ConfigError: a group is none of the classes.
    """
    draws = np.column_stack([codes(truths, classes), codes(samples.ravel(), classes).reshape(samples.shape)])
    truth = _swapped(draws, swaps)
    bins = [_bins(draws == a, truth == a) for a in range(len(classes))]
    groups = pd.DataFrame([_difference(draws == a, b) for a, b in enumerate(bins)], pd.Index(classes, name="group"))
    tables = pd.concat([_reliability(b) for b in bins], keys=classes, names=["group", None]).reset_index("group")
    p_value = _p_value(np.sum([b.distances() for b in bins], axis=0))
    return Calibration(groups, tables.reset_index(drop=True), p_value, len(draws))


def _swapped(draws: Integers, swaps: int) -> Integers:
    """The truths of N inputs with draws (N, K + 1), truth first: as they are, then after each swap: (swaps + 1, N)."""
    n, width = draws.shape
    chosen = np.random.default_rng(20260104).integers(0, width, (swaps + 1, n))
    chosen[0] = 0
    return draws[np.arange(n), chosen]


def _bins(draws: Flags, truth: Flags) -> _Bins:
    """From whether the draws (N, K + 1) and the swapped truths (swaps + 1, N) are in the group."""
    shares = (draws.sum(axis=1) - truth) / (draws.shape[1] - 1)
    cells = (np.rint(TENTHS * shares) + (TENTHS + 1) * np.arange(len(truth))[:, None]).astype(np.intp).ravel()
    sums = [np.bincount(cells, w, len(truth) * (TENTHS + 1)) for w in (None, truth.ravel(), shares.ravel())]
    return _Bins(*(s.reshape(len(truth), -1).astype(float) for s in sums))


def _difference(draws: Flags, bins: _Bins) -> dict[str, float]:
    """The row of a group: truths against samples over all inputs."""
    n, truth, samples = len(draws), draws[:, 0], draws[:, 1:].mean(axis=1)
    low, high = bootstrap_interval(truth - samples)
    row = {"n": n, "truth": truth.mean(), "samples": samples.mean(), "difference": (truth - samples).mean()}
    return row | {"low": low, "high": high, "p_value": _p_value(np.abs((bins.hits - bins.shares).sum(axis=1)))}


def _reliability(bins: _Bins) -> pd.DataFrame:
    table = pd.DataFrame({"n": bins.n[0], "share": bins.shares[0], "expected": bins.expected})
    rates = np.divide(bins.hits, bins.n, out=np.full(bins.n.shape, np.nan), where=bins.n > 0)
    table = table.assign(share=table["share"] / table["n"].where(table["n"] > 0), **_band(rates))
    observed = wilson(pd.Series(bins.hits[0]), table["n"]).rename(columns={"rate": "observed"})
    return table.join(observed)[table["n"] > 0]


def _band(rates: Float) -> dict[str, Float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # bins into which nothing ever falls
        low, high = np.nanquantile(rates, [0.025, 0.975], axis=0)
    return {"expected_low": low, "expected_high": high}


def _p_value(statistics: Float) -> float:
    """Share of the statistics that are at least as large as the first, ties included (Phipson and Smyth 2010)."""
    return float((statistics >= statistics[0] - 1e-9).mean())
