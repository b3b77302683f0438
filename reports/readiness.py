"""The verdict as a report opens with it: whether each judged backend ships, the gates that decide, all gates.

Texts here are not escaped; whoever writes them out escapes them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.judge import FAILED, NOT_DECIDED, NOT_MEASURED, PASSED, STATUSES, WAIVED, Finding, Judgement, Verdict
from reports.numbers import NOTHING
from reports.parts import Anchor, Cell, Column, Table, number_cell
from reports.verdict import figure

ANSWERS = {
    FAILED: "does not ship",
    NOT_MEASURED: "not decided",
    NOT_DECIDED: "not decided",
    WAIVED: "ships, by waiver",
    PASSED: "ships",
}
NAMED = 6
"""How many of the gates that decide an answer names; the table of all gates has the rest."""


@dataclass(frozen=True)
class Answer:
    """Whether one backend ships: `deciding` are the gates for which the verdict is what it is, `more` those unnamed."""

    label: str
    status: str
    counts: str
    deciding: list[Finding]
    more: int
    gates: Table

    @property
    def word(self) -> str:
        """The answer in words."""
        return ANSWERS[self.status]


def overview(judgement: Judgement) -> Table:
    """Each backend's answer and the status of each section."""
    columns = [Column("Backend"), Column("Verdict", wide=True)]
    columns += [Column(section.title, wide=True) for section in judgement.policy.sections]
    rows = [
        [Cell(v.label), _badge(v.status, ANSWERS[v.status]), *(_badge(s.status, s.status) for s in v.sections)]
        for v in judgement.verdicts
    ]
    return Table("Each verdict is the worst of its sections", columns, rows)


def _badge(status: str, word: str) -> Cell:
    return Cell(word, kind=f"badge {status}")


def answers(judgement: Judgement, anchors: Mapping[str, Anchor]) -> list[Answer]:
    """The answer for each backend, in the order of the run; `anchors`: where the page shows each stored table."""
    folded = len(judgement.verdicts) > 1
    found = [_answer(verdict, anchors) for verdict in judgement.verdicts]
    return [replace(a, gates=replace(a.gates, folded=folded, ident=f"gates-{i}")) for i, a in enumerate(found, 1)]


def _answer(verdict: Verdict, anchors: Mapping[str, Anchor]) -> Answer:
    deciding = [f for f in _worst_first(verdict) if f.decides and f.status != PASSED]
    same = [f for f in deciding if ANSWERS[f.status] == ANSWERS[verdict.status]]
    return Answer(
        verdict.label,
        verdict.status,
        _counts(verdict),
        same[:NAMED],
        len(same[NAMED:]),
        _gates(verdict, anchors),
    )


def _counts(verdict: Verdict) -> str:
    """How many of the gates that decide, and of the others, came to what."""
    found = Counter(f.status for f in verdict.findings if f.decides)
    each = ", ".join(f"{found[status]} {status}" for status in STATUSES if found[status])
    warning = sum(not f.decides and f.status != PASSED for f in verdict.findings)
    return f"Of {found.total()} gates that decide: {each}. Warnings: {warning}."


def _worst_first(verdict: Verdict) -> list[Finding]:
    return sorted(verdict.findings, key=lambda f: (not f.decides, STATUSES.index(f.status)))


def _gates(verdict: Verdict, anchors: Mapping[str, Anchor]) -> Table:
    columns = [Column("Gate"), *(Column(title, wide=True) for title in ("Section", "Status"))]
    columns += [Column("Figure", "95 % interval"), *(Column(title, wide=True) for title in ("Wanted", "Note"))]
    section = {f.gate.id: s.section.title for s in verdict.sections for f in s.findings}
    rows = [[Cell(f.gate.title, f.gate.id), Cell(section[f.gate.id]), *_row(f, anchors)] for f in _worst_first(verdict)]
    columns.append(Column("Evidence", wide=True))
    return Table(f"All gates for {verdict.label}, those that decide first", columns, rows)


def _row(finding: Finding, anchors: Mapping[str, Anchor]) -> list[Cell]:
    status = replace(_badge(finding.status, finding.status), sub="" if finding.decides else "warns only")
    cells = [status, number_cell(figure(finding) or NOTHING), Cell(finding.gate.limit), Cell(finding.note)]
    return [*cells, _evidence(finding, anchors)]


def _evidence(finding: Finding, anchors: Mapping[str, Anchor]) -> Cell:
    """Where the figure stands, and what it shows."""
    anchor = anchors.get(finding.gate.table or "")
    where = anchor.title if anchor else finding.source or "signature"
    return Cell(where, finding.gate.evidence, link=anchor.ident if anchor else "")
