"""Verdicts: intervals decide, what is missing never passes, and the built-in policies tell good backends from bad."""

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.audit import COLUMNS
from harness.degrade import EFFECTS
from harness.errors import ConfigError, StoreError
from harness.judge import FAILED, NOT_DECIDED, NOT_MEASURED, PASSED, WAIVED, Signed, Verdict, exit_status, judge
from harness.policy import Policy, Proof, Waiver, load_policy
from harness.store import RunFolder
from harness.suite import parse_yaml

Row = dict[str, Any]
GOOD, BAD = "restorer", "vandal"
TODAY = dt.datetime.now(dt.UTC).date()
MET = "no disparity beyond the margin"


def around(mean: float, half: float) -> Row:
    """A mean with its interval."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


def audited(label: str, *, good: bool) -> dict[str, list[Row]]:
    """Rows of one backend in the tables that the audit writes: one that does all well, or one that does nothing so."""
    who, sign = {"backend": label}, 1 if good else -1
    image = who | {"n": 500}
    scored = {"lpips_alex": 0.05 if good else 0.4, "psnr": 26.0 if good else 20.0, "lr_psnr": 52.0 if good else 26.0}
    differences = {"lpips_alex": (-0.25 * sign, 0.01), "psnr": (2.0 * sign, 0.1)}
    word = "better" if good else "worse"
    excess = 0.02 if good else 0.4
    gaps = [("lpips_alex", "race"), ("lpips_alex", "gender"), ("race_flip_attributes", "race")]
    return {
        "summary": [image | {"metric": m, "failed": 0, **around(v, 0.01)} for m, v in scored.items()],
        "differences": [image | {"metric": m, "verdict": word, **around(*d)} for m, d in differences.items()],
        "worst": [who | {"metric": "lpips_alex", "rank": 1, "value": 0.2 if good else 0.8}],
        "hallucination": [
            image | {"measure": m, "value": v, "low": v - 0.01, "high": v + 0.01}
            for m, v in {"below_goal": 0.02 if good else 1.0, "hallucination_lpips": 0.2 if good else 0.7}.items()
        ],
        "preservation": [
            image | {"measure": m, "instrument": i, "loss": loss, "loss_low": loss - 0.01, "loss_high": loss + 0.01}
            for m, i in (("gender_agreement", "attributes"), ("identity_similarity", "identity"))
            for loss in [0.02 if good else 0.4]
        ],
        "robustness": [
            image | {"measure": m, "name": n, "metric": k, "value": v, "low": v - 0.1, "high": v + 0.1}
            for m, n, k, v in (
                ("mce", "mCE", "lpips_alex", 1 - sign * 0.4),
                ("amplification", "amplification", "mse", 4 - sign * 2.5),
            )
        ],
        "corruptions": [
            image | {"corruption": name, "metric": "lpips_alex", "severity": s, "verdict": word}
            for name in EFFECTS
            for s in (1, 3, 5)
        ],
        "attacks": [
            image | {"attack": "pgd", "epsilon": e, "versus_bicubic": 10 - sign * 7}
            | {"versus_bicubic_low": 9 - sign * 7, "versus_bicubic_high": 11 - sign * 7}
            for e in (1, 2, 4, 8)
        ],
        "group_slopes": [
            who | {"corruption": "mean", "metric": "lpips_alex", "attribute": "gender", "group": group, "verdict": v}
            for group, v in (("first", "better" if good else "worse"), ("second", "not separated"))
        ],
        "explanations": [
            image | {"map": name, "verdict": "faithful" if good else "not faithful"} for name in ("lam", "occlusion")
        ],
        "uncertainty": [
            image | {"band": "constant", "attribute": "all", "group": "all", "verdict": "holds" if good else "too low"}
        ],
        "failures": [] if good else [who | {"condition": "clean", "kind": "BackendFailed", "message": "x", "n": 3}],
        "gaps": [
            who | {"metric": m, "attribute": a, "of": "value", "gap": 0.004, "verdict": MET if good else "disparity"}
            for m, a in gaps
        ],
        "excess_flips": [
            who | {"instrument": "attributes", "attribute": attribute, "group": group, "n": 120, "excess": excess}
            | {"excess_low": excess - 0.03, "excess_high": excess + 0.03}
            for attribute in ("race", "gender")
            for group in ("first", "second")
        ],
        "speed": [
            who | {"output_px": 64, "batch": 1, "n": 130 if good else 12, "end_to_end_p90": 0.3 if good else 4.0}
            | {"peak_memory_mb": 700.0, "energy_j": 1.4 if good else 50.0, "valid": True, "note": ""}
        ],
        "sets": [image | {"metric": "kid_attributes", "value": 0.001, "low": 0.0005, "high": 0.0015}],
    }  # fmt: skip


def run_of(path: Path, tables: dict[str, list[Row]], **changes: Any) -> RunFolder:
    """A finished run with these rows in its tables, in the audit's columns."""
    folder = RunFolder(path)
    labels = sorted({row["backend"] for rows in tables.values() for row in rows} | {GOOD})
    backends = [{"label": label, "status": "ok", "digest": f"digest of {label}"} for label in ("bicubic", *labels)]
    record = {"schema": 1, "status": "finished", "suite": {}, "dataset": {}, "metrics": {}, "backends": backends}
    folder.write_record(record | changes)
    for name, rows in tables.items():
        assert {column for row in rows for column in row} <= set(COLUMNS[name].split())
        folder.write_table(f"tables/{name}", pd.DataFrame(rows, columns=COLUMNS[name].split()))
    return folder


def policy(*gates: str) -> Policy:
    """A policy of one section with these gates, each the inside of a YAML mapping."""
    lines = [f"{{id: g{i}, title: t, evidence: e, {gate}}}" for i, gate in enumerate(gates)]
    text = "name: p\ntitle: t\nsections: [{name: s, title: t, gates: [" + ", ".join(lines) + "]}]\n"
    return parse_yaml(text, "p.yaml", Policy)


def status_of(folder: RunFolder, *gates: str) -> str:
    """What a policy of these gates says of the good backend."""
    return judge(folder, policy(*gates), GOOD).status


LPIPS = "table: differences, where: {metric: lpips_alex}, column: mean"


def differs(low: float, high: float) -> dict[str, list[Row]]:
    """A run's table with one paired difference and its interval."""
    row = {"backend": GOOD, "metric": "lpips_alex", "n": 50, "mean": (low + high) / 2, "low": low, "high": high}
    return {"differences": [row]}


@pytest.mark.parametrize(
    ("low", "high", "limit", "status"),
    [
        (-0.2, -0.1, "at_most: 0", PASSED),
        (-0.2, 0.0, "at_most: 0", PASSED),
        (0.1, 0.2, "at_most: 0", FAILED),
        (-0.3, 0.1, "at_most: 0", NOT_DECIDED),
        (0.1, 0.2, "at_least: 0", PASSED),
        (-0.2, -0.1, "at_least: 0", FAILED),
        (-0.1, 0.3, "at_least: 0", NOT_DECIDED),
        (math.inf, math.inf, "at_least: 45", PASSED),
        (math.nan, math.nan, "at_most: 0", NOT_MEASURED),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, limit: str, status: str, tmp_path: Path) -> None:
    """A gate passes or fails only where the interval lies on one side of the limit."""
    assert status_of(run_of(tmp_path, differs(low, high)), f"{LPIPS}, {limit}") == status


def test_a_figure_without_its_interval_is_not_measured(tmp_path: Path) -> None:
    """One image gives a mean and no interval, which is no evidence for a table that has intervals."""
    row = {"backend": GOOD, "metric": "lpips_alex", "n": 1, "mean": -0.5}
    assert status_of(run_of(tmp_path, {"differences": [row]}), f"{LPIPS}, at_most: 0") == NOT_MEASURED


def test_where_there_is_no_interval_the_value_decides_and_that_is_said(tmp_path: Path) -> None:
    """A table without intervals is judged by its value, with a note."""
    verdict = judge(run_of(tmp_path, audited(GOOD, good=True)), policy(f"{SPEED}, at_most: 1"), GOOD)
    (finding,) = verdict.findings
    assert (finding.status, finding.value, finding.note) == (PASSED, 0.3, "no interval: the value decides")


SPEED = "table: speed, where: {batch: 1}, column: end_to_end_p90"


@pytest.mark.parametrize("change", [{"valid": False, "note": "others used 1.2 cores"}, {"end_to_end_p90": math.nan}])
def test_a_disturbed_or_short_timing_is_not_measured(change: Row, tmp_path: Path) -> None:
    """Figures of an invalid pass, and percentiles of too few requests, can neither pass nor fail."""
    row = audited(GOOD, good=True)["speed"][0] | change
    assert status_of(run_of(tmp_path, {"speed": [row]}), f"{SPEED}, at_most: 1") == NOT_MEASURED


@pytest.mark.parametrize(
    ("word", "status"),
    [(MET, PASSED), ("disparity", FAILED), ("inconclusive", NOT_DECIDED), ("insufficient", NOT_MEASURED)],
)
def test_verdicts_of_the_audit_are_taken_at_their_word(word: str, status: str, tmp_path: Path) -> None:
    """Groups too small are not measured, and an open question is not decided."""
    row = audited(GOOD, good=True)["gaps"][0] | {"verdict": word}
    gate = f"table: gaps, where: {{metric: lpips_alex}}, column: verdict, is: {MET}"
    assert status_of(run_of(tmp_path, {"gaps": [row]}), gate) == status


def test_the_worst_of_the_selected_rows_decides_and_is_named(tmp_path: Path) -> None:
    """Of several groups the one that is furthest out decides, and one without figures keeps the rest from passing."""
    rows = audited(GOOD, good=True)["excess_flips"][:2]
    far = rows[1] | {"group": "far", "excess": 0.3, "excess_low": 0.2, "excess_high": 0.4}
    farther = far | {"group": "farther", "excess": 0.35}
    gate = "table: excess_flips, where: {attribute: race}, column: excess, at_most: 0.1"
    (finding,) = judge(run_of(tmp_path / "a", {"excess_flips": [*rows, far, farther]}), policy(gate), GOOD).findings
    assert (finding.status, finding.value, finding.rows) == (FAILED, 0.35, 4)
    assert "group farther" in finding.note
    small = rows[1] | {"group": "small", "excess": math.nan}
    assert status_of(run_of(tmp_path / "b", {"excess_flips": [*rows, small]}), gate) == NOT_MEASURED


@pytest.mark.parametrize(
    "gate",
    [
        "table: noise, where: {metric: psnr}, column: mean, at_least: 0",
        "table: noise, where: {metric: lpips_alex, severity: [1, 6]}, column: mean, at_most: 9",
        "table: diversity, column: mean, at_least: 0",
        "checklist: true",
    ],
    ids=["row", "one of the rows", "table", "signature"],
)
def test_missing_evidence_is_not_measured(gate: str, tmp_path: Path) -> None:
    """A table, a row, one of several rows that were asked for, or a signature that is not there is never a pass."""
    verdict = judge(run_of(tmp_path, audited(GOOD, good=True)), policy(gate), GOOD)
    assert (verdict.status, exit_status([verdict])) == (NOT_MEASURED, 2)


def test_nobody_can_ask_for_what_was_not_measured(tmp_path: Path) -> None:
    """A word such as "insufficient" never passes, also where a policy lists it."""
    row = {"backend": GOOD, "attribute": "all", "group": "all", "n": 3, "status": "insufficient"}
    gate = "table: diffusion_index, column: status, is: [ok, insufficient]"
    assert status_of(run_of(tmp_path, {"diffusion_index": [row]}), gate) == NOT_MEASURED


def test_a_table_of_an_older_version_is_not_measured(tmp_path: Path) -> None:
    """A column that the stored table lacks is told, with the command that writes it anew."""
    folder = run_of(tmp_path, {})
    folder.write_table("tables/differences", pd.DataFrame([{"backend": GOOD, "metric": "lpips_alex", "mean": 0.1}]))
    gate = "table: differences, where: {metric: lpips_alex}, column: verdict, is: better"
    (finding,) = judge(folder, policy(gate), GOOD).findings
    assert finding.status == NOT_MEASURED
    assert "harness report" in finding.note


def test_failures_are_counted_together(tmp_path: Path) -> None:
    """No failure is a count of zero for a backend that was there; failures of several kinds add up."""
    gate = "table: failures, column: n, at_most: 4"
    kinds = [{"backend": BAD, "condition": "clean", "kind": kind, "message": "", "n": 3} for kind in ("A", "B")]
    assert judge(run_of(tmp_path / "a", {"failures": kinds}), policy(gate), BAD).status == FAILED
    assert status_of(run_of(tmp_path / "a", {"failures": kinds}), gate) == PASSED
    absent = [{"label": GOOD, "status": "failed"}]
    assert status_of(run_of(tmp_path / "b", {"failures": []}, backends=absent), gate) == NOT_MEASURED


PASS, FAIL, OPEN = f"{LPIPS}, at_most: 0", f"{LPIPS}, at_least: 0", f"{LPIPS}, at_most: -0.15"
NONE = "checklist: true"


@pytest.mark.parametrize(
    ("gates", "status", "code"),
    [
        ((PASS,), PASSED, 0),
        ((PASS, FAIL, NONE), FAILED, 1),
        ((PASS, NONE, OPEN), NOT_MEASURED, 2),
        ((PASS, OPEN), NOT_DECIDED, 2),
        ((PASS, f"{FAIL}, severity: warn", f"{NONE}, severity: warn", f"{OPEN}, severity: warn"), PASSED, 0),
    ],
)
def test_the_exit_status_follows_the_worst_gate_that_decides(
    gates: tuple[str, ...], status: str, code: int, tmp_path: Path
) -> None:
    """A failure outweighs what is open, what is open outweighs a pass, and warnings do not decide."""
    verdict = judge(run_of(tmp_path, differs(-0.2, -0.1)), policy(*gates), GOOD)
    assert (verdict.status, exit_status([verdict])) == (status, code)


def test_the_verdict_is_the_minimum_over_sections(tmp_path: Path) -> None:
    """One section that failed is not made good by others."""
    one, two = policy(PASS, PASS).sections[0], policy(FAIL).sections[0]
    both = Policy.model_construct(name="p", title="t", sections=(one, two.model_copy(update={"name": "other"})))
    verdict = judge(run_of(tmp_path, differs(-0.2, -0.1)), both, GOOD)
    assert [s.status for s in verdict.sections] == [PASSED, FAILED]
    assert verdict.status == FAILED


@pytest.mark.parametrize("gate", [PASS, FAIL, NONE])
def test_a_waived_gate_is_shown_as_waived(gate: str, tmp_path: Path) -> None:
    """Whatever was measured, a waiver shows as one, with its name, reason and date, and lets the verdict go on."""
    waiver = Waiver(name="A. Board", reason="known <b>", expires=TODAY)
    verdict = judge(run_of(tmp_path, differs(-0.2, -0.1)), policy(gate), GOOD, Signed(waivers={"g0": waiver}))
    assert (verdict.status, exit_status([verdict])) == (WAIVED, 0)
    assert verdict.findings[0].note.startswith(f"waived by A. Board until {TODAY}: known <b> (without the waiver: ")


@pytest.mark.parametrize(("changes", "words"), [({"status": "running"}, "has not finished"), ({}, "did you mean rest")])
def test_what_cannot_be_judged_is_one_line(changes: Row, words: str, tmp_path: Path) -> None:
    """An unfinished run and an unknown backend end with a message, not with a verdict."""
    with pytest.raises((ConfigError, StoreError), match=words) as caught:
        judge(run_of(tmp_path, {}, **changes), policy(NONE), "restorr")
    assert "\n" not in str(caught.value)


def test_a_part_of_the_corruptions_is_no_mce(tmp_path: Path) -> None:
    """Neither an mCE over some corruptions nor some mild ones passes the gates on all: they are not measured."""
    tables = audited(GOOD, good=True)
    tables["robustness"] = [row | {"name": f"{row['name']} over 1 of 12 corruptions"} for row in tables["robustness"]]
    tables["corruptions"] = [row for row in tables["corruptions"] if row["corruption"] != "fog"]
    verdict = judge(run_of(tmp_path, tables), load_policy("face-restoration-product"), GOOD)
    found = {finding.gate.id: finding.status for finding in verdict.findings}
    assert found["robustness.mce"] == found["robustness.mild"] == NOT_MEASURED


def signed_by(rules: Policy) -> Signed:
    """A signature under every gate of the checklist."""
    proof = Proof(who="A. Reader", date=TODAY, link="https://example.org/1")
    return Signed(evidence={gate.id: proof for gate in rules.gates if gate.checklist})


def judged(tmp_path: Path, name: str, signed: bool) -> tuple[Verdict, Verdict]:  # noqa: FBT001 - a test's parameter
    """What a built-in policy says of a good and of a bad backend."""
    good, bad = audited(GOOD, good=True), audited(BAD, good=False)
    folder, rules = run_of(tmp_path, {table: good[table] + bad[table] for table in good}), load_policy(name)
    proofs = signed_by(rules) if signed else None
    return judge(folder, rules, GOOD, proofs), judge(folder, rules, BAD, proofs)


@pytest.mark.parametrize("name", ["face-restoration-product", "research-comparison"])
def test_built_in_policies_pass_a_good_backend_and_fail_a_bad_one(name: str, tmp_path: Path) -> None:
    """Every measured gate passes the one and, but for the measurement itself, none passes the other."""
    good, bad = judged(tmp_path, name, signed=True)
    assert [f.gate.id for f in good.findings if f.status != PASSED] == []
    assert (exit_status([good]), exit_status([bad]), exit_status([good, bad])) == (0, 1, 1)
    passed = {f.gate.id for f in bad.findings if f.status == PASSED and not f.gate.checklist}
    assert passed <= {"speed.memory", "quality.images", "quality.kid", "fairness.told", "explainability.told"}


@pytest.mark.parametrize("name", ["face-restoration-product", "research-comparison"])
def test_built_in_policies_need_signatures(name: str, tmp_path: Path) -> None:
    """Without evidence for the checklist, good figures are not enough."""
    good, _ = judged(tmp_path, name, signed=False)
    assert (good.status, exit_status([good])) == (NOT_MEASURED, 2)
