"""The section on chains of backends: what each stage costs, and what becomes of an image from stage to stage."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from reports.load import Run
from reports.numbers import NOTHING, Format, count, duration, fit
from reports.parts import Cell, Column, Section, Table, by_backend, not_measured, number_cell, short_label

SHARE = Format(0)


def section(run: Run) -> Section:
    """The whole section."""
    frame = by_backend(run, run.table("stages"))
    if frame.empty:
        return Section("stages", "Chains", gaps=not_measured(run, "stages"))
    return Section("stages", "Chains", [*_lead(frame)], [_costs(run, frame)])


def _lead(frame: pd.DataFrame) -> Iterator[str]:
    for label, mine in frame.groupby("backend", sort=False):
        stages = "; ".join(_stage(row) for _, row in mine.iterrows())
        slowest = mine.nlargest(1, "share")
        most = [f" {n} takes {_share(s)} of the time." for n, s in zip(slowest["name"], slowest["share"], strict=True)]
        yield f"{label} is a chain: {stages}.{''.join(most)}"
    yield (
        "Each stage enlarges the 8-bit output of the one before it, with a seed of its own that follows from the "
        "image's. Times are compute times an image in the requests of the run itself, as the backends report them; the "
        "passes that are timed alone have the chain as a whole."
    )
    before_last = frame["stage"] < frame.groupby("backend")["stage"].transform("max")
    if frame.loc[before_last, ["psnr", "lpips"]].notna().any(axis=None):
        yield (
            "The output of a stage before the last is scored against the ground truth made as small as it is; figures "
            "of different sizes are different tasks and do not compare."
        )


def _stage(row: "pd.Series[Any]") -> str:
    """A stage's name, and how much it enlarges; one that generates does not."""
    return f"{row['name']} (× {count(row['scale'])})" if row["scale"] > 1 else str(row["name"])


def _costs(run: Run, frame: pd.DataFrame) -> Table:
    how = {m: fit(frame[m], frame[f"{m}_high"] - frame[f"{m}_low"]) for m in ("psnr", "lpips")}
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(f"{count(row['stage'])} {row['name']}", str(row["model"]) if row["model"] != row["name"] else ""),
            number_cell(_known(row["output_px"])),
            number_cell(_known(row["steps"])),
            number_cell(count(row["n"])),
            number_cell(NOTHING if math.isnan(row["compute_p50"]) else duration(row["compute_p50"])),
            number_cell(_share(row["share"])),
            *(_quality(row, m, how[m]) for m in how),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Backend"),
        Column("Stage", wide=True),
        Column("Output", "pixels a side"),
        Column("Steps"),
        Column("n", "outputs"),
        Column("Compute", "p50, an image"),
        Column("Share", "of the time"),
        Column("PSNR (dB)", "at this size"),
        Column(f"LPIPS {how['lpips'].power}".strip(), "at this size"),
    ]
    return Table("Chains, stage by stage", columns, rows, "stages")


def _known(value: float) -> str:
    return NOTHING if math.isnan(value) else count(value)


def _share(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{SHARE.number(100 * value)} %"


def _quality(row: "pd.Series[Any]", metric: str, how: Format) -> Cell:
    if math.isnan(row[metric]):
        return number_cell("not measured", kind="muted")
    return number_cell(how.interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"]))
