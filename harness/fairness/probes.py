"""The effect of one cue alone: contrasts within counterfactual series, where each base portrait is its own control.

The unit is the base portrait: intervals and the test of the trend draw bases with all their levels. Levels are ordered;
the trend is over their rank (1, 2, ...), since the steps of a scale need not be even.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.statistics import INSUFFICIENT, REPLICATES

Float = NDArray[np.float64]

COLUMNS = "term estimate low high p_value null_mean null_p95 bases dropped status"
TREND = "trend per level"
GAP = "largest - smallest"


def probe_effects(values: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """The effect of a cue on one measure, from `values` of columns base, level and value (a row per edited image).

    One row per `term`, with 95 % percentile bootstrap intervals over bases:
    - each level: the mean contrast within bases to the mean over all levels, or to the level `reference`;
    - "trend per level": the mean slope of value on the level's rank. Its test flips the signs of whole bases' slopes:
      the null is that the slopes of faces lie evenly about 0;
    - "largest - smallest" of the level means, positive even under no effect. Its test permutes the levels within each
      base: the null is that the cue changes nothing in any face, which can be wrong without a trend. Its interval is
      of the two levels that were the largest and smallest here, and too narrow for having chosen them.

    `null_mean` and `null_p95` are of the size (without sign) that the null gives; p = (b + 1) / (m + 1) (Phipson and
    Smyth 2010). Bases that lack a level, or have a value that is not finite, are left out and counted in `dropped`;
    with fewer than 30 bases the `status` is "insufficient".

    Raises:
        ValueError: a base has a level twice, there are fewer than two levels, or the reference is none of them.
    """
    if values.duplicated(["base", "level"]).any():
        raise ValueError("a base has two values at one level; give one measure, backend and seed at a time")
    table = values.pivot_table(index="base", columns="level", values="value", aggfunc="first", dropna=False)
    table = table.astype(float)
    if table.shape[1] < 2:
        raise ValueError(f"{table.shape[1]} levels leave nothing to compare; give at least two")
    if reference is not None and reference not in table:
        raise ValueError(f"{reference!r} is none of the levels {', '.join(map(str, table))}")
    whole = table[np.isfinite(table.to_numpy()).all(axis=1)]
    rows = _rows(whole, reference) if len(whole) > 1 else [{"term": level} for level in [*table, TREND, GAP]]
    status = "insufficient" if len(whole) < INSUFFICIENT else "ok"
    common = {"bases": len(whole), "dropped": len(table) - len(whole), "status": status}
    return pd.DataFrame([row | common for row in rows], columns=COLUMNS.split())


def _rows(table: pd.DataFrame, reference: str | None) -> list[dict[str, object]]:
    y = table.to_numpy()
    means = _resampled_means(y)
    base = y.mean(axis=1) if reference is None else table[reference].to_numpy()
    against = means.mean(axis=1) if reference is None else means[:, list(table).index(reference)]
    rows: list[dict[str, object]] = []
    for k, level in enumerate(table):
        rows.append({"term": level, "estimate": (y[:, k] - base).mean()} | _interval(means[:, k] - against))
    return [*rows, *_tests(y, means)]


def _tests(y: Float, means: Float) -> list[dict[str, object]]:
    """The rows of the trend and of the gap."""
    weights = _slope_weights(y.shape[1])
    slopes, observed = y @ weights, y.mean(axis=0)
    gap = float(np.ptp(observed))
    chosen = means[:, observed.argmax()] - means[:, observed.argmin()]
    trend = _test(abs(_flipped(slopes)), abs(slopes.mean()))
    return [
        {"term": TREND, "estimate": float(slopes.mean())} | _interval(means @ weights) | trend,
        {"term": GAP, "estimate": gap} | _interval(chosen) | _test(_permuted_gaps(y), gap),
    ]


def _resampled_means(y: Float) -> Float:
    """(REPLICATES, levels) level means of bases drawn with replacement."""
    n = len(y)
    counts = np.random.default_rng(20260104).multinomial(n, np.full(n, 1 / n), REPLICATES)
    means: Float = counts @ y / n
    return means


def _flipped(slopes: Float) -> Float:
    """Mean slopes after flipping the signs of bases at random, (REPLICATES,)."""
    signs = np.random.default_rng(20260105).choice([-1.0, 1.0], (REPLICATES, len(slopes)))
    means: Float = signs @ slopes / len(slopes)
    return means


def _permuted_gaps(y: Float) -> Float:
    """Largest minus smallest level mean after permuting the levels within each base, (REPLICATES,)."""
    rng = np.random.default_rng(20260106)
    total = np.zeros((REPLICATES, y.shape[1]))
    for row in y:
        total += rng.permuted(np.broadcast_to(row, total.shape), axis=1)
    gaps: Float = np.ptp(total / len(y), axis=1)
    return gaps


def _slope_weights(levels: int) -> Float:
    """The least-squares slope over ranks is the sum of these times the values."""
    ranks = np.arange(levels) - (levels - 1) / 2
    weights: Float = ranks / (ranks**2).sum()
    return weights


def _interval(estimates: Float) -> dict[str, float]:
    low, high = np.quantile(estimates, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _test(null: Float, observed: float) -> dict[str, float]:
    """The p-value of an observed size, and what its null gives."""
    above = int((null >= observed * (1 - 1e-12)).sum())
    p_value = (above + 1) / (len(null) + 1)
    return {"p_value": p_value, "null_mean": float(null.mean()), "null_p95": float(np.quantile(null, 0.95))}
