"""Is the output still the same person: errors of verification by group, and indices of their disparity.

A pair is a match when its distance is below a threshold. A genuine pair is a photo and its output, an impostor pair two
different photos of one group, or an output and another photo; the threshold is where photos match at a chosen rate.

FMR    share of the impostor pairs that match
FNMR   share of the genuine pairs that do not

Of m pairs without an error the rate may still be 3 / m (95 %, rule of three), so a threshold at a rate r needs 3 / r
impostor pairs: fewer are "insufficient pairs". Pairs of one photo with many are not independent; m counts them all.
Indices: FDR (de Freitas Pereira and Marcel 2022), IR and GARBE as in Howard et al. 2022 (arXiv 2203.05051), Max/GeoMean
as in NIST FRVT part 8.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.fairness.inference import wilson_rates
from harness.fairness.parity import Texts
from harness.statistics import INSUFFICIENT

Float = NDArray[np.float64]
Distances = Mapping[str, Float]
"""Distances of pairs, by group."""


def genuine_distances(outputs: Float, photos: Float, *, groups: Texts) -> dict[str, Float]:
    """Cosine distance, 0..2, of each output to its own photo, by group; embeddings are (N, D), not zero."""
    distances = 1 - (_unit(outputs) * _unit(photos)).sum(axis=1)
    return {str(group): distances[rows] for group, rows in _by_group(groups)}


def impostor_distances(outputs: Float, photos: Float, *, groups: Texts) -> dict[str, Float]:
    """Cosine distances of the outputs i to the photos j > i of the same group: n (n - 1) / 2 pairs for n images.

    With the photos as `outputs` too, the pairs of photos. Two photos of one person among them count as impostors.
    """
    x, y = _unit(outputs), _unit(photos)
    return {str(group): (1 - x[r] @ y[r].T)[np.triu_indices(len(r), 1)] for group, r in _by_group(groups)}


def _unit(embeddings: Float) -> Float:
    unit: Float = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit


def _by_group(groups: Texts) -> list[tuple[str, NDArray[np.intp]]]:
    names = np.asarray(groups, str)
    return [(group, np.flatnonzero(names == group)) for group in np.unique(names)]


def threshold_at(impostor_distances: Float, fmr: float) -> float:
    """The largest distance below which at most the share `fmr`, in (0, 1), of the impostor pairs lies.

    NaN for fewer than 3 / fmr pairs, which cannot show so low a rate.
    """
    m = len(impostor_distances)
    if m * fmr < 3:
        return math.nan
    return float(np.partition(impostor_distances, place := math.floor(m * fmr))[place])


def at_one_threshold(genuine: Distances, impostors: Distances, *, photos: Distances, fmr: float) -> pd.DataFrame:
    """Error rates of the groups at the threshold where the pairs of `photos` of all groups together match at `fmr`.

    The impostors are those of an upscaler, outputs against photos: what they match more often than the photos among
    themselves is its doing.

    A row for each group: threshold, fmr, fmr_low, fmr_high, fnmr, fnmr_low, fnmr_high (95 %: Wilson; the upper bound
    for no false match is 3 / pairs), the counts pairs, false_matches, n and false_non_matches, and status:
    "insufficient pairs" for fewer than 3 / fmr impostor pairs, "insufficient" for fewer than `INSUFFICIENT` images.
    """
    threshold = threshold_at(np.concatenate(list(photos.values())), fmr)
    return _rates(genuine, impostors, pd.Series(threshold, list(genuine)), fmr=fmr)


def at_group_thresholds(genuine: Distances, impostors: Distances, *, photos: Distances, fmr: float) -> pd.DataFrame:
    """As `at_one_threshold`, with the threshold of each group where its own pairs of photos match at `fmr`."""
    thresholds = pd.Series({group: threshold_at(photos[group], fmr) for group in genuine})
    return _rates(genuine, impostors, thresholds, fmr=fmr)


def _rates(genuine: Distances, impostors: Distances, thresholds: pd.Series, *, fmr: float) -> pd.DataFrame:
    table = pd.DataFrame({"threshold": thresholds}).rename_axis("group")
    table["pairs"] = [len(impostors[group]) for group in table.index]
    table["n"] = [len(genuine[group]) for group in table.index]
    table["false_matches"] = [int((impostors[group] < thresholds[group]).sum()) for group in table.index]
    table["false_non_matches"] = [int((genuine[group] >= thresholds[group]).sum()) for group in table.index]
    known = table["threshold"].notna()
    for rate, errors, count in (("fmr", "false_matches", "pairs"), ("fnmr", "false_non_matches", "n")):
        found = wilson_rates(table[errors], table[count].where(known))
        table[[rate, f"{rate}_low", f"{rate}_high"]] = found
    table.loc[known & (table["false_matches"] == 0), "fmr_high"] = (3 / table["pairs"]).clip(upper=1)
    return table.assign(status=_status(table, fmr))


def _status(table: pd.DataFrame, fmr: float) -> NDArray[np.str_]:
    few = np.where(table["n"] < INSUFFICIENT, "insufficient", "ok")
    return np.where((table["pairs"] * fmr < 3) | table["threshold"].isna(), "insufficient pairs", few)


@dataclass(frozen=True)
class Disparity:
    """Indices over `groups` groups; NaN for fewer than two. `alpha` is the weight of FMR against FNMR.

    garbe        alpha G(FMR) + (1 - alpha) G(FNMR), G the Gini coefficient; 0 is parity, 1 the worst
    fdr          1 - alpha (max - min FMR) - (1 - alpha) (max - min FNMR); 1 is parity
    ir           (max / min FMR)^alpha (max / min FNMR)^(1 - alpha); 1 is parity, NaN where a rate is 0
    max_geomean_fmr, max_geomean_fnmr
                 largest rate over the geometric mean; 1 is parity; k errors of n count as (k + 0.5) / (n + 1)
    """

    garbe: float
    fdr: float
    ir: float
    max_geomean_fmr: float
    max_geomean_fnmr: float
    alpha: float
    groups: int


def disparity(rates: pd.DataFrame, *, alpha: float) -> Disparity:
    """Indices of a table of error rates, over its groups whose status is "ok"."""
    judged = rates[rates["status"] == "ok"]
    if len(judged) < 2:
        nan = math.nan
        return Disparity(nan, nan, nan, nan, nan, alpha, len(judged))
    fmr, fnmr = judged["fmr"], judged["fnmr"]
    return Disparity(
        alpha * gini(fmr) + (1 - alpha) * gini(fnmr),
        1 - alpha * (fmr.max() - fmr.min()) - (1 - alpha) * (fnmr.max() - fnmr.min()),
        _ratio(fmr) ** alpha * _ratio(fnmr) ** (1 - alpha),
        max_geomean(judged["false_matches"], judged["pairs"]),
        max_geomean(judged["false_non_matches"], judged["n"]),
        alpha,
        len(judged),
    )


def gini(rates: pd.Series) -> float:
    """Gini coefficient n / (n - 1) * sum_ij |x_i - x_j| / (2 n^2 mean), 0..1; 0 where all rates are 0."""
    x, n = rates.to_numpy(float), len(rates)
    if not x.any():
        return 0.0
    return float(np.abs(x[:, None] - x).sum() / (2 * n * (n - 1) * x.mean()))


def max_geomean(errors: pd.Series, n: pd.Series) -> float:
    """The largest rate over the geometric mean of the rates (errors + 0.5) / (n + 1), which none makes 0."""
    rates = (errors + 0.5) / (n + 1)
    return float(rates.max() / np.exp(np.log(rates).mean()))


def _ratio(rates: pd.Series) -> float:
    return float(rates.max() / rates.min()) if rates.min() > 0 else math.nan
