"""The tables of the README, from a run folder: `python -m benchmarks.readme RUN`.

A run at several sizes, such as the suite `speed`, gives the table of costs; one with corruptions, such as `readiness`,
that of robustness; one of generators, such as `generation`, that of their images; one of many backends, such as
`sr3-samplers`, a line for each; any other the comparison, and one with an audit, such as `fairness`, the flips of race.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.sampling import REAL

METRICS = {
    "psnr": ("PSNR dB", 1.0),
    "ssim": ("SSIM", 1.0),
    "lpips_alex": ("LPIPS", 1.0),
    "lr_mse": ("consistency × 10⁻⁵", 1e5),
    "kid_attributes": ("KID (attributes) × 10⁻³", 1e3),
    "kid_alexnet": ("KID (AlexNet)", 1.0),
    "precision": ("precision", 1.0),
    "recall": ("recall", 1.0),
    "density": ("density", 1.0),
    "coverage": ("coverage", 1.0),
    "vendi": ("Vendi", 1.0),
    "lpips": ("LPIPS within a class", 1.0),
    "accuracy": ("CAS", 1.0),
    "diversity": ("diversity", 1.0),
    "seconds": ("compute ms an image", 1e3),
    "ms": ("ms an image", 1.0),
    "alone": ("compute, alone", 1.0),
    "batch": ("compute, batch", 1.0),
}


def cell(row: dict[Any, Any], factor: float) -> str:
    """A mean with its 95 % interval, where it has one."""
    mean, low, high = (float(row[k]) * factor for k in ("mean", "low", "high"))
    if math.isnan(mean):
        return "–"
    if math.isinf(mean):
        return "identical"
    return f"{mean:.3g}" if math.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def table(frame: pd.DataFrame, first: list[str]) -> str:
    """A Markdown table with a column for each metric; `first` names the columns that tell the rows apart."""
    shown = {metric: METRICS[metric] for metric in METRICS if metric in set(frame["metric"])}
    lines = [f"| {' | '.join([*first, 'n', *(title for title, _ in shown.values())])} |"]
    lines.append("| " + " | ".join("---" for _ in range(len(first) + 1 + len(shown))) + " |")
    for key, rows in frame.groupby(first, sort=False):
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        cells = [cell(by_metric[m], factor) if m in by_metric else "–" for m, (_, factor) in shown.items()]
        names = key if isinstance(key, tuple) else (key,)
        lines.append(f"| {' | '.join([*map(str, names), str(rows['n'].max()), *cells])} |")
    return "\n".join(lines)


def comparison(tables: dict[str, pd.DataFrame]) -> str:
    """The means of each backend, set measures, diversity and compute ratios among them, and the paired differences."""
    means = pd.concat([tables["summary"], *sampled(tables), *ratios(tables)])
    differences = tables["differences"].rename(columns={"backend": "first", "baseline": "second"})
    sets = tables["set_pairs"].rename(columns={"difference": "mean"})
    both = pd.concat([differences[differences["first"] != "passthrough"], tables["pairs"], sets])
    heading = "Paired differences on the same images, first minus second:"
    return "\n\n".join([table(means, ["backend"]), heading, table(both, ["first", "second"])])


def flips(rows: pd.DataFrame) -> str:
    """Faces that the first instrument reads as of another race than their photo's, beyond its control arm, in %."""
    rows = rows[(rows["instrument"] == rows["instrument"].iloc[0]) & (rows["attribute"] == "race")]
    rows = rows[~rows["group"].str.contains(" x ")]
    backends = list(dict.fromkeys(rows["backend"]))
    lines = [f"| group | n | {' | '.join(backends)} |", "| " + " | ".join(["---"] * (len(backends) + 2)) + " |"]
    for group, each in rows.groupby("group"):
        of = each.set_index("backend")
        cells = [percents(of.loc[backend]) if backend in of.index else "–" for backend in backends]
        lines.append(f"| {group} | {each['excess_n'].max()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percents(row: "pd.Series[Any]") -> str:
    """A rate with its 95 % interval, in %."""
    value, low, high = (100 * row[name] for name in ("excess", "excess_low", "excess_high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


COLUMNS = ["backend", "metric", "mean", "low", "high"]


def sampled(tables: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """Set measures and diversity, as rows of the summary."""
    sets = tables["sets"].rename(columns={"value": "mean"})
    varied = tables["diversity"].query("backend != 'passthrough'").assign(metric="diversity")
    return [part[COLUMNS].assign(n=0) for part in (sets, varied) if len(part)]


def ratios(tables: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """Compute times as multiples of the reference's, of one image and in the largest requests, as rows of the summary.

    Disturbed times are left out.
    """
    names = {"ratio": "mean", "ratio_low": "low", "ratio_high": "high"}
    times = tables["speed"].drop(columns=[*names.values()], errors="ignore").rename(columns=names)
    times = times[times["ratio_valid"].astype(bool) & times["batch"].isin((1, times["batch"].max()))]
    times = times.assign(metric=np.where(times["batch"] == 1, "alone", "batch"))
    return [times[COLUMNS].assign(n=0)] if len(times) else []


def overview(tables: dict[str, pd.DataFrame]) -> str:
    """Quality, variety and time of each backend, without differences: for too many backends to pair them all.

    Times are of one image alone; those that other work disturbed are left out.
    """
    speed = tables["speed"].query("batch == 1 and valid")
    times = speed.assign(metric="ms", mean=1000 / speed["images_per_s"], low=math.nan, high=math.nan)
    return table(pd.concat([tables["summary"], *sampled(tables), times[COLUMNS].assign(n=0)]), ["backend"])


OF_CLASSES = ("kid_attributes", "kid_alexnet", "precision", "recall", "coverage", "accuracy")


def generated(tables: dict[str, pd.DataFrame]) -> str:
    """What generators make: all classes together, each class, and the differences between generators.

    KID is of each network; the other measures of sets are of the first. n counts the images of a side.
    """
    sets = tables["generated"].query("against in ('test', '') and status == 'ok'").rename(columns={"value": "mean"})
    sets = sets.assign(n=sets["n"].where(~sets["measure"].isin(("lpips", "seconds")), 0))
    frame = _by_metric(pd.concat([sets, *_accuracies(tables["classification"])]))
    whole = frame[frame["class"] == "all"]
    enough = frame.loc[(frame["class"] != "all") & (frame["n"] > 0), "class"]
    each = frame[frame["class"].isin(enough) & frame["metric"].isin(OF_CLASSES)].sort_values("class", kind="stable")
    pairs = tables["generators"].query("verdict != 'insufficient'").rename(columns={"difference": "mean"})
    heading = "Differences against the same real images, first minus second:"
    parts = [table(whole, ["backend"]), *([table(each, ["class", "backend"])] if len(each) else [])]
    parts += [heading, table(_by_metric(pairs), ["class", "first", "second"])] if len(pairs) else []
    return "\n\n".join(parts)


def _accuracies(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Classification accuracy as rows of measures; of real images, that for as many as the first generator has made."""
    rows = rows.query("verdict != 'insufficient'").assign(measure="accuracy", network="", n=0)
    real = rows.drop_duplicates("class").assign(backend=REAL, value=rows["real"])
    real = real.assign(low=rows["real_low"], high=rows["real_high"])
    columns = ["backend", "class", "network", "measure", "n", "value", "low", "high"]
    return [part[columns].rename(columns={"value": "mean"}) for part in (real, rows) if len(part)]


def _by_metric(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of measures as those of metrics: KID by its network, the rest by the first network only."""
    first = next((name for name in rows["network"] if name), "")
    rows = rows[(rows["measure"] == "kid") | rows["network"].isin((first, ""))]
    names = rows["measure"].where(rows["measure"] != "kid", "kid_" + rows["network"])
    return rows.assign(metric=names)[names.isin(METRICS)]


MANY = 8
"""From so many backends on, the pairs of them would fill pages."""
COSTS = (
    "backend",
    "output px",
    "batch",
    "requests",
    "ms an image",
    "peak MB",
    "J (estimate)",
    "steps",
    "compute ratio",
)


def costs(speed: pd.DataFrame) -> str:
    """Time, memory and energy of one image: alone, and in the fastest batch."""
    lines = [f"| {' | '.join(COSTS)} |", "| " + " | ".join(["---"] * len(COSTS)) + " |"]
    shown = speed[(speed["batch"] == 1) | speed["best"]].sort_values(["output_px", "backend", "batch"], kind="stable")
    for row in shown.to_dict("records"):
        milliseconds = 1000 / row["images_per_s"]
        cells = (
            *(row["backend"], row["output_px"], row["batch"], row["n"]),
            f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}",
            *(f"{row['peak_memory_mb']:.0f}", f"{row['energy_j']:.2g}", f"{row['steps']:.0f}"),
            ratio(row) if row["valid"] else "disturbed",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def ratio(row: dict[Any, Any]) -> str:
    """The compute time as a multiple of the reference's, with its interval where there is one."""
    if row["backend"] == row["reference"]:
        return "reference"
    interval = "" if math.isnan(row["ratio_low"]) else f" [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]"
    return f"{row['ratio']:.3g}{interval}"


SPLIT = {f"{kind}_lpips": kind for kind in ("hallucination", "omission", "improvement")}
FIGURES = {"lr_psnr": "LR-PSNR dB", **SPLIT}


def robustness(tables: dict[str, pd.DataFrame]) -> str:
    """What corruption does to each backend, and what it invents; then the paired differences of the latter.

    mCE and amplification are ratios to bicubic on the same corrupted inputs. A crossing is the first severity at which
    a backend's LPIPS is worse than bicubic's.
    """
    whole, split, crossings = tables["robustness"], tables["hallucination"], tables["crossings"]
    names = ["mCE (LPIPS)", "mCE (MSE)", "worse than bicubic (LPIPS)", "amplification", *FIGURES.values()]
    lines = [f"| backend | {' | '.join(names)} |", "| " + " | ".join(["---"] * (len(names) + 1)) + " |"]
    for label in dict.fromkeys(whole["backend"]):
        mine = whole[whole["backend"] == label].set_index(["measure", "metric"])
        shares = split[split["backend"] == label].set_index("measure")
        cells = [interval(mine.loc[("mce", metric)]) for metric in ("lpips_alex", "mse")]
        crossed = crossings[(crossings["backend"] == label) & (crossings["metric"] == "lpips_alex")]
        cells += [crossing(crossed), interval(mine.loc[("amplification", "mse")])]
        cells += [interval(shares.loc[name]) if name in shares.index else "–" for name in FIGURES]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n\n".join(["\n".join(lines), "Paired differences, first minus second:", paired(tables)])


def paired(tables: dict[str, pd.DataFrame]) -> str:
    """Differences of consistency and shares, on the same images."""
    both = pd.concat(
        [tables["differences"].rename(columns={"backend": "first", "baseline": "second"}), tables["pairs"]]
    )
    both = both[both["metric"].isin(FIGURES) & (both["first"] != "passthrough")]
    lines = [
        f"| first | second | {' | '.join(FIGURES.values())} |",
        "| " + " | ".join(["---"] * (len(FIGURES) + 2)) + " |",
    ]
    for (first, second), rows in both.groupby(["first", "second"], sort=False):
        by_metric = {row["metric"]: row for _, row in rows.rename(columns={"mean": "value"}).iterrows()}
        cells = [interval(by_metric[name]) if name in by_metric else "–" for name in FIGURES]
        lines.append(f"| {first} | {second} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(row: "pd.Series[Any]") -> str:
    """A value with its 95 % interval."""
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def crossing(rows: pd.DataFrame) -> str:
    """At which severities a backend is first worse than bicubic, under how many corruptions each."""
    if rows.empty:
        return "–"
    counts = rows["crossing"].dropna().astype(int).value_counts().sort_index()
    first = [f"from {severity}: {count}" for severity, count in counts.items()]
    return ", ".join([*first, f"never: {int(rows['crossing'].isna().sum())}"])


TABLES = {"generated", "robustness", "set_pairs", "speed", "summary", "excess_flips"}
"""Tables that every run has, by which the kind of a run is told; an audit's are empty in others."""


def main() -> int:
    """Print the tables; returns the exit status."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "tables/summary.parquet").exists():
        print("usage: python -m benchmarks.readme RUN (a folder that `harness run` wrote)", file=sys.stderr)
        return 2
    tables = {p.stem: pd.read_parquet(p) for p in (Path(sys.argv[1]) / "tables").glob("*.parquet")}
    if missing := TABLES - tables.keys():
        print(f"error: {sys.argv[1]} has no table {min(missing)}; `harness score` writes it", file=sys.stderr)
        return 2
    if len(tables["generated"]):
        print(generated(tables))
    elif (tables["robustness"]["measure"] == "mce").any():
        print(robustness(tables))
    elif len(set(tables["speed"]["output_px"])) > 1:
        print(costs(tables["speed"]))
    else:
        print((overview if tables["summary"]["backend"].nunique() >= MANY else comparison)(tables))
        if len(tables["excess_flips"]):
            print(f"\nFlips of race beyond the control arm, in %:\n\n{flips(tables['excess_flips'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
