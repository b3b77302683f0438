"""The page of models and the list of backends: true to the cards and to what the backends say of themselves."""

import os
from pathlib import Path

import pytest

from backends.registry import ENTRIES
from backends.training.zoo import PAGE, page

ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[2]))
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
    assert cells == ["[tiny](../backends/weights/tiny.md)", "12", "–", "–", "free", "–", "–", "–", "0.4", "–"]


@pytest.mark.parametrize("name", ["nearest", "bicubic", "lanczos", "sr3", "faulty"])
def test_the_list_says_what_the_backend_says(name: str) -> None:
    """Family and licence of `harness backends list` are those of the backend's own description."""
    description = ENTRIES[name].load()().description
    assert ENTRIES[name].family == description.family
    assert ENTRIES[name].licence in description.licence
