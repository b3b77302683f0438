"""The section on adversarial inputs: a sentence for each backend, and what was not run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from harness.audit import COLUMNS
from reports.attacks import section
from reports.load import load

Build = Callable[..., Path]
FIGURES = ("change", "amplification", "versus_bicubic", "versus_signs", "psnr", "lpips")


def row(backend: str, attack: str, epsilon: float, value: float, verdict: str) -> dict[str, object]:
    """A row of the table whose figures are all `value`, within a tenth."""
    figures = {f"{name}{end}": value * by for name in FIGURES for end, by in (("", 1), ("_low", 0.9), ("_high", 1.1))}
    ran = 0 if verdict.startswith("not run") else 32
    return {
        "backend": backend,
        "attack": attack,
        "epsilon": epsilon,
        "n": ran,
        "verdict": verdict,
        "seeds": 1,
    } | figures


def test_the_strongest_attack_and_what_was_not_run_are_said(make_run: Build) -> None:
    """A backend's sentence is that of the largest attack; one without a gradient is told so, and not passed."""
    nan = float("nan")
    rows = [
        row("realesrgan", "signs", 8, 9.0, "amplifies"),
        row("realesrgan", "pgd", 2, 1.5, "not separated"),
        row("realesrgan", "pgd", 8, 3.25, "amplifies"),
        row("sr3", "pgd", nan, nan, "not run: no Gradient"),
        row("sr3", "search", 8, 0.5, "damps"),
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS["attacks"].split())
    found = section(load(make_run(changed={"attacks": frame})))
    text = "\n".join(found.lead)
    assert "realesrgan: PGD of 8 levels moves its outputs by 3.25 [2.93, 3.58] levels" in text
    assert "amplification 3.25 [2.93, 3.58], more than bicubic's for the same inputs" in text
    assert "sr3: PGD: not run: no Gradient. Not measured is not passed." in text
    assert "sr3: Random search of 8 levels" in text
    (table,) = found.tables
    assert len(table.rows) == len(rows)
    assert found.gaps == []


def test_a_run_without_attacks_says_that_none_was_made(make_run: Build) -> None:
    """The section is there, with the reason and nothing else."""
    found = section(load(make_run(changed={"attacks": None})))
    assert not found.lead
    assert not found.tables
    assert "asks for no attacks" in found.gaps[0]
