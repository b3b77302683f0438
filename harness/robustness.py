"""Robustness to corrupted inputs: curves of scores over severity, always beside bicubic's for the same corrupted input.

f is a backend, b bicubic, x an input, x' the corrupted one, y the ground truth, D(f, s) a score of f(x') at severity s;
severity 0 is clean.

degradation    area under D(f, s) - D(f, 0): trapezoids over the severities, divided by the largest
error          CE = sum over s of D(f, s) / the same of b; its mean over the 12 of ImageNet-C's 15 corruptions that move
               no pixels is the mean corruption error, mCE (Hendrycks and Dietterich 2019, section 4; theirs is relative
               to AlexNet's classification error and over all 15)
relative error the same of D(f, s) - D(f, 0); none where corruption adds too little to b's error to divide by
amplification  MSE(f(x'), f(x)) / MSE(b(x'), b(x)), a ratio of mean squared errors that needs no ground truth
crossing       the first severity at which f is worse than b, by the paired 95 % interval

Intervals are percentile bootstrap over images, all severities, corruptions and bicubic resampled together.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.changes import CHANGE, DRAWS, SAMPLER
from harness.corruptions import IN_MCE
from harness.datasets import UNKNOWN
from harness.degrade import EFFECTS
from harness.fairness.inference import LEVEL, any_difference, benjamini_hochberg, contrasts
from harness.fairness.inference import verdict as judged
from harness.plan import CLEAN
from harness.score import BASELINE, CONTROL
from harness.scores import Scores, headline
from harness.statistics import INSUFFICIENT, bootstrap_interval, gap_tests, mean_intervals, ratio_of_means, verdict
from harness.suite import Corruptions

Float = NDArray[np.float64]
Row = dict[str, Any]

LOSSES = ("lpips_alex", "mse")
"""The metrics that errors are ratios of: 0 is perfect, and twice as much is twice as bad, which dB are not."""
SMALLEST = 0.05
"""What corruption must add to bicubic's clean error at least, as a share of it, for a ratio to be formed."""
SEVERITIES = (1, 2, 3, 4, 5)
SOURCES = {"draw of the corruption": DRAWS, "seed of the backend": SAMPLER}
SINGLE = "deterministic: one output"
POOLED = "mean"
"""In the tables of groups: each image's mean over the corruptions of the mCE."""


@dataclass(frozen=True)
class Curve:
    """One metric under one corruption: `table` is image x (backend, severity), clean (0) first."""

    corruption: str
    metric: str
    severities: tuple[int, ...]
    table: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """The backends that were scored at every severity."""
        return list(dict.fromkeys(self.table.columns.get_level_values(0)))

    def pair(self, label: str) -> pd.DataFrame:
        """A backend's scores beside bicubic's, of the images that both have at every severity."""
        return self.table[list(dict.fromkeys([label, BASELINE]))].dropna()

    def both(self, label: str) -> tuple[Float, Float]:
        """`pair` as two arrays (images, severities): the backend's and bicubic's."""
        frame = self.pair(label)
        return frame[label].to_numpy(float), frame[BASELINE].to_numpy(float)


def tables(scores: Scores) -> dict[str, list[Row]]:
    """The tables of the robustness audit by name, as rows."""
    found, changes = curves(scores), _changes(scores)
    levels = [*_levels(scores, found)]
    return {
        "corruptions": levels,
        "degradation": [*_degradation(scores, found)],
        "crossings": [*_crossings(levels)],
        "corruption_errors": [*_errors(found)],
        "robustness": [*_means(scores, found), *_amplified(scores, changes)],
        "amplification": [*_amplification(scores, changes)],
        "corruption_gaps": _adjusted([*_gaps(scores, found)]),
        "group_slopes": _adjusted([*_slopes(scores, found)]),
        "corruption_seeds": [*_seeds(scores)],
    }


def curves(scores: Scores) -> list[Curve]:
    """The curve of every corruption and metric of the suite; none without bicubic's."""
    part = _part(scores)
    if part is None:
        return []
    cells = _cells(scores.scores)
    severities = (0, *part.severities)
    made = []
    for name, metric in ((n, m) for n in part.names for m in part.metrics_of(n)):
        keys = {label: [_key(metric, name, s, label) for s in severities] for label in scores.labels}
        whole = {label: mine for label, mine in keys.items() if label != CONTROL and all(k in cells for k in mine)}
        if BASELINE in whole:
            columns = {(label, key[2]): cells[key] for label, mine in whole.items() for key in mine}
            table = pd.DataFrame(columns).replace([np.inf, -np.inf], np.nan).dropna(how="all")
            made.append(Curve(name, metric, severities, table))
    return made


def _part(scores: Scores) -> Corruptions | None:
    """The part of the suite that asks for corruptions."""
    content = scores.record["suite"]["content"].get("corruptions")
    return Corruptions.model_validate(content) if content else None


def _cells(scores: pd.DataFrame) -> dict[tuple[Any, ...], pd.Series]:
    """Scores by image, of each metric, condition, severity and backend."""
    by = scores.set_index("image").groupby(["metric", "condition", "severity", "backend"], sort=False)
    return dict(iter(by["value"]))


def _key(metric: str, corruption: str, severity: int, label: str) -> tuple[str, str, int, str]:
    return metric, corruption if severity else CLEAN.name, severity, label


# Curves


def _levels(scores: Scores, found: Sequence[Curve]) -> Iterator[Row]:
    """Mean, paired difference to bicubic on the same input, and difference to the backend's own clean score."""
    for curve, label in ((c, b) for c in found for b in c.labels):
        own, base = curve.both(label)
        if not len(own):
            continue
        figures = mean_intervals(np.hstack([own, own - base, own - own[:, :1]]))
        better = scores.higher_is_better(curve.metric)
        who = {"backend": label, "corruption": curve.corruption, "metric": curve.metric, "n": len(own)}
        for place, severity in enumerate(curve.severities):
            three = figures[place :: len(curve.severities)]
            word = verdict(*three[1][1:], higher_is_better=better)
            yield who | {"severity": severity} | _named(three, "mean", "difference", "added") | {"verdict": word}


def _named(estimates: Sequence[tuple[float, float, float]], *names: str) -> dict[str, float]:
    """Estimates as columns: NAME, NAME_low, NAME_high; the interval of a mean is called low and high alone."""
    row: dict[str, float] = {}
    for name, figures in zip(names, estimates, strict=True):
        ends = ("low", "high") if name in {"mean", "value"} else (f"{name}_low", f"{name}_high")
        row |= dict(zip((name, *ends), figures, strict=True))
    return row


def area(values: Float, severities: Sequence[int]) -> Float:
    """The area under what corruption adds to the scores, (images, severities) with clean first: (images,).

    Trapezoids over the severities from 0 on, divided by the largest, so that it has the unit of the score.
    """
    return np.asarray(np.trapezoid(values - values[:, :1], severities, axis=1) / severities[-1])


def _degradation(scores: Scores, found: Sequence[Curve]) -> Iterator[Row]:
    for curve, label in ((c, b) for c in found for b in c.labels):
        own, base = (area(values, curve.severities) for values in curve.both(label))
        if len(own):
            who = {"backend": label, "corruption": curve.corruption, "metric": curve.metric, "n": len(own)}
            row = _named(mean_intervals(np.stack([own, own - base], axis=1)), "area", "difference")
            ends = row["difference_low"], row["difference_high"]
            yield who | row | {"verdict": verdict(*ends, higher_is_better=scores.higher_is_better(curve.metric))}


def _crossings(levels: Sequence[Row]) -> Iterator[Row]:
    """Where a backend is first worse than bicubic; "better" is said of one that is better at every severity."""
    rows = [row for row in levels if row["backend"] != BASELINE]
    keys = ("backend", "corruption", "metric")
    for key, mine in itertools.groupby(rows, key=lambda row: tuple(row[k] for k in keys)):
        words = {row["severity"]: row["verdict"] for row in mine}
        worse = [severity for severity, word in words.items() if word == "worse"]
        better = sum(word == "better" for severity, word in words.items() if severity)
        said = "worse" if worse else "better" if better == len(words) - 1 else "not separated"
        said = "not measured" if "not measured" in words.values() else said
        counts = {"tested": len(words) - 1, "better": better, "crossing": min(worse, default=math.nan)}
        yield dict(zip(keys, key, strict=True)) | counts | {"verdict": said}


# Errors relative to bicubic's


def _errors(found: Sequence[Curve]) -> Iterator[Row]:
    """CE and relative CE of each corruption that has a score of `LOSSES`."""
    for curve, label in ((c, b) for c in found for b in c.labels if c.metric in LOSSES):
        row = {"backend": label, "corruption": curve.corruption, "metric": curve.metric}
        own, base = curve.both(label)
        if len(own):
            error, (relative, note) = _error([own], [base]), _relative([own], [base])
            yield row | {"n": len(own)} | _named([error, relative], "error", "relative") | {"note": note}


def _error(own: Sequence[Float], base: Sequence[Float]) -> tuple[float, float, float]:
    above, below = (np.stack([v[:, 1:].sum(axis=1) for v in side], axis=1) for side in (own, base))
    return ratio_of_means(above, below)


def _relative(own: Sequence[Float], base: Sequence[Float]) -> tuple[tuple[float, float, float], str]:
    """The relative error over the corruptions that it can be formed for, and why it is not where there are none."""
    kept = [(f, b) for f, b in zip(own, base, strict=True) if _divisible(b)]
    if not kept:
        return (math.nan, math.nan, math.nan), "relative error: corruption adds too little to bicubic's error"
    above, below = (np.stack([_added(v) for v in side], axis=1) for side in zip(*kept, strict=True))
    return ratio_of_means(above, below), ""


def _added(values: Float) -> Float:
    """Sum over the severities of what corruption adds, (images,)."""
    added: Float = (values[:, 1:] - values[:, :1]).sum(axis=1)
    return added


def _divisible(base: Float) -> bool:
    """Whether what corruption adds to bicubic's error is surely above `SMALLEST` of its clean error."""
    low, _ = bootstrap_interval(_added(base))
    return bool(low > SMALLEST * (base.shape[1] - 1) * base[:, 0].mean())


def _means(scores: Scores, found: Sequence[Curve]) -> Iterator[Row]:
    """The mCE and relative mCE of each backend, over the images that it and bicubic have under all corruptions."""
    for metric, label in itertools.product(LOSSES, scores.labels):
        mine = [c for c in found if c.metric == metric and c.corruption in IN_MCE and label in c.labels]
        own, base = _on_same_images(mine, label)
        if not len(own) or not len(own[0]):
            continue
        who = {"backend": label, "metric": metric, "n": len(own[0])}
        lack = [name for name in IN_MCE if name not in {c.corruption for c in mine}]
        small = [c.corruption for c, b in zip(mine, base, strict=True) if not _divisible(b)]
        about = _coverage(mine[0].severities[1:], lack)
        yield who | _mean("mCE", _error(own, base), len(mine), about)
        estimate, why = _relative(own, base)
        about = why or _coverage(mine[0].severities[1:], lack, small)
        yield who | _mean("relative mCE", estimate, len(mine) - len(small), about)


def _on_same_images(found: Sequence[Curve], label: str) -> tuple[list[Float], list[Float]]:
    """A backend's and bicubic's scores under each corruption, of the images that both have under all of them."""
    frames = [curve.pair(label) for curve in found]
    shared = sorted(set.intersection(*(set(frame.index) for frame in frames))) if frames else []
    own, base = ([frame.loc[shared, who].to_numpy(float) for frame in frames] for who in (label, BASELINE))
    return own, base


def _mean(name: str, estimate: tuple[float, float, float], count: int, note: str) -> Row:
    """A mean over so many corruptions; its name says so where they are not all."""
    full = name if count == len(IN_MCE) else f"{name} over {count} of {len(IN_MCE)} corruptions"
    about = {"measure": name.lower().replace(" ", "_"), "name": full, "corruptions": count, "note": note}
    return about | _named([estimate], "value")


def _coverage(severities: Sequence[int], lack: Sequence[str], small: Sequence[str] = ()) -> str:
    """What a mean is not over."""
    levels = "" if tuple(severities) == SEVERITIES else f"severities {', '.join(map(str, severities))} of 1 to 5"
    missing = f"not run: {', '.join(lack)}" if lack else ""
    little = f"adding too little to bicubic's error: {', '.join(small)}" if small else ""
    return "; ".join(part for part in (levels, missing, little) if part)


# Amplification


def _changes(scores: Scores) -> dict[str, dict[int, pd.DataFrame]]:
    """Corruption -> severity -> image x backend table of how far corruption moves the outputs."""
    rows = scores.rows[(scores.rows["metric"] == CHANGE) & scores.rows["value"].notna()]
    found: dict[str, dict[int, pd.DataFrame]] = {}
    for name in EFFECTS:
        mine = rows[rows["condition"] == name]
        for severity in sorted(set(mine["severity"].astype(int))):
            level = mine[mine["severity"] == severity]
            found.setdefault(name, {})[severity] = level.pivot_table(index="image", columns="backend", values="value")
    return found


def _total(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The sum of tables, NaN where one has no value."""
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total


def _beside(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The columns of a backend and of bicubic, of the images that both have."""
    wanted = list(dict.fromkeys([label, BASELINE]))
    return table[wanted].dropna() if set(wanted) <= set(table) else pd.DataFrame(columns=wanted, dtype=float)


def _amplification(scores: Scores, changes: dict[str, dict[int, pd.DataFrame]]) -> Iterator[Row]:
    for name, levels in changes.items():
        for (severity, table), label in itertools.product(levels.items(), scores.labels):
            pair = _beside(table, label)
            if len(pair):
                who = {"backend": label, "corruption": name, "severity": severity, "n": len(pair)}
                yield who | _amplifying(pair[label].to_numpy(float), pair[BASELINE].to_numpy(float))


def _amplifying(own: Float, base: Float) -> Row:
    sizes = {"change": own.mean(), "change_bicubic": base.mean()}
    if not base.any():
        nothing = dict.fromkeys(("value", "low", "high"), math.nan)
        return nothing | sizes | {"note": "the corruption does not change bicubic's outputs"}
    return _named([ratio_of_means(own[:, None], base[:, None])], "value") | sizes | {"note": ""}


def _amplified(scores: Scores, changes: dict[str, dict[int, pd.DataFrame]]) -> Iterator[Row]:
    """Per backend the mean over corruptions of the ratio of the changes, each summed over the severities."""
    for label in scores.labels:
        sums = {name: _total([_beside(t, label) for t in levels.values()]) for name, levels in changes.items()}
        usable = {name: frame for name, frame in sums.items() if frame[BASELINE].any()}
        whole = pd.concat(usable, axis=1).dropna() if usable else pd.DataFrame()
        if len(whole):
            own, base = (whole.xs(who, axis=1, level=1).to_numpy(float) for who in (label, BASELINE))
            lack = [name for name in changes if name not in usable]
            note = f"without {', '.join(lack)}: not run, or changing nothing in bicubic's outputs" if lack else ""
            who = {"backend": label, "measure": "amplification", "metric": "mse", "name": "amplification"}
            counts = {"n": len(whole), "corruptions": len(usable), "note": note}
            yield who | counts | _named([ratio_of_means(own, base)], "value")


# Groups


@dataclass(frozen=True)
class Grouped:
    """A backend's curve over the images of one attribute's known groups: (images, severities), and their groups."""

    key: Row
    severities: tuple[int, ...]
    figures: Float
    groups: NDArray[np.str_]

    @property
    def large(self) -> NDArray[np.bool_]:
        """Which images are in groups that are large enough to judge."""
        names, codes, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        return (sizes >= INSUFFICIENT)[codes] if len(names) else np.zeros(0, bool)


def _grouped(scores: Scores, found: Sequence[Curve]) -> Iterator[Grouped]:
    """Of the headline's metric: each corruption, and first of all their mean over those of the mCE."""
    mine = [c for c in found if c.metric == headline(scores.record)]
    for attribute, label in itertools.product(scores.attributes, scores.labels):
        by_group = scores.groups_of(attribute)
        frames = {c.corruption: pd.DataFrame(c.table[label]).dropna() for c in mine if label in c.labels}
        pooled = [frame for name, frame in frames.items() if name in IN_MCE]
        if len(pooled) > 1:
            frames = {POOLED: (_total(pooled) / len(pooled)).dropna()} | frames
        for name, frame in frames.items():
            known = frame[(by_group.reindex(frame.index) != UNKNOWN).to_numpy()]
            key = {"backend": label, "corruption": name, "metric": mine[0].metric, "attribute": attribute}
            groups = by_group[known.index].to_numpy(str)
            yield Grouped(key, mine[0].severities, known.to_numpy(float), groups)


def _gaps(scores: Scores, found: Sequence[Curve]) -> Iterator[Row]:
    """The largest gap between groups at each severity, against that of shuffled labels."""
    for item in _grouped(scores, found):
        large = item.large
        values, groups = item.figures[large], item.groups[large]
        count = len(np.unique(groups))
        tests = gap_tests(values, groups) if count > 1 else []
        for place, severity in enumerate(item.severities):
            row = item.key | {"severity": severity, "groups": count, "n": len(values)}
            if count > 1:
                test = tests[place]
                row |= {"gap": test.observed, "null_mean": test.null_mean, "null_p95": test.null_p95}
                row |= {"p_value": any_difference(values[:, place], groups)}
            yield row


def _slopes(scores: Scores, found: Sequence[Curve]) -> Iterator[Row]:
    """How fast each group's score changes with severity (least squares), against the mean of the other groups."""
    for item in _grouped(scores, found):
        slopes, large = slope(item.figures, item.severities), item.large
        against = {c.group: c for c in contrasts(slopes[large], item.groups[large])}
        direction = scores.higher_is_better(item.key["metric"])
        for group in np.unique(item.groups):
            mine = slopes[item.groups == group]
            row = item.key | {"group": str(group), "n": len(mine)}
            if len(mine) >= INSUFFICIENT:
                row |= _named([_mean_of(mine)], "slope")
            if found_contrast := against.get(str(group)):
                c = found_contrast
                row |= {"difference": c.difference, "low": c.low, "high": c.high, "p_value": c.p_value}
                row |= {"direction": verdict(c.low, c.high, higher_is_better=direction)}
            yield row


def slope(values: Float, severities: Sequence[int]) -> Float:
    """The least-squares slope over the severities of each row of (images, severities) values."""
    centred = np.array(severities) - np.mean(severities)
    slopes: Float = values @ centred / (centred @ centred)
    return slopes


def _adjusted(rows: list[Row]) -> list[Row]:
    """p-values adjusted by Benjamini and Hochberg: of a backend's pooled rows, and of its single corruptions."""
    frame = pd.DataFrame(rows)
    if "p_value" not in frame:
        return [row | {"verdict": "insufficient"} for row in rows]
    family = [frame["backend"], frame["corruption"] == POOLED]
    adjusted = frame.groupby(family)["p_value"].transform(lambda p: benjamini_hochberg(p.to_numpy(float)))
    return [row | {"p_adjusted": p, "verdict": _verdict(row, p)} for row, p in zip(rows, adjusted, strict=True)]


def _verdict(row: Row, p: float) -> str:
    if "groups" in row:
        return judged(p, equivalent=False, groups=row["groups"])
    if math.isnan(p):
        return "insufficient"
    return row["direction"] if p < LEVEL and row["direction"] != "tie" else "not separated"


# Seeds


def _seeds(scores: Scores) -> Iterator[Row]:
    """What another draw of the corruption changes in the outputs, and what another seed of the backend does."""
    part = _part(scores)
    if part is None or part.seeds is None:
        return
    backends = [b for b in scores.record["backends"] if b["label"] != CONTROL and b["status"] == "ok"]
    for backend, name, (source, metric) in itertools.product(backends, part.seeds.names, SOURCES.items()):
        single = metric == SAMPLER and backend["deterministic"]
        values = _variances(scores, backend["label"], name, metric)
        who = {"backend": backend["label"], "corruption": name, "severity": part.seeds.severity, "source": source}
        counts = {"samples": 1 if single else part.seeds.samples, "n": len(values), "note": SINGLE if single else ""}
        yield who | counts | _named([_mean_of(values)], "value")


def _variances(scores: Scores, label: str, corruption: str, metric: str) -> Float:
    r = scores.rows
    mine = (r["metric"] == metric) & (r["backend"] == label) & (r["condition"] == corruption)
    return r.loc[mine, "value"].to_numpy(float)


def _mean_of(values: Float) -> tuple[float, float, float]:
    low, high = bootstrap_interval(values)
    return float(values.mean()) if len(values) else math.nan, low, high
