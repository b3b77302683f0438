"""Tables as CSV: what another made up does not become a formula."""

import io

import pandas as pd

from harness.spreadsheet import to_csv

HOSTILE = ["=HYPERLINK(A1)", "+1", "-1", "@SUM(A1)", "\t=1"]


def test_text_is_no_formula() -> None:
    """A label or a column's name that a spreadsheet would compute gets an apostrophe before it; other text stays."""
    text = to_csv(pd.DataFrame({"=label": [*HOSTILE, "sr3", None]}))
    read = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert list(read.columns) == ["'=label"]
    assert list(read["'=label"]) == [*(f"'{value}" for value in HOSTILE), "sr3", ""]


def test_numbers_stay_numbers() -> None:
    """Negative and missing numbers are written as they are, every digit kept."""
    frame = pd.DataFrame({"value": [-0.1, 1 / 3, float("nan")], "n": [-1, 2, 3]})
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(to_csv(frame))), frame, check_exact=True)
