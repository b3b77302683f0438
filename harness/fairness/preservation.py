"""Is it still the same face to an instrument: what the audit's readings say before and after upscaling, as one table.

It reads the rows that the audit has stored (see `harness.fairness.readings`) and measures nothing itself. Groups are in
`groups`, `excess_flips` and `verification`.

agreement    share of outputs that are called as their photo is, for each attribute but age
age          mean of the years between photo and output, either way
similarity   mean cosine of the embeddings of photo and output

`control` is the same of the photos coded as JPEG, on the same images: the instrument's own noise. `loss` is what goes
beyond it, positive where the output is worse than the noise.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from harness.fairness.groups import RATE
from harness.fairness.inference import wilson
from harness.score import CONTROL
from harness.scores import Scores, mean_interval
from harness.suite import IDENTITY

Row = dict[str, Any]
YEARS = "years"


def preservation_rows(scores: Scores) -> Iterator[Row]:
    """A row for each backend and measure; none where no instrument reads faces."""
    for metric, about in scores.record.get("measures", {}).items():
        if (found := _kept(metric, scores.values(metric))) is None:
            continue
        measure, kept = found
        what = {"measure": measure, "instrument": about["instrument"], "unit": about["unit"]}
        for label in kept:
            control = kept[CONTROL] if CONTROL in kept else pd.Series(np.nan, kept.index)
            yield {"backend": label} | what | _figures(kept[label].dropna(), control, about["unit"])


def _kept(metric: str, table: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
    """What a metric of the audit is called here, with its image x backend table; None for those that do not fit."""
    attribute, flips, _ = metric.partition("_flip_")
    if flips:
        return f"{attribute}_agreement", 1 - table
    if metric.startswith("age_shift_"):
        return "age_distance", table.abs()
    return (metric, table) if metric == f"{IDENTITY}_similarity" else None


def _figures(values: pd.Series, control: pd.Series, unit: str) -> Row:
    n, known = len(values), mean_interval(values.to_numpy(float))
    low, high = wilson(round(values.sum()), n) if unit == RATE else (known["low"], known["high"])
    worse = (values - control if unit == YEARS else control - values).dropna()
    loss = mean_interval(worse.to_numpy(float))
    row = {"n": n, "value": known["mean"], "low": low, "high": high, "control": control[worse.index].mean()}
    return row | {"loss": loss["mean"], "loss_low": loss["low"], "loss_high": loss["high"]}
