"""What sections are made of: tables of cells, and the words and formats that they share.

Texts here are not escaped; whoever writes them out escapes them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from reports.findings import NOT_PASSED
from reports.load import Run
from reports.numbers import NOTHING, Format, count, fit, p_value

ROW_LIMIT = 120
BETTER = {True: "higher is better", False: "lower is better", None: "more is not better"}


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller second line, and kinds ("number", "muted", "strong", "control", "code").

    The kind "badge" goes with the status of a gate. `link` is the identifier of the table that the text leads to.
    """

    text: str
    sub: str = ""
    kind: str = ""
    link: str = ""


@dataclass(frozen=True)
class Column:
    """One column's header with its smaller second line; `wide` columns hold text."""

    title: str
    sub: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first cell of each row is the row's header.

    `chart` names the chart that shows the same figures, `source` the stored table that has all rows; `ident`
    is the table's identifier in the page, where something leads to it.
    """

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    source: str = ""
    chart: str = ""
    folded: bool = False
    ident: str = ""

    @property
    def shown(self) -> list[list[Cell]]:
        """The rows that are printed."""
        return self.rows[:ROW_LIMIT]

    @property
    def left_out(self) -> str:
        """A sentence on the rows that are not printed, or nothing."""
        more = len(self.rows) - len(self.shown)
        return f"{count(more)} more rows are in tables/{self.source}.csv." if more else ""


@dataclass(frozen=True)
class Section:
    """One numbered section."""

    name: str
    title: str
    lead: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


Field = tuple[Column, Callable[["pd.Series[Any]"], Cell]]
"""A column of a listing, and what makes its cell from a row of the stored table."""


def listing(caption: str, frame: pd.DataFrame, fields: Sequence[Field], source: str, *, folded: bool = False) -> Table:
    """A table with a line for each row of a frame."""
    rows = [[cell(row) for _, cell in fields] for _, row in frame.iterrows()]
    return Table(caption, [column for column, _ in fields], rows, source, folded=folded)


def backend_field(run: Run) -> Field:
    """The backend of a row."""
    return Column("Backend"), lambda row: short_label(run, row["backend"])


def text_field(title: str, key: str, sub: str = "") -> Field:
    """A stored text; that under `sub` stands below it, unless it is the same."""
    return Column(title, wide=True), lambda row: Cell(str(row[key]), _below(row, key, sub))


def _below(row: "pd.Series[Any]", key: str, sub: str) -> str:
    return str(row[sub]) if sub and row[sub] != row[key] else ""


def count_field(title: str, key: str, sub: str = "") -> Field:
    """A whole number."""
    return Column(title, sub), lambda row: number_cell(count(row[key]))


def p_field(sub: str, key: str = "p_value") -> Field:
    """A p-value; `sub` says how it was adjusted, or of what it is."""
    return Column("p", sub), lambda row: number_cell(p_value(row[key]))


def figure_field(title: str, write: Callable[["pd.Series[Any]"], str], sub: str = "") -> Field:
    """A figure as `write` puts it."""
    return Column(title, sub), lambda row: number_cell(write(row))


@dataclass(frozen=True)
class Anchor:
    """Where a page shows a stored table: the identifier of the first that does, and the section in words."""

    ident: str
    title: str


def anchored(sections: Sequence[Section]) -> tuple[list[Section], dict[str, Anchor]]:
    """Numbered sections in which the first table of each stored one has an identifier, and these by stored table."""
    anchors: dict[str, Anchor] = {}
    marked = []
    for number, section in enumerate(sections, 1):
        tables = []
        for table in section.tables:
            new = table.source and table.source not in anchors
            if new:
                anchors[table.source] = Anchor(f"table-{table.source}", f"{number} {section.title}")
            tables.append(replace(table, ident=anchors[table.source].ident) if new else table)
        marked.append(replace(section, tables=tables))
    return marked, anchors


def not_measured(run: Run, *tables: str) -> list[str]:
    """One sentence for each reason why one of the tables was not measured."""
    return [f"{why}. {NOT_PASSED}" for why in dict.fromkeys(run.missing[t] for t in tables if t in run.missing)]


def number_cell(text: str, sub: str = "", kind: str = "") -> Cell:
    """A cell of a column of numbers."""
    return Cell(text, sub, f"number {kind}".strip())


def label_cell(run: Run, label: str) -> Cell:
    """A backend's name; control arms are called so."""
    return Cell(label, "control arm" if run.is_control(label) else "", "control" if run.is_control(label) else "")


def short_label(run: Run, label: str) -> Cell:
    """A backend's name without a second line."""
    return Cell(label, kind=label_cell(run, label).kind)


def by_backend(run: Run, frame: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Rows in the order of the backends in run.json, then by further columns."""
    place = {label: i for i, label in enumerate(run.labels)}
    order = frame.assign(_place=frame["backend"].map(lambda b: place.get(b, len(place))))
    return order.sort_values(["_place", *then], kind="stable").drop(columns="_place")


def metric_column(run: Run, metric: str, how: Format, sub: str = "") -> Column:
    """The header of a metric's column: its title, power of ten and direction."""
    return Column(f"{run.title(metric)} {how.power}".strip(), sub or BETTER[run.higher_is_better(metric)])


def spread(frame: pd.DataFrame, prefix: str = "") -> Format:
    """The format that suits a table's means and intervals."""
    low, high = (frame[f"{prefix}_low"], frame[f"{prefix}_high"]) if prefix else (frame["low"], frame["high"])
    means = frame[prefix or "mean"]
    finite = means.map(math.isfinite)
    return fit(means[finite], (high - low)[finite])


def text_or_nothing(value: Any) -> str:  # noqa: ANN401 - whatever a stored cell holds
    """A stored text, or a dash."""
    return str(value) if isinstance(value, str) and value else NOTHING
