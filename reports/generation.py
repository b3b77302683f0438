"""The section on generated images: what is wrong with them in sentences, measures, classes, pictures."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.generation_tables import ACCURACY, MEASURES, TEST, TRAINING
from harness.modes import COLLAPSE, DROPPING, FOUND, INSUFFICIENT, NOT_FOUND, UNJUDGED
from harness.sampling import ALL, REAL
from reports.load import Run
from reports.numbers import NOTHING, count, duration, multiple, names
from reports.parts import (
    BETTER,
    Cell,
    Column,
    Section,
    Table,
    by_backend,
    label_cell,
    not_measured,
    number_cell,
    short_label,
)
from reports.pictures import Album

TABLES = ("generated", "generators", "modes", "classification", "drawn")
SHOWN = (
    *((measure, against) for measure in ("kid", "fid") for against in (TEST, TRAINING)),
    *((measure, TEST) for measure in ("precision", "recall", "density", "coverage", "vendi", "duplicates")),
    ("copies", TRAINING),
)
"""The columns of the tables of all classes together and of each."""
COSTS = (("seconds", ""), ("steps", ""))
"""Further columns of all classes together."""
THOUSAND = {"kid": 1000}
"""What is written as so many thousandths."""
SUBTITLES = {"seconds": "p50, an image", "steps": "an image", "copies": "among n photos, lower is better"}
"""What stands below a column's title in the place of its direction."""
FAULTS = {
    COLLAPSE: ("Collapsed: the same few images come again and again", "none has collapsed"),
    DROPPING: ("Dropped: asked for but not made", "none is missing"),
}
LIMITS = (
    "Limits: all of this is seen through one network's features, and figures of two networks cannot be compared. FID "
    "is too high for few images; precision, recall and the Vendi score depend on their number: compare a generator "
    "with the real images of the same class, not with figures of other runs or papers. An accuracy has the error of "
    "the images that were tested; training once more moves that of a single class by several points, so single "
    "classes have no verdict. What no sign shows may still be wrong: look at the "
    "pictures."
)
PAIRS = (
    "Paired comparison: the first generator's figure minus the second's against the same real photos, with the 95 % "
    "interval of the difference and what it says of the first. Each difference has its interval to itself: of many, "
    "some are separated by chance."
)


def section(run: Run) -> Section:
    """The whole section; sentences first."""
    made = [_overall(run, network) for network in run.record["generation"].get("networks") or {}]
    pairs = [_pairs(run, network) for network in run.record["generation"].get("networks") or {}]
    tables = [*made, *pairs, _modes(run), _classes(run), _accuracy(run), _diversity(run), _recipes(run)]
    shown = [table for table in tables if table.rows]
    return Section("generation", "Generated images", [*_lead(run)], shown, not_measured(run, *TABLES))


def overall(run: Run) -> pd.DataFrame:
    """The rows of all classes together by the first network, against the run's dataset."""
    rows = run.table("generated")
    network = next(iter(run.record["generation"].get("networks") or {}), "")
    return rows[(rows["class"] == ALL) & (rows["network"] == network) & (rows["against"] == TEST)]


def _lead(run: Run) -> Iterator[str]:
    part = (run.record["suite"].get("content") or {}).get("generation") or {}
    if run.table("generated").empty:
        return
    yield (
        f"Each generator was asked for {count(part.get('samples', 0))} images of each class. They are compared with "
        f"photos of the dataset in equal numbers of each class. “{REAL}” are photos of the training split in their "
        "place: what a generator as good as reality would reach."
    )
    for label in run.compared:
        yield from _sentences(run, label)
    yield (
        "Precision: how many images look like real ones. Recall and coverage: how much of the real set has an image "
        "like it. A generator with few, good images has high precision and low recall. Vendi score: how many different "
        "images the set is worth."
    )
    if len(run.table("generators")):
        yield PAIRS
    yield LIMITS
    yield (
        "Near-copies of training photos are looked for among those only that are compared: as many of each class as a "
        f"generator has images, at most {count(part.get('samples', 0))}. The rest of the training split is not "
        "searched, so what is copied from there does not count."
    )


def _sentences(run: Run, label: str) -> Iterator[str]:
    """What was looked for in a generator, and what was found."""
    modes = run.table("modes")
    mine = modes[modes["backend"] == label]
    for sign, (words, otherwise) in FAULTS.items():
        rows = mine[mine["sign"] == sign]
        judged, unjudged = rows[rows["verdict"].isin((FOUND, NOT_FOUND))], rows[rows["verdict"] == UNJUDGED]
        found = judged[judged["verdict"] == FOUND]
        if judged.empty and unjudged.empty:
            yield f"{label}: too few images to say whether there is a mode {sign}."
        if len(judged) and found.empty:
            yield f"{label}: {otherwise}, of {count(len(judged))} classes and groups looked at."
        for _, row in found.head(3).iterrows():
            where = "in all classes together" if row["class"] == ALL else str(row["class"])
            yield f"{label}. {words}, {where}: {row['evidence']}."
        if len(found) > 3:
            yield f"{label}: the same of {names(found['class'].iloc[3:9])}{' and others' if len(found) > 9 else ''}."
        if len(unjudged):
            why = "nothing reads them well enough even in real photos"
            yield f"{label}: not judged for {sign}, since {why}: {names(unjudged['class'])}."


# Tables


def _cells(frame: pd.DataFrame) -> "dict[tuple[str, str], pd.Series[Any]]":
    return {(row["measure"], row["against"]): row for _, row in frame.iterrows()}


def _figure(row: "pd.Series[Any] | None") -> Cell:
    if row is None:
        return number_cell(NOTHING)
    if row["status"] == INSUFFICIENT:
        return number_cell(INSUFFICIENT, f"n = {count(row['n'])}", "muted")
    if row["measure"] == "seconds":
        return number_cell(duration(row["value"]))
    if row["measure"] == "steps":
        return number_cell(NOTHING if math.isnan(row["value"]) else count(row["value"]))
    return number_cell(multiple(*(THOUSAND.get(row["measure"], 1) * row[end] for end in ("value", "low", "high"))))


def _column(measure: str, against: str = "") -> Column:
    title, better = MEASURES[measure]
    title = f"{title} × 10³" if measure in THOUSAND else title
    where = f"against {against}, " if against and measure in {"kid", "fid"} else ""
    return Column(title, f"{where}{SUBTITLES.get(measure, BETTER[better])}")


def _overall(run: Run, network: str) -> Table:
    frame = run.table("generated")
    frame = frame[(frame["class"] == ALL) & frame["network"].isin((network, ""))]
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        cells = _cells(mine)
        n = number_cell(count(mine.loc[mine["network"] == network, "n"].max()))
        rows.append([label_cell(run, str(label)), n, *(_figure(cells.get(key)) for key in (*SHOWN, *COSTS))])
    columns = [_column(*key) for key in (*SHOWN, *COSTS)]
    caption = f"All classes together, by the features of {network}"
    return Table(caption, [Column("Generator"), Column("n", "images"), *columns], rows, "generated", "precision-recall")


def _classes(run: Run) -> Table:
    frame = run.table("generated")
    network = next(iter(run.record["generation"].get("networks") or {}), "")
    frame = frame[(frame["class"] != ALL) & (frame["network"] == network)]
    rows = []
    for (kind, label), mine in frame.groupby(["class", "backend"], sort=False):
        cells = _cells(mine)
        figures = (_figure(cells.get(key)) for key in SHOWN)
        rows.append([Cell(str(kind)), short_label(run, str(label)), number_cell(count(mine["n"].max())), *figures])
    rows.sort(key=lambda row: row[0].text)
    columns = [
        Column("Class"),
        Column("Generator", wide=True),
        Column("n", "images"),
        *(_column(*key) for key in SHOWN),
    ]
    return Table(f"Each class, by the features of {network}", columns, rows, "generated")


def _pairs(run: Run, network: str) -> Table:
    frame = run.table("generators")
    frame = frame[frame["network"].isin((network, ""))]
    measures = list(dict.fromkeys(frame["measure"]))
    rows = []
    for (first, second, kind), mine in frame.groupby(["first", "second", "class"], sort=False):
        cells = {row["measure"]: row for _, row in mine.iterrows()}
        who = [Cell(f"{first} − {second}"), Cell(str(kind)), number_cell(count(mine["n"].max()))]
        rows.append([*who, *(_difference(cells.get(measure)) for measure in measures)])
    titles = [Column("Accuracy", "points") if m == ACCURACY else _column(m) for m in measures]
    columns = [Column("Generators", wide=True), Column("Class", wide=True), Column("n", "images"), *titles]
    return Table(f"Paired comparison of generators, by the features of {network}", columns, rows, "generators")


def _difference(row: "pd.Series[Any] | None") -> Cell:
    """A difference with its interval, and below it what it says of the first generator."""
    if row is None:
        return number_cell(NOTHING)
    if row["verdict"] == INSUFFICIENT:
        return number_cell(INSUFFICIENT, f"n = {count(row['n'])}", "muted")
    factor = 100 if row["measure"] == ACCURACY else THOUSAND.get(row["measure"], 1)
    return number_cell(multiple(*(factor * row[end] for end in ("difference", "low", "high"))), str(row["verdict"]))


def _modes(run: Run) -> Table:
    frame = by_backend(run, run.table("modes"), "verdict")
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(str(row["sign"])),
            Cell(str(row["class"])),
            number_cell(count(row["n"])),
            Cell(str(row["verdict"]), kind="strong" if row["verdict"] == FOUND else ""),
            Cell(str(row["evidence"])),
        ]
        for _, row in frame.iterrows()
    ]
    titles = ("Sign", "Class or group", "n", "Verdict", "Evidence")
    columns = [Column("Generator"), *(Column(title, wide=title != "n") for title in titles)]
    return Table("Modes that collapse or are missing", columns, rows, "modes", folded=len(rows) > 12)


def _accuracy(run: Run) -> Table:
    frame = by_backend(run, run.table("classification"))
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(str(row["class"])),
            number_cell(count(row["n"])),
            *(number_cell(_percent(row, name)) for name in ("value", "real", "difference")),
            Cell(str(row["verdict"])),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Generator"),
        Column("Class or group", wide=True),
        Column("n", "test images"),
        Column("Trained on generated images", "% right"),
        Column("Trained on as many real images", "% right"),
        Column("Difference", "points"),
        Column("Verdict", wide=True),
    ]
    return Table("Classification Accuracy Score: real images told apart", columns, rows, "classification")


def _percent(row: "pd.Series[Any]", name: str) -> str:
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return multiple(*(100 * row[key] for key in (name, *ends)))


def _diversity(run: Run) -> Table:
    frame = by_backend(run, run.table("generated"))
    frame = frame[frame["measure"] == "lpips"]
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(str(row["class"])),
            number_cell(count(row["n"])),
            number_cell(multiple(row["value"], row["low"], row["high"])),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [Column("Generator"), Column("Class", wide=True), Column("n", "pairs"), _column("lpips")]
    return Table("How far two images of a class differ (LPIPS, AlexNet)", columns, rows, "generated", folded=True)


def _recipes(run: Run) -> Table:
    about = run.record["generation"]
    pairs = {f"Features of {name}": recipe for name, recipe in (about.get("networks") or {}).items()}
    pairs |= {"Instrument": (about.get("instrument") or {}).get("recipe"), "LPIPS within a class": about.get("pairs")}
    pairs |= {"Classifier": about.get("classifier"), "Training split": run.record.get("training")}
    rows = [[Cell(title), Cell(str(recipe))] for title, recipe in pairs.items() if recipe]
    columns = [Column("Measure"), Column("Recipe", wide=True)]
    return Table("Recipes of the measures of generated images", columns, rows, folded=True)


def pictures(run: Run, album: Album) -> list[dict[str, Any]]:
    """A row for each class: some pictures of each generator and real ones; rows past the budget are left out."""
    frame = run.table("drawn")
    rows = []
    for kind, mine in frame.groupby("class", sort=False):
        paths = {str(label): list(part["output"]) for label, part in mine.groupby("backend", sort=False)}
        uris = album.uris(*(path for each in paths.values() for path in each))
        if uris is not None:
            left = iter(uris)
            rows.append({"title": str(kind), "uris": {x: [next(left) for _ in each] for x, each in paths.items()}})
    return rows
