"""Comparisons: paired on the same images, regressions first, refused where runs are not of the same thing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness.compare import COLUMNS, compare_backends, compare_runs
from harness.errors import ConfigError, StoreError
from harness.store import RunFolder

Float = NDArray[np.float64]
RNG = np.random.default_rng
METRICS: dict[str, dict[str, Any]] = {
    "psnr": {"title": "PSNR", "unit": "dB", "higher_is_better": True, "recipe": "RGB"},
    "lpips_alex": {"title": "LPIPS", "unit": "", "higher_is_better": False, "recipe": "0.1"},
    "sharpness": {"title": "Sharpness", "unit": "", "higher_is_better": None, "recipe": ""},
}
CONTENT: dict[str, Any] = {"low": 16, "high": 64, "seed": 0, "noise": None, "photos": None, "target_kernel": "bicubic"}
LABELS = ("passthrough", "bicubic", "gan", "sr3")
BASE = RNG(0).normal(0.5, 0.1, 40)


def run_of(path: Path, scores: Mapping[tuple[str, str], Float], n: int = 40, **changes: Any) -> RunFolder:
    """A run with scores by (backend, metric), one an image in order; the files that a comparison reads."""
    folder, images = RunFolder(path), [f"i{i:03d}" for i in range(n)]
    about = {"options": {}, "device": "cpu", "precision": "float32", "status": "ok"}
    backends = [about | {"label": label, "digest": label} for label in LABELS]
    record = {"schema": 1, "suite": {"content": CONTENT}, "dataset": {"sha256": "ab"}, "metrics": METRICS}
    folder.write_record(record | {"backends": backends} | changes)
    folder.write_table("images", pd.DataFrame({"image": images, "seed": range(n), "error": ""}))
    for (label, metric), values in scores.items():
        who = {"backend": label, "digest": label, "options": "{}", "condition": "clean", "metric": metric}
        pairs = zip(images, values, strict=False)
        folder.append([who | {"image": image, "value": float(value)} for image, value in pairs])
    return folder


def test_regressions_come_first_and_improvements_last(tmp_path: Path) -> None:
    """Each metric is judged by its direction; what is neither better nor worse stands between, and so do ties."""
    noise = RNG(1).normal(0, 0.001, 40)
    before = run_of(tmp_path / "before", {("sr3", m): BASE for m in METRICS} | {("gan", "psnr"): BASE})
    after = {("sr3", "psnr"): BASE + 0.1 + noise, ("sr3", "lpips_alex"): BASE + 0.2 + noise}
    after |= {("sr3", "sharpness"): BASE + 0.3 + noise, ("gan", "psnr"): BASE}
    table = compare_runs(run_of(tmp_path / "after", after), before)
    assert list(table.columns) == COLUMNS.split()
    told = table[["verdict", "candidate", "metric"]].to_numpy().tolist()
    assert told == [
        ["regression", "sr3", "lpips_alex"],
        ["higher", "sr3", "sharpness"],
        ["tie", "gan", "psnr"],
        ["improvement", "sr3", "psnr"],
    ]


def test_the_difference_is_candidate_minus_baseline_over_pairs(tmp_path: Path) -> None:
    """Pairing takes out what images have in common; images that one side lacks are counted, not imputed."""
    gain = RNG(2).normal(0.02, 0.004, 38)
    run = run_of(tmp_path, {("sr3", "psnr"): BASE[:38] + gain, ("gan", "psnr"): BASE})
    (row,) = compare_backends(run, "sr3", "gan").to_dict("records")
    assert (row["n"], row["unpaired"], row["verdict"]) == (38, 2, "improvement")
    assert row["mean"] == pytest.approx(gain.mean())
    assert row["low"] < gain.mean() < row["high"] < 0.03
    assert row["baseline_mean"] == pytest.approx(BASE[:38].mean())


def test_what_only_one_side_was_scored_on_is_not_measured(tmp_path: Path) -> None:
    """A metric or an image without its counterpart gives no verdict."""
    table = compare_backends(run_of(tmp_path, {("sr3", "psnr"): BASE}), "sr3", "gan")
    assert table[["n", "unpaired", "verdict"]].to_numpy().tolist() == [[0, 40, "not measured"]]


def test_attacked_inputs_are_never_paired(tmp_path: Path) -> None:
    """Each backend is attacked with inputs of its own, so scores under an attack are left out."""
    run = run_of(tmp_path, {("sr3", "psnr"): BASE, ("gan", "psnr"): BASE})
    for label in ("sr3", "gan"):
        who = {"backend": label, "digest": label, "options": "{}", "condition": "attack_pgd", "severity": 8}
        run.append([who | {"metric": "psnr", "image": "i000", "value": 20.0}])
    assert set(compare_backends(run, "sr3", "gan")["condition"]) == {"clean"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": {"sha256": "cd"}}, "over different images"),
        ({"n": 39}, "over different images"),
        ({"suite": {"content": CONTENT | {"low": 8}}}, "suites differ in low"),
        ({"suite": {"content": CONTENT | {"seed": 1}}}, "suites differ in seed"),
        ({"metrics": METRICS | {"psnr": METRICS["psnr"] | {"recipe": "Y"}}}, "psnr is measured .*by another recipe"),
        ({"metrics": METRICS | {"ssim": METRICS["psnr"]}}, "ssim is measured by one of them only"),
    ],
)
def test_runs_of_different_things_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Other images, other inputs or another recipe of a metric end the comparison with one line."""
    scores = {("sr3", "psnr"): BASE}
    first, second = run_of(tmp_path / "a", scores), run_of(tmp_path / "b", scores, **changes)
    with pytest.raises(StoreError, match=words) as caught:
        compare_runs(first, second)
    assert "\n" not in str(caught.value)


def test_other_backends_and_deadlines_do_not_matter(tmp_path: Path) -> None:
    """A suite may change in what does not change inputs or scores."""
    scores = {("sr3", "psnr"): BASE}
    second = run_of(tmp_path / "b", scores, suite={"content": CONTENT | {"deadline_s": 9, "backends": ["sr3"]}})
    assert set(compare_runs(run_of(tmp_path / "a", scores), second, "sr3")["verdict"]) == {"tie"}


@pytest.mark.parametrize(("first", "second", "words"), [("sr", "gan", "did you mean sr3"), ("gan", "gan", "itself")])
def test_unknown_and_equal_backends_are_refused(first: str, second: str, words: str, tmp_path: Path) -> None:
    """A label that the run does not have is told with a suggestion, and nothing is compared with itself."""
    with pytest.raises(ConfigError, match=words):
        compare_backends(run_of(tmp_path, {("gan", "psnr"): BASE}), first, second)
