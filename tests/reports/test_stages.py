"""The section on chains."""

from collections.abc import Callable
from pathlib import Path

from reports.load import load
from reports.stages import section

Build = Callable[..., Path]


def test_a_chain_is_told_stage_by_stage(make_run: Build) -> None:
    """The slowest stage is named, sizes and shares are there, and what was not scored says so."""
    found = section(load(make_run()))
    assert found.lead[0] == "sr3 is a chain: step-1 (× 2); step-2 (× 2). step-2 takes 80 % of the time."
    first, second = ([cell.text for cell in row] for row in found.tables[0].rows)
    assert first[1:4] == ["1 step-1", "32", "8"]
    assert second[2] == "64"
    assert second[-1] == "not measured"
