"""Tables as CSV files that a spreadsheet may open: text of others stays text there."""

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""


def to_csv(frame: pd.DataFrame) -> str:
    """The table as CSV, every digit kept; an apostrophe stands before text that would be read as a formula."""
    text = frame.select_dtypes(include=["object", "string", "category"]).columns
    shown = frame.assign(**{name: frame[name].astype(object).map(_text) for name in text})
    return shown.rename(columns=_text).to_csv(index=False, lineterminator="\n")


def _text(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
