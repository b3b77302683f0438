"""Every measure by group: means with intervals, gaps against chance, contrasts, equivalence, the worst subgroup.

`groups`, `gaps`, `contrasts` and `subgroups` are tables of a run. A measure is a score of images or what an instrument
reads in their faces. A score's gain over bicubic on the same images is compared as well (`of` is then "gain"), because
groups differ in how hard their photos are, and a flip's excess over the control arm's ("excess"), because an instrument
errs more for some.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import UNKNOWN
from harness.fairness import inference
from harness.fairness.inference import (
    LEVEL,
    Contrast,
    any_difference,
    benjamini_hochberg,
    equivalent,
    holm,
    homogeneity,
    scan,
    smallest_effect,
    verdict,
    wilson,
)
from harness.score import BASELINE, CONTROL
from harness.scores import Scores, mean_interval
from harness.statistics import INSUFFICIENT, LOW_PRECISION, bootstrap_interval, gap_tests

Float = NDArray[np.float64]
PRIMARY, EXPLORATORY, CONTROLS = "primary", "exploratory", "control"
"""Families of gaps: the suite's claims, all others of the compared backends, and those of the control arms."""
RATE = "rate"
"""The unit of measures that are 0 or 1 for an image."""


@dataclass(frozen=True)
class Column:
    """One thing that is compared between groups: a backend's measure, or its gain, on the images of judged groups."""

    backend: str
    metric: str
    of: str
    figures: pd.Series

    @property
    def key(self) -> dict[str, str]:
        """The columns that name it in a table."""
        return {"backend": self.backend, "metric": self.metric, "of": self.of}


def groups(scores: Scores) -> list[dict[str, Any]]:
    """Every clean measure by group, and its gain over bicubic on the same images (positive: better, or more)."""
    rows = []
    for metric, attribute in itertools.product(scores.measures, scores.attributes):
        table = scores.values(metric)
        gain = _gain(scores, table, metric)
        by_group = scores.groups_of(attribute).reindex(table.index)
        for label in table.columns:
            for group in sorted(by_group.unique()):
                inside = (by_group == group) & table[label].notna()
                values, gains = table.loc[inside, label].to_numpy(float), gain.loc[inside, label].to_numpy(float)
                who = {"backend": label, "metric": metric, "attribute": attribute, "group": group}
                rows.append(who | _group(values, gains, rate=scores.measures[metric]["unit"] == RATE))
    return rows


def _gain(scores: Scores, table: pd.DataFrame, metric: str) -> pd.DataFrame:
    if BASELINE not in table:
        return table * np.nan
    sign = -1 if scores.higher_is_better(metric) is False else 1
    return table.sub(table[BASELINE], axis=0) * sign


def _group(values: Float, gain: Float, *, rate: bool) -> dict[str, Any]:
    n = len(values)
    if n < INSUFFICIENT:
        nothing = dict.fromkeys(("mean", "low", "high", "gain", "gain_low", "gain_high"), np.nan)
        return {"n": n, **nothing, "status": "insufficient"}
    finite = gain[np.isfinite(gain)]
    low, high = bootstrap_interval(finite)
    gains = {"gain": float(finite.mean()) if len(finite) else np.nan, "gain_low": low, "gain_high": high}
    figures = _rate(values) if rate else mean_interval(values)
    return {"n": n} | figures | gains | {"status": "ok" if n >= LOW_PRECISION else "low precision"}


def _rate(values: Float) -> dict[str, float]:
    low, high = wilson(int(values.sum()), len(values))
    return {"mean": float(values.mean()), "low": low, "high": high}


def gaps(scores: Scores) -> pd.DataFrame:
    """The best and the worst (or highest and lowest) group of each attribute, and what can be said of their gap.

    The primary claims of the suite are adjusted by Holm over all of them, also those that could not be tested; all
    other gaps by Benjamini and Hochberg, those of the control arms by themselves.
    """
    rows = []
    for attribute in scores.attributes:
        by_group = scores.groups_of(attribute)
        for columns in _same_images(_columns(scores, by_group)):
            judged = by_group[columns[0].figures.index].to_numpy(str)
            for column, test in zip(columns, _tests(columns, judged), strict=True):
                better = _direction_of(scores, column.metric, column.of)
                row = column.key | {"attribute": attribute} | _ends(column.figures, judged, higher_is_better=better)
                rows.append(row | test | _claimed(scores, column, attribute, judged))
    return _judged(pd.DataFrame([*rows, *_untested(scores, rows)]))


def _direction_of(scores: Scores, metric: str, of: str) -> bool | None:
    """Whether more is better; a gain is signed so that it is, where the metric has a direction at all."""
    better = scores.higher_is_better(metric)
    return True if of == "gain" and better is not None else better


def _untested(scores: Scores, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each claim of a compared backend that nothing was measured for."""
    there = {(row["backend"], row["metric"], row["attribute"], row["of"]) for row in rows}
    for backend, claim in itertools.product(scores.labels, scores.claims):
        key = (backend, claim["measure"], claim["attribute"], claim["of"])
        if backend not in (BASELINE, CONTROL) and key not in there:
            who = dict(zip(("backend", "metric", "attribute", "of"), key, strict=True))
            nothing = dict.fromkeys(("gap", "null_mean", "null_p95", "excess", "p_value", "ratio"), np.nan)
            known = {"best": "", "worst": "", "groups": 0, "family": PRIMARY, "margin": claim["margin"]}
            yield who | nothing | known | {"equivalent": False, "smallest_effect": np.nan}


def _columns(scores: Scores, by_group: pd.Series) -> Iterator[Column]:
    """All that is compared between the groups of an attribute; small and unknown groups are left out."""
    for metric in scores.measures:
        table = scores.values(metric)
        gain = _gain(scores, table, metric)
        ideal = {CONTROL} if metric in scores.record["metrics"] else set()  # the ground truth against itself
        for label in [label for label in table.columns if label not in ideal]:
            yield Column(label, metric, "value", _of_judged_groups(table[label], by_group))
            if metric in scores.record["metrics"] and label != BASELINE and BASELINE in table:
                yield Column(label, metric, "gain", _of_judged_groups(gain[label], by_group))
            if "_flip_" in metric and label != CONTROL and CONTROL in table:
                yield Column(label, metric, "excess", _of_judged_groups(table[label] - table[CONTROL], by_group))


def _of_judged_groups(values: pd.Series, by_group: pd.Series) -> pd.Series:
    values = values[np.isfinite(values.to_numpy(float))]
    groups = by_group.reindex(values.index)
    sizes = groups.value_counts()
    return values[(groups.isin(sizes.index[sizes >= INSUFFICIENT]) & (groups != UNKNOWN)).to_numpy()]


def _same_images(columns: Iterator[Column]) -> list[list[Column]]:
    """The columns in lists that are over the same images, so that one set of permutations serves them all."""
    lists: dict[tuple[str, ...], list[Column]] = {}
    for column in columns:
        lists.setdefault(tuple(column.figures.index), []).append(column)
    return list(lists.values())


def _tests(columns: Sequence[Column], judged: NDArray[np.str_]) -> list[dict[str, Any]]:
    """Each column's gap, with chance's; NaN where fewer than two groups are large enough."""
    count = len(np.unique(judged))
    if count < 2:
        nothing = dict.fromkeys(("gap", "null_mean", "null_p95", "excess", "p_value"), np.nan)
        return [{**nothing, "groups": count} for _ in columns]
    found = gap_tests(np.stack([c.figures.to_numpy(float) for c in columns], axis=1), judged)
    return [
        {"gap": t.observed, "null_mean": t.null_mean, "null_p95": t.null_p95, "excess": t.observed - t.null_mean}
        | {"p_value": _p_value(column.figures.to_numpy(float), judged), "groups": count}
        for column, t in zip(columns, found, strict=True)
    ]


def _p_value(values: Float, judged: NDArray[np.str_]) -> float:
    """For rates the homogeneity test, for scores the permutation test of the largest studentised contrast."""
    if not np.isin(values, (0, 1)).all():
        return any_difference(values, judged)
    names = np.unique(judged)
    return homogeneity([int(values[judged == g].sum()) for g in names], [int((judged == g).sum()) for g in names])


def _ends(values: pd.Series, judged: NDArray[np.str_], *, higher_is_better: bool | None) -> dict[str, Any]:
    if len(np.unique(judged)) < 2:
        return {"best": "", "worst": "", "ratio": np.nan}
    frame = _metric_frame(values.to_numpy(float), judged)
    order = frame.by_group.sort_values(ascending=higher_is_better is False)
    ratio = float(frame.ratio()) if (order > 0).all() else np.nan  # of signed values it would say nothing
    return {"best": str(order.index[0]), "worst": str(order.index[-1]), "ratio": ratio}


def _metric_frame(values: Float, groups: NDArray[np.str_]) -> Any:  # noqa: ANN401 - untyped library
    from fairlearn.metrics import MetricFrame

    def mean(_: Float, scores: Float) -> float:
        return float(np.mean(scores))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fairlearn's own deprecations
        return MetricFrame(metrics=mean, y_true=values, y_pred=values, sensitive_features=groups)


def _claimed(scores: Scores, column: Column, attribute: str, judged: NDArray[np.str_]) -> dict[str, Any]:
    """Family, margin and whether every contrast lies within it; the smallest gap that these images would show."""
    nothing = {"margin": np.nan, "equivalent": False, "smallest_effect": np.nan}
    if column.backend in (BASELINE, CONTROL):
        return {"family": CONTROLS} | nothing
    claims = {(c["measure"], c["attribute"], c["of"]): c["margin"] for c in scores.claims}
    margin = claims.get((column.metric, attribute, column.of))
    if margin is None:
        return {"family": EXPLORATORY} | nothing
    values = column.figures.to_numpy(float)
    compared = len([label for label in scores.labels if label not in (BASELINE, CONTROL)])
    return {
        "family": PRIMARY,
        "margin": margin,
        "equivalent": equivalent(inference.contrasts(values, judged), margin),
        "smallest_effect": smallest_effect(values, judged, LEVEL / (len(claims) * compared)),
    }


def _judged(gaps: pd.DataFrame) -> pd.DataFrame:
    """The p-values adjusted within each family, and the verdicts."""
    if gaps.empty:
        return gaps
    gaps["p_adjusted"] = np.nan
    for family, adjust in ((PRIMARY, holm), (EXPLORATORY, benjamini_hochberg), (CONTROLS, benjamini_hochberg)):
        mine = gaps["family"] == family
        p = gaps.loc[mine, "p_value"]
        adjusted = adjust(p.fillna(1.0).to_numpy(float) if family == PRIMARY else p.to_numpy(float))
        gaps.loc[mine, "p_adjusted"] = np.where(p.isna(), np.nan, adjusted)
    gaps["verdict"] = [_verdict(row) for _, row in gaps.iterrows()]
    return gaps


def _verdict(row: "pd.Series[Any]") -> str:
    if row["groups"] == 0 and row["family"] == PRIMARY:
        return "not measured"
    return verdict(row["p_adjusted"], equivalent=row["equivalent"], groups=row["groups"])


def contrasts(scores: Scores) -> list[dict[str, Any]]:
    """Each group against the mean of the others, for every measure that a claim of the suite names.

    p-values are adjusted by Holm over the groups of an attribute.
    """
    claimed = {(c["measure"], c["attribute"], c["of"]) for c in scores.claims}
    rows: list[dict[str, Any]] = []
    for attribute in scores.attributes:
        by_group = scores.groups_of(attribute)
        for column in _columns(scores, by_group):
            if (column.metric, attribute, column.of) in claimed:
                judged = by_group[column.figures.index].to_numpy(str)
                better = _direction_of(scores, column.metric, column.of)
                found = inference.contrasts(column.figures.to_numpy(float), judged)
                rows += [column.key | {"attribute": attribute} | row for row in _contrast_rows(found, better)]
    return rows


def _contrast_rows(found: Sequence[Contrast], higher_is_better: bool | None) -> Iterator[dict[str, Any]]:  # noqa: FBT001
    p_values = np.array([c.p_value for c in found])
    adjusted = holm(p_values) if len(found) > 2 else p_values  # two contrasts mirror each other: one claim
    for contrast, p in zip(found, adjusted, strict=True):
        yield {
            "group": contrast.group,
            "n": contrast.n,
            "difference": contrast.difference,
            "low": contrast.low,
            "high": contrast.high,
            "p_value": contrast.p_value,
            "p_adjusted": p,
            "verdict": _direction(contrast.difference, p, higher_is_better),
        }


def _direction(difference: float, p: float, higher_is_better: bool | None) -> str:  # noqa: FBT001
    if not p < 0.05:
        return "not separated"
    if higher_is_better is None:
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == higher_is_better else "worse"


def _compared(scores: Scores, table: pd.DataFrame, metric: str, of: str) -> pd.DataFrame:
    """The values, gains or excesses of all backends."""
    if of == "gain":
        return _gain(scores, table, metric)
    return table.sub(table[CONTROL], axis=0) if of == "excess" and CONTROL in table else table


def subgroups(scores: Scores) -> list[dict[str, Any]]:
    """The worst subgroup in each claimed measure, of all groups and pairs of groups searched."""
    rows = []
    labels = scores.images.set_index("image")[[a for a in scores.attributes if a != "race x gender"]]
    for measure, of in dict.fromkeys((c["measure"], c["of"]) for c in scores.claims):
        table = scores.values(measure)
        for label in (b for b in table.columns if b != CONTROL and not (of == "gain" and b == BASELINE)):
            values = _compared(scores, table, measure, of)[label]
            values = values[np.isfinite(values.to_numpy(float))]
            better = _direction_of(scores, measure, of)
            found = scan(values.to_numpy(float), labels.reindex(values.index), higher_is_better=better)
            if found is not None:
                name = ", ".join(found.attributes.values())
                what = {"backend": label, "metric": measure, "of": of, "subgroup": name, "n": found.n}
                figures = {"difference": found.difference, "p_value": found.p_value, "searched": found.searched}
                rows.append(what | figures)
    return rows
