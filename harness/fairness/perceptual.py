"""The distance between photos and outputs of one group: Group Perceptual Index, precision and recall.

Definitions of Ohayon et al. 2024 ("Perceptual Fairness in Image Restoration"), equations 9 to 12, on the features of a
network that knows the groups (an attribute network; ImageNet's are inconsistent, their appendix G.6):

gpi        distance of the outputs of group a from its photos: `kid_paired`, since they are pairs; 0 is ideal
precision  share of the outputs that are among the photos of the group, by k nearest neighbours
recall     share of the photos that are among the outputs of the group

Group Precision by hit rate is `parity.hit_rates`.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.fairness.inference import wilson_rates
from harness.fairness.parity import Texts
from harness.set_measures import kid_paired, paired_terms
from harness.statistics import Gap

Float = NDArray[np.float64]

ENOUGH = 200
"""Groups below this size have no measure of a distribution."""
NEIGHBOURS = 3
MEASURES = ("gpi", "precision", "recall")
COLUMNS = ["group", "measure", "n", "value", "low", "high", "status"]


def group_measures(outputs: Float, photos: Float, *, groups: Texts) -> pd.DataFrame:
    """`gpi`, `precision` and `recall` of each group with 95 % intervals, from paired features (N, D).

    Groups of fewer than `ENOUGH` images are "insufficient", without a value. The Wilson intervals of precision and
    recall take the other set as given.
    """
    names = np.asarray(groups, str)
    rows = [row for group in np.unique(names) for row in _rows(group, outputs[names == group], photos[names == group])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(group: str, outputs: Float, photos: Float) -> Iterator[tuple[str, str, int, float, float, float, str]]:
    n = len(outputs)
    if n < ENOUGH:
        yield from ((group, name, n, math.nan, math.nan, math.nan, "insufficient") for name in MEASURES)
        return
    gpi = kid_paired(outputs, photos)
    yield group, "gpi", n, gpi.value, gpi.low, gpi.high, "ok"
    apart = _squares(outputs, photos)
    precise, recalled = _covered(apart, _squares(photos, photos)), _covered(apart.T, _squares(outputs, outputs))
    hits = pd.Series({"precision": precise.sum(), "recall": recalled.sum()})
    for name, rate in wilson_rates(hits, pd.Series(n, hits.index)).iterrows():
        yield group, str(name), n, rate["rate"], rate["low"], rate["high"], "ok"


def covered(points: Float, reference: Float) -> NDArray[np.bool_]:
    """Whether each point is in a ball about a reference point that reaches to its third neighbour in the reference.

    The manifold of Kynkaanniemi et al. 2019, equation 1, for points (M, D) and reference (N, D) with N > 3.
    """
    return _covered(_squares(points, reference), _squares(reference, reference))


def _covered(apart: Float, among: Float) -> NDArray[np.bool_]:
    radii = np.partition(among, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return np.asarray((apart <= radii).any(axis=1))


def _squares(x: Float, y: Float) -> Float:
    """Squared distances |x|^2 + |y|^2 - 2 x.y of all rows: many times faster than one pair after the other."""
    squares: Float = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x @ y.T
    return squares


def gpi_gap(outputs: Float, photos: Float, *, groups: Texts, permutations: int = 1000) -> Gap:
    """Permutation test of max - min of the groups' GPI: labels are shuffled over the pairs, which stay together.

    Its null is that the pairs of all groups are alike, photos included: for groups of equal GPI whose photos differ in
    spread the level is approximate. Groups of fewer than `ENOUGH` images are left out; NaN for fewer than two others.
    """
    codes, sizes = _judged(np.asarray(groups, str))
    if len(sizes) < 2:
        return Gap(math.nan, math.nan, math.nan, math.nan)
    x, y = outputs[codes >= 0], photos[codes >= 0]
    codes = codes[codes >= 0]
    h = paired_terms(x, y, slice(0, len(x)))
    labels = np.random.default_rng(20260105).permuted(np.tile(codes, (permutations + 1, 1)), axis=1)
    labels[0] = codes
    values = np.stack([_means(h, labels == code) for code in range(len(sizes))])
    gaps = values.max(axis=0) - values.min(axis=0)
    null = gaps[1:]
    p = float((gaps >= gaps[0] * (1 - 1e-12)).mean())
    return Gap(float(gaps[0]), float(null.mean()), float(np.quantile(null, 0.95)), p)


def _judged(groups: NDArray[np.str_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The code of each image's group, -1 where the group is too small, and the sizes of the others."""
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    enough = sizes >= ENOUGH
    return np.where(enough, enough.cumsum() - 1, -1)[codes], sizes[enough]


def _means(h: Float, members: NDArray[np.bool_]) -> Float:
    """Mean of h_ij over i != j in each of P sets (P, N) of the same size; products in single precision, for speed."""
    n = int(members[0].sum())
    rows = members.astype(np.float32) @ h.astype(np.float32)
    means: Float = rows.sum(axis=1, where=members, dtype=np.float64) / (n * (n - 1))
    return means
