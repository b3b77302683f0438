"""The page of all models: `python -m backends.training.zoo` writes docs/models.md from the model cards."""

import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = (Path("backends/weights"), Path("harness/data"))
PAGE = Path("docs/models.md")
COLUMNS = ("parameters", "operations", "data", "licence", "images seen", "time", "energy (estimate)")
"""Rows of a card's table "Training" that the page shows."""
FIGURES = ("lpips alex", "kid alexnet")
"""Columns of a card's learning curve whose last values the page shows."""
HEAD = """\
# Models

What this project trained itself, from the model cards: `python -m backends.training.zoo` writes this page. Figures of
quality are those of the training's own validation, at its end; the cards have the test figures with intervals.
"""


def page(root: Path) -> str:
    """The page's text for the cards under a checkout's root."""
    cards = sorted((card for folder in FOLDERS for card in (root / folder).glob("*.md")), key=lambda card: card.name)
    heading = ("model", *COLUMNS, *FIGURES)
    rows = [_row(card, card.relative_to(root)) for card in cards if card.with_suffix(".safetensors").exists()]
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _row(card: Path, path: Path) -> list[str]:
    tables = list(_tables(card.read_text(encoding="utf-8").partition("## Training\n")[2]))
    facts = {row[0]: row[1] for row in tables[0]}
    curve = tables[1]
    last = dict(zip(curve[0], curve[-1], strict=True))
    return [
        f"[{card.stem}](../{path.as_posix()})",
        *(facts.get(name, "–") for name in COLUMNS),
        *(last.get(name, "–") for name in FIGURES),
    ]


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
    PAGE.write_text(page(Path()), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
