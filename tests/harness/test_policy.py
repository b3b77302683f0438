"""Policies: what is accepted, and errors that name the file, the line and what was meant."""

import datetime as dt
import os
import re
from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.policy import Policy, built_in_policies, interval_of, load_evidence, load_policy, load_waivers

GOOD = """\
name: small
title: A small policy
sections:
  - name: quality
    title: Quality
    gates:
      - id: lpips
        title: Better than bicubic
        table: differences
        where: {metric: lpips_alex}
        column: mean
        at_most: 0
        evidence: the paired difference
      - id: seen
        title: Somebody looked
        checklist: true
        evidence: a review
"""
ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[2]))
TODAY = dt.datetime.now(dt.UTC).date()
YESTERDAY, TOMORROW = (TODAY + dt.timedelta(days) for days in (-1, 1))


def read(text: str, folder: Path) -> Policy:
    """The policy in a file with this text."""
    path = folder / "p.yaml"
    path.write_text(text)
    return load_policy(str(path))


def dated(text: str) -> str:
    """A text with the days named in it as dates."""
    for name, day in (("YESTERDAY", YESTERDAY), ("TODAY", TODAY), ("TOMORROW", TOMORROW)):
        text = text.replace(name, str(day))
    return text


def test_a_good_policy_is_read(tmp_path: Path) -> None:
    """A single value stands for a list of one, and severity is fail unless it says warn."""
    first, second = read(GOOD, tmp_path).gates
    assert (first.where, first.limit, first.severity) == ({"metric": ("lpips_alex",)}, "at most 0", "fail")
    assert second.checklist


def test_built_in_policies_are_valid() -> None:
    """Every policy that ships passes its own check and carries the name of its file."""
    names = built_in_policies()
    assert set(names) == {"face-restoration-product", "research-comparison"}
    assert [load_policy(name).name for name in names] == list(names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("table: differences", "table: diferences", "p.yaml:9: .*unknown table 'diferences'; did you mean differences"),
        ("column: mean", "column: meen", "p.yaml:11: .*unknown column of differences 'meen'; did you mean mean"),
        ("lpips_alex", "lpips_alexx", "p.yaml:10: .*unknown metric 'lpips_alexx'; did you mean lpips_alex"),
        ("{metric: lpips_alex}", "{metrik: x}", "p.yaml:10: .*'metrik'; did you mean metric"),
        ("        where: {metric: lpips_alex}\n", "", "p.yaml:7: .*where: give the metric"),
        (
            "{metric: lpips_alex}",
            "{backend: sr3, metric: psnr}",
            "p.yaml:10: .*unknown column.* 'backend'",
        ),
        ("{metric: lpips_alex}", "{metric: []}", "p.yaml:10: .*give the metric"),
        ("at_most: 0", "at_mots: 0", "p.yaml:12: .*unknown field; did you mean at_most"),
        ("at_most: 0", "at_most: .nan", "p.yaml:12: .*finite"),
        ("at_most: 0", "at_most: 0\n        at_least: 0", "p.yaml:7: .*one of at_most, at_least and is"),
        ("column: mean\n        at_most: 0", "column: verdict\n        is: beter", "p.yaml:12: .*did you mean better"),
        (
            "table: differences\n        where: {metric: lpips_alex}\n        column: mean\n        at_most: 0",
            "table: uncertainty\n        where: {band: constant}\n        column: verdict\n        is: not measured",
            "unknown verdict to pass with 'not measured'; known: holds",
        ),
        (
            "column: mean\n        at_most: 0",
            "column: verdict\n        is: not measured",
            "p.yaml:12: .*verdict",
        ),
        ("checklist: true", "checklist: true\n        at_most: 0", "p.yaml:14: .*filled in by a person"),
        ("        evidence: a review\n", "", "p.yaml:14: .*evidence: Field required"),
        ("id: seen", "id: lpips", "p.yaml:3: .*lpips is there twice"),
        ("table: differences", "table: [x]", "p.yaml:9: .*valid string"),
        ("evidence: the paired", "severity: warn\n        evidence: the paired", None),
    ],
)
def test_a_wrong_policy_is_one_line(old: str, new: str, words: str | None, tmp_path: Path) -> None:
    """The message names the file, the line of the mistake and what was probably meant; nothing else is refused."""
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if words is None:
        assert read(text, tmp_path)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_section_that_only_warns_is_refused(tmp_path: Path) -> None:
    """A section without a gate of severity fail would pass whatever is measured."""
    text = GOOD.replace("        evidence", "        severity: warn\n        evidence")
    with pytest.raises(ConfigError, match=r"p.yaml:6: .*decides nothing"):
        read(text, tmp_path)


def test_an_unknown_policy_is_named_with_a_suggestion() -> None:
    """Neither a file nor a built-in name: the nearest of those is offered."""
    with pytest.raises(ConfigError, match=r"no policy 'research-comparisn'.*did you mean research-comparison"):
        load_policy("research-comparisn")


@pytest.mark.parametrize(
    ("table", "column", "interval"),
    [
        ("summary", "mean", ("low", "high")),
        ("summary", "sd", None),
        ("noise", "difference", ("difference_low", "difference_high")),
        ("noise", "mean", ("low", "high")),
        ("excess_flips", "excess", ("excess_low", "excess_high")),
        ("speed", "ratio", ("ratio_low", "ratio_high")),
        ("speed", "end_to_end_p90", None),
        ("gaps", "gap", None),
        ("hallucination", "value", ("low", "high")),
        ("preservation", "loss", ("loss_low", "loss_high")),
        ("uncertainty", "coverage", None),
    ],
)
def test_a_figure_has_its_own_interval(table: str, column: str, interval: tuple[str, str] | None) -> None:
    """No figure is judged by the interval of another one."""
    assert interval_of(table, column) == interval


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("lpips: {name: A. Board, reason: known, expires: YESTERDAY}", f"w.yaml:2: .*ended on {YESTERDAY}"),
        ("lpips: {reason: known, expires: TOMORROW}", "w.yaml:2: .*name: Field required"),
        ("lpips: {name: A. Board, expires: TOMORROW}", "w.yaml:2: .*reason: Field required"),
        ("lpips: {name: A. Board, reason: '  ', expires: TOMORROW}", "w.yaml:2: .*reason"),
        ("lpips: {name: A. Board, reason: known}", "w.yaml:2: .*expires: Field required"),
        ("lpips: {name: A. Board, reason: known, expires: soon}", "w.yaml:2: .*valid date"),
        ("lpip: {name: A. Board, reason: known, expires: TOMORROW}", "w.yaml:2: .*gate 'lpip'; did you mean lpips"),
    ],
)
def test_a_waiver_needs_a_name_a_reason_and_a_date_to_come(entry: str, words: str, tmp_path: Path) -> None:
    """What is not complete, has ended or is of no gate is refused, with the line."""
    (tmp_path / "w.yaml").write_text(dated(f"waivers:\n  {entry}\n"))
    with pytest.raises(ConfigError, match=words):
        load_waivers(tmp_path / "w.yaml", read(GOOD, tmp_path))


def test_a_waiver_holds_on_its_last_day(tmp_path: Path) -> None:
    """The date is the last day that it is valid on."""
    (tmp_path / "w.yaml").write_text(dated("waivers:\n  lpips: {name: A. Board, reason: known, expires: TODAY}\n"))
    assert load_waivers(tmp_path / "w.yaml", read(GOOD, tmp_path))["lpips"].name == "A. Board"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("seen: {who: A. Reader, date: TODAY}", "e.yaml:2: .*link or a text"),
        ("seen: {date: TODAY, text: fine}", "e.yaml:2: .*who: Field required"),
        ("seen: {who: A. Reader, date: TOMORROW, text: fine}", "e.yaml:2: .*has not come yet"),
        ("lpips: {who: A. Reader, date: TODAY, text: fine}", "e.yaml:2: .*unknown checklist gate 'lpips'"),
    ],
)
def test_evidence_is_signed_and_of_the_checklist(entry: str, words: str, tmp_path: Path) -> None:
    """Nobody can sign in the future, without showing anything, or for what is measured."""
    (tmp_path / "e.yaml").write_text(dated(f"evidence:\n  {entry}\n"))
    with pytest.raises(ConfigError, match=words):
        load_evidence(tmp_path / "e.yaml", read(GOOD, tmp_path))


def test_the_examples_of_the_guide_are_accepted(tmp_path: Path) -> None:
    """The policy and the evidence of docs/readiness.md are valid as they stand; its waiver needs only a later day."""
    text = (ROOT / "docs" / "readiness.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    policy = read(blocks[0], tmp_path)
    (tmp_path / "e.yaml").write_text(blocks[1])
    (tmp_path / "w.yaml").write_text(re.sub(r"expires: [\d-]+", f"expires: {TODAY}", blocks[2]))
    assert set(load_evidence(tmp_path / "e.yaml", policy)) == {"quality.looked"}
    assert set(load_waivers(tmp_path / "w.yaml", policy)) == {"quality.flips"}
