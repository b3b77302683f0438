"""The section on adversarial inputs: how far an output can be pushed by changes that a person hardly sees."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.attack_effects import AMPLIFIES, DAMPS, FEW
from harness.attacker import SEARCH, SIGNS
from harness.score import BASELINE
from reports.findings import NOT_PASSED
from reports.load import Run
from reports.numbers import NOTHING, count, multiple
from reports.parts import Cell, Column, Section, Table, by_backend, not_measured, number_cell, short_label

TITLES = {SIGNS: "Random signs", "ifgsm": "I-FGSM", "pgd": "PGD", SEARCH: "Random search"}
WORDS = {
    AMPLIFIES: f"more than {BASELINE}'s for the same inputs",
    DAMPS: f"less than {BASELINE}'s for the same inputs",
    FEW: "from too few images to judge",
}
LIMITS = (
    "Limits: an attack that fails is no proof, since a better one may not; random search, which is all there is where "
    "a backend has no gradient, finds least. A large change is not always a bad one. A stochastic backend is attacked "
    "with other seeds than the one that its outputs here are made with, so what is shown holds beyond single seeds."
)


def section(run: Run) -> Section:
    """The whole section."""
    table = _table(run)
    return Section(
        "attacks",
        "Adversarial inputs",
        [*_lead(run)] if table.rows else [],
        [table] if table.rows else [],
        not_measured(run, "attacks"),
    )


def _lead(run: Run) -> Iterator[str]:
    yield (
        "Each input is changed by at most so many levels (of 255) a value, so that the output moves as far as the "
        "attack can make it; no ground truth is needed for that. Change is the root mean square difference to the "
        "output of the clean input, in levels."
    )
    frame = by_backend(run, run.table("attacks"))
    for label in run.compared:
        yield from _sentences(label, frame[frame["backend"] == label])
    yield LIMITS


def _sentences(label: str, mine: pd.DataFrame) -> Iterator[str]:
    """What was not run and why, and the strongest attack by what it does."""
    ran = mine[mine["n"] > 0]
    for _, row in mine[mine["n"] == 0].iterrows():
        yield f"{label}: {_title(row)}: {row['verdict'] or 'no image could be attacked'}. {NOT_PASSED}"
    attacks = ran[ran["attack"] != SIGNS]
    if len(attacks):
        yield _said(label, attacks.sort_values(["epsilon", "change"]).iloc[-1])


def _said(label: str, row: "pd.Series[Any]") -> str:
    what = f"{label}: {_title(row)} of {count(row['epsilon'])} levels moves its outputs by {_interval(row, 'change')}"
    control = f"in mean square {_interval(row, 'versus_signs')} times as far as random signs of that size"
    word = WORDS.get(row["verdict"], f"not separated from {BASELINE}'s")
    rival = f"{_interval(row, 'versus_bicubic')} times what an attack on {BASELINE} itself does to {BASELINE}"
    return f"{what} levels, {control}; amplification {_interval(row, 'amplification')}, {word}; {rival}."


def _title(row: "pd.Series[Any]") -> str:
    return TITLES.get(row["attack"], str(row["attack"]))


def _interval(row: "pd.Series[Any]", name: str) -> str:
    return multiple(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _table(run: Run) -> Table:
    rows = [
        [
            short_label(run, row["backend"]),
            Cell(_title(row)),
            number_cell(_number(row["epsilon"])),
            number_cell(count(row["n"])),
            *(number_cell(_interval(row, name)) for name in COLUMNS),
            Cell(str(row["verdict"])),
        ]
        for _, row in by_backend(run, run.table("attacks")).iterrows()
    ]
    columns = [Column("Backend"), Column("Attack", wide=True), Column("Size", "levels"), Column("n", "images")]
    columns += [Column(title, sub) for title, sub in COLUMNS.values()]
    return Table("What attacks do", [*columns, Column("Against bicubic", wide=True)], rows, "attacks")


COLUMNS = {
    "change": ("Change", "levels, root mean square"),
    "amplification": ("Amplification", "mean square, over bicubic's for the same input"),
    "versus_bicubic": ("Over bicubic attacked", "mean square"),
    "versus_signs": ("Over random signs", "mean square"),
    "psnr": ("PSNR", "dB, less the clean input's"),
    "lpips": ("LPIPS", "less the clean input's"),
}
"""Columns of the table with an interval: their titles."""


def _number(value: float) -> str:
    return count(value) if math.isfinite(value) else NOTHING
