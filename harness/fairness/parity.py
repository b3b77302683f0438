"""Which group a network sees in the outputs: RDP, PR, UCPR, flips between groups.

X is the photo, X^ the output, X_a the images of group a; definitions of Jalal et al. 2021, section 3; the empirical
divergences are those of Lasz et al. 2024, section 4:

RDP   P(X^ in X_a | X in X_a) is equal for all a        p(a) = hit rate(a) / sum of hit rates
PR    P(X^ in X_a) = P(X in X_a)                        p(a) = share of outputs in a
UCPR  PR of inputs that tell nothing, against uniform   `pr` of outputs for such inputs

RDP has no scale: a method that misses 95 % of every group is perfect. So its table holds the hit rates.
Labels and predictions are texts, one an image: images without them are left out, and counted, by the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.errors import ConfigError, one_line
from harness.fairness.inference import wilson_rates
from harness.set_measures import Estimate
from harness.statistics import INSUFFICIENT, bootstrap_interval

Float = NDArray[np.float64]
Texts = Sequence[str] | NDArray[np.str_] | pd.Series


@dataclass(frozen=True)
class Parity:
    """Shares of the groups and their divergence from the reference.

    `table` has a row for each group: n, what was counted with its 95 % interval, `share` and `reference`, the p and q
    of the divergences. `chi2` is in 0..k - 1 against uniform, `chebyshev` in 0..1; both are 0 at parity.
    """

    table: pd.DataFrame
    chi2: float
    chebyshev: float
    n: int


def hit_rates(labels: Texts, predictions: Texts, *, groups: Texts) -> pd.DataFrame:
    """How often the prediction is the label, by group: n, hits, rate, low, high (Wilson, 95 %).

    `groups` is the group of each image: the labels themselves for RDP, a cell such as race x gender for intersections.
    The rate of a group is its Group Precision (Ohayon et al. 2024, eq. 11).
    """
    hits = pd.Series(np.asarray(labels, str) == np.asarray(predictions, str)).groupby(np.asarray(groups, str))
    counts = hits.agg(n="size", hits="sum").rename_axis("group")
    rates: pd.DataFrame = counts.join(wilson_rates(counts["hits"], counts["n"]))
    return rates


def p_rdp(rates: pd.Series) -> pd.Series:
    """Hit rates over their sum (Lasz et al. 2024); NaN where all are 0, or there is one group only."""
    return rates / rates.sum(min_count=2)


def p_pr(predictions: Texts, *, classes: Sequence[str]) -> pd.Series:
    """Share of the outputs in each class.

    Raises:
        ConfigError: a prediction is none of the classes.
    """
    counts = np.bincount(codes(predictions, classes), minlength=len(classes))
    return pd.Series(counts / len(predictions), list(classes))


def chi2(p: pd.Series, q: pd.Series) -> float:
    """Sum of (p - q)^2 / q; for uniform q over k groups k * sum (p - 1/k)^2 (Lasz et al. 2024).

    Infinite where q lacks a group that p has; a group that both lack counts nothing.
    """
    return float(((p - q) ** 2 / q).sum(min_count=2))


def chebyshev(p: pd.Series, q: pd.Series) -> float:
    """Largest |p - q| (Lasz et al. 2024)."""
    return float((p - q).abs().max())


def rdp(labels: Texts, predictions: Texts) -> Parity:
    """Representation Demographic Parity: hit rates by label, their shares against uniform.

    Groups of fewer than `INSUFFICIENT` images stay in the table, without a share.
    """
    table = hit_rates(labels, predictions, groups=labels)
    judged = table.loc[table["n"] >= INSUFFICIENT, "rate"]
    return _parity(table, p_rdp(judged), uniform(list(judged.index)), n=len(labels))


def pr(predictions: Texts, reference: pd.Series) -> Parity:
    """Proportional Representation: shares of the outputs against `reference`, whose index names the classes.

    The reference is `uniform` (Lasz et al. 2024, and UCPR) or, for a test set that is not, its true mix:
    `p_pr(labels, classes=classes)`.

    Raises:
        ConfigError: a prediction is none of the classes.
    """
    shares = p_pr(predictions, classes=list(reference.index))
    n = len(predictions)
    table = pd.DataFrame({"n": n, "hits": (shares * n).round().astype(int)}).rename_axis("group")
    return _parity(table.join(wilson_rates(table["hits"], table["n"])), shares, reference, n=n)


def uniform(classes: Sequence[str]) -> pd.Series:
    """The same share for every class."""
    return pd.Series(1 / max(1, len(classes)), list(classes))


def _parity(counts: pd.DataFrame, p: pd.Series, q: pd.Series, *, n: int) -> Parity:
    return Parity(counts.assign(share=p, reference=q), chi2(p, q), chebyshev(p, q), n)


def flip_matrix(before: Texts, after: Texts, *, classes: Sequence[str]) -> pd.DataFrame:
    """Number of images by what is seen in the photo (rows) and in the output (columns); flips lie off the diagonal.

    Raises:
        ConfigError: a prediction is none of the classes.
    """
    k = len(classes)
    cells = codes(before, classes) * k + codes(after, classes)
    counts = np.bincount(cells, minlength=k * k).reshape(k, k)
    return pd.DataFrame(counts, pd.Index(classes, name="before"), pd.Index(classes, name="after"))


def excess_flips(flips: NDArray[np.bool_], control_flips: NDArray[np.bool_]) -> Estimate:
    """Flip rate of the outputs less that of a control arm on the same images; the images are resampled."""
    difference = flips.astype(float) - control_flips
    low, high = bootstrap_interval(difference)
    return Estimate(float(difference.mean()), low, high, len(difference))


def turned_into(majority: str, *, labels: Texts, predictions: Texts) -> Estimate:
    """Share of the images of all other groups whose output is seen as the majority group (Wilson, 95 %)."""
    others = np.asarray(labels, str) != majority
    turned = others & (np.asarray(predictions, str) == majority)
    rate = wilson_rates(pd.Series([turned.sum()]), pd.Series([others.sum()])).iloc[0]
    return Estimate(rate["rate"], rate["low"], rate["high"], int(others.sum()))


def codes(values: Texts, classes: Sequence[str]) -> NDArray[np.intp]:
    """The place of each value among the classes.

    Raises:
        ConfigError: a value is none of the classes.
    """
    found = pd.Index(classes).get_indexer(pd.Index(np.asarray(values, str)))
    if (found < 0).any():
        other = one_line(str(np.asarray(values, str)[found < 0][0]), 40)
        raise ConfigError(f"{other!r} is none of {', '.join(classes)}; leave images without a known group out")
    return found
