"""How far an instrument can be trusted: its confusion matrix, shares corrected for it, and two instruments compared."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.fairness.inference import wilson
from harness.fairness.instruments import years
from harness.fairness.readings import attribute_of, said

Float = NDArray[np.float64]


def confusion(readings: pd.DataFrame, truth: pd.Series, attribute: str) -> pd.DataFrame:
    """What is said (columns) of photos of each true label (rows), as shares; both in the order of the instrument.

    `readings` of real photos and `truth` have one index. Photos without a reading, or whose label the instrument does
    not know, are left out; a label without photos has NaN.
    """
    names = list(attribute_of(readings, attribute).columns)
    counts = pd.crosstab(truth.astype(object), said(readings, attribute)).reindex(index=names, columns=names)
    counts = counts.fillna(0.0)
    return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def corrected_shares(confusion: Float, observed: Float) -> Float:
    """The true shares (K,) that best explain the observed ones: argmin over the simplex of |C'p - q|.

    `confusion` (K, K) has a true label a row and sums to 1 there, `observed` (K,) sums to 1; NaN in either gives NaN.
    With two labels it is the estimator of Rogan and Gladen (1978), kept within 0 to 1.

    As p sums to 1, the distance is |Bp| with B = C' - q1', so p is the point of least norm in the convex hull of B's
    columns. For p = u / t with t = sum(u), t^2 |Bp|^2 + (t - 1)^2 is least where |Bp| is: non-negative least squares.
    """
    if not (np.isfinite(confusion).all() and np.isfinite(observed).all()):
        return np.full(len(observed), np.nan)
    from scipy.optimize import nnls

    difference = confusion.T - observed[:, None]
    u, _ = nnls(np.vstack([difference, np.ones(len(observed))]), np.append(np.zeros(len(observed)), 1.0))
    shares: Float = u / u.sum()
    return shares


def disagreement(first: pd.DataFrame, second: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """How often two instruments call the same photos otherwise, by attribute and group (the row "all" is everybody).

    The readings and `groups` have one index. Columns: attribute, group, n (both have a reading), missing (one has
    none), disagreement: a share with its Wilson interval low, high; for age the mean absolute difference in years,
    without one. Attributes are compared whose labels are the same.
    """
    rows = []
    for attribute in _shared(first, second):
        differ = _differences(first, second, attribute)
        for group in ("all", *sorted(groups.unique())):
            part = differ if group == "all" else differ[groups == group]
            rows.append({"attribute": attribute, "group": group, **_figures(part, rate=attribute != "age")})
    return pd.DataFrame(rows, columns=["attribute", "group", "n", "missing", "disagreement", "low", "high"])


def _shared(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    names = dict.fromkeys(str(name).partition(":")[0] for name in first.columns if ":" in str(name))
    both = [name for name in names if len(attribute_of(second, name).columns)]
    return [n for n in both if n == "age" or set(attribute_of(first, n)) == set(attribute_of(second, n))]


def _differences(first: pd.DataFrame, second: pd.DataFrame, attribute: str) -> pd.Series:
    """For each photo 1 or 0, or years of difference; NaN where a reading is missing."""
    if attribute == "age":
        return (years(attribute_of(first, "age")) - years(attribute_of(second, "age"))).abs()
    one, other = said(first, attribute), said(second, attribute)
    return (one != other).astype(float).mask(one.isna() | other.isna())


def _figures(differ: pd.Series, *, rate: bool) -> dict[str, float]:
    values = differ.dropna().to_numpy(float)
    n = len(values)
    low, high = wilson(int(values.sum()), n) if rate else (np.nan, np.nan)
    mean = values.mean() if n else np.nan
    return {"n": n, "missing": len(differ) - n, "disagreement": mean, "low": low, "high": high}
