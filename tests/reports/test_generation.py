"""The report of a generation suite: faults first, in sentences; figures with intervals; pictures of each class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.audit import GENERATION
from reports import markdown
from reports.build import build
from reports.findings import findings
from reports.load import load
from reports.sections import sections

Build = Callable[..., Path]


@pytest.fixture
def generated(make_run: Build) -> Path:
    """A run folder of a generation suite."""

    def edit(about: dict[str, Any]) -> None:
        about["suite"]["content"] = {"generation": {"samples": 200}}
        about["generation"] = {"networks": {"attributes": "MobileNetV2"}, "pairs": "pairs", "classifier": "small"}

    return make_run(edit=edit)


def test_faults_are_told_in_sentences(generated: Path) -> None:
    """What is found is a warning in short and a sentence with its evidence; what is too small to judge is no pass."""
    run = load(generated)
    told = {(f.topic, f.warning): f.text for f in findings(run)}
    assert "sr3, the same few images again and again: all; what shows the collapse." in told["Mode collapse", True]
    assert "race = asian; what shows the dropping" in told["Mode dropping", True]
    assert "sr3 0.900 [0.810, 0.990]" in told["Precision", False]
    lead = next(section for section in sections(run) if section.name == "generation").lead
    text = " ".join(lead)
    assert "sr3. Collapsed: the same few images come again and again, in all classes together: what" in text
    assert "sr3. Dropped: asked for but not made, race = asian" in text
    assert "sr3: not judged for dropping, since" in text
    assert "even in real photos: other male." in text


def test_the_page_shows_figures_chart_and_pictures(generated: Path) -> None:
    """Classes that are too small say so, names of classes are escaped, and nothing of upscaling is there."""
    build(generated)
    page = (generated / "report.html").read_text()
    assert 'aria-labelledby="generation-title"' in page
    assert "Precision against recall of each generator</title>" in page
    assert page.count('alt="white male, sr3, ') == 2
    assert "insufficient<small>n = 40" in page
    assert "&lt;b&gt;white male&lt;/b&gt;" in page
    assert "<b>white male</b>" not in page
    assert "comparison-title" not in page
    text = (generated / "report.md").read_text()
    assert "| sr3 − realesrgan | all | 900 | −4.00 [−6.00, −2.00] (better) | 0.200 [0.198, 0.202] (better)" in text
    assert "| sr3 − realesrgan | black male | 40 | insufficient" in text
    assert " | 250 ms | 8 |" in text
    assert "male&lt;/b&gt; | sr3 | 900 | 10.0 [9.00, 11.0] | 5.00 [4.50, 5.50] | 30.0 [27.0, 33.0] | 20.0" in text
    assert "at most 200. The rest of the training split is not searched" in text
    assert "| sr3 | all | 900 | 40.0 [37.0, 43.0] | 60.0 [57.0, 63.0] | -20.0" in text.replace("−", "-")


@pytest.mark.parametrize("name", GENERATION)
def test_a_missing_table_is_named(generated: Path, name: str) -> None:
    """Each table of generators can be missing: the report is still written and names it as not measured."""
    (generated / f"tables/{name}.parquet").unlink()
    text = markdown.text(load(generated))
    assert f"{name}.parquet is missing" in text
    assert "Not measured is not passed." in text
