"""Stored tables as documents print them: a column each, intervals beside their figures; and what they are about."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.audit import FAIRNESS
from harness.policy import TABLES, interval_of
from reports.load import Run
from reports.numbers import NOTHING
from reports.parts import Cell, Column, Table

ACCURACY = ("summary", "differences", "diversity", "best_of", "sets")
COST = ("speed", "scenarios", "untimed")
WHOLE = ("uncertainty", "diffusion_index")
"""Tables that have groups, and first of all a row for everybody."""
IMPACT = tuple(n for n, columns in TABLES.items() if n not in WHOLE and (n in FAIRNESS or "attribute" in columns))
"""What differs between groups of people."""
PICTURES = tuple(name for name, columns in TABLES.items() if "output" in columns)
OTHER = tuple(name for name in TABLES if name not in (*ACCURACY, *COST, *IMPACT, *PICTURES))
"""How outputs stand noise, attacks and the like, what they invent, and what failed."""


def stored(name: str, frame: pd.DataFrame) -> Table:
    """Rows of a table of a run, `frame`, under its own column names; one backend's are not named each time."""
    frame = frame.drop(columns="backend") if len(set(frame["backend"])) == 1 else frame
    intervals = {column: found for column in frame if (found := _interval(name, column))}
    taken = {bound for pair in intervals.values() for bound in pair}
    shown = [str(column) for column in frame if column not in taken]
    rows = [[Cell(_cell(row, column, intervals.get(column))) for column in shown] for _, row in frame.iterrows()]
    columns = [Column(column, "95 % interval" if column in intervals else "", wide=True) for column in shown]
    return Table(f"{name}, from tables/{name}.csv", columns, rows, name)


def of_backends(run: Run, names: Sequence[str], labels: Sequence[str]) -> Iterator[Table]:
    """The tables that have rows of these backends, only those rows."""
    for name in names:
        frame = run.table(name)
        frame = frame[frame["backend"].isin(labels)]
        if len(frame):
            yield stored(name, frame)


def _interval(name: str, column: Any) -> tuple[str, str] | None:  # noqa: ANN401 - a column of any frame
    return interval_of(name, column) if column in TABLES[name] else None


def _cell(row: "pd.Series[Any]", column: str, bounds: tuple[str, str] | None) -> str:
    text = value(row[column])
    if bounds is None or text == NOTHING:
        return text
    low, high = (value(row[bound]) for bound in bounds)
    return text if NOTHING in (low, high) else f"{text} [{low}, {high}]"


def value(cell: Any) -> str:  # noqa: ANN401 - any cell of a table
    """A stored value in words; numbers to four digits, NaN and nothing as a dash."""
    if isinstance(cell, str):
        return cell or NOTHING
    if not isinstance(cell, bool) and isinstance(cell, float) and math.isnan(cell):
        return NOTHING
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def options(about: dict[str, Any]) -> str:
    """The options of a backend's entry in the run record."""
    return ", ".join(f"{name} = {value}" for name, value in (about.get("options") or {}).items()) or "none given"
