"""The charts: legible without colour, safe with any name, absent where nothing was measured."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.charts import COLOURS, GREY, SHAPES, charts
from reports.load import load

Build = Callable[..., Path]


def contrast(colour: str) -> float:
    """The contrast ratio of a colour on white, by the definition of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@pytest.mark.parametrize("colour", [*COLOURS, GREY])
def test_colours_stand_out_on_white(colour: str) -> None:
    """Marks and their direct labels reach the contrast that text needs."""
    assert contrast(colour) >= 4.5


def test_colours_and_shapes_do_not_repeat_together() -> None:
    """Backends differ in colour or shape as far as 56 of them."""
    both = {(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(56)}
    assert len(both) == 56


def test_every_chart_is_well_formed(make_run: Build) -> None:
    """Every chart parses as XML and states its title first."""
    found = charts(load(make_run()))
    assert next(iter(found)) == "perception-distortion"
    assert {"noise-lpips_alex", "noise-psnr", "groups-race", "groups-race x gender"} <= set(found)
    assert {"robustness-lpips_alex", "robustness-psnr"} <= set(found)
    for svg in found.values():
        root = ET.fromstring(svg)  # noqa: S314 - our own drawing
        assert root.attrib["role"] == "img"
        assert root[0].tag.endswith("title")


def test_names_in_charts_stay_text(make_run: Build) -> None:
    """A backend named like markup is drawn with that name."""
    folder = make_run(edit=lambda about: about["backends"][3].update(label="<script>x</script>"))
    run = load(folder)
    for frame in run.tables.values():
        frame.replace("sr3", "<script>x</script>", inplace=True)
    svg = charts(run)["perception-distortion"]
    assert "<script" not in svg
    texts = [e.text for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]  # noqa: S314 - our own drawing
    assert "<script>x</script>" in texts


def test_small_groups_keep_their_place(make_run: Build) -> None:
    """A group too small to judge has its line in the chart, marked as insufficient and without a point."""
    assert "Middle Eastern (n = 12, insufficient)" in charts(load(make_run()))["groups-race"]


def test_unmeasured_charts_are_absent(make_run: Build) -> None:
    """Without its table a chart is left out."""
    found = charts(load(make_run(changed=dict.fromkeys(("noise", "groups", "summary", "corruptions", "best_of")))))
    assert found == {}


def test_numbers_of_outputs_are_each_marked_once(make_run: Build) -> None:
    """The best of one and of two has these two marks, not one between them that rounds to a third."""
    run = load(make_run())
    few = run.tables["best_of"]
    run.tables["best_of"] = few[few["k"] <= 2]
    texts = [e.text for e in ET.fromstring(charts(run)["best-of"]).iter() if e.tag.endswith("text")]  # noqa: S314 - our own drawing
    assert (texts.count("1"), texts.count("2")) == (1, 1)
