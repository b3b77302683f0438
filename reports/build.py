"""Writes the reports of a run folder: report.html, report.md, report.json, and a CSV beside each stored table.

A verdict opens them, and adds `documents/`: a model card of each judged backend, and the test log.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import StoreError, one_line
from harness.judge import Judgement
from harness.spreadsheet import to_csv
from harness.store import slug
from reports import card, html, log, markdown, verdict
from reports.findings import NOT_PASSED, findings
from reports.load import Run, load

SCHEMA = 1


def build(run: Path, judgement: Judgement | None = None) -> list[Path]:
    """Writes every report of the run folder, and returns the files written.

    With a judgement the reports open with it, and `documents/` holds a model card for each judged backend and the log.

    A table that is missing, empty or unreadable is reported as not measured, with the reason.

    Raises:
        StoreError: run.json is missing or is no JSON object, or the folder cannot be written.
    """
    found = load(run)
    texts = {"report.html": html.page, "report.md": markdown.text, "report.json": data}
    try:
        written = [_write(run / name, make(found, judgement)) for name, make in texts.items()]
        written += [csv for path in sorted((run / "tables").glob("*.parquet")) if (csv := _csv(path))]
        return written + (documents(found, judgement) if judgement else [])
    except OSError as error:
        raise StoreError(f"{run}: the report cannot be written: {one_line(str(error), 120)}") from error


def documents(run: Run, judgement: Judgement) -> list[Path]:
    """Writes the model cards, then the test log, which holds their hashes."""
    folder = run.folder / "documents"
    folder.mkdir(exist_ok=True)
    cards = [_write(folder / _card_name(v.label), card.text(run, v)) for v in judgement.verdicts]
    content = log.content(run, judgement, [path.relative_to(run.folder) for path in cards])
    whole = _json(content)
    signed = log.text(run, judgement, content, whole)
    return [*cards, _write(run.folder / log.JSON, whole), _write(run.folder / log.MARKDOWN, signed)]


def _card_name(label: str) -> str:
    """A file name for any label: the label itself where it is one."""
    return f"model-card-{label if re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{0,39}', label) else slug(label)}.md"


def data(run: Run, judgement: Judgement | None = None) -> str:
    """The report as JSON: record, verdicts, findings and every table; NaN is null, infinity the text "inf"."""
    report = {
        "schema": SCHEMA,
        "verdict": verdict.content(run.record, judgement) if judgement else None,
        "record": run.record,
        "findings": [{"topic": f.topic, "text": f.text, "warning": f.warning} for f in findings(run)],
        "tables": {name: frame.to_dict("records") for name, frame in run.tables.items()},
        "not_measured": run.missing,
        "note": NOT_PASSED,
    }
    return _json(report)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(_plain(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


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
    """The table as CSV; None when it cannot be read, which the report says already."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):
        return None
    return _write(path.with_suffix(".csv"), to_csv(frame))


def _write(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path
