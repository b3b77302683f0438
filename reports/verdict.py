"""Verdicts on backends as JUnit XML, for CI, and as JSON; both hold every gate with the figures that decided.

Texts are bounded lines of printable characters, all of which XML allows.
"""

import json
import math
from collections import Counter
from typing import Any
from xml.etree import ElementTree as ET

from harness.errors import one_line
from harness.judge import FAILED, PASSED, WAIVED, Finding, Judgement, Verdict, exit_status

SCHEMA = 1


def figure(finding: Finding) -> str:
    """The figure that decided, with its interval; empty where there is none."""
    if isinstance(finding.value, str):
        return finding.value
    if math.isnan(finding.value):
        return ""
    interval = "" if math.isnan(finding.low) else f" [{finding.low:.4g}, {finding.high:.4g}]"
    return f"{finding.value:.4g}{interval}"


def sentence(finding: Finding) -> str:
    """What decided, in words: the figure, its limit, and what is to be said of it."""
    parts = (figure(finding), f"wanted: {finding.gate.limit}", finding.note)
    return "; ".join(part for part in parts if part)


def data(record: dict[str, Any], judgement: Judgement) -> str:
    """The verdicts as JSON; a figure that is not there is null, an infinite one the text "inf"."""
    return json.dumps(content(record, judgement), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def content(record: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    """What `data` writes."""
    policy = judgement.policy
    return {
        "schema": SCHEMA,
        "policy": {"name": policy.name, "title": policy.title, "sha256": policy.sha256},
        "suite": {key: one_line(str(record["suite"].get(key, ""))) for key in ("name", "sha256")},
        "dataset": {key: one_line(str(record["dataset"].get(key, ""))) for key in ("name", "sha256")},
        "exit_status": exit_status(judgement.verdicts),
        "backends": [_backend(verdict) for verdict in judgement.verdicts],
    }


def _backend(verdict: Verdict) -> dict[str, Any]:
    sections = [
        {"name": s.section.name, "title": one_line(s.section.title), "status": s.status}
        | {"gates": [_gate(finding) for finding in s.findings]}
        for s in verdict.sections
    ]
    digest = one_line(str(verdict.backend.get("digest", "")))
    return {"backend": verdict.label, "digest": digest, "status": verdict.status, "sections": sections}


def _gate(finding: Finding) -> dict[str, Any]:
    gate = finding.gate
    value = finding.value if isinstance(finding.value, str) else _number(finding.value)
    figures = {"value": value, "low": _number(finding.low), "high": _number(finding.high), "rows": finding.rows}
    about = {"id": gate.id, "title": one_line(gate.title), "severity": gate.severity, "status": finding.status}
    return about | {"wanted": gate.limit} | figures | {"note": finding.note, "shows": gate.evidence} | _source(finding)


def _source(finding: Finding) -> dict[str, Any]:
    where = {column: list(values) for column, values in finding.gate.where.items()}
    return {"source": finding.source, "column": finding.gate.column, "where": where}


def _number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def junit(judgement: Judgement) -> str:
    """The verdicts as JUnit XML: one suite a backend, one case a gate.

    A gate that is not measured or not decided is an error, one that is waived is skipped. JUnit has no warnings: a gate
    that only warns is a case that passes, with what it says as its output.
    """
    root = ET.Element("testsuites", name=judgement.policy.name)
    for verdict in judgement.verdicts:
        suite = ET.SubElement(root, "testsuite", name=verdict.label)
        for finding in verdict.findings:
            case = ET.SubElement(suite, "testcase", classname=verdict.label, name=finding.gate.id)
            _outcome(case, finding)
        counts = Counter(child.tag for case in suite for child in case)
        tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
        suite.attrib |= {"tests": str(len(suite))} | {name: str(counts[tag]) for name, tag in tags.items()}
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _outcome(case: ET.Element, finding: Finding) -> None:
    said = one_line(f"{finding.gate.title}: {finding.status}: {sentence(finding)}", 1000)
    if finding.status == WAIVED:
        ET.SubElement(case, "skipped", message=said)
    elif finding.status == PASSED or not finding.decides:
        warning = "" if finding.status == PASSED else "warning: "
        ET.SubElement(case, "system-out").text = f"{warning}{said}"
    else:
        tag = "failure" if finding.status == FAILED else "error"
        ET.SubElement(case, tag, message=said, type=finding.status).text = one_line(finding.gate.evidence)
