"""The page of models and the list of backends: true to the cards and to what the backends say of themselves."""

import os
from pathlib import Path

import pytest

from backends.registry import ENTRIES
from backends.training.zoo import FOLDERS, PAGE, page

ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[2]))
ELSEWHERE = ("realesrgan", "replay", "spandrel", "diffusers", "sr3-checkpoint", "onnx")
"""Backends whose weights are not in this repository."""
CARD = """\
# tiny: a model

## Training

| | |
| --- | --- |
| parameters | 12 |
| licence | free |

| images seen | hours | lpips alex |
| --- | --- | --- |
| 10 | 0.1 | 0.5 |
| 20 | 0.2 | 0.4 |
"""


def test_the_page_of_models_is_up_to_date() -> None:
    """docs/models.md is what `python -m backends.training.zoo` writes."""
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(ROOT)


def test_a_model_shows_its_facts_and_the_end_of_its_curve(tmp_path: Path) -> None:
    """What a card does not say is a dash, and a card without weights is of no model."""
    folder = tmp_path / "backends" / "weights"
    folder.mkdir(parents=True)
    for name in ("tiny", "other"):
        (folder / f"{name}.md").write_text(CARD)
    (folder / "tiny.safetensors").touch()
    (row,) = [line for line in page(tmp_path).splitlines() if line.startswith("| [")]
    cells = row.strip("| ").split(" | ")
    assert cells == ["[tiny](../backends/weights/tiny.md)", "12", "–", "–", "free", "–", "–", "–", "–", "0.4", "–"]


def test_curves_are_compared_at_the_same_computation(tmp_path: Path) -> None:
    """A model shows what it had reached by then, its last figures once it has ended, and a dash before its first.

    Its phases may cost differently. A stage that begins with larger inputs has another task and another table; a model
    without such figures has those of its second training.
    """
    folder = tmp_path / "backends" / "weights"
    folder.mkdir(parents=True)
    curve = "| images seen | lpips alex | kid alexnet |\n| --- | --- | --- |\n| 400 | 0.5 | 9 |\n| 4,400 | 0.4 | 8 |\n"
    computation = "0.45 PFLOP: 100 steps of 1 TFLOP, 1,000 steps of 0.35 TFLOP"
    facts = f"| images seen | 4,400 in 1,100 steps of 4 |\n| computation | {computation} |\n"
    counted = CARD.replace("| licence", f"{facts}| licence")
    cards = {name: counted.partition("| images seen | hours")[0] + curve for name in ("tiny-16-64", "stage-32-64")}
    for name, card in (cards | {"old-16-64": f"{counted}\n## Trained again\n\n{curve}\n## Measured\n"}).items():
        (folder / f"{name}.md").write_text(card)
        (folder / f"{name}.safetensors").touch()
    text = page(tmp_path)
    assert "| PFLOP | old-16-64, again | tiny-16-64 |" in text
    assert [line for line in text.splitlines() if line.startswith(("| 0.05 ", "| 0.4 ", "| 0.6 "))] == [
        "| 0.05 | – | – |",
        "| 0.4 | 0.5 / 9 | 0.5 / 9 |",
        "| 0.6 | 0.4 / 8 | 0.4 / 8 |",
    ]


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in ELSEWHERE])
def test_the_list_says_what_the_backend_says(name: str) -> None:
    """Family and licence of `harness backends list` are those of the backend's own description."""
    description = ENTRIES[name].load()().description
    assert ENTRIES[name].family == description.family
    assert ENTRIES[name].licence in description.licence


def test_shipped_networks_are_small() -> None:
    """Each is at most 14 MB, all of them together at most 100 MB."""
    sizes = {path.name: path.stat().st_size for folder in FOLDERS for path in (ROOT / folder).glob("*.safetensors")}
    assert max(sizes.values()) <= 14_000_000
    assert sum(sizes.values()) <= 100_000_000
