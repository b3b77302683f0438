"""Verdicts for machines: JUnit XML that parses whatever backends are called, and JSON without NaN."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd
import pytest

from harness.judge import Judgement, judge
from harness.policy import Policy
from harness.store import RunFolder
from harness.suite import parse_yaml
from reports import verdict as report

Build = Callable[..., Path]
HOSTILE = "]]> <script>alert(1)</script> & \"'\x00\x08\x1b[31m\ud800\ufffe\nnext"
POLICY = """\
name: p
title: t
sections:
  - name: s
    title: t
    gates:
      - {id: good, title: <b>, evidence: e & f, table: differences, where: {metric: psnr}, column: mean, at_least: -99}
      - {id: bad, title: t, evidence: "]]>\\0", table: differences, where: {metric: psnr}, column: mean, at_least: 99}
      - {id: absent, title: t, evidence: e, checklist: true}
      - {id: warned, title: t, evidence: e, severity: warn, checklist: true}
"""


def verdict_of(make_run: Build, label: str) -> tuple[dict[str, Any], Judgement]:
    """The record of a run in which `label` stands for sr3, and what the policy says of it."""

    def rename(about: dict[str, Any]) -> None:
        about["backends"][3] |= {"label": label, "digest": label}

    rules, folder = parse_yaml(POLICY, "p.yaml", Policy), RunFolder(make_run(edit=rename))
    if label.isprintable():
        table = folder.path / "tables" / "differences.parquet"
        pd.read_parquet(table).replace({"sr3": label}).to_parquet(table)
    return folder.read_record() or {}, Judgement(rules, (judge(folder, rules, label),))


def test_each_gate_is_a_case_with_its_outcome(make_run: Build) -> None:
    """Passed, failed, not measured as an error, and a warning that does not fail the build."""
    _, judgement = verdict_of(make_run, "sr3")
    (suite,) = ET.fromstring(report.junit(judgement))  # noqa: S314 - our own text
    assert [(case.get("name"), case[0].tag) for case in suite] == [
        ("good", "system-out"),
        ("bad", "failure"),
        ("absent", "error"),
        ("warned", "system-out"),
    ]
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    assert "warning" in str(suite[3][0].text)
    assert "wanted: at least 99" in str(suite[1][0].get("message"))


def test_hostile_names_stay_text_in_xml(make_run: Build) -> None:
    """Markup, control characters and lone surrogates of a backend's name neither break the file nor add elements."""
    _, judgement = verdict_of(make_run, HOSTILE)
    root = ET.fromstring(report.junit(judgement).encode())  # noqa: S314 - our own text
    assert {element.tag for element in root.iter()} == {"testsuites", "testsuite", "testcase", "error", "system-out"}
    assert str(root[0].get("name")).startswith("]]> <script>alert(1)</script> & \"'")


def test_json_has_the_verdict_the_figures_and_where_they_are(make_run: Build) -> None:
    """Every gate has its status, figure, interval and source; what is not there is null, and names stay text."""
    record, judgement = verdict_of(make_run, "<b>sr3</b>")
    told = json.loads(report.data(record, judgement), parse_constant=pytest.fail)
    assert (told["exit_status"], told["policy"]["sha256"]) == (1, judgement.policy.sha256)
    (backend,) = told["backends"]
    assert (backend["backend"], backend["status"]) == ("<b>sr3</b>", "failed")
    good, _, absent, _ = backend["sections"][0]["gates"]
    assert good["low"] < good["value"] < good["high"]
    assert (good["source"], good["column"], good["where"]) == (
        "tables/differences.parquet",
        "mean",
        {"metric": ["psnr"]},
    )
    assert (absent["value"], absent["status"]) == (None, "not measured")
