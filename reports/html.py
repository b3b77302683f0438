"""The report as one self-contained HTML page: no script, no request, under 5 MB."""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from harness.judge import Judgement
from reports import explanations, generation
from reports.charts import charts
from reports.findings import NOT_PASSED, findings
from reports.load import Run
from reports.numbers import count, significant
from reports.parts import anchored
from reports.pictures import Album
from reports.readiness import answers, overview
from reports.sections import attribute_columns, dominance, sections
from reports.verdict import figure as measured

PAGE_LIMIT = 5_000_000
PICTURE_BUDGET = 3_600_000
WORST_SHOWN = 12
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """One picture of the page: a data URI (or "") and what it shows."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Case:
    """A worst case: its place, its caption and input, output and target."""

    rank: str
    image: str
    value: str
    groups: str
    pictures: list[Picture]


def page(run: Run, judgement: Judgement | None = None) -> str:
    """The whole page, opened by a judgement; pictures of worst cases give way, last rank first, until it is under 5 MB.

    Every text of the run is escaped: templates escape by default, and the charts arrive escaped.
    """
    drawn = {name: Markup(svg) for name, svg in charts(run).items()}  # noqa: S704 - SVG of our own making
    album = Album(run.folder, PICTURE_BUDGET)
    text = _render(run, judgement, drawn, album)
    excess = len(text.encode()) - PAGE_LIMIT
    return text if excess < 0 else _render(run, judgement, drawn, Album(run.folder, album.spent - excess - 1000))


def _render(run: Run, judgement: Judgement | None, drawn: dict[str, Markup], album: Album) -> str:
    parts, anchors = anchored(sections(run))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            record=run.record,
            findings=findings(run),
            sections=parts,
            judgement=judgement,
            overview=overview(judgement) if judgement else None,
            answers=answers(judgement, anchors) if judgement else [],
            anchors=anchors,
            charts=drawn,
            takeaway=dominance(run),
            not_passed=NOT_PASSED,
            sample_labels=_sample_labels(run),
            samples=_samples(run, album),
            maps=explanations.pictures(run, album),
            map_labels=[label for label in run.labels if label in set(run.table("maps")["backend"])],
            worst=_worst(run, album),
            hallucinated=_hallucinated(run, album),
            drawn=generation.pictures(run, album),
            album=album,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "figure": figure, "measured": measured}
    environment.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our file
    return environment


def figure(text: str) -> Markup:
    """A cell's text, escaped, that may break before its interval and not within it."""
    return Markup(re.sub(r" (\[[^\]]*\])$", r' <span class="interval">\1</span>', str(escape(text))))  # noqa: S704 - escaped


def moment(value: object) -> str:
    """An ISO 8601 time as a person writes it; any other text as it is, nothing as "unknown"."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(value or "unknown")


def _sample_labels(run: Run) -> list[str]:
    here = set(run.table("samples")["backend"])
    return [label for label in run.labels if label in here and label != "passthrough"]


def _samples(run: Run, album: Album) -> list[dict[str, Any]]:
    """One row per sample image: input, each backend's output, any target; rows past the budget are left out."""
    frame, labels, rows = run.table("samples"), _sample_labels(run), []
    for image, mine in frame.groupby("image", sort=False):
        by_label = {row["backend"]: row for _, row in mine.iterrows()}
        first = mine.iloc[0]
        paths = [first["input"], *(by_label[x]["output"] if x in by_label else "" for x in labels)]
        uris = album.uris(*paths, *([first["target"]] if run.reference else []))
        if uris is not None:
            alts = ["Input", *(f"Output of {x}" for x in labels), *(["Target"] if run.reference else [])]
            pictures = [Picture(uri, f"{alt}, image {image}") for uri, alt in zip(uris, alts, strict=True)]
            rows.append({"image": str(image), "groups": _group_text(first), "pictures": pictures})
    return rows


def _group_text(row: "pd.Series[Any]") -> str:
    names = attribute_columns(row.to_frame().T)
    return ", ".join(str(row[name]) for name in names if isinstance(row[name], str) and row[name])


def _worst(run: Run, album: Album) -> dict[str, list[Case]]:
    """Worst cases by backend; pictures are handed out by rank, so that the budget cuts the mildest first."""
    frame = run.table("worst")
    frame = frame[frame["rank"] <= WORST_SHOWN].sort_values("rank", kind="stable")
    cases: dict[str, list[Case]] = {label: [] for label in run.labels if label in set(frame["backend"])}
    for _, row in frame.iterrows():
        uris = album.uris(row["input"], row["output"], row["target"])
        if uris is not None and row["backend"] in cases:
            alts = ("Input", f"Output of {row['backend']}", "Target")
            pictures = [Picture(u, f"{a}, image {row['image']}") for u, a in zip(uris, alts, strict=True) if u]
            value = f"{run.title(row['metric'])} {significant(row['value'])}"
            cases[row["backend"]].append(Case(count(row["rank"]), str(row["image"]), value, _group_text(row), pictures))
    return {label: found for label, found in cases.items() if found}


def _hallucinated(run: Run, album: Album) -> dict[str, list[Case]]:
    """The outputs that show what is invented, by backend."""
    frame = run.table("hallucinated")
    cases: dict[str, list[Case]] = {label: [] for label in run.labels if label in set(frame["backend"])}
    for _, row in frame.iterrows():
        alts = {
            "input": "Input",
            "output": f"Output of {row['backend']}",
            "target": "Target",
            "hallucination": f"Hallucination of {row['backend']} in red",
            "uncertainty": f"Spread of the outputs of {row['backend']}",
        }
        uris = album.uris(*(row[name] for name in alts))
        if uris is not None and row["backend"] in cases:
            pictures = [Picture(u, f"{a}, image {row['image']}") for u, a in zip(uris, alts.values(), strict=True) if u]
            value = f"{run.title(row['metric'])} {significant(row['value'])}"
            cases[row["backend"]].append(Case(str(row["place"]), str(row["image"]), value, "", pictures))
    return {label: found for label, found in cases.items() if found}
