"""Paired differences between two backends or two builds of one, on the same images; regressions come first.

A comparison is of two sides: a backend in one run, and the same backend in another or another in the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ConfigError, StoreError, one_line
from harness.judge import compared
from harness.scores import Scores, mean_interval
from harness.statistics import verdict
from harness.store import RunFolder
from harness.suite import check_names

COLUMNS = "candidate baseline metric condition severity n unpaired candidate_mean baseline_mean mean low high verdict"
"""Columns of the table, whatever is in it."""
WORDS = {"worse": "regression", "better": "improvement"}
ORDER = ("regression", "not measured", "lower", "higher", "tie", "improvement")
"""Verdicts in the order of the table; of a metric in which more is neither better nor worse, lower and higher."""
INPUTS = ("low", "high", "photos", "target_kernel", "seed", "noise")
"""The fields of a suite that fix what backends receive."""


@dataclass(frozen=True)
class Side:
    """A backend in a run."""

    scores: Scores
    label: str

    @property
    def scored(self) -> pd.DataFrame:
        """The metric, condition and severity of each of its scores."""
        scores = self.scores.scores
        return scores.loc[scores["backend"] == self.label, ["metric", "condition", "severity"]]

    def values(self, metric: str, condition: str, severity: int) -> "pd.Series[float]":
        """Its scores by image; none where it has none."""
        table = self.scores.values(metric, condition, severity)
        return table[self.label].dropna() if self.label in table else pd.Series(dtype=float)


def compare_runs(candidate: RunFolder, baseline: RunFolder, label: str | None = None) -> pd.DataFrame:
    """A backend, or every one that both runs compare, in two runs: candidate minus baseline (see `compare_sides`).

    Raises:
        ConfigError: a run has no such backend, or they have none in common.
        StoreError: the runs are over different images, inputs or recipes.
    """
    first, second = Scores.of(candidate), Scores.of(baseline)
    _check_same(first, second)
    for scores in (first, second) if label else ():
        _check_backend(scores, str(label))
    shared = [name for name in compared(first.record) if name in compared(second.record)]
    if not (label or shared):
        raise ConfigError(
            f"{candidate.path} and {baseline.path} have no backend in common; name two of one run instead"
        )
    return _table([(Side(first, name), Side(second, name)) for name in ([label] if label else shared)])


def compare_backends(run: RunFolder, candidate: str, baseline: str) -> pd.DataFrame:
    """Two backends of one run, candidate minus baseline (see `compare_sides`).

    Raises:
        ConfigError: the run has no such backends, or they are one.
    """
    scores = Scores.of(run)
    for label in (candidate, baseline):
        _check_backend(scores, label)
    if candidate == baseline:
        raise ConfigError(f"{one_line(candidate, 60)} cannot be compared with itself; name two backends")
    return _table([(Side(scores, candidate), Side(scores, baseline))])


def compare_sides(candidate: Side, baseline: Side) -> Iterator[dict[str, Any]]:
    """The rows of two sides: one for each metric and condition, over the images that both were scored on.

    `mean`, `low`, `high`: the paired difference and its 95 % bootstrap interval over images. `unpaired` images were
    scored on one side only. Differences of infinite scores (identical images) are left out.
    """
    scored = pd.concat(
        [side.scores.scores[lambda s, b=side.label: s["backend"] == b] for side in (candidate, baseline)]
    )
    keys = ["metric", "condition", "severity"]
    own = scored["condition"].str.startswith("attack_")  # each backend has attacked inputs of its own
    for metric, condition, severity in scored.loc[~own, keys].drop_duplicates().itertuples(index=False):
        first, second = (side.values(metric, condition, severity) for side in (candidate, baseline))
        what = {"candidate": candidate.label, "baseline": baseline.label}
        what |= {"metric": metric, "condition": condition, "severity": severity}
        yield what | _row(first, second, higher_is_better=candidate.scores.higher_is_better(metric))


def _row(first: "pd.Series[float]", second: "pd.Series[float]", *, higher_is_better: bool | None) -> dict[str, Any]:
    mine, others = first.align(second, join="inner")
    difference = mine.to_numpy(float) - others.to_numpy(float)
    difference = difference[np.isfinite(difference)]
    stats = mean_interval(difference) if len(difference) else dict.fromkeys(("mean", "low", "high"), np.nan)
    word = verdict(stats["low"], stats["high"], higher_is_better=higher_is_better)
    counts = {"n": len(difference), "unpaired": len(first.index.symmetric_difference(second.index))}
    means = {f"{side}_mean": v.mean() for side, v in (("candidate", mine), ("baseline", others))}
    return counts | means | stats | {"verdict": WORDS.get(word, word)}


def _table(sides: Sequence[tuple[Side, Side]]) -> pd.DataFrame:
    table = pd.DataFrame([row for pair in sides for row in compare_sides(*pair)], columns=COLUMNS.split())
    return table.sort_values("verdict", key=lambda v: v.map(ORDER.index), kind="stable", ignore_index=True)


def _check_backend(scores: Scores, label: str) -> None:
    try:
        check_names((label,), scores.labels, "backend")
    except ValueError as error:
        raise ConfigError(f"{scores.folder.path}: {one_line(str(error))}") from error


def _check_same(first: Scores, second: Scores) -> None:
    """Refuse two runs whose scores are not of the same thing."""
    reason = _difference(first, second)
    if reason:
        runs = f"{first.folder.path} and {second.folder.path}"
        raise StoreError(f"{runs} cannot be compared: {reason}; run one suite on the same images for both")


def _difference(first: Scores, second: Scores) -> str:
    """What keeps two runs from being compared; empty if nothing does."""
    one, two = first.record, second.record
    if one["dataset"].get("sha256") != two["dataset"].get("sha256") or _images(first) != _images(second):
        return "they are over different images"
    for name in INPUTS:
        if one["suite"]["content"].get(name) != two["suite"]["content"].get(name):
            return f"their suites differ in {name}"
    mine, others = first.measures, second.measures
    for metric in dict.fromkeys([*mine, *others]):
        if mine.get(metric) != others.get(metric):
            return f"{one_line(metric, 60)} is measured by one of them only, or by another recipe"
    return ""


def _images(scores: Scores) -> set[tuple[Any, ...]]:
    return set(scores.images[["image", "seed", "error"]].itertuples(index=False, name=None))
