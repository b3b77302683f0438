"""The section on what outputs invent: consistency, hallucination, what instruments still see, and uncertainty."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.hallucination import GOAL, KINDS
from reports.load import Run
from reports.numbers import Format, count, fit, names, significant
from reports.parts import Cell, Column, Section, Table, by_backend, label_cell, not_measured, number_cell, short_label

TABLES = ("hallucination", "preservation", "uncertainty", "hallucinated")
PERCENT = Format(1)
VERDICTS = {
    "holds": "as many as calibration promises",
    "too low": "fewer than calibration promises",
    "too high": "more than calibration promises",
}
LIMITS = (
    "Limits: shares say where an output is nearer to the truth, to the enlarged input or to neither; they do not say "
    "whether a person would mind. Consistency cannot see what lies between the pixels of the input: a wrong face can "
    "be consistent. A band is promised for photos like those that calibrated it, over all and for no single group."
)


def section(run: Run) -> Section:
    """The whole section; sentences first."""
    tables = [table for table in (_split(run), _preserved(run), *_bands(run)) if table.rows]
    return Section("hallucination", "Hallucination", [*_lead(run)], tables, not_measured(run, *TABLES))


def _lead(run: Run) -> Iterator[str]:
    if any(table not in run.missing for table in TABLES):
        yield from (text for label in run.compared for text in _sentences(run, label))
        yield LIMITS


def _sentences(run: Run, label: str) -> Iterator[str]:
    parts = [*_consistency(run, label), *_invented(run, label), *_kept(run, label), *_held(run, label)]
    if parts:
        yield f"{label}: {'; '.join(parts)}."


def _of(run: Run, table: str, label: str) -> pd.DataFrame:
    frame = run.table(table)
    return frame[frame["backend"] == label]


def _percent(row: "pd.Series[Any] | dict[str, Any]", value: str, low: str, high: str) -> str:
    return f"{PERCENT.interval(100 * row[value], 100 * row[low], 100 * row[high])} %"


def _share(row: "pd.Series[Any]") -> str:
    return _percent(row, "value", "low", "high")


def _consistency(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "hallucination", label).set_index("measure")
    if "below_goal" in rows.index and rows.loc["below_goal", "n"]:
        missed, mean = rows.loc["below_goal"], rows.loc["lr_psnr"]
        how = fit([mean["value"]], [mean["high"] - mean["low"]])
        yield (
            f"made small again its outputs are their inputs to {how.number(mean['value'])} dB on average, and "
            f"{_share(missed)} of {count(missed['n'])} miss the goal of {GOAL:g} dB"
        )


def _invented(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "hallucination", label).set_index("measure")
    metric = next((m for m in rows.index if m.startswith("hallucination_")), None)
    if metric and not math.isnan(rows.loc[metric, "value"]):
        distance = metric.partition("_")[2]
        each = [f"{_share(rows.loc[f'{kind}_{distance}'])} {kind}" for kind in KINDS]
        yield f"of what it could have got right or wrong, {names(each)}"


def _kept(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "preservation", label)
    first = rows[rows["instrument"].isin([*rows["instrument"].head(1), "identity"])]
    said = [
        f"{row['measure'].removesuffix('_agreement')} in {_share(row)} (saved as JPEG: {100 * row['control']:.1f})"
        for _, row in first[first["unit"] == "rate"].iterrows()
    ]
    if said:
        yield f"{first['instrument'].iloc[0]} still reads the same {names(said)}"


def _held(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "uncertainty", label)
    rows = rows[(rows["group"] == "all") & rows["coverage"].notna()]
    for _, row in rows.head(1).iterrows():
        kind = "its spread over seeds" if row["band"] == "spread" else "one width everywhere, for it has one output"
        times = f", widened {significant(row['factor'])} times," if row["band"] == "spread" else ""
        held = f"{100 * row['coverage']:.0f} % of {count(row['n'])}"
        yield (
            f"a band of {kind}{times} held the truth of {held} test images, "
            f"{VERDICTS.get(row['verdict'], row['verdict'])} ({100 * row['expected_low']:.0f} to "
            f"{100 * row['expected_high']:.0f} %), and is {significant(row['width'])} levels wide"
        )


# Tables


def _split(run: Run) -> Table:
    frame = run.table("hallucination")
    measures = list(dict.fromkeys(frame["measure"]))
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        found = {row["measure"]: row for _, row in mine.iterrows()}
        n = number_cell(count(mine["n"].max()))
        rows.append([label_cell(run, str(label)), n, *(_figure(m, found.get(m)) for m in measures)])
    columns = [Column("Backend"), Column("n", "images"), *(_column(run, measure) for measure in measures)]
    return Table("Consistency with the input, and what the outputs are made of", columns, rows, "hallucination")


def _column(run: Run, measure: str) -> Column:
    fixed = {
        "lr_psnr": Column("Consistency", "LR-PSNR, dB"),
        "lr_psnr_p01": Column("1st percentile", "dB"),
        "below_goal": Column("Below the goal", "% of images"),
    }
    return fixed.get(measure) or Column(run.title(measure).removesuffix(" (share)"), "%")


def _figure(measure: str, row: "pd.Series[Any] | None") -> Cell:
    if row is None or math.isnan(row["value"]):
        return number_cell("not measured", kind="muted")
    if measure.startswith("lr_psnr"):
        how = fit([row["value"]], [row["high"] - row["low"]])
        return number_cell(how.interval(row["value"], row["low"], row["high"]), str(row["note"]))
    return number_cell(_share(row).removesuffix(" %"))


def _preserved(run: Run) -> Table:
    frame = run.table("preservation")
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(str(row["measure"]).replace("_", " "), str(row["instrument"])),
            number_cell(count(row["n"])),
            number_cell(_kept_figure(row, "value", "low", "high")),
            number_cell(_kept_figure(row, "control")),
            number_cell(_kept_figure(row, "loss", "loss_low", "loss_high")),
        ]
        for _, row in by_backend(run, frame).iterrows()
    ]
    columns = [Column("Backend"), Column("Of output and photo", wide=True), Column("n", "images"), Column("Kept")]
    columns += [Column("Photos saved as JPEG"), Column("Lost", "beyond JPEG, paired")]
    return Table("What instruments still read as in the photo", columns, rows, "preservation")


def _kept_figure(row: "pd.Series[Any]", value: str, *ends: str) -> str:
    """Rates in percent; years and cosines as they are."""
    factor, unit = (100, " %") if row["unit"] == "rate" else (1, " years" if row["unit"] == "years" else "")
    low, high = (factor * row[end] for end in ends) if ends else (math.nan, math.nan)
    how = fit([factor * row[value]], [high - low])
    return f"{how.interval(factor * row[value], low, high)} {how.power}".strip() + unit


def _bands(run: Run) -> Iterator[Table]:
    frame = by_backend(run, run.table("uncertainty"))
    whole = frame["group"] == "all"
    columns = [
        Column("Backend"),
        Column("Band", wide=True),
        Column("Group", wide=True),
        Column("n", "test images, of calibration below"),
        Column("Held", "%, what is promised below"),
        Column("Verdict", wide=True),
        Column("Times", "the spread, or levels"),
        Column("Width", "levels of 255"),
        Column("Spread follows error", "rank correlation"),
    ]
    caption = "Bands that should hold the truth, calibrated on the other half of the images"
    yield Table(caption, columns, [_band(run, row) for _, row in frame[whole].iterrows()], "uncertainty")
    rows = [_band(run, row) for _, row in frame[~whole].iterrows()]
    yield Table(f"{caption}, by group", columns, rows, "uncertainty", folded=True)


def _band(run: Run, row: "pd.Series[Any]") -> list[Cell]:
    who = [short_label(run, row["backend"]), Cell(str(row["band"])), Cell(str(row["group"]), str(row["attribute"]))]
    n = number_cell(count(row["n"]), count(row["calibration"]))
    if math.isnan(row["coverage"]):
        return [*who, n, number_cell("–", kind="muted"), Cell(str(row["note"])), *(number_cell("–") for _ in range(3))]
    promised = f"{100 * row['expected_low']:.0f} to {100 * row['expected_high']:.0f}"
    return [
        *who,
        n,
        number_cell(f"{100 * row['coverage']:.0f}", promised),
        Cell(str(row["verdict"]), kind="" if row["verdict"] == "holds" else "strong"),
        number_cell(significant(row["factor"])),
        number_cell(_interval(row, "width")),
        number_cell(_interval(row, "correlation")),
    ]


def _interval(row: "pd.Series[Any]", value: str) -> str:
    low, high = row[f"{value}_low"], row[f"{value}_high"]
    return fit([row[value]], [high - low]).interval(row[value], low, high if high > low else math.nan)
