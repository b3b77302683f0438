"""The section on explanations: verdicts as sentences first, pictures side by side, small."""

from collections.abc import Callable
from pathlib import Path

from reports.build import build
from reports.explanations import section
from reports.load import load

Build = Callable[..., Path]


def test_verdicts_come_first_as_sentences(make_run: Build) -> None:
    """What is not faithful and what was not run is said before any figure, and stands in the table as well."""
    found = section(load(make_run()))
    assert found.lead[:3] == [
        "Not faithful: LAM of bicubic and sr3.",
        "Faithful: CEM of bicubic, realesrgan and sr3.",
        "Not run: no Gradient: LAM of realesrgan.",
    ]
    verdicts = [(row[0].text, row[1].text, row[-1].text) for row in found.tables[0].rows]
    assert ("sr3", "LAM", "not faithful") in verdicts
    assert ("realesrgan", "LAM", "not run: no Gradient") in verdicts


def test_maps_stand_side_by_side(make_run: Build) -> None:
    """Each shown image has one row a map with every backend's picture, each with its text."""
    folder = make_run()
    build(folder)
    page = (folder / "report.html").read_text()
    assert all(
        page.count(f'alt="CEM of {label}, image face_000{i}"') == 1 for label in ("bicubic", "sr3") for i in (0, 1)
    )


def test_small_groups_have_no_index(make_run: Build) -> None:
    """A group too small to judge says so in the place of its diffusion index."""
    rows = section(load(make_run())).tables[1].rows
    assert [cell.text for cell in rows[0]] == ["all", "4.2 [3.7, 4.7]", "21.5 [21.0, 22.0]"]
    assert [cell.text for cell in rows[1]] == ["Black", "insufficient", "insufficient"]
