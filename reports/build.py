"""Writes the reports of a run folder: report.html, report.md, report.json, and a CSV beside each stored table."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import StoreError, one_line
from reports import html, markdown
from reports.findings import NOT_PASSED, findings
from reports.load import Run, load

SCHEMA = 1


def build(run: Path) -> list[Path]:
    """Writes every report of the run folder, and returns the files written.

    A table that is missing, empty or unreadable is reported as not measured, with the reason.

    Raises:
        StoreError: run.json is missing or is no JSON object, or the folder cannot be written.
    """
    found = load(run)
    texts = {"report.html": html.page(found), "report.md": markdown.text(found), "report.json": data(found)}
    try:
        written = [_write(run / name, text) for name, text in texts.items()]
        return written + [csv for path in sorted((run / "tables").glob("*.parquet")) if (csv := _csv(path))]
    except OSError as error:
        raise StoreError(f"{run}: the report cannot be written: {one_line(str(error), 120)}") from error


def data(run: Run) -> str:
    """The report as JSON: the record, the findings and every table; NaN is null, infinity the text "inf"."""
    report = {
        "schema": SCHEMA,
        "record": run.record,
        "findings": [{"topic": f.topic, "text": f.text, "warning": f.warning} for f in findings(run)],
        "tables": {name: frame.to_dict("records") for name, frame in run.tables.items()},
        "not_measured": run.missing,
        "note": NOT_PASSED,
    }
    return json.dumps(_plain(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:  # noqa: ANN401 - any table cell in, a JSON value out
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return _plain_number(value)
    return _plain(value.item()) if hasattr(value, "item") else None if pd.isna(value) else str(value)


def _plain_number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}inf"


def _csv(path: Path) -> Path | None:
    """The table as CSV, every digit kept; None when it cannot be read, which the report says already."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):
        return None
    return _write(path.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))


def _write(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path
