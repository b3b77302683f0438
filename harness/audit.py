"""From rows to tables: means with intervals, paired differences, groups, gaps, noise, speed, worst cases.

Every function takes the frame of scores (`Scores`) and gives one tidy frame; `tables` gives all of them.
`backend` is the label of a run; NaN means not available.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import UNKNOWN
from harness.diversity import DIVERSITY
from harness.plan import CLEAN
from harness.score import BASELINE, CONTROL, group_attributes, identity, output_path, scale_of
from harness.set_measures import set_estimates
from harness.speed_tables import scenario_rows, speed_rows, untimed_rows
from harness.statistics import (
    INSUFFICIENT,
    LOW_PRECISION,
    bootstrap_interval,
    gap_test,
    verdict,
)
from harness.store import RunFolder, read_table

LEVEL = 0.05
"""Level of the tests for gaps, after adjustment for their number."""
WORST = 8
SAMPLES = 6

IDENTITY = ["backend", "digest", "options"]

COLUMNS = {
    "summary": "backend metric n failed identical mean low high sd",
    "differences": "backend baseline metric n mean low high verdict",
    "pairs": "first second metric n mean low high verdict",
    "groups": "backend metric attribute group n mean low high gain gain_low gain_high status",
    "gaps": "backend metric attribute best worst gap ratio null_mean null_p95 p_value p_adjusted groups verdict",
    "noise": "backend metric severity sigma n mean low high difference difference_low difference_high "
    "added added_low added_high",
    "speed": "backend output_px batch n end_to_end_p50 end_to_end_p90 end_to_end_p95 end_to_end_p99 end_to_end_mean "
    "compute_p50 compute_mean transport_p50 images_per_s cold_start_s warm_up_s peak_memory_mb memory_note "
    "peak_device_memory_mb energy_j energy_method steps ratio_compute_bicubic reference ratio ratio_low ratio_high "
    "reference_s ratio_valid best valid note",
    "scenarios": "backend output_px scenario batch n rate latency_p50 latency_p90 bound_s holds images_per_s "
    "valid note",
    "untimed": "backend output_px stage status reason",
    "worst": "backend metric rank image value input output target",
    "samples": "image backend input output target",
    "failures": "backend condition kind message n",
    "diversity": "backend samples n mean low high note",
    "sets": "backend metric n value low high note",
}
"""Columns of each table, there even when it has no rows; those with pictures have the group attributes as well."""

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The rows of a run that belong to its record, with the table of images."""

    folder: RunFolder
    record: dict[str, Any]
    rows: pd.DataFrame
    images: pd.DataFrame

    @classmethod
    def of(cls, folder: RunFolder) -> "Scores":
        """Read a run folder; rows of backends, digests or options that the record no longer names are left out."""
        record = folder.read_record() or {"backends": [], "metrics": {}}
        rows = folder.rows()
        current = pd.DataFrame([identity(b, "") for b in record["backends"]], columns=IDENTITY, dtype="str")
        keep = pd.MultiIndex.from_frame(rows[IDENTITY]).isin(pd.MultiIndex.from_frame(current))
        return cls(folder, record, rows[keep], read_table(folder.path / "images.parquet"))

    @property
    def labels(self) -> list[str]:
        """Backends in the order of the record."""
        return [b["label"] for b in self.record["backends"]]

    @property
    def attributes(self) -> list[str]:
        """Group attributes, with race x gender where both are there."""
        names = group_attributes(self.images)
        return [*names, *(["race x gender"] if {"race", "gender"} <= set(names) else [])]

    def higher_is_better(self, metric: str) -> bool | None:
        """The metric's direction; None where more is neither better nor worse."""
        direction: bool | None = self.record["metrics"][metric]["higher_is_better"]
        return direction

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows that hold a score of an image."""
        return self.rows[self.rows["metric"].isin(self.record["metrics"]) & self.rows["value"].notna()]

    def values(self, metric: str, condition: str = CLEAN.name, severity: int = 0) -> pd.DataFrame:
        """Image x backend table of one metric under one condition."""
        s = self.scores
        chosen = s[(s["metric"] == metric) & (s["condition"] == condition) & (s["severity"] == severity)]
        table = chosen.pivot_table(index="image", columns="backend", values="value", aggfunc="first", dropna=False)
        return table.reindex(columns=[b for b in self.labels if b in table])

    def groups_of(self, attribute: str) -> pd.Series:
        """The group of each image; a crossed group with an unknown part is unknown."""
        frame = self.images.set_index("image")
        if attribute != "race x gender":
            return frame[attribute]
        known = (frame[["race", "gender"]] != UNKNOWN).all(axis=1)
        return (frame["race"] + " x " + frame["gender"]).where(known, UNKNOWN)


def headline(record: dict[str, Any]) -> str:
    """The metric that a run is judged by first: LPIPS; without ground truth, consistency with the input."""
    return "lr_psnr" if (record["suite"].get("content") or {}).get("photos") else "lpips_alex"


def tables(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """All tables of a run, by name."""
    scores = Scores.of(folder)
    makers = {
        "summary": summary,
        "differences": differences,
        "pairs": pairs,
        "groups": groups,
        "gaps": gaps,
        "noise": noise,
        "speed": speed,
        "scenarios": scenarios,
        "untimed": untimed,
        "worst": worst,
        "samples": samples,
        "failures": failures,
        "diversity": diversity,
        "sets": sets,
    }
    return {name: make(scores) for name, make in makers.items()}


def write_tables(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """Derive all tables and write them to `tables/`."""
    made = tables(folder)
    for name, frame in made.items():
        folder.write_table(f"tables/{name}", frame)
    return made


def _frame(name: str, rows: list[dict[str, Any]], attributes: Sequence[str] = ()) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS[name].split(), *attributes])


def _mean(values: Float) -> dict[str, float]:
    """Mean and interval of the finite values; infinite if all are (identical images)."""
    finite = values[np.isfinite(values)]
    if len(values) and not len(finite):
        return {"mean": float(values[0]), "low": float(values[0]), "high": float(values[0])}
    low, high = bootstrap_interval(finite)
    return {"mean": float(finite.mean()) if len(finite) else np.nan, "low": low, "high": high}


def _paired(first: pd.Series, second: pd.Series) -> Float:
    difference = (first - second).to_numpy(float)
    finite: Float = difference[np.isfinite(difference)]
    return finite


def summary(scores: Scores) -> pd.DataFrame:
    """One row per backend and metric on clean input."""
    rows = []
    first = scores.rows[(scores.rows["condition"] == CLEAN.name) & (scores.rows["sample"] == 0)]
    failed = first[first["metric"] == "output"]
    counts = failed.groupby("backend")["image"].nunique()
    for metric in scores.record["metrics"]:
        table = scores.values(metric)
        for label in scores.labels:
            values = table[label].dropna().to_numpy(float) if label in table else np.empty(0)
            finite = values[np.isfinite(values)]
            rows.append(
                {"backend": label, "metric": metric, "n": len(values), "failed": int(counts.get(label, 0))}
                | {"identical": int(np.isinf(values).sum())}
                | _mean(values)
                | {"sd": float(finite.std(ddof=1)) if len(finite) > 1 else np.nan}
            )
    return _frame("summary", rows)


def _difference(scores: Scores, table: pd.DataFrame, first: str, second: str, metric: str) -> dict[str, Any]:
    values = _paired(table[first], table[second])
    stats = _mean(values) if len(values) else {"mean": np.nan, "low": np.nan, "high": np.nan}
    word = verdict(stats["low"], stats["high"], higher_is_better=scores.higher_is_better(metric))
    return {"metric": metric, "n": len(values)} | stats | {"verdict": word}


def differences(scores: Scores) -> pd.DataFrame:
    """Paired differences to bicubic on the same clean images, backend minus bicubic."""
    rows = []
    for metric in scores.record["metrics"]:
        table = scores.values(metric)
        for label in table.columns:
            if label != BASELINE and BASELINE in table:
                who = {"backend": label, "baseline": BASELINE}
                rows.append(who | _difference(scores, table, label, BASELINE, metric))
    return _frame("differences", rows)


def pairs(scores: Scores) -> pd.DataFrame:
    """Paired differences between all compared backends, first minus second; control arms left out."""
    rows = []
    for metric in scores.record["metrics"]:
        table = scores.values(metric)
        compared = [b for b in table.columns if b not in (CONTROL, BASELINE)]
        for first, second in itertools.combinations(compared, 2):
            who = {"first": first, "second": second}
            rows.append(who | _difference(scores, table, first, second, metric))
    return _frame("pairs", rows)


def groups(scores: Scores) -> pd.DataFrame:
    """Every clean score by group, and its gain over bicubic on the same images (positive: better, or more)."""
    rows = []
    for metric, attribute in itertools.product(scores.record["metrics"], scores.attributes):
        table = scores.values(metric)
        gain = _gain(scores, table, metric)
        by_group = scores.groups_of(attribute).reindex(table.index)
        for label in table.columns:
            for group in sorted(by_group.unique()):
                inside = (by_group == group) & table[label].notna()
                rows.append(
                    {"backend": label, "metric": metric, "attribute": attribute, "group": group}
                    | _group(table.loc[inside, label].to_numpy(float), gain.loc[inside, label].to_numpy(float))
                )
    return _frame("groups", rows)


def _gain(scores: Scores, table: pd.DataFrame, metric: str) -> pd.DataFrame:
    if BASELINE not in table:
        return table * np.nan
    sign = -1 if scores.higher_is_better(metric) is False else 1
    return table.sub(table[BASELINE], axis=0) * sign


def _group(values: Float, gain: Float) -> dict[str, Any]:
    n = len(values)
    if n < INSUFFICIENT:
        nothing = dict.fromkeys(("mean", "low", "high", "gain", "gain_low", "gain_high"), np.nan)
        return {"n": n, **nothing, "status": "insufficient"}
    finite = gain[np.isfinite(gain)]
    low, high = bootstrap_interval(finite)
    gains = {"gain": float(finite.mean()) if len(finite) else np.nan, "gain_low": low, "gain_high": high}
    return {"n": n} | _mean(values) | gains | {"status": "ok" if n >= LOW_PRECISION else "low precision"}


def gaps(scores: Scores) -> pd.DataFrame:
    """The best and the worst (or highest and lowest) group of each attribute, and whether chance parts them as far."""
    rows = []
    for metric, attribute in itertools.product(scores.record["metrics"], scores.attributes):
        table = scores.values(metric)
        by_group = scores.groups_of(attribute).reindex(table.index)
        for label in table.columns:
            values = table[label]
            judged = by_group[values.notna() & np.isfinite(values)]
            sizes = judged.value_counts()
            judged = judged[judged.isin(sizes.index[sizes >= INSUFFICIENT]) & (judged != UNKNOWN)]
            who = {"backend": label, "metric": metric, "attribute": attribute}
            rows.append(who | _gap(values[judged.index].to_numpy(float), judged, scores.higher_is_better(metric)))
    return _adjusted(_frame("gaps", rows))


def _adjusted(gaps: pd.DataFrame) -> pd.DataFrame:
    """Benjamini-Hochberg over all gaps of the table that were tested: the verdict uses the adjusted p."""
    from statsmodels.stats.multitest import multipletests

    tested = gaps["p_value"].notna()
    gaps = gaps.astype({"p_adjusted": float, "verdict": object})
    if tested.any():
        gaps.loc[tested, "p_adjusted"] = multipletests(gaps.loc[tested, "p_value"].astype(float), method="fdr_bh")[1]
        found = gaps.loc[tested, "p_adjusted"].astype(float) < LEVEL
        gaps.loc[tested, "verdict"] = np.where(found, "gap", "not separated from chance")
    return gaps


def _gap(values: Float, groups: pd.Series, higher_is_better: bool | None) -> dict[str, Any]:  # noqa: FBT001
    count = groups.nunique()
    if count < 2:
        nothing = dict.fromkeys(("gap", "ratio", "null_mean", "null_p95", "p_value"), np.nan)
        return {"best": "", "worst": "", **nothing, "groups": count, "verdict": "insufficient"}
    frame = _metric_frame(values, groups)
    order = frame.by_group.sort_values(ascending=higher_is_better is False)
    test = gap_test(values, list(groups))
    return {
        "best": str(order.index[0]),
        "worst": str(order.index[-1]),
        "gap": float(frame.difference()),
        "ratio": float(frame.ratio()),
        "null_mean": test.null_mean,
        "null_p95": test.null_p95,
        "p_value": test.p_value,
        "groups": count,
    }


def _metric_frame(values: Float, groups: pd.Series) -> Any:  # noqa: ANN401 - untyped library
    from fairlearn.metrics import MetricFrame

    def mean(_: Float, scores: Float) -> float:
        return float(np.mean(scores))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fairlearn's own deprecations
        return MetricFrame(metrics=mean, y_true=values, y_pred=values, sensitive_features=groups.to_numpy())


def noise(scores: Scores) -> pd.DataFrame:
    """Scores under noise on the input: against bicubic on the same input, and against the backend's own clean score."""
    content = scores.record["suite"]["content"].get("noise")
    rows: list[dict[str, Any]] = []
    for metric in content["metrics"] if content else []:
        levels = {s: scores.values(metric, "gaussian_noise", s) for s in range(1, len(content["sigmas"]) + 1)}
        used = next(iter(levels.values())).index
        clean = scores.values(metric).reindex(used)
        for severity, table in {0: clean, **levels}.items():
            sigma = 0.0 if severity == 0 else content["sigmas"][severity - 1]
            for label in (b for b in table.columns if b != CONTROL):
                who = {"backend": label, "metric": metric, "severity": severity, "sigma": sigma}
                rows.append(who | _noise_cell(table, clean, label))
    return _frame("noise", rows)


def _noise_cell(table: pd.DataFrame, clean: pd.DataFrame, label: str) -> dict[str, Any]:
    values = table[label].dropna().to_numpy(float)
    against = _paired(table[label], table[BASELINE]) if BASELINE in table else np.empty(0)
    low, high = bootstrap_interval(against)
    added = _paired(table[label], clean[label]) if label in clean else np.empty(0)
    return (
        {"n": len(values)}
        | _mean(values)
        | {"difference": float(against.mean()) if len(against) else np.nan}
        | {"difference_low": low, "difference_high": high}
        | {f"added{part}": figure for part, figure in zip(("", "_low", "_high"), _interval(added), strict=True)}
    )


def _interval(values: Float) -> tuple[float, float, float]:
    low, high = bootstrap_interval(values)
    return float(values.mean()) if len(values) else np.nan, low, high


def speed(scores: Scores) -> pd.DataFrame:
    """The timed passes: one row per backend, size and request size."""
    return _frame("speed", speed_rows(scores.rows, scores.record))


def scenarios(scores: Scores) -> pd.DataFrame:
    """Single stream, server (a row a rate) and offline: one row per backend, size and pass."""
    return _frame("scenarios", list(scenario_rows(scores.rows, scores.record)))


def untimed(scores: Scores) -> pd.DataFrame:
    """The timed passes that were left out, with the reasons."""
    return _frame("untimed", untimed_rows(scores.rows))


def _pictures(scores: Scores, label: str, image: str) -> dict[str, str]:
    folder = scores.folder
    backend = next(b for b in scores.record["backends"] if b["label"] == label)
    seed = int(scores.images.loc[scores.images["image"] == image, "seed"].iloc[0])
    output = output_path(folder, backend, CLEAN, image, seed, scale_of(scores.record))
    paths = {"input": folder.input(CLEAN.folder, image), "output": output, "target": folder.target(image)}
    return {k: str(p.relative_to(folder.path)) if p is not None and p.exists() else "" for k, p in paths.items()}


def _with_groups(scores: Scores, image: str) -> dict[str, str]:
    row = scores.images.loc[scores.images["image"] == image].iloc[0]
    return {a: str(row[a]) for a in group_attributes(scores.images)}


def worst(scores: Scores) -> pd.DataFrame:
    """Each backend's worst clean images by the metric of `headline`."""
    rows: list[dict[str, Any]] = []
    metric = headline(scores.record)
    if metric in scores.record["metrics"]:
        table = scores.values(metric)
        up = bool(scores.higher_is_better(metric))
        for label in (b for b in table.columns if b != CONTROL):
            last = table[label].dropna().sort_values(ascending=up, kind="stable").head(WORST)
            for rank, (image, value) in enumerate(last.items(), 1):
                who = {"backend": label, "metric": metric, "rank": rank, "image": image, "value": value}
                rows.append(who | _with_groups(scores, str(image)) | _pictures(scores, label, str(image)))
    return _frame("worst", rows, group_attributes(scores.images))


def samples(scores: Scores) -> pd.DataFrame:
    """A few images chosen by their seed alone, for pictures side by side."""
    usable = scores.images[scores.images["error"] == ""].sort_values("seed")
    shown = [b["label"] for b in scores.record["backends"] if b["status"] == "ok"]
    rows = [
        {"image": image, "backend": label} | _with_groups(scores, image) | _pictures(scores, label, image)
        for image in usable["image"].head(SAMPLES)
        for label in shown
    ]
    return _frame("samples", rows, group_attributes(scores.images))


def failures(scores: Scores) -> pd.DataFrame:
    """What failed, by backend, condition and kind, with one of the messages; unusable images under backend ""."""
    failed = scores.rows[scores.rows["metric"].isin(("output", "timed")) & (scores.rows["error"] != "")]
    counts: dict[tuple[str, str, str], list[str]] = {}
    for row in failed.to_dict("records"):
        kind, _, message = str(row["error"]).partition(": ")
        counts.setdefault((row["backend"], row["condition"], kind), []).append(message)
    for message in scores.images.loc[scores.images["error"] != "", "error"]:
        counts.setdefault(("", "dataset", "ImageError"), []).append(message)
    rows = [dict(zip(COLUMNS["failures"].split(), (*key, m[0], len(m)), strict=True)) for key, m in counts.items()]
    return _frame("failures", rows)


def diversity(scores: Scores) -> pd.DataFrame:
    """How far the outputs of one input differ with the seed: the mean over images of stochastic backends."""
    samples = (scores.record["suite"]["content"].get("diversity") or {}).get("samples")
    rows: list[dict[str, Any]] = []
    measured = scores.rows[(scores.rows["metric"] == DIVERSITY["name"]) & scores.rows["value"].notna()]
    for backend in scores.record["backends"] if samples else []:
        if backend["label"] == CONTROL or backend["status"] != "ok":
            continue
        values = measured.loc[measured["backend"] == backend["label"], "value"].to_numpy(float)
        single = backend["deterministic"]
        who = {"backend": backend["label"], "samples": 1 if single else samples, "n": len(values)}
        rows.append(who | _mean(values) | {"note": "deterministic: one output" if single else ""})
    return _frame("diversity", rows)


def sets(scores: Scores) -> pd.DataFrame:
    """Measures of all outputs together, against all targets, from the stored features."""
    return _frame("sets", set_estimates(scores.folder, scores.record))
