"""The section on chains."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from reports.load import load
from reports.stages import section

Build = Callable[..., Path]
SCORED = "is scored against the ground truth"


def test_a_chain_is_told_stage_by_stage(make_run: Build) -> None:
    """The slowest stage is named, sizes and shares are there, and what was not scored says so."""
    found = section(load(make_run()))
    assert found.lead[0] == "sr3 is a chain: step-1 (× 2); step-2 (× 2). step-2 takes 80 % of the time."
    first, second = ([cell.text for cell in row] for row in found.tables[0].rows)
    assert first[1:4] == ["1 step-1", "32", "8"]
    assert second[2] == "64"
    assert second[-1] == "not measured"
    assert any(SCORED in text for text in found.lead)


def test_stages_without_scores_are_not_said_to_have_any(make_run: Build) -> None:
    """Of a chain that generates no output is scored against a ground truth, and nothing says so."""
    folder = make_run()
    path = folder / "tables/stages.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame["stage"] == 1, ["psnr", "lpips"]] = float("nan")
    frame.to_parquet(path)
    assert not any(SCORED in text for text in section(load(folder)).lead)
