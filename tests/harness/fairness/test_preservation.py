"""Preservation: what is kept, and lost beyond the instrument's own noise, from rows that the audit has stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.fairness.preservation import preservation_rows
from harness.fairness.readings import describe_measures
from harness.scores import Scores
from harness.store import RunFolder

N = 100
INSTRUMENTS = {
    "attributes": {"recipe": "r", "labels": {"race": ["a", "b"], "age": ["0-9"]}, "missing": ""},
    "identity": {"recipe": "r", "labels": {}, "missing": ""},
}


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """The control flips 2 images of 100, the GAN 12 of the other 98; ages differ by 1 and by 5 years either way."""
    flips = np.r_[np.ones(2), np.zeros(N - 2)], np.r_[[np.nan] * 2, np.ones(12), np.zeros(N - 14)]
    figures = {
        "race_flip_attributes": flips,
        "age_shift_attributes": (np.ones(N), np.tile([5.0, -5.0], N // 2)),
        "identity_similarity": (np.full(N, 0.98), np.full(N, 0.7)),
    }
    who = {"options": "{}", "digest": "d", "condition": "clean"}
    rows = [
        who | {"backend": label, "metric": metric, "image": f"i{i}", "value": value}
        for metric, columns in figures.items()
        for label, values in zip(("passthrough", "gan"), columns, strict=True)
        for i, value in enumerate(values)
    ]
    folder = RunFolder(tmp_path)
    backends: list[dict[str, Any]] = [
        {"label": b, "options": {}, "digest": "d", "device": "", "precision": ""} for b in ("passthrough", "gan")
    ]
    record = {"schema": 1, "suite": {"content": {}}, "dataset": {}, "metrics": {}, "backends": backends}
    folder.write_record(record | {"measures": describe_measures(INSTRUMENTS)})
    folder.write_table("images", pd.DataFrame({"image": [f"i{i}" for i in range(N)], "seed": range(N), "error": ""}))
    folder.append(rows)
    return pd.DataFrame(preservation_rows(Scores.of(folder)))


def only(frame: pd.DataFrame, **wanted: str) -> "pd.Series[Any]":
    """The one row that has these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_what_is_kept_is_told_with_its_interval(table: pd.DataFrame) -> None:
    """Agreement is the share without a flip among those read, ages differ by years either way, and nothing else."""
    assert list(table["measure"].unique()) == ["race_agreement", "age_distance", "identity_similarity"]
    race = only(table, backend="gan", measure="race_agreement")
    assert (race["n"], race["value"]) == (98, pytest.approx(86 / 98))
    assert race["low"] < race["value"] < race["high"] < 1
    assert only(table, backend="gan", measure="age_distance")["value"] == 5


def test_what_is_lost_goes_beyond_the_control_on_the_same_images(table: pd.DataFrame) -> None:
    """The control's own flips are taken out image by image; more years and less similarity are losses both."""
    race = only(table, backend="gan", measure="race_agreement")
    assert race["control"] == 1  # its two flips are of the images that the GAN lacks
    assert table.loc[table["backend"] == "gan", "loss"].tolist() == pytest.approx([12 / 98, 4, 0.28])
    assert (table.loc[table["backend"] == "passthrough", "loss"] == 0).all()
