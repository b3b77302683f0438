"""The tables of the README: what they show of a run."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.readme import flips, generated, main


def row(measure: str, value: float, **about: object) -> dict[str, Any]:
    """A row of the table `generated`, or of `generators`."""
    ends = {"low": value - 0.01, "high": value + 0.01}
    known = {"class": "all", "network": "attributes", "against": "test", "n": 200, "status": "ok", "verdict": "tie"}
    return known | {"measure": measure, "value": value, "difference": value} | ends | about


def test_generators_have_a_line_each_and_one_for_each_class_and_pair() -> None:
    """KID stands by network, other measures by the first alone; what is insufficient has no line."""
    nothing = dict.fromkeys(("value", "low", "high", "difference"), math.nan)
    sets = [
        line
        for backend in ("real images", "cdm")
        for line in (
            row("kid", 0.02, backend=backend),
            row("kid", 0.5, backend=backend, network="alexnet"),
            row("recall", 0.4, backend=backend),
            row("recall", 0.9, backend=backend, network="alexnet"),
            row("fid", 30.0, backend=backend),
            row("kid", 0.7, backend=backend, against="training"),
            row("lpips", 0.3, backend=backend, network="", against="", n=500),
            row("seconds", 0.5, backend=backend, network="", against="", n=5000, low=math.nan, high=math.nan),
            row("kid", 0.03, backend=backend, **{"class": "white male"}, n=100),
            row("kid", 0.0, backend=backend, **{"class": "other male"}, status="insufficient", n=9) | nothing,
        )
    ]
    accuracy = row("", 0.6, backend="cdm", real=0.8, real_low=0.79, real_high=0.81, verdict="worse")
    kinds = [accuracy, accuracy | {"class": "white male"}, accuracy | {"class": "race = white"}]
    pair = {"first": "cdm", "second": "biggan"}
    pairs = [row("kid", -0.01, **pair), row("accuracy", 0.1, network="", **pair)]
    few = row("kid", 0.0, **pair, **{"class": "other male"}) | nothing | {"verdict": "insufficient"}
    tables = {"generated": sets, "classification": kinds, "generators": [*pairs, few]}
    lines = generated({name: pd.DataFrame(rows) for name, rows in tables.items()}).splitlines()
    kid, cas = "20 [10, 30] | 0.5 [0.49, 0.51]", "0.6 [0.59, 0.61]"
    assert f"| cdm | 200 | {kid} | 0.4 [0.39, 0.41] | 0.3 [0.29, 0.31] | {cas} | 500 |" in lines
    assert f"| real images | 200 | {kid} | 0.4 [0.39, 0.41] | 0.3 [0.29, 0.31] | 0.8 [0.79, 0.81] | 500 |" in lines
    assert f"| white male | cdm | 100 | 30 [20, 40] | {cas} |" in lines
    assert "| all | cdm | biggan | 200 | -10 [-20, 0] | 0.1 [0.09, 0.11] |" in lines
    assert not [line for line in lines if "other male" in line or "race = white" in line]


def test_without_a_class_of_enough_images_there_is_no_table_of_classes() -> None:
    """Where all classes are insufficient, only the table of all of them together is left."""
    few = row("kid", math.nan, backend="cdm", **{"class": "white male"}, status="insufficient", n=9)
    accuracy = pd.DataFrame([row("", 0.6, backend="cdm", real=0.8, real_low=0.7, real_high=0.9)])[:0]
    pairs = pd.DataFrame([row("kid", 0.0, first="cdm", second="biggan")])[:0]
    sets = pd.DataFrame([row("kid", 0.02, backend="cdm"), few])
    text = generated({"generated": sets, "classification": accuracy, "generators": pairs})
    assert len(text.splitlines()) == 3
    assert "class" not in text


def test_flips_are_those_of_races_by_the_first_instrument() -> None:
    """Groups of two attributes, other attributes and other instruments have no line."""
    rate = {"backend": "sr3", "instrument": "attributes", "attribute": "race", "group": "white", "excess_n": 9}
    rate |= {"excess": 0.204, "excess_low": 0.1, "excess_high": 0.3}
    others = ({"group": "white x male"}, {"attribute": "gender", "group": "male"}, {"instrument": "other"})
    rows = [rate, rate | {"backend": "srgan", "excess": 0.05}, *(rate | {"excess": 0.9} | other for other in others)]
    lines = flips(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| group | n | sr3 | srgan |"
    assert lines[2:] == ["| white | 9 | 20 [10, 30] | 5 [10, 30] |"]


def test_a_run_of_an_older_version_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that the run does not have is named."""
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"backend": ["sr3"]}).to_parquet(tmp_path / "tables/summary.parquet")
    monkeypatch.setattr("sys.argv", ["readme", str(tmp_path)])
    assert main() == 2
    error = capsys.readouterr().err
    assert "has no table excess_flips" in error
    assert error.count("\n") == 1
