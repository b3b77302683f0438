"""The report as Markdown: the sentences and the tables, no pictures.

Texts of the run are escaped: no markup, no link and no table break of theirs survives.
"""

import html
import re

from harness.errors import one_line
from harness.judge import Judgement
from reports.findings import findings
from reports.html import moment
from reports.load import Run
from reports.parts import Cell, Column, Section, Table, anchored
from reports.readiness import Answer, answers, overview
from reports.sections import sections

ESCAPES = str.maketrans({c: f"\\{c}" for c in "\\`*_|~#"})


def escape(text: str) -> str:
    """Untrusted text as one line of Markdown that shows itself."""
    shown = html.escape(one_line(text, 3000), quote=False).translate(ESCAPES)
    return re.sub("@", "&#64;", shown.replace("](", "]\\(").replace("://", ":&#47;&#47;"))


def text(run: Run, judgement: Judgement | None = None) -> str:
    """The whole document, opened by a judgement."""
    parts, anchors = anchored(sections(run))
    verdict = _verdict(judgement, answers(judgement, anchors)) if judgement else []
    blocks = [*_opening(run), *verdict, "## In short", _findings(run)]
    for i, section in enumerate(parts, 1):
        blocks += _section(section, i)
    blocks += ["Command:", f"    {one_line(run.record['command'], 2000)}"]
    return "\n\n".join(blocks) + "\n"


def _opening(run: Run) -> list[str]:
    record, opening = run.record, []
    if record["dataset"].get("demonstration"):
        opening = [
            "> **Demonstration data: not evidence.** The figures show that the instruments work, and nothing else."
        ]
    title = record["suite"].get("title") or record["suite"].get("name") or "upscalers"
    data = record["dataset"].get("name", "unknown")
    opening += [
        f"# Upscaler evaluation: {escape(str(title))}",
        (
            f"Run {escape(run.folder.resolve().name)}, {escape(str(record.get('status', 'unknown')))}; "
            f"dataset {escape(str(data))}, {escape(str(record['dataset'].get('images', '?')))} images; "
            f"started {escape(moment(record.get('started')))}, harness {escape(str(record.get('harness_version')))}."
        ),
    ]
    return opening


def _verdict(judgement: Judgement, told: list[Answer]) -> list[str]:
    policy = judgement.policy
    blocks = [f"## Verdict: {escape(policy.title)}", f"Policy {policy.name}, SHA-256 {policy.sha256}."]
    blocks += table(overview(judgement))
    for answer in told:
        blocks += [f"**{escape(answer.label)}: {answer.word}.** {answer.counts}"]
        blocks += table(answer.gates)
    return blocks


def _findings(run: Run) -> str:
    lines = [f"- {'⚠ ' if f.warning else ''}**{escape(f.topic)}.** {escape(f.text)}" for f in findings(run)]
    return "\n".join(lines)


def _section(section: Section, number: int) -> list[str]:
    blocks = [f"## {number} {section.title}", *map(escape, section.lead)]
    blocks += [f"**Not measured:** {escape(gap)}" for gap in section.gaps]
    return blocks + [block for each in section.tables for block in table(each)]


def table(shown: Table) -> list[str]:
    """A table with its caption, and a sentence on the rows that are left out."""
    head = [_header(c) for c in shown.columns]
    rule = ["---" if c.wide or i == 0 else "--:" for i, c in enumerate(shown.columns)]
    lines = [head, rule, *([_cell(c) for c in row] for row in shown.shown)]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [f"**{escape(shown.caption)}**", grid, *([escape(shown.left_out)] if shown.left_out else [])]


def _header(column: Column) -> str:
    return escape(f"{column.title} ({column.sub})" if column.sub else column.title)


def _cell(cell: Cell) -> str:
    shown = f"**{escape(cell.text)}**" if "strong" in cell.kind and cell.text else escape(cell.text)
    return f"{shown} ({escape(cell.sub)})" if cell.sub else shown
