"""From rows to tables: means with intervals, paired differences, groups, gaps, noise, speed, worst cases.

Every function takes the frame of scores (`Scores`) and gives one tidy frame; `tables` gives all of them.
`backend` is the label of a run; NaN means not available.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import attack_effects, attacker, explanations, generation_tables, robustness
from harness.datasets import UNKNOWN
from harness.diversity import DIVERSITY, best_of
from harness.fairness import groups as fairness
from harness.fairness import tables as readings
from harness.fairness.preservation import preservation_rows
from harness.hallucination import hallucination_rows
from harness.hallucination_maps import example_rows
from harness.plan import CLEAN
from harness.score import BASELINE, CONTROL, group_attributes, output_path, scale_of
from harness.scores import Float, Scores, headline, mean_interval
from harness.set_measures import set_differences, set_estimates
from harness.speed_tables import scenario_rows, speed_rows, untimed_rows
from harness.stages import stage_table
from harness.statistics import bootstrap_interval, verdict
from harness.store import RunFolder
from harness.uncertainty import uncertainty_rows

WORST = 8
SAMPLES = 6
MOST_GROUPS = 14

COLUMNS = {
    "summary": "backend metric n failed identical mean low high sd",
    "differences": "backend baseline metric n mean low high verdict",
    "pairs": "first second metric n mean low high verdict",
    "groups": "backend metric attribute group n mean low high gain gain_low gain_high status",
    "gaps": "backend metric of attribute best worst gap ratio null_mean null_p95 excess p_value p_adjusted family "
    "margin equivalent smallest_effect groups verdict",
    "contrasts": "backend metric of attribute group n difference low high p_value p_adjusted verdict",
    "subgroups": "backend metric of subgroup n difference p_value searched",
    "flips": "backend instrument attribute before after n count rate low high",
    "excess_flips": "backend instrument attribute group n rate low high excess_n excess excess_low excess_high",
    "parity": "backend instrument attribute measure n value corrected p_value test note",
    "posterior": "backend attribute group n samples share truth p_value",
    "reliability": "backend attribute group share n observed low high expected expected_low expected_high",
    "perceptual": "backend attribute group n gpi low high precision precision_low precision_high "
    "recall recall_low recall_high",
    "verification": "backend attribute group n fnmr low high fnmr_own threshold fmr impostor_pairs note",
    "indices": "backend index value p_value note",
    "seeds": "backend metric group n samples mean low high seed_sd",
    "probes": "backend metric level n effect low high p_value status",
    "instruments": "instrument attribute group n accuracy low high missing",
    "disagreement": "first second attribute group n rate low high",
    "unread": "backend metric attribute group n reason",
    "noise": "backend metric severity sigma n mean low high difference difference_low difference_high "
    "added added_low added_high",
    "corruptions": "backend corruption metric severity n mean low high difference difference_low difference_high "
    "added added_low added_high verdict",
    "degradation": "backend corruption metric n area area_low area_high difference difference_low difference_high "
    "verdict",
    "crossings": "backend corruption metric verdict crossing better tested",
    "corruption_errors": "backend corruption metric n error error_low error_high "
    "relative relative_low relative_high note",
    "robustness": "backend measure metric n value low high name corruptions note",
    "amplification": "backend corruption severity n value low high change change_bicubic note",
    "corruption_gaps": "backend corruption metric attribute severity n groups gap null_mean null_p95 "
    "p_value p_adjusted verdict",
    "group_slopes": "backend corruption metric attribute group n slope slope_low slope_high difference low high "
    "p_value p_adjusted verdict",
    "corruption_seeds": "backend corruption severity source n value low high samples note",
    "speed": "backend output_px batch n end_to_end_p50 end_to_end_p90 end_to_end_p95 end_to_end_p99 end_to_end_mean "
    "compute_p50 compute_mean transport_p50 images_per_s cold_start_s warm_up_s peak_memory_mb memory_note "
    "peak_device_memory_mb energy_j energy_method steps ratio_compute_bicubic reference ratio ratio_low ratio_high "
    "reference_s ratio_valid best valid note",
    "scenarios": "backend output_px scenario batch n rate latency_p50 latency_p90 bound_s holds images_per_s "
    "valid note",
    "untimed": "backend output_px stage status reason",
    "worst": "backend metric rank image value input output target",
    "samples": "image backend input output target",
    "explanations": "backend map n deletion deletion_low deletion_high random_deletion edge_deletion insertion "
    "insertion_low insertion_high random_insertion edge_insertion over_random over_random_low over_random_high "
    "p_random over_edge over_edge_low over_edge_high p_edge verdict",
    "diffusion_index": "backend attribute group n mean low high status",
    "maps": "image backend map output picture",
    "attacks": "backend attack epsilon n change change_low change_high amplification amplification_low "
    "amplification_high versus_bicubic versus_bicubic_low versus_bicubic_high versus_signs versus_signs_low "
    "versus_signs_high psnr psnr_low psnr_high lpips lpips_low lpips_high seeds verdict",
    "stages": "backend stage name model scale output_px steps n compute_p50 compute_mean share "
    "psnr psnr_low psnr_high lpips lpips_low lpips_high",
    "failures": "backend condition kind message n",
    "diversity": "backend samples n mean low high note",
    "best_of": "backend k n value low high",
    "sets": "backend metric n value low high note",
    "set_pairs": "first second metric n difference low high verdict",
    "generated": "backend class network against measure n value low high status",
    "modes": "backend class sign n verdict duplicates duplicates_low duplicates_high duplicates_real vendi vendi_real "
    "recall recall_low recall_high recall_real coverage coverage_low coverage_high coverage_real "
    "share share_low share_high share_real evidence",
    "classification": "backend class n trained value low high real real_low real_high "
    "difference difference_low difference_high verdict",
    "drawn": "backend class place output",
    "generators": "first second class network measure n difference low high verdict",
    "hallucination": "backend measure n value low high note",
    "hallucinated": "backend place metric image value input output target hallucination uncertainty",
    "preservation": "backend measure instrument unit n value low high control loss loss_low loss_high",
    "uncertainty": "backend band attribute group n calibration factor coverage expected expected_low expected_high "
    "verdict width width_low width_high correlation correlation_low correlation_high note",
}
"""Columns of each table, there even when it has no rows; those with pictures have the group attributes as well."""
FAIRNESS = (
    *("groups", "gaps", "contrasts", "subgroups", "flips", "excess_flips", "parity", "posterior", "reliability"),
    *("perceptual", "verification", "indices", "seeds", "probes", "instruments", "disagreement", "unread"),
)
"""The tables of the fairness audit."""
GENERATION = ("generated", "modes", "classification", "drawn", "generators")
"""The tables of a generation suite, which has no others but stages and failures."""


def tables(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """All tables of a run, by name."""
    scores = Scores.of(folder)
    if scores.record["suite"]["content"].get("generation"):
        found = generation_tables.tables(scores) | {"stages": list(stage_table(scores))}
        return {name: _frame(name, found.get(name, [])) for name in COLUMNS} | {"failures": failures(scores)}
    makers = {
        "summary": summary,
        "differences": differences,
        "pairs": pairs,
        "groups": groups,
        "gaps": gaps,
        "contrasts": contrasts,
        "subgroups": subgroups,
        "noise": noise,
        "speed": speed,
        "scenarios": scenarios,
        "untimed": untimed,
        "worst": worst,
        "samples": samples,
        "failures": failures,
        "diversity": diversity,
        "sets": sets,
        "set_pairs": set_pairs,
    }
    rows = {
        **robustness.tables(scores),
        **attack_effects.tables(scores),
        **readings.tables(scores),
        **explanations.tables(scores),
        "hallucination": list(hallucination_rows(scores)),
        "hallucinated": list(example_rows(scores)),
        "preservation": list(preservation_rows(scores)),
        "uncertainty": list(uncertainty_rows(scores)),
        "stages": list(stage_table(scores)),
        "best_of": list(best_of(scores.rows, scores.labels)),
        **{name: [] for name in GENERATION},
    }
    made = {name: make(scores) for name, make in makers.items()}
    return made | {name: _frame(name, found) for name, found in rows.items()}


def write_tables(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """Derive all tables and write them to `tables/`."""
    made = tables(folder)
    for name, frame in made.items():
        folder.write_table(f"tables/{name}", frame)
    return made


def _frame(name: str, rows: list[dict[str, Any]] | pd.DataFrame, attributes: Sequence[str] = ()) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS[name].split(), *attributes])


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
                | mean_interval(values)
                | {"sd": float(finite.std(ddof=1)) if len(finite) > 1 else np.nan}
            )
    return _frame("summary", rows)


def _difference(scores: Scores, table: pd.DataFrame, first: str, second: str, metric: str) -> dict[str, Any]:
    values = _paired(table[first], table[second])
    stats = mean_interval(values) if len(values) else {"mean": np.nan, "low": np.nan, "high": np.nan}
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
    for metric in scores.measures:
        table = scores.values(metric)
        compared = [b for b in table.columns if b not in (CONTROL, BASELINE)]
        for first, second in itertools.combinations(compared, 2):
            who = {"first": first, "second": second}
            rows.append(who | _difference(scores, table, first, second, metric))
    return _frame("pairs", rows)


def groups(scores: Scores) -> pd.DataFrame:
    """Every clean measure by group, and its gain over bicubic on the same images (positive: better, or more)."""
    return _frame("groups", fairness.groups(scores))


def gaps(scores: Scores) -> pd.DataFrame:
    """The best and the worst (or highest and lowest) group of each attribute, and what can be said of their gap."""
    return _frame("gaps", fairness.gaps(scores))


def contrasts(scores: Scores) -> pd.DataFrame:
    """Each group against the mean of the others, for the claimed measures."""
    return _frame("contrasts", fairness.contrasts(scores))


def subgroups(scores: Scores) -> pd.DataFrame:
    """The worst subgroup in each claimed measure."""
    return _frame("subgroups", fairness.subgroups(scores))


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
        | mean_interval(values)
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
    """Images for pictures side by side, chosen by seed alone: one of each group where groups are known."""
    shown = [b["label"] for b in scores.record["backends"] if b["status"] == "ok"]
    rows = [
        {"image": image, "backend": label} | _with_groups(scores, image) | _pictures(scores, label, image)
        for image in _chosen(scores)
        for label in shown
    ]
    return _frame("samples", rows, group_attributes(scores.images))


def _chosen(scores: Scores) -> list[str]:
    """The image with the smallest seed of each group of the last attribute, which is race x gender where it can be.

    Where fewer than two groups or more than `MOST_GROUPS` are known, the `SAMPLES` images with the smallest seeds.
    """
    usable = scores.images[scores.images["error"] == ""].sort_values("seed")
    groups = scores.groups_of(scores.attributes[-1]).reindex(usable["image"]) if scores.attributes else pd.Series()
    first = groups[groups != UNKNOWN].drop_duplicates().sort_values()
    return [*map(str, first.index if 2 <= len(first) <= MOST_GROUPS else usable["image"].head(SAMPLES))]


FAILING = ("output", "timed", attacker.ATTACK, explanations.METRIC)
"""What rows of failures are about."""


def failures(scores: Scores) -> pd.DataFrame:
    """What failed, by backend, condition and kind, with one of the messages; unusable images under backend ""."""
    failed = scores.rows[scores.rows["metric"].isin(FAILING) & (scores.rows["error"] != "")]
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
        rows.append(who | mean_interval(values) | {"note": "deterministic: one output" if single else ""})
    return _frame("diversity", rows)


def sets(scores: Scores) -> pd.DataFrame:
    """Measures of all outputs together, against all targets, from the stored features."""
    return _frame("sets", set_estimates(scores.folder, scores.record))


def set_pairs(scores: Scores) -> pd.DataFrame:
    """KID of each two backends on the same images, first minus second, from the stored features."""
    return _frame("set_pairs", set_differences(scores.folder, scores.record))
