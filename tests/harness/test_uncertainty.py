"""Uncertainty: conformal coverage exactly, scores of planted images, the table, and SR3 on real faces."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.progress import Progress
from scipy.stats import betabinom

from harness.datasets import open_dataset
from harness.hallucination_maps import example_rows
from harness.images import load
from harness.plan import CLEAN, Job, plan
from harness.runner import run
from harness.scores import Scores
from harness.store import Row, RunFolder
from harness.suite import parse_suite
from harness.uncertainty import (
    RECIPE,
    calibrates,
    expected_coverage,
    figures,
    rank_of,
    threshold,
    uncertainty_rows,
)

SUITE = """
name: small
title: small
low: 16
high: 64
metrics: [lr_psnr]
hallucination: {distances: [l1]}
diversity: {images: 8, samples: 3}
uncertainty: {images: 100, samples: 4}
"""


def test_coverage_is_beta_binomial() -> None:
    """Over all splits of nine and five exchangeable scores, the number held has the distribution that is promised."""
    scores = np.arange(14.0)
    held: Counter[int] = Counter()
    for chosen in combinations(range(14), 9):
        q = threshold(scores[list(chosen)], 0.8)
        held[int((np.delete(scores, chosen) <= q).sum())] += 1
    rank = rank_of(9, 0.8)
    shares = [held[k] / sum(held.values()) for k in range(6)]
    assert shares == pytest.approx([betabinom.pmf(k, 5, rank, 10 - rank) for k in range(6)])
    expected = expected_coverage(9, 5, 0.8)
    assert expected.share == pytest.approx(sum(k * share for k, share in enumerate(shares)) / 5) == 0.8


@pytest.mark.parametrize(("calibration", "test"), [(30, 30), (50, 50), (46, 54), (250, 250)])
def test_the_range_holds_as_often_as_it_says(calibration: int, test: int) -> None:
    """Nineteen of twenty test sets lie in the range or more, and not much more; exactly, not by drawing."""
    expected = expected_coverage(calibration, test, 0.9)
    rank = rank_of(calibration, 0.9)
    counts = np.arange(test + 1)
    inside = (counts / test >= expected.low) & (counts / test <= expected.high)
    assert 0.95 <= betabinom.pmf(counts, test, rank, calibration + 1 - rank)[inside].sum() < 0.99


def test_too_few_images_calibrate_nothing() -> None:
    """At 90 % eight scores are too few and nine are enough; ranks do not slip by rounding."""
    assert np.isnan(threshold(np.arange(8.0), 0.9))
    assert np.isnan(expected_coverage(8, 10, 0.9).share)
    assert threshold(np.arange(9.0), 0.9) == 8
    assert [rank_of(n, 0.9) for n in (9, 29, 69, 99)] == [9, 27, 63, 90]


def test_the_score_is_the_width_that_holds_the_image() -> None:
    """A band as wide as the score holds 95 % of the values, one a hair narrower does not; and s follows the error."""
    rng = np.random.default_rng(1)
    truth = rng.integers(60, 200, (20, 20, 3), dtype=np.uint8)
    scale = rng.integers(1, 20, truth.shape)
    outputs = np.stack([truth + 3 * scale + sign * scale for sign in (-1, 1)]).astype(np.uint8)
    found = figures(outputs, truth)
    error, width = np.abs(truth - outputs.mean(axis=0)), outputs.std(axis=0, ddof=1) + 1
    assert (error <= found["band_spread"] * width * (1 + 1e-12)).mean() >= 0.95
    assert (error <= found["band_spread"] * width * 0.999).mean() < 0.95
    assert (error <= found["band_constant"]).mean() >= 0.95
    assert found["spread"] == pytest.approx(width.mean())
    assert found["spread_rank"] == pytest.approx(1)
    assert set(figures(outputs[:1], truth)) == {"band_constant"}


def test_samples_are_shared_with_diversity() -> None:
    """The steps of both ask for the same outputs where images and samples are the same."""
    suite, dataset = parse_suite(SUITE, "x"), open_dataset("synthetic")
    asked = [(step.sample, set(step.images)) for step in plan(suite, dataset) if step.sample]
    assert [sample for sample, _ in asked] == [1, 2, 1, 2, 3]
    assert asked[0][1] < asked[2][1]


def only(frame: pd.DataFrame, **wanted: str) -> "pd.Series[Any]":
    """The one row that has these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def planted(path: Path, n: int = 500) -> Scores:
    """Images of two groups, of which the smaller is harder for the stochastic backend."""
    rng = np.random.default_rng(2)
    group = np.where(np.arange(n) % 5 == 0, "b", "a")
    images = pd.DataFrame({"image": [f"i{i:03d}" for i in range(n)], "seed": range(n), "age_years": np.nan})
    images = images.assign(race=group, error="", prepared="x")
    who = {"options": "{}", "digest": "d", "condition": CLEAN.name}
    rows: list[Row] = []
    for i in range(n):
        score = rng.uniform(1, 2) * (3 if group[i] == "b" else 1)
        stochastic = {"band_constant": 10 * score, "band_spread": score, "spread": 4.0, "spread_rank": 0.5}
        for label, found in (("sr3", stochastic), ("gan", {"band_constant": rng.uniform(20, 30)})):
            about = who | {"backend": label, "image": f"i{i:03d}"}
            rows += [about | {"metric": metric, "value": value} for metric, value in found.items()]
    folder = RunFolder(path)
    backends: list[dict[str, Any]] = [
        {"label": label, "options": {}, "digest": "d", "device": "", "precision": "", "status": "ok"}
        | {"deterministic": label == "gan"}
        for label in ("sr3", "gan")
    ]
    content = {"low": 16, "high": 64, "uncertainty": {"images": n, "samples": 4, "coverage": 0.9}}
    record = {"schema": 1, "suite": {"content": content}, "metrics": {}, "dataset": {}, "backends": backends}
    folder.write_record(record | {"uncertainty": {"recipe": RECIPE, "images": []}})
    folder.write_table("images", images)
    folder.append(rows)
    return Scores.of(folder)


def test_the_table_says_where_a_band_fails(tmp_path: Path) -> None:
    """The coverage of all is as promised, that of the harder group too low; a deterministic backend has one width."""
    table = pd.DataFrame(uncertainty_rows(planted(tmp_path)))
    whole, easy, hard = (only(table, backend="sr3", band="spread", group=group) for group in ("all", "a", "b"))
    assert whole["verdict"] == "holds"
    assert (easy["verdict"], hard["verdict"]) == ("too high", "too low")
    assert whole["width"] == pytest.approx(8 * whole["factor"])
    assert whole["correlation"] == 0.5
    assert whole["n"] + whole["calibration"] == 500
    fixed = only(table, backend="gan", band="constant", group="all")
    assert fixed["verdict"] == "holds"
    assert fixed["width"] == pytest.approx(2 * fixed["factor"])
    assert only(table, backend="gan", band="spread")["note"] == "not available: one output for all seeds"
    assert (fixed["n"], fixed["calibration"]) == (whole["n"], whole["calibration"])


def test_few_faces_hold_nothing(tmp_path: Path) -> None:
    """Under 30 test images nothing is said of a band: the range that is expected would hold almost any coverage."""
    frame = pd.DataFrame(uncertainty_rows(planted(tmp_path, n=40)))
    row = only(frame, backend="sr3", band="spread", group="all")
    assert row["n"] < 30
    assert (row["verdict"], row["note"]) == ("not measured", "fewer than 30 test images")


def test_halves_are_fixed_by_the_seed_alone() -> None:
    """About half of the seeds calibrate, always the same ones."""
    chosen = [calibrates(seed) for seed in range(1000)]
    assert chosen == [calibrates(seed) for seed in range(1000)]
    assert 450 < sum(chosen) < 550


def test_sr3_is_covered_on_faces_that_it_never_saw(data_root: Path, tmp_path: Path) -> None:
    """On held-out photos the bands of SR3 and of bicubic hold as many as promised, and SR3's spread has its map."""
    suite = parse_suite(SUITE.replace("diversity: {images: 8, samples: 3}", ""), "x.yaml")
    job = Job(suite, f"utkface:{data_root}/utkface#validation", ("bicubic", "sr3,steps=4"), tmp_path, 100, "")
    with Progress(disable=True) as progress:
        folder = run(job, progress)
    table = pd.DataFrame(uncertainty_rows(Scores.of(folder)))
    whole = table[(table["group"] == "all") & table["coverage"].notna()]
    bands = {(row["backend"], row["band"]) for _, row in whole.iterrows()}
    assert bands == {("bicubic", "constant"), ("sr3", "spread"), ("sr3", "constant")}
    assert (whole["verdict"] == "holds").all()
    assert (whole["n"] + whole["calibration"] == 100).all()
    assert only(whole, backend="sr3", band="spread")["correlation_low"] > 0
    worst = only(pd.DataFrame(example_rows(Scores.of(folder))), backend="sr3", place="worst")
    assert load(tmp_path / worst["uncertainty"]).std() > 0
