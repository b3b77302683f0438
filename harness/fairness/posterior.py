"""Conditional Proportional Representation, from K sampled outputs of each input.

CPR (Jalal et al. 2021, section 3): P(X^ in X_a | Y = y) = P(X in X_a | Y = y) for all groups a and inputs y; sampling
from the posterior has it. Read as calibration: among inputs whose share of samples in a is s, the truth should be in a
with probability s. That diagonal holds for K -> infinity only: the share of few samples varies about its mean, so even
for a perfect sampler the truth lies nearer to the overall share of a than s does (regression to the mean).

Exact for any K: under CPR the truth and the K samples of one input are K + 1 exchangeable draws. The null swaps the
truth of each input with one of its draws, chosen at random; what the reliability table would show is then known too.
The truth is what the same network sees in the photo, not its label, so that its errors are in all draws alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.fairness.inference import wilson_rates
from harness.fairness.parity import Texts, codes
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
    """Counts by group, for the truths as they are and after each swap, and bin: (groups, swaps + 1, bins) each.

    n, number of inputs; hits, truths in the group; shares, sum of the inputs' shares of samples in the group.
    """

    n: Float
    hits: Float
    shares: Float

    def expected(self) -> Float:
        """Share of truths in the group under the null, for each group and bin; NaN where nothing falls."""
        return _over(self.hits.sum(axis=1), self.n.sum(axis=1))

    def distances(self) -> Float:
        """Squared distances from the null's mean, each bin in units of the null's variance, summed: (swaps + 1,)."""
        squares = np.square(self.hits - np.nan_to_num(self.expected())[:, None] * self.n)
        variance = squares.mean(axis=1, keepdims=True)
        distances: Float = (squares / np.where(variance > 0, variance, 1)).sum(axis=(0, 2))
        return distances


def calibration(
    truths: Texts, samples: NDArray[np.str_], *, classes: Sequence[str], swaps: int = REPLICATES
) -> Calibration:
    """Test CPR on the groups seen in N photos, `truths`, and in their (N, K) samples, K >= 1.

    Raises:
        ConfigError: a group is none of the classes.
    """
    draws = np.column_stack([codes(truths, classes), codes(samples.ravel(), classes).reshape(samples.shape)])
    truth = _swapped(draws, swaps)
    bins = _Bins(*np.stack([_binned(draws == a, truth == a) for a in range(len(classes))], axis=1))
    groups = pd.DataFrame([_difference(draws == a) for a in range(len(classes))], pd.Index(classes, name="group"))
    groups["p_value"] = [_p_value(np.abs(d)) for d in (bins.hits - bins.shares).sum(axis=2)]
    return Calibration(groups, _reliability(bins, classes), _p_value(bins.distances()), len(draws))


def _swapped(draws: Integers, swaps: int) -> Integers:
    """The truths of N inputs with draws (N, K + 1), truth first: as they are, then after each swap: (swaps + 1, N)."""
    n, width = draws.shape
    chosen = np.random.default_rng(20260104).integers(0, width, (swaps + 1, n))
    chosen[0] = 0
    return draws[np.arange(n), chosen]


def _binned(draws: Flags, truth: Flags) -> Float:
    """`_Bins` of one group, from whether the draws (N, K + 1) and the swapped truths (swaps + 1, N) are in it."""
    shares = (draws.sum(axis=1) - truth) / (draws.shape[1] - 1)
    cells = (np.rint(TENTHS * shares) + (TENTHS + 1) * np.arange(len(truth))[:, None]).astype(np.intp).ravel()
    sums = [np.bincount(cells, w, len(truth) * (TENTHS + 1)) for w in (None, truth.ravel(), shares.ravel())]
    return np.array(sums, float).reshape(3, len(truth), -1)


def _difference(draws: Flags) -> dict[str, float]:
    """The row of a group: truths against samples over all inputs."""
    truth, samples = draws[:, 0], draws[:, 1:].mean(axis=1)
    difference = truth - samples
    low, high = bootstrap_interval(difference)
    row = {"n": len(draws), "truth": truth.mean(), "samples": samples.mean(), "difference": difference.mean()}
    return row | {"low": low, "high": high}


def _reliability(bins: _Bins, classes: Sequence[str]) -> pd.DataFrame:
    occurs = bins.n[:, 0] > 0
    rates = _over(bins.hits, bins.n).transpose(1, 0, 2)[:, occurs]
    low, high = np.nanquantile(rates, [0.025, 0.975], axis=0)
    n, hits, shares = (counts[:, 0][occurs] for counts in (bins.n, bins.hits, bins.shares))
    table = pd.DataFrame({"group": np.repeat(classes, occurs.sum(axis=1)), "n": n.astype(int), "share": shares / n})
    table = table.join(wilson_rates(pd.Series(hits), table["n"]).rename(columns={"rate": "observed"}))
    return table.assign(expected=bins.expected()[occurs], expected_low=low, expected_high=high)


def _over(hits: Float, n: Float) -> Float:
    return np.asarray(np.divide(hits, n, out=np.full(n.shape, np.nan), where=n > 0))


def _p_value(statistics: Float) -> float:
    """Share of the statistics that are at least as large as the first, ties included (Phipson and Smyth 2010)."""
    return float((statistics >= statistics[0] - 1e-9).mean())
