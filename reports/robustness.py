"""The robustness section: a sentence for each backend, then where it crosses bicubic, errors, curves, groups, seeds."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from harness.robustness import LOSSES, POOLED, SOURCES
from harness.score import BASELINE
from reports.findings import DISTORTION, NOT_PASSED
from reports.load import Run
from reports.numbers import NOTHING, Format, count, fit, multiple, names, p_value, significant
from reports.parts import Cell, Column, Section, Table, by_backend, number_cell, short_label, spread

COLUMNS = {32: "32 pixels (CIFAR-10-C)", 64: "64 pixels (Tiny ImageNet-C)", 224: "224 pixels (ImageNet-C)"}
"""Whose severities each column of the corruptions' parameters has."""
TABLES = (
    *("corruptions", "degradation", "crossings", "corruption_errors", "robustness", "amplification"),
    *("corruption_gaps", "group_slopes", "corruption_seeds"),
)
LOSS = {"worse": f"loses more than {BASELINE}", "better": f"loses less than {BASELINE}"}
LIMITS = (
    "Limits: corruptions are drawn by formulas, once an image, and none is a sample of what users send; a severity of "
    "one corruption is not as hard as that of another, so mCE weighs them as their authors chose. Each corruption and "
    "severity is judged by itself at 95 %: of a hundred true ties some five will be called better or worse. Bicubic is "
    "a low bar and not a floor: it keeps what noise it is given. Amplification counts every change of the output, also "
    "one that undoes the corruption."
)


def section(run: Run) -> Section:
    """The whole section."""
    if run.table("corruptions").empty and run.table("amplification").empty:
        return Section("robustness", "Robustness", gaps=[*_absent(run)])
    lead = [*sentences(run), *_group_sentences(run), *_severities(run), LIMITS]
    parts = (_headline(run), *_crossings(run), *_errors(run), *_curves(run), _areas(run), _amplification(run))
    tables = [*parts, _pooled_gaps(run), _slopes(run), _single_gaps(run), _seeds(run)]
    return Section("robustness", "Robustness", lead, [t for t in tables if t.rows], [*_absent(run)])


def _absent(run: Run) -> Iterator[str]:
    """One sentence for all tables of the section that there are not."""
    reasons = "; ".join(run.missing[table] for table in TABLES if table in run.missing)
    if reasons:
        yield f"{reasons}. {NOT_PASSED}"


def sentences(run: Run) -> Iterator[str]:
    """One for each compared backend: where it is no longer better than bicubic, its mCE and its amplification."""
    for label in run.compared:
        where = [_where(run, label, metric) for metric in (run.headline, DISTORTION)]
        parts = [part for part in (*where, _mce(run, label), _amplified(run, label)) if part]
        yield f"{label}: {'; '.join(parts)}." if parts else f"{label}: not measured under corruption. {NOT_PASSED}"


def _where(run: Run, label: str, metric: str) -> str:
    mine = run.table("crossings", metric)
    mine = mine[mine["backend"] == label]
    if mine.empty:
        return ""
    found = {word: mine[mine["verdict"] == word] for word in ("better", "worse", "not separated")}
    better = f"better than {BASELINE} at every severity of {len(found['better'])} of {len(mine)} corruptions"
    parts = [better, *_worse(found["worse"])]
    if len(found["not separated"]):
        parts.append(f"not better throughout, but nowhere worse, under {_listed(found['not separated'])}")
    return f"in {run.title(metric)} {', '.join(parts)}"


def _worse(rows: pd.DataFrame) -> Iterator[str]:
    for severity in sorted(set(rows["crossing"].astype(float))):
        mine = rows[rows["crossing"] == severity]
        late = f"first worse at severity {count(severity)} under {_listed(mine)}"
        yield late if severity else "worse on clean inputs"


def _listed(rows: pd.DataFrame) -> str:
    """Some corruptions by name, or the first three of many."""
    spoken = [_spoken(name) for name in rows["corruption"]]
    return names(spoken if len(spoken) <= 4 else [*spoken[:3], f"{count(len(spoken) - 3)} more"])


def _spoken(corruption: object) -> str:
    return str(corruption).replace("_", " ")


def _mce(run: Run, label: str) -> str:
    rows = run.table("robustness")
    rows = rows[(rows["backend"] == label) & (rows["measure"] == "mce")]
    each = [f"{row['name']} {_ratio(row)} in {run.title(row['metric'])}" for _, row in rows.iterrows()]
    return f"{names(each)} ({BASELINE} is 1, less is better)" if each else ""


def _amplified(run: Run, label: str) -> str:
    rows = run.table("robustness")
    rows = rows[(rows["backend"] == label) & (rows["measure"] == "amplification")]
    return (
        f"corruption moves its outputs {_ratio(rows.iloc[0])} times as far as {BASELINE}'s (MSE)" if len(rows) else ""
    )


def _ratio(row: "pd.Series[Any]", value: str = "value", ends: tuple[str, str] = ("low", "high")) -> str:
    return multiple(row[value], row[ends[0]], row[ends[1]])


def _group_sentences(run: Run) -> Iterator[str]:
    """Per backend: whose scores get worse faster than the other groups', over the corruptions of the mCE together."""
    slopes = run.table("group_slopes")
    slopes = slopes[slopes["corruption"] == POOLED]
    for label in run.compared:
        mine = slopes[slopes["backend"] == label]
        if mine.empty:
            continue
        judged = mine[mine["verdict"] != "insufficient"]
        worse = [f"{row['group']} ({row['attribute']})" for _, row in judged[judged["verdict"] == "worse"].iterrows()]
        told = f"{names(worse)} lose faster than the other groups" if worse else "no group separably loses faster"
        told = told if len(judged) else "no group is large enough to judge"
        few = [a for a in dict.fromkeys(mine["attribute"]) if a not in set(judged["attribute"])]
        rest = f"; too few images to judge by {names(few)}" if few and len(judged) else ""
        yield f"{label}, groups under growing severity ({run.title(run.headline)}): {told}{rest}."


def _severities(run: Run) -> Iterator[str]:
    inputs = run.record["inputs"]
    columns = [COLUMNS[c] for c in inputs.get("columns") or () if c in COLUMNS]
    if columns and len(run.table("corruptions")):
        sizes = dict.fromkeys(str(inputs.get(k)) for k in ("smallest", "largest"))
        yield (
            f"Severities are those of ImageNet-C's scripts for images of {names(columns)}, for inputs of "
            f"{' to '.join(sizes)} pixels; real esrgan, bsrgan, old photo and camera blur have a fifth of their ranges "
            "at severity 1 and all at 5. What moves pixels (glass blur, zoom blur, elastic transform) is compared with "
            "its own input alone, by consistency. Severity 0 is the clean input."
        )


# Tables


def _headline(run: Run) -> Table:
    frame = run.table("robustness")
    kinds = list(dict.fromkeys(zip(frame["measure"], frame["metric"], strict=True)))
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        cells = {(row["measure"], row["metric"]): row for _, row in mine.iterrows()}
        rows.append([short_label(run, str(label)), *(_measured(cells.get(kind)) for kind in kinds)])
    columns = [Column("Backend"), *(_kind(run, *kind) for kind in kinds)]
    return Table(f"Relative to {BASELINE} under the same corruptions", columns, rows, "robustness")


def _kind(run: Run, measure: str, metric: str) -> Column:
    title = {"mce": "mCE", "relative_mce": "Relative mCE"}.get(measure, "Amplification")
    return Column(title, "MSE, no ground truth" if title == "Amplification" else run.title(metric))


def _measured(row: "pd.Series[Any] | None") -> Cell:
    if row is None:
        return number_cell("not measured", kind="muted")
    partly = "" if row["name"] in {"mCE", "relative mCE"} else f"{count(row['corruptions'])} corruptions"
    if math.isnan(row["value"]):
        return number_cell("not given", str(row["note"]), "muted")
    return number_cell(_ratio(row), f"n = {count(row['n'])}{', ' if partly else ''}{partly}")


def _crossings(run: Run) -> Iterator[Table]:
    for metric in _ordered(run, "crossings"):
        frame = run.table("crossings", metric)
        caption = f"Against {BASELINE} on the same corrupted input, {run.title(metric)}"
        yield _by_corruption(run, frame, caption, "crossings", _crossing, folded=metric != run.headline)


def _ordered(run: Run, table: str) -> list[str]:
    """The metrics of a table, the headline first."""
    return sorted(run.metrics(table), key=lambda metric: metric != run.headline)


def _by_corruption(  # noqa: PLR0913 - a table is what it is of, its name, its source and its cells
    run: Run, frame: pd.DataFrame, caption: str, source: str, cell: Callable[["pd.Series[Any]"], Cell], *, folded: bool
) -> Table:
    """A row for each corruption, a column for each backend."""
    labels = [label for label in run.labels if label in set(frame["backend"])]
    rows = []
    for corruption, mine in frame.groupby("corruption", sort=False):
        by_label = {row["backend"]: row for _, row in mine.iterrows()}
        cells = [cell(by_label[x]) if x in by_label else number_cell(NOTHING) for x in labels]
        rows.append([Cell(_spoken(corruption)), *cells])
    return Table(caption, [Column("Corruption"), *map(Column, labels)], rows, source, folded=folded)


def _crossing(row: "pd.Series[Any]") -> Cell:
    beside = "" if row["verdict"] == "better" else f"better at {count(row['better'])} of {count(row['tested'])}"
    if row["verdict"] == "worse":
        start = f"first worse at {count(row['crossing'])}" if row["crossing"] else "worse when clean"
        return number_cell(start, beside, "strong")
    return number_cell(str(row["verdict"]), beside)


def _errors(run: Run) -> Iterator[Table]:
    for metric in (m for m in LOSSES if m in run.metrics("corruption_errors")):
        frame = run.table("corruption_errors", metric)
        caption = f"CE: {run.title(metric)} summed over the severities, divided by {BASELINE}'s"
        shown = frame[frame["backend"] != BASELINE]
        yield _by_corruption(run, shown, caption, "corruption_errors", _error, folded=metric != run.headline)


def _error(row: "pd.Series[Any]") -> Cell:
    relative = "no relative CE: too little is added"
    if not math.isnan(row["relative"]):
        relative = f"relative {_ratio(row, 'relative', ('relative_low', 'relative_high'))}"
    return number_cell(_ratio(row, "error", ("error_low", "error_high")), relative)


def _curves(run: Run) -> Iterator[Table]:
    charted = (run.headline, DISTORTION)
    for metric in _ordered(run, "corruptions"):
        frame = run.table("corruptions", metric)
        how, against = spread(frame), spread(frame[frame["backend"] != BASELINE], "difference")
        levels = sorted(set(frame["severity"]))
        rows = []
        for (corruption, label), mine in frame.groupby(["corruption", "backend"], sort=False):
            by_level = {row["severity"]: _level(row, how, against) for _, row in mine.iterrows()}
            cells = [by_level.get(s, number_cell(NOTHING)) for s in levels]
            rows.append([Cell(_spoken(corruption)), short_label(run, str(label)), *cells])
        columns = [Column("Corruption"), Column("Backend", wide=True)]
        columns += [Column(f"severity {s}" if s else "clean", f"difference to {BASELINE} below") for s in levels]
        caption = f"{run.title(metric)} {how.power}".strip() + " by severity"
        chart = f"robustness-{metric}" if metric in charted else ""
        yield Table(caption, columns, rows, "corruptions", chart, folded=True)


def _level(row: "pd.Series[Any]", how: Format, against: Format) -> Cell:
    ends = row["difference"], row["difference_low"], row["difference_high"]
    below = "" if row["backend"] == BASELINE else f"{against.interval(*ends, signed=True)} {against.power}".strip()
    return number_cell(how.interval(row["mean"], row["low"], row["high"]), below)


def _areas(run: Run) -> Table:
    frame = run.table("degradation", run.headline)
    how = fit(frame["area"], frame["area_high"] - frame["area_low"])

    def cell(row: "pd.Series[Any]") -> Cell:
        loss = "" if row["backend"] == BASELINE else LOSS.get(row["verdict"], str(row["verdict"]))
        return number_cell(how.interval(row["area"], row["area_low"], row["area_high"], signed=True), loss)

    caption = f"Degradation: area under what corruption adds to {run.title(run.headline)} {how.power}".strip()
    return _by_corruption(run, frame, caption, "degradation", cell, folded=True)


def _amplification(run: Run) -> Table:
    frame = run.table("amplification")
    frame = frame[frame["backend"] != BASELINE]
    named = frame.assign(corruption=frame["corruption"] + " " + frame["severity"].astype(str))

    def cell(row: "pd.Series[Any]") -> Cell:
        return number_cell("not given" if math.isnan(row["value"]) else _ratio(row), str(row["note"]))

    caption = f"Amplification: how far each corruption moves the outputs, relative to {BASELINE}'s"
    return _by_corruption(run, named, caption, "amplification", cell, folded=True)


# Groups and seeds


def _pooled_gaps(run: Run) -> Table:
    frame = run.table("corruption_gaps")
    frame = by_backend(run, frame[frame["corruption"] == POOLED])
    levels, rows = sorted(set(frame["severity"])), []
    for (label, attribute), mine in frame.groupby(["backend", "attribute"], sort=False):
        by_level = {row["severity"]: _gap(row) for _, row in mine.iterrows()}
        rows.append([short_label(run, str(label)), Cell(str(attribute)), *(by_level[s] for s in levels)])
    columns = [Column("Backend"), Column("By", wide=True)]
    columns += [Column(f"severity {s}" if s else "clean", "95 % of chance gaps below") for s in levels]
    caption = f"Largest gap between groups in {run.title(run.headline)}, mean over the corruptions of the mCE"
    return Table(caption, columns, rows, "corruption_gaps")


def _gap(row: "pd.Series[Any]") -> Cell:
    if row["verdict"] == "insufficient":
        return number_cell("insufficient", kind="muted")
    chance = f"{significant(row['null_p95'])}, p {p_value(row['p_adjusted'])}, {row['verdict']}"
    return number_cell(significant(row["gap"]), chance, "strong" if row["verdict"] == "disparity" else "")


def _single_gaps(run: Run) -> Table:
    """The single corruptions under which a compared backend has a disparity at some severity."""
    frame = run.table("corruption_gaps")
    single = (frame["corruption"] != POOLED) & frame["backend"].isin(run.compared)
    frame = by_backend(run, frame[single & (frame["verdict"] == "disparity")])
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(_spoken(row["corruption"])),
            number_cell(count(row["severity"])),
            Cell(str(row["attribute"])),
            _gap(row),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [Column("Backend"), Column("Corruption", wide=True), Column("Severity"), Column("By", wide=True)]
    columns += [Column("Gap", "95 % of chance gaps below")]
    caption = "Single corruptions with a disparity between groups, clean inputs (severity 0) included"
    return Table(caption, columns, rows, "corruption_gaps", folded=True)


def _slopes(run: Run) -> Table:
    frame = run.table("group_slopes")
    frame = by_backend(run, frame[frame["corruption"] == POOLED])
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(str(row["group"]), str(row["attribute"])),
            number_cell(count(row["n"])),
            _signed(row, "slope", "slope_low", "slope_high"),
            _signed(row, "difference", "low", "high"),
            number_cell(p_value(row["p_adjusted"])),
            Cell(str(row["verdict"]), kind="strong" if row["verdict"] == "worse" else ""),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [Column("Backend"), Column("Group", wide=True), Column("n"), Column("Slope", "a severity")]
    columns += [
        Column("Difference", "from the mean of the others"),
        Column("p", "adjusted"),
        Column("Verdict", wide=True),
    ]
    caption = f"How fast each group's {run.title(run.headline)} changes with severity"
    return Table(caption, columns, rows, "group_slopes", folded=True)


def _signed(row: "pd.Series[Any]", value: str, low: str, high: str) -> Cell:
    if math.isnan(row[value]):
        return number_cell("insufficient", kind="muted")
    how = fit([row[value]], [row[high] - row[low]])
    return number_cell(f"{how.interval(row[value], row[low], row[high], signed=True)} {how.power}".strip())


def _seeds(run: Run) -> Table:
    frame = by_backend(run, run.table("corruption_seeds"))
    how = spread(frame.rename(columns={"value": "mean"}))
    rows = []
    for (label, corruption), mine in frame.groupby(["backend", "corruption"], sort=False):
        by_source = {row["source"]: _variance(row, how) for _, row in mine.iterrows()}
        about = Cell(_spoken(corruption), f"severity {count(mine['severity'].iloc[0])}")
        cells = [by_source.get(source, number_cell(NOTHING)) for source in SOURCES]
        rows.append([short_label(run, str(label)), about, *cells])
    columns = [Column("Backend"), Column("Corruption", wide=True)]
    columns += [Column(f"By the {source}", f"variance {how.power}".strip()) for source in SOURCES]
    return Table("What chance alone changes in the outputs", columns, rows, "corruption_seeds")


def _variance(row: "pd.Series[Any]", how: Format) -> Cell:
    if row["note"]:
        return number_cell("none", str(row["note"]), "muted")
    return number_cell(
        how.interval(row["value"], row["low"], row["high"]), f"n = {count(row['n'])}, {count(row['samples'])} each"
    )
