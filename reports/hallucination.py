"""The section on what outputs invent: consistency, hallucination, what instruments still see, and uncertainty."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.hallucination import DISTANCES, GOAL, KINDS
from harness.uncertainty import CONSTANT
from reports.load import Run
from reports.numbers import NOTHING, Format, count, fit, names, significant
from reports.parts import Cell, Column, Section, Table, by_backend, label_cell, not_measured, number_cell, short_label

TABLES = ("hallucination", "preservation", "uncertainty", "hallucinated")
UNITS = {"rate": "% the same", "years": "years apart", "cosine": "cosine"}
LIMITS = (
    "Limits: shares say where an output is nearer to the truth, to the enlarged input or to neither; they do not say "
    "whether a person would mind. Consistency cannot see what lies between the pixels of the input: a wrong face can "
    "be consistent. A band is promised for photos like those that calibrated it, over all and for no single group."
)


def section(run: Run) -> Section:
    """The whole section; sentences first."""
    tables = [table for table in (_split(run), _preserved(run), *_bands(run), _recipes(run)) if table.rows]
    return Section("hallucination", "Hallucination", [*_lead(run)], tables, not_measured(run, *TABLES))


def _lead(run: Run) -> Iterator[str]:
    if any(table not in run.missing for table in TABLES):
        yield from (text for label in run.compared for text in _about(run, label))
        yield LIMITS


def _about(run: Run, label: str) -> Iterator[str]:
    sentences = [*_consistency(run, label), *_invented(run, label), *_kept(run, label), *_held(run, label)]
    if sentences:
        yield f"{label}: {' '.join(sentences)}"


def _of(run: Run, table: str, label: str) -> pd.DataFrame:
    frame = run.table(table)
    return frame[frame["backend"] == label]


def _measures(run: Run, label: str) -> "dict[str, pd.Series[Any]]":
    return {str(row["measure"]): row for _, row in _of(run, "hallucination", label).iterrows()}


def _share(row: "pd.Series[Any]", decimals: int = 0) -> str:
    how = Format(decimals)
    return f"{how.interval(100 * row['value'], 100 * row['low'], 100 * row['high'])} %"


def _consistency(run: Run, label: str) -> Iterator[str]:
    rows = _measures(run, label)
    if "below_goal" in rows and rows["below_goal"]["n"]:
        missed, mean = rows["below_goal"], rows["lr_psnr"]["value"]
        yield (
            f"{_share(missed)} of its {count(missed['n'])} outputs miss the consistency goal of {GOAL:g} dB, or what "
            "their own photos reach where that is less; "
            f"made small again, they agree with their inputs to {significant(mean)} dB on average."
        )


def _invented(run: Run, label: str) -> Iterator[str]:
    rows = _measures(run, label)
    metric = next((m for m in rows if m.startswith("hallucination_")), "")
    distance = metric.partition("_")[2]
    each = [f"{_share(rows[m])} {kind}" for kind in KINDS if (m := f"{kind}_{distance}") in rows]
    if metric and not math.isnan(rows[metric]["value"]):
        yield f"Its detail, by {DISTANCES[distance].title}, is {names(each)}."


def _kept(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "preservation", label)
    rows = rows[(rows["unit"] == "rate") & (rows["instrument"] == next(iter(rows["instrument"]), ""))]
    each = [
        f"the {row['measure'].removesuffix('_agreement')} of {_share(row)} (of photos saved as JPEG, "
        f"{100 * row['control']:.0f} %)"
        for _, row in rows.iterrows()
    ]
    if each:
        yield f"The instrument “{rows['instrument'].iloc[0]}” still reads {names(each)}."


def _held(run: Run, label: str) -> Iterator[str]:
    rows = _of(run, "uncertainty", label)
    for _, row in rows[(rows["group"] == "all") & rows["coverage"].notna()].head(1).iterrows():
        width = "one width everywhere" if row["band"] == CONSTANT else "the width of its spread over seeds"
        promised = f"{100 * row['expected_low']:.0f} to {100 * row['expected_high']:.0f} %"
        yield (
            f"A band of {width}, {significant(row['width'])} levels on average, holds {100 * row['coverage']:.0f} % of "
            f"{count(row['n'])} images that it was not calibrated on; {promised} are promised."
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
    return number_cell(_share(row, 1).removesuffix(" %"))


def _preserved(run: Run) -> Table:
    frame = run.table("preservation")
    measures = frame[["measure", "instrument", "unit"]].drop_duplicates().to_records(index=False).tolist()
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        found = {(row["measure"], row["instrument"]): row for _, row in mine.iterrows()}
        rows.append([label_cell(run, str(label)), *(_kept_cell(found.get((m, i))) for m, i, _ in measures)])
    columns = [
        Column("Backend"),
        *(Column(m.replace("_", " ").capitalize(), f"{UNITS.get(u, u)}, {i}") for m, i, u in measures),
    ]
    caption = "What instruments read in output and photo; below, what is lost beyond photos saved as JPEG"
    return Table(caption, columns, rows, "preservation")


def _kept_cell(row: "pd.Series[Any] | None") -> Cell:
    if row is None or math.isnan(row["value"]):
        return number_cell("not measured", kind="muted")
    kept, lost = _scaled(row, "value", "low", "high"), _scaled(row, "loss", "loss_low", "loss_high")
    return number_cell(kept, f"lost {lost}")


def _scaled(row: "pd.Series[Any]", *names_: str) -> str:
    """A figure with its interval; rates in percent."""
    mean, low, high = ((100 if row["unit"] == "rate" else 1) * row[name] for name in names_)
    return fit([mean], [high - low]).interval(mean, low, high)


def _bands(run: Run) -> Iterator[Table]:
    frame = by_backend(run, run.table("uncertainty"))
    whole = frame["group"] == "all"
    columns = [
        Column("Backend"),
        Column("Band", wide=True),
        Column("n", "test images"),
        Column("Held", "% of images"),
        Column("Verdict", wide=True),
        Column("Times", "the spread, or levels"),
        Column("Width", "levels of 255"),
        Column("Spread follows error", "rank correlation"),
    ]
    caption = "Bands that should hold the truth, calibrated on the other half of the images"
    yield Table(caption, columns, [_band(run, row) for _, row in frame[whole].iterrows()], "uncertainty")
    told = frame[~whole & frame["coverage"].notna()]
    rows = [_band(run, row) for _, row in told.iterrows()]
    yield Table(f"{caption}, by group", columns, rows, "uncertainty", folded=True)


def _band(run: Run, row: "pd.Series[Any]") -> list[Cell]:
    whose = "all" if row["group"] == "all" else f"{row['attribute']}: {row['group']}"
    who = [short_label(run, row["backend"]), Cell(str(row["band"]), whose)]
    n = number_cell(count(row["n"]), f"{count(row['calibration'])} calibrate" if row["n"] else "")
    if math.isnan(row["coverage"]):
        return [
            *who,
            n,
            number_cell(NOTHING, kind="muted"),
            Cell(str(row["note"])),
            *(number_cell(NOTHING) for _ in range(3)),
        ]
    promised = f"{100 * row['expected_low']:.0f} to {100 * row['expected_high']:.0f} promised"
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


def _recipes(run: Run) -> Table:
    about = {run.title(m): a for m, a in run.record["measures"].items() if m.partition("_")[0] in KINDS}
    about |= {"Bands": run.record["uncertainty"]} if run.record["uncertainty"] else {}
    rows = [[Cell(title), Cell(str(of.get("recipe", NOTHING)))] for title, of in about.items()]
    return Table(
        "Recipes of hallucination and bands", [Column("Measure"), Column("Recipe", wide=True)], rows, folded=True
    )
