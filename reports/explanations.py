"""The section on explanations: which maps may be believed, how wide outputs look, and the maps of a few images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.faithfulness import FAITHFUL, NOT_FAITHFUL
from reports.load import Run
from reports.numbers import Format, count, names, p_value
from reports.parts import Cell, Column, Section, Table, by_backend, not_measured, number_cell, short_label
from reports.pictures import Album

TITLES = {"lam": "LAM", "occlusion": "Occlusion", "cem": "CEM"}
HOW = Format(2)
INDEX = Format(1)

LIMITS = (
    "Limits: a map explains one window of 16 × 16 pixels of one output under one seed, chosen by rule: where bicubic's "
    "enlargement has the most gradient energy. A faithful map says where the output comes from, not that the output is "
    "true; and a map that only knew where the window lies would beat both rivals too. Pixels are taken away by a blur; "
    "another way to take them away may say otherwise."
)


@dataclass(frozen=True)
class Maps:
    """The pictures of one image and kind of map: a backend's label -> data URI."""

    image: str
    title: str
    uris: dict[str, str]


def section(run: Run) -> Section:
    """The whole section; its pictures are those of `pictures`."""
    tables = [table for table in (_faithfulness(run), _diffusion(run)) if table.rows]
    gaps = not_measured(run, "explanations", "diffusion_index", "maps")
    return Section("explanations", "Explanations", [*_lead(run)], tables, gaps)


def _lead(run: Run) -> Iterator[str]:
    frame = by_backend(run, run.table("explanations"))
    if frame.empty:
        return
    yield from _sentences(frame)
    yield (
        "Deletion takes pixels of the input away, those that a map calls important first, and the window should soon "
        "change: a small area is good. Insertion puts them back: a large area is good. A map is "
        f"“{NOT_FAITHFUL}” unless its insertion less deletion beats that of a random map and that of the input's edges "
        "on the same images (Wilcoxon's signed-rank test, p < 0.05 after Holm); under 30 images nothing is said."
    )
    yield (
        "LAM: integrated gradients of the window's detail along the way from a blurred to the whole input. Occlusion: "
        "how far the window moves when a block of the input is blurred. CEM: what a block does for the window's PSNR, "
        "against patches of other images in its place; it helps or hurts."
    )
    yield LIMITS


def _sentences(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence for each verdict, with the maps that have it."""
    for verdict in dict.fromkeys(frame["verdict"]):
        mine = frame[frame["verdict"] == verdict]
        by_map = mine.groupby("map", sort=False)["backend"]
        maps = [f"{TITLES.get(str(name), name)} of {names(labels)}" for name, labels in by_map]
        yield f"{verdict[:1].upper()}{verdict[1:]}: {'; '.join(maps)}."


def _faithfulness(run: Run) -> Table:
    frame = by_backend(run, run.table("explanations"))
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(TITLES.get(row["map"], str(row["map"]))),
            number_cell(count(row["n"])),
            *(_area(row, area) for area in ("deletion", "insertion")),
            *(_gain(row, rival) for rival in ("random", "edge")),
            Cell(str(row["verdict"]), kind="" if row["verdict"] == FAITHFUL else "strong"),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Backend"),
        Column("Map", wide=True),
        Column("n", "images"),
        Column("Deletion", "lower is better"),
        Column("Insertion", "higher is better"),
        Column("Over random", "insertion − deletion; p"),
        Column("Over edges", "insertion − deletion; p"),
        Column("Verdict", wide=True),
    ]
    return Table("How faithful the maps are, against a random map and the input's edges", columns, rows, "explanations")


def _area(row: "pd.Series[Any]", area: str) -> Cell:
    figures = HOW.interval(row[area], row[f"{area}_low"], row[f"{area}_high"])
    rivals = [HOW.number(row[f"{rival}_{area}"]) for rival in ("random", "edge")]
    return number_cell(figures, "" if math.isnan(row[area]) else f"random {rivals[0]}, edges {rivals[1]}")


def _gain(row: "pd.Series[Any]", rival: str) -> Cell:
    name = f"over_{rival}"
    figures = HOW.interval(row[name], row[f"{name}_low"], row[f"{name}_high"], signed=True)
    return number_cell(figures, "" if math.isnan(row[name]) else f"p {p_value(row[f'p_{rival}'])}")


def _diffusion(run: Run) -> Table:
    """Groups as rows, backends as columns."""
    frame = run.table("diffusion_index")
    labels = [label for label in run.labels if label in set(frame["backend"])]
    rows = []
    for (attribute, group), mine in frame.groupby(["attribute", "group"], sort=False):
        here = {row["backend"]: row for _, row in mine.iterrows()}
        by = "" if attribute == "all" else str(attribute)
        rows.append([Cell(str(group), by), *(_index(here.get(label)) for label in labels)])
    columns = [Column("Group"), *(Column(label, "more: it looks wider") for label in labels)]
    return Table(
        "Diffusion index of LAM: how wide the pixels lie that a window comes from", columns, rows, "diffusion_index"
    )


def _index(row: "pd.Series[Any] | None") -> Cell:
    if row is None:
        return number_cell("not measured", kind="muted")
    if math.isnan(row["mean"]):
        return number_cell("insufficient", f"n = {count(row['n'])}", "muted")
    return number_cell(INDEX.interval(row["mean"], row["low"], row["high"]), f"n = {count(row['n'])}")


def pictures(run: Run, album: Album) -> list[Maps]:
    """The maps of each shown image, backends side by side; what the album has no room for is left out."""
    found = []
    for (image, name), mine in run.table("maps").groupby(["image", "map"], sort=False):
        paths = dict(zip(mine["backend"], mine["picture"], strict=True))
        uris = album.uris(*paths.values())
        if uris is not None:
            found.append(Maps(str(image), TITLES.get(str(name), str(name)), dict(zip(paths, uris, strict=True))))
    return sorted(found, key=lambda maps: maps.image)
