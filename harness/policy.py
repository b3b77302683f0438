"""Policies: gates that turn the tables of a run into pass or fail, as YAML checked field by field.

A gate is judged by figures (`at_most`, `at_least`), by a word of a table (`is`), or by a person (`checklist`). The
evidence of persons and the waivers of gates are files of their own; `harness.judge` says what comes of it all.
"""

import datetime as dt
import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from harness.audit import COLUMNS
from harness.fairness.readings import SKIN_MEASURES
from harness.hallucination import DISTANCES, KINDS
from harness.metrics import METRICS
from harness.suite import IDENTITY, NETWORKS, SET_MEASURES, Strict, built_in, check_names, load_named, load_yaml

TABLES = {name: columns.split() for name, columns in COLUMNS.items() if "backend" in columns.split()}
"""The tables that a gate may look at, those of single backends, with their columns."""
ACCEPTABLE = {
    "attacks": ["damps", "not separated", "amplifies"],
    "differences": ["better", "worse", "tie", "higher", "lower"],
    "contrasts": ["better", "worse", "higher", "lower", "not separated"],
    "explanations": ["faithful", "not faithful"],
    "corruptions": ["better", "worse", "tie", "higher", "lower"],
    "degradation": ["better", "worse", "tie", "higher", "lower"],
    "crossings": ["better", "worse", "not separated"],
    "corruption_gaps": ["inconclusive", "disparity"],
    "group_slopes": ["better", "worse", "not separated"],
    "gaps": ["no disparity beyond the margin", "inconclusive", "disparity"],
    "uncertainty": ["holds", "too low", "too high"],
}
"""The verdicts that a gate may ask for; "insufficient" and "not measured" are none that could pass."""
SCORED = (
    *("summary", "differences", "noise", "worst", "corruptions", "degradation", "crossings", "corruption_errors"),
    *("robustness", "corruption_gaps", "group_slopes"),
)
"""Tables whose metrics are scores of single images."""
READING = (
    rf"[a-z]+_(flip|hit)_[\w-]+|age_shift_[\w-]+|face_missing_[\w-]+|{IDENTITY}_similarity|{'|'.join(SKIN_MEASURES)}"
    rf"|({'|'.join(KINDS)})_({'|'.join(DISTANCES)})"
)
"""What the measures that instruments read in faces, and the shares of hallucination, are called."""
SET_METRIC = rf"({'|'.join(SET_MEASURES)})_[a-z0-9][a-z0-9-]*"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,59}$")]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Value = bool | int | float | str
Date = Annotated[dt.date, Field(strict=True)]


def interval_of(table: str, column: str) -> tuple[str, str] | None:
    """The columns of a figure's interval: the two after its own, where those are a low and a high one."""
    after = TABLES[table][TABLES[table].index(column) + 1 :][:2]
    return (after[0], after[1]) if [c.rpartition("_")[2] for c in after] == ["low", "high"] else None


class Gate(Strict):
    """One condition: the rows of `table` that `where` selects must have their `column` within a limit.

    Every selected row counts, and the worst decides. `severity` says whether it decides the verdict or only warns;
    `evidence` what it shows. A `checklist` gate has no table: a person says that it holds.
    """

    id: Name
    title: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    evidence: Line
    severity: Literal["fail", "warn"] = "fail"
    checklist: bool = False
    table: str | None = None
    where: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    column: str | None = None
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    words: tuple[bool | str, ...] = Field(default=(), alias="is")

    @field_validator("table")
    @classmethod
    def _stored(cls, table: str | None) -> str | None:
        check_names((table,) if table else (), list(TABLES), "table")
        return table

    @field_validator("where", mode="before")
    @classmethod
    def _each_listed(cls, where: Any) -> Any:  # noqa: ANN401 - whatever YAML holds; the field's type is checked next
        return {column: _list(value) for column, value in where.items()} if isinstance(where, dict) else where

    @field_validator("words", mode="before")
    @classmethod
    def _all_listed(cls, words: Any) -> Any:  # noqa: ANN401 - as above
        return _list(words)

    @field_validator("where")
    @classmethod
    def _selects(cls, where: dict[str, tuple[Value, ...]], info: ValidationInfo) -> dict[str, tuple[Value, ...]]:
        table = info.data.get("table")
        if table:
            check_names(tuple(where), [c for c in TABLES[table] if c != "backend"], f"column of {table}")
        if table and "metric" in TABLES[table] and not where.get("metric"):
            raise ValueError(f"give the metric: {table} has several, and no limit fits them all")
        for metric in where.get("metric", ()):
            _check_metric(str(metric), table or "")
        if empty := next((name for name, values in where.items() if not values), None):
            raise ValueError(f"{empty}: selects nothing")
        return where

    @field_validator("column")
    @classmethod
    def _judged(cls, column: str | None, info: ValidationInfo) -> str | None:
        table = info.data.get("table")
        if column and table:
            check_names((column,), TABLES[table], f"column of {table}")
        return column

    @field_validator("words")
    @classmethod
    def _acceptable(cls, words: tuple[bool | str, ...], info: ValidationInfo) -> tuple[bool | str, ...]:
        table = info.data.get("table")
        if info.data.get("column") == "verdict" and table in ACCEPTABLE:
            check_names(tuple(str(word) for word in words), ACCEPTABLE[table], "verdict to pass with")
        return words

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        limits = [self.at_most is not None, self.at_least is not None, bool(self.words)]
        if self.checklist and (self.table or self.column or self.where or any(limits)):
            raise ValueError("a checklist gate is filled in by a person: it has no table, where, column or limit")
        if not self.checklist and not (self.table and self.column and sum(limits) == 1):
            raise ValueError("give table, column and one of at_most, at_least and is; or checklist: true")
        if not self.checklist and not self.where and "metric" in TABLES[self.table or ""]:
            raise ValueError(f"where: give the metric: {self.table} has several, and no limit fits them all")
        return self

    @property
    def limit(self) -> str:
        """The condition in words."""
        if self.checklist:
            return "signed"
        if self.words:
            return " or ".join(str(word) for word in self.words)
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


def _list(value: Any) -> Any:  # noqa: ANN401 - as above
    """A single value may stand without brackets."""
    return value if isinstance(value, list | dict) else [value]


def _check_metric(metric: str, table: str) -> None:
    """Refuse a metric that no table of this kind can have; which of the others a run has, its rows say."""
    pattern = "" if table in SCORED else SET_METRIC if table == "sets" else READING
    if pattern and re.fullmatch(pattern, metric):
        return
    sets = [f"{measure}_{network}" for network in NETWORKS for measure in SET_MEASURES]
    check_names((metric,), sets if table == "sets" else list(METRICS), "metric")


class Section(Strict):
    """Gates of one concern; a policy passes no better than its worst section."""

    name: Name
    title: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    gates: tuple[Gate, ...] = Field(min_length=1)

    @field_validator("gates")
    @classmethod
    def _decides(cls, gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
        if all(gate.severity == "warn" for gate in gates):
            raise ValueError("needs a gate of severity fail; one that only warns decides nothing")
        return gates


class Policy(Strict):
    """What a backend must show before it may be used for something."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$")
    title: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    sections: tuple[Section, ...] = Field(min_length=1)

    @field_validator("sections")
    @classmethod
    def _distinct(cls, sections: tuple[Section, ...]) -> tuple[Section, ...]:
        for names in ([s.name for s in sections], [g.id for s in sections for g in s.gates]):
            check_names(tuple(names), names, "name")
        return sections

    @property
    def gates(self) -> list[Gate]:
        """All gates in order."""
        return [gate for section in self.sections for gate in section.gates]

    @cached_property
    def sha256(self) -> str:
        """Hash of everything the policy says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def built_in_policies() -> dict[str, str]:
    """Name -> text of the policies that ship with the product."""
    return built_in("policies")


def load_policy(name: str) -> Policy:
    """A policy by built-in name or path.

    Raises:
        ConfigError: there is none, or something in it is wrong.
    """
    return load_named(name, built_in_policies(), Policy)


# What persons say


def _today() -> dt.date:
    """The date in UTC."""
    return dt.datetime.now(dt.UTC).date()


def _listed(name: str, info: ValidationInfo) -> str:
    check_names((name,), (info.context or {})["gates"], (info.context or {})["kind"])
    return name


Listed = Annotated[str, AfterValidator(_listed)]


class Proof(Strict):
    """Who says on what date that a checklist gate holds, with a link to the proof or the proof itself."""

    who: Line
    date: Date
    link: str = Field(default="", max_length=300)
    text: str = Field(default="", max_length=1000)

    @field_validator("date")
    @classmethod
    def _past(cls, date: dt.date) -> dt.date:
        if date > _today():
            raise ValueError(f"{date} has not come yet")
        return date

    @model_validator(mode="after")
    def _shown(self) -> Self:
        if not (self.link.strip() or self.text.strip()):
            raise ValueError("needs a link or a text: what shows that the gate holds?")
        return self


class Waiver(Strict):
    """Who lets a gate go, why, and until when (the last day included)."""

    name: Line
    reason: Line
    expires: Date

    @field_validator("expires")
    @classmethod
    def _valid(cls, expires: dt.date) -> dt.date:
        if expires < _today():
            raise ValueError(f"the waiver ended on {expires}; renew it or take it out")
        return expires


class Evidence(Strict):
    """The evidence file: checklist gate -> proof."""

    evidence: dict[Listed, Proof]


class Waivers(Strict):
    """The waivers file: gate -> waiver."""

    waivers: dict[Listed, Waiver]


def load_evidence(path: Path, policy: Policy) -> dict[str, Proof]:
    """What a file says of the checklist gates of a policy.

    Raises:
        ConfigError: it cannot be read, names a gate that is not in the checklist, or an entry is not complete.
    """
    gates = [gate.id for gate in policy.gates if gate.checklist]
    return load_yaml(path, Evidence, context={"kind": "checklist gate", "gates": gates}).evidence


def load_waivers(path: Path, policy: Policy) -> dict[str, Waiver]:
    """The gates of a policy that a file lets go.

    Raises:
        ConfigError: it cannot be read, names an unknown gate, or a waiver has ended or lacks name, reason or date.
    """
    gates = [gate.id for gate in policy.gates]
    return load_yaml(path, Waivers, context={"kind": "gate", "gates": gates}).waivers
