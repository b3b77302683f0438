"""The page of all models: `python -m backends.training.zoo` writes docs/models.md from the model cards."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDERS = (Path("backends/weights"), Path("harness/data"))
PAGE = Path("docs/models.md")
COLUMNS = ("parameters", "operations", "data", "licence", "images seen", "computation", "time", "energy (estimate)")
"""Rows of a card's table "Training" that the page shows."""
FIGURES = ("lpips alex", "kid alexnet")
"""Columns of a card's learning curve whose last values the page shows."""
MARKS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""PFLOP of training at which the page compares the learning curves; hours would compare machines as well."""
SIZES = ((16, 64), (16, 128), (64, 128))
"""Sides of inputs and outputs of the models whose curves the page compares."""
HEAD = """\
# Models

What this project trained itself, from the model cards: `python -m backends.training.zoo` writes this page. Figures of
quality are those of the training's own validation, at its end; they compare between models of one task. From 16 to 64
pixels they are of one set of 256 faces of all ages, in the order of UTKFace's file, so that they compare; a training
that is started now draws 256 by chance, on which LPIPS of the same weights is a little lower. Those of the other
upscalers are of 256 faces nearly all under 29 years. The cards have the test figures with intervals.
"""

CURVES = """\

## From {low} to {high} pixels with less computation?

LPIPS (AlexNet) and KID (AlexNet) of the training's validation faces, enlarged from {low} to {high} pixels, after so
many operations (PFLOP, 10^15; `python -m backends.training.operations`): the last figures that the training had written
by then; SR3 in eight steps. A training that begins with another model's weights, or learns from its samples as
sr3-fast-16-64 does, counts its own steps only; the other's training and the drawing of its samples come before.

"""


def page(root: Path) -> str:
    """The page's text for the cards under a checkout's root."""
    cards = sorted((card for folder in FOLDERS for card in (root / folder).glob("*.md")), key=lambda card: card.name)
    cards = [card for card in cards if card.with_suffix(".safetensors").exists()]
    parts = [HEAD + "\n" + _table([("model", *COLUMNS, *FIGURES), *(_row(card, root) for card in cards)])]
    for low, high in SIZES:
        same = [card for card in cards if card.stem.endswith(f"-{low}-{high}")]
        curves = {name: curve for card in same for name, curve in _curves(card)}
        if curves:
            parts += [CURVES.format(low=low, high=high), _table([("PFLOP", *curves), *_by_computation(curves)])]
    return "".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def _row(card: Path, root: Path) -> list[str]:
    facts, curve = _training(card)
    last = dict(zip(curve[0], curve[-1], strict=True))
    return [
        f"[{card.stem}](../{card.relative_to(root).as_posix()})",
        *(dict(facts).get(name, "–") for name in COLUMNS),
        *(last.get(name, "–") for name in FIGURES),
    ]


def _training(card: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The tables of a card's section "Training": facts, and the learning curve."""
    facts, curve, *_ = _tables(card.read_text(encoding="utf-8").partition("## Training\n")[2])
    return facts, curve


def _curves(card: Path) -> Iterator[tuple[str, dict[float, str]]]:
    """Name, and PFLOP -> LPIPS and KID, of each training on a card that has both and says what a step computes."""
    facts = dict(_training(card)[0])
    if "computation" not in facts:
        return
    again = card.read_text(encoding="utf-8").partition("## Trained again\n")[2].partition("## ")[0]
    tables = [(card.stem, _training(card)[1]), *((f"{card.stem}, again", table) for table in _tables(again))]
    for name, (heading, *rows) in tables:
        if {"images seen", *FIGURES} <= set(heading):
            points = [dict(zip(heading, row, strict=True)) for row in rows]
            yield name, {_spent(facts, p["images seen"]): " / ".join(p[figure] for figure in FIGURES) for p in points}


def _spent(facts: dict[str, str], images: str) -> float:
    """PFLOP that a training has spent when it has seen so many images, phase by phase."""
    left, spent = _count(images) / _count(facts["images seen"].split()[-1]), 0.0
    for steps, each in re.findall(r"([\d,]+) steps of (\S+) TFLOP", facts["computation"]):
        spent += min(left, _count(steps)) * float(each) / 1000
        left = max(0.0, left - _count(steps))
    return spent


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _by_computation(curves: dict[str, dict[float, str]]) -> Iterator[list[str]]:
    for mark in MARKS:
        before = [[text for at, text in curve.items() if at <= mark] for curve in curves.values()]
        yield [f"{mark:g}", *(texts[-1] if texts else "–" for texts in before)]


def _tables(text: str) -> Iterator[list[list[str]]]:
    """The cells of each Markdown table, line by line, without the line of dashes."""
    table: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif table:
            yield [row for row in table if set("".join(row)) != {"-"}]
            table = []


def main() -> int:
    """Write the page; returns the exit status."""
    if len(sys.argv) > 1:
        print("usage: python -m backends.training.zoo", file=sys.stderr)
        return 2
    PAGE.write_text(page(Path()), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
