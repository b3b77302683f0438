"""The verdict on a backend: each gate of a policy held against the stored tables of a run.

A figure passes only if its whole interval is within the limit, and fails only if all of it is beyond; between the two
it is not decided. What is missing, disturbed or too small to judge is not measured. Neither is ever a pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import pandas as pd

from harness.errors import ConfigError, StoreError, one_line
from harness.policy import TABLES, Gate, Policy, Proof, Section, Waiver, interval_of
from harness.score import BASELINE, CONTROL
from harness.store import RunFolder, read_table
from harness.suite import check_names

FAILED, NOT_MEASURED, NOT_DECIDED, WAIVED, PASSED = "failed", "not measured", "not decided", "waived", "passed"
STATUSES = (FAILED, NOT_MEASURED, NOT_DECIDED, WAIVED, PASSED)
"""From the worst to the best."""
EXIT = {FAILED: 1, NOT_MEASURED: 2, NOT_DECIDED: 2, WAIVED: 0, PASSED: 0}
"""The exit status of a verdict."""
OPEN = {"tie", "inconclusive", "not separated"}
"""Verdicts that leave open which way it is."""
UNMEASURED = {"insufficient", "not measured", ""}
NOT_RUN = "not run"
"""How a verdict begins that says why there is none."""
FIGURES = ("n", "gap", "value")
"""The first column of a table that does not tell its rows apart."""
RATIOS = ("ratio", "ratio_low", "ratio_high")


@dataclass(frozen=True)
class Finding:
    """What one gate came to: the figure and the interval that decided (NaN: none), of how many rows, and in words."""

    gate: Gate
    status: str
    note: str
    value: float | str = math.nan
    low: float = math.nan
    high: float = math.nan
    rows: int = 0

    @property
    def decides(self) -> bool:
        """Whether it counts in the verdict; warnings do not."""
        return self.gate.severity == "fail"

    @property
    def source(self) -> str:
        """The file in the run folder that holds the figure."""
        return f"tables/{self.gate.table}.parquet" if self.gate.table else ""


@dataclass(frozen=True)
class SectionVerdict:
    """The findings of a section; its status is the worst of those that decide."""

    section: Section
    findings: tuple[Finding, ...]

    @property
    def status(self) -> str:
        """The worst status of a gate that decides."""
        return worst([f.status for f in self.findings if f.decides])


@dataclass(frozen=True)
class Verdict:
    """The verdict on one backend (`backend` is its entry in the run record): the minimum over the sections."""

    backend: dict[str, Any]
    sections: tuple[SectionVerdict, ...]

    @property
    def status(self) -> str:
        """The worst status of a section."""
        return worst([s.status for s in self.sections])

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the policy."""
        return [finding for section in self.sections for finding in section.findings]

    @property
    def label(self) -> str:
        """The backend's label, as text that may be shown."""
        return one_line(str(self.backend["label"]))


@dataclass(frozen=True)
class Signed:
    """What persons add to the figures of one backend, by the id of the gate."""

    evidence: dict[str, Proof] = field(default_factory=dict)
    waivers: dict[str, Waiver] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What a policy says of backends of one run."""

    policy: Policy
    verdicts: tuple[Verdict, ...]


def worst(statuses: Sequence[str]) -> str:
    """The worst of some statuses."""
    return min(statuses, key=STATUSES.index)


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """1 where a gate failed, else 2 where one was not measured or not decided, else 0."""
    return EXIT[worst([v.status for v in verdicts])]


def compared(record: dict[str, Any]) -> list[str]:
    """The labels of a run's backends that are no control arms."""
    return [b["label"] for b in record["backends"] if b["label"] not in (BASELINE, CONTROL)]


def judge_all(run: RunFolder, policy: Policy, labels: Sequence[str], signed: Signed) -> Judgement:
    """The verdicts on backends of a finished run; errors as of `judge`."""
    return Judgement(policy, tuple(judge(run, policy, label, signed) for label in labels))


def judge(run: RunFolder, policy: Policy, label: str, signed: Signed | None = None) -> Verdict:
    """The verdict on a backend of a finished run.

    Raises:
        ConfigError: the run has no such backend.
        StoreError: the run has not finished, or a table is damaged.
    """
    record = run.read_record() or {"backends": []}
    if record.get("status") != "finished":
        raise StoreError(f"{run.path}: the run has not finished; the same `harness run` command continues it")
    backends = {b["label"]: b for b in record["backends"]}
    try:
        check_names((label,), list(backends), "backend")
    except ValueError as error:
        raise ConfigError(f"{run.path}: {one_line(str(error))}") from error
    tables = _Tables(run, backends[label])
    sections = [_judge_section(section, tables, signed or Signed()) for section in policy.sections]
    return Verdict(backends[label], tuple(sections))


def _judge_section(section: Section, tables: "_Tables", signed: Signed) -> SectionVerdict:
    found = []
    for gate in section.gates:
        finding = _by_person(gate, signed.evidence.get(gate.id)) if gate.checklist else _by_rows(gate, tables)
        found.append(_waived(finding, signed.waivers.get(gate.id)))
    return SectionVerdict(section, tuple(found))


def _by_person(gate: Gate, proof: Proof | None) -> Finding:
    if proof is None:
        return Finding(gate, NOT_MEASURED, "no evidence was given")
    shown = one_line(" ".join(part for part in (proof.link, proof.text) if part), 600)
    return Finding(gate, PASSED, f"signed by {one_line(proof.who)} on {proof.date}: {shown}")


def _waived(finding: Finding, waiver: Waiver | None) -> Finding:
    if waiver is None:
        return finding
    note = f"waived by {one_line(waiver.name)} until {waiver.expires}: {one_line(waiver.reason)}"
    return replace(finding, status=WAIVED, note=f"{note} (without the waiver: {finding.status}, {finding.note})")


@dataclass(frozen=True)
class _Tables:
    """The rows of one backend in the stored tables of a run."""

    run: RunFolder
    backend: dict[str, Any]
    read: dict[str, pd.DataFrame | None] = field(default_factory=dict)

    def rows(self, name: str) -> pd.DataFrame | None:
        """The backend's rows of a table; None where there is no such table."""
        if name not in self.read:
            path = self.run.path / "tables" / f"{name}.parquet"
            frame = read_table(path) if path.exists() else None
            label = self.backend["label"]
            self.read[name] = None if frame is None else frame[frame["backend"].astype(object) == label]
        return self.read[name]


def _by_rows(gate: Gate, tables: _Tables) -> Finding:
    """The worst of the findings on all rows that the gate selects."""
    table, column = str(gate.table), str(gate.column)
    frame = tables.rows(table)
    if frame is None:
        return Finding(gate, NOT_MEASURED, f"tables/{table}.parquet is missing")
    if lacking := [c for c in (column, *gate.where) if c not in frame]:
        return Finding(
            gate, NOT_MEASURED, f"tables/{table}.parquet has no column {lacking[0]}; `harness report` writes it"
        )
    chosen = frame[_selection(gate, frame)]
    if table == "failures" and tables.backend["status"] == "ok":
        chosen = _counted(chosen)
    elif missing := _missing(gate, chosen):
        return Finding(gate, NOT_MEASURED, missing)
    rows = chosen.to_dict("records")
    found = [_judge_row(gate, row, _name(gate, row) if len(rows) > 1 else "") for row in rows]
    decisive = min(found, key=lambda f: (STATUSES.index(f.status), _margin(f)))
    return replace(decisive, rows=len(rows))


def _selection(gate: Gate, frame: pd.DataFrame) -> "pd.Series[bool]":
    chosen = pd.Series(data=True, index=frame.index)
    for column, values in gate.where.items():
        chosen &= frame[column].isin(values)
    return chosen


def _counted(failures: pd.DataFrame) -> pd.DataFrame:
    """All failures of a backend that could be used, as one row; no row in the table means none."""
    return pd.DataFrame([{"n": int(failures["n"].sum())}])


def _missing(gate: Gate, chosen: pd.DataFrame) -> str:
    """What the gate asks for and the table does not have."""
    for column, values in gate.where.items():
        for value in values:
            if not (chosen[column] == value).any():
                return f"no row with {column} {one_line(str(value), 60)}"
    return "" if len(chosen) else "no row"


def _name(gate: Gate, row: dict[Any, Any]) -> str:
    """What tells a row from the others that the gate selects."""
    keys = takewhile(lambda c: c not in (*FIGURES, gate.column), TABLES[str(gate.table)])
    telling = [c for c in keys if c != "backend" and c in row and len(gate.where.get(c, "any")) > 1]
    return ", ".join(f"{c} {one_line(str(row[c]), 60)}" for c in telling)


def _judge_row(gate: Gate, row: dict[Any, Any], name: str) -> Finding:
    flag = "ratio_valid" if gate.column in RATIOS else "valid"
    if not row.get(flag, True):
        why = one_line(str(row.get("note", "")))
        return Finding(gate, NOT_MEASURED, _said(name, f"the timing is invalid{': ' if why else ''}{why}"))
    return _judge_word(gate, row, name) if gate.words else _judge_figure(gate, row, name)


def _judge_word(gate: Gate, row: dict[Any, Any], name: str) -> Finding:
    word = row[gate.column]
    if word in UNMEASURED or pd.isna(word) or str(word).startswith(NOT_RUN):
        status = NOT_MEASURED
    elif word in gate.words:
        status = PASSED
    else:
        status = NOT_DECIDED if word in OPEN else FAILED
    return Finding(gate, status, _said(name, ""), one_line(str(word), 80))


def _judge_figure(gate: Gate, row: dict[Any, Any], name: str) -> Finding:
    value, columns = _number(row[gate.column]), interval_of(str(gate.table), str(gate.column))
    if math.isnan(value):
        return Finding(gate, NOT_MEASURED, _said(name, "no figure: too few values, or not measured"))
    if columns is None:
        status = PASSED if _within(gate, value) else FAILED
        return Finding(gate, status, _said(name, "no interval: the value decides"), value)
    low, high = (_number(row.get(c)) for c in columns)
    if math.isnan(low) or math.isnan(high):
        return Finding(gate, NOT_MEASURED, _said(name, "too few values for an interval"), value)
    inside = [_within(gate, low), _within(gate, high)]
    status = PASSED if all(inside) else NOT_DECIDED if any(inside) else FAILED
    note = "the interval holds the limit" if status == NOT_DECIDED else ""
    return Finding(gate, status, _said(name, note), value, low, high)


def _number(value: Any) -> float:  # noqa: ANN401 - any cell of a table
    return float(pd.to_numeric(value, errors="coerce")) if value is not None else math.nan


def _within(gate: Gate, value: float) -> bool:
    return value <= gate.at_most if gate.at_most is not None else value >= float(gate.at_least or 0)


def _margin(finding: Finding) -> float:
    """How far a figure is within its limit: less is worse."""
    if isinstance(finding.value, str) or math.isnan(finding.value):
        return 0.0
    return -finding.value if finding.gate.at_most is not None else finding.value


def _said(name: str, note: str) -> str:
    return "; ".join(part for part in (name, note) if part)
