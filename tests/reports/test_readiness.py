"""A verdict opens the reports: the answer, the gates that decide, and the way to what shows it."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from harness.judge import FAILED, PASSED, Judgement, Signed, judge_all
from harness.policy import Policy
from harness.store import RunFolder
from harness.suite import parse_yaml
from reports.parts import Anchor, Section, Table, anchored
from reports.readiness import answers, overview

Build = Callable[..., Path]
GATES = """\
name: p
title: t
sections:
  - {{name: a, title: First, gates: [{{id: a, title: A, evidence: e, {first}}}]}}
  - {{name: b, title: Second, gates: [{{id: b, title: B, evidence: e, {second}}}]}}
"""
GOOD = "table: differences, where: {metric: psnr}, column: mean, at_least: -99"
BAD = "table: differences, where: {metric: psnr}, column: mean, at_least: 99"
OPEN = "checklist: true"


def judged(folder: Path, first: str, second: str) -> Judgement:
    """What a policy of two gates says of sr3."""
    policy = parse_yaml(GATES.format(first=first, second=second), "p.yaml", Policy)
    return judge_all(RunFolder(folder), policy, ["sr3"], Signed())


@pytest.mark.parametrize(
    ("first", "second", "word", "named"),
    [
        (GOOD, GOOD, "ships", []),
        (GOOD, BAD, "does not ship", ["b"]),
        (OPEN, BAD, "does not ship", ["b"]),
        (GOOD, OPEN, "not decided", ["b"]),
        (GOOD, BAD + ", severity: warn}, {id: c, title: C, evidence: e, checklist: true", "not decided", ["c"]),
    ],
    ids=["ships", "failed", "failed before unmeasured", "unmeasured", "a warning decides nothing"],
)
def test_the_answer_names_the_gates_that_decide_it(
    first: str, second: str, word: str, named: list[str], make_run: Build
) -> None:
    """It names those for which the verdict is what it is: a failed one, not the unmeasured beside it."""
    (answer,) = answers(judged(make_run(), first, second), {})
    assert (answer.word, [f.gate.id for f in answer.deciding]) == (word, named)


def test_the_overview_has_a_column_for_each_section(make_run: Build) -> None:
    """A section that passed stands beside the one that did not, under their titles."""
    table = overview(judged(make_run(), GOOD, BAD))
    assert [column.title for column in table.columns] == ["Backend", "Verdict", "First", "Second"]
    assert [cell.text for cell in table.rows[0]] == ["sr3", "does not ship", PASSED, FAILED]


def test_only_the_first_table_of_a_kind_is_an_anchor() -> None:
    """Two tables of the same stored one get one identifier, and tables without a source none."""
    tables = [Table("x", [], [], source) for source in ("noise", "noise", "")]
    (section,), anchors = anchored([Section("noise", "Noise", tables=tables)])
    assert [table.ident for table in section.tables] == ["table-noise", "", ""]
    assert anchors == {"noise": Anchor("table-noise", "1 Noise")}


def test_all_reports_open_with_the_verdict(judged_run: Path) -> None:
    """Page and Markdown have it before the findings, the JSON has it with every gate."""
    for name in ("report.html", "report.md"):
        text = (judged_run / name).read_text(encoding="utf-8")
        assert text.index("Verdict: Face restoration in a product") < text.index("In short", text.index("Verdict: "))
    told = json.loads((judged_run / "report.json").read_text(encoding="utf-8"))["verdict"]
    assert told["backends"][0]["backend"] == "realesrgan"


def test_every_gate_that_was_measured_leads_to_its_table(judged_run: Path) -> None:
    """Its link has the identifier of a table of the page that shows the figure."""
    text = (judged_run / "report.html").read_text(encoding="utf-8")
    verdict = text[text.index('<section id="verdict"') : text.index('<section id="short"')]
    links = set(re.findall(r'href="#(table-\w+)"', verdict))
    assert {"table-differences", "table-gaps", "table-speed"} <= links
    assert all(text.count(f'id="{ident}"') == 1 for ident in links)


def test_headings_are_in_order(judged_run: Path) -> None:
    """One heading of the first level, and none skips a level."""
    levels = [int(level) for level in re.findall(r"<h(\d)", (judged_run / "report.html").read_text(encoding="utf-8"))]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
