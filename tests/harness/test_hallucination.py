"""Hallucination: the split at its corners, consistency with its floor, and a planted backend that ignores its input."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from rich.progress import Progress

from harness import audit
from harness.datasets import open_dataset
from harness.degrade import make_input, make_target
from harness.errors import StoreError, WeightsError
from harness.hallucination import (
    DISTANCES,
    KINDS,
    TEMPERATURE,
    Split,
    enlarged,
    hallucination_rows,
    measure_hallucination,
    split,
)
from harness.hallucination_maps import draw_maps
from harness.images import load
from harness.plan import Job
from harness.runner import run
from harness.score import score_run
from harness.scores import Scores
from harness.store import RunFolder
from harness.suite import parse_suite
from harness.uncertainty import measure_uncertainty
from reports.build import build

Pixels = NDArray[np.uint8]
PURE = 1 / (1 + 2 * math.exp(-1 / TEMPERATURE))
"""The share of one kind where every pixel is it alone: the soft-min leaves something to the others."""
SUITE = """
name: small
title: small
low: 16
high: 64
metrics: [lr_psnr]
hallucination: {distances: [lpips, l1]}
diversity: {images: 4, samples: 2}
uncertainty: {images: 4, samples: 2}
"""


@pytest.fixture(scope="module")
def targets() -> Pixels:
    """Four portraits of 64 pixels."""
    dataset = open_dataset("synthetic")
    return np.stack([make_target(dataset.image(record), 64) for record in dataset.records[:4]])


@pytest.fixture(scope="module")
def plain(targets: Pixels) -> Pixels:
    """Their inputs of 16 pixels, enlarged by bicubic."""
    return enlarged(np.stack([make_input(target, 16) for target in targets]), 4)


def shares(name: str, outputs: Pixels, targets: Pixels, plain: Pixels) -> dict[str, NDArray[np.float64]]:
    """The shares of each image, by kind."""
    return dict(zip(KINDS, splits(name, outputs, targets, plain).shares(), strict=True))


def splits(name: str, outputs: Pixels, targets: Pixels, plain: Pixels) -> Split:
    """The split; skipped where the weights of LPIPS are not at hand."""
    try:
        return split(DISTANCES[name], outputs, targets, plain)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", DISTANCES)
def test_the_truth_is_all_improvement_and_bicubic_all_omission(name: str, targets: Pixels, plain: Pixels) -> None:
    """At every pixel that counts, and so in the mean, each has the largest weight that one kind can have."""
    assert shares(name, targets, targets, plain)["improvement"] == pytest.approx(PURE)
    assert shares(name, plain, targets, plain)["omission"] == pytest.approx(PURE)
    kinds = splits(name, plain, targets, plain)
    assert set(kinds.weights.argmax(axis=0)[kinds.counted]) == {KINDS.index("omission")}


@pytest.mark.parametrize("name", DISTANCES)
def test_what_is_far_from_truth_and_input_is_hallucination(name: str, targets: Pixels, plain: Pixels) -> None:
    """Another's face and a flat grey are hallucinated by most; the truth half mixed with the input hardly."""
    mixed = (targets // 2 + plain // 2).astype(np.uint8)
    grey, other = np.full_like(targets, 128), targets[::-1]
    found = {key: shares(name, outputs, targets, plain) for key, outputs in (("m", mixed), ("g", grey), ("o", other))}
    for each in found.values():
        assert sum(each.values()) == pytest.approx(1)
    assert (found["m"]["hallucination"] < 0.2).all()
    assert (found["o"]["hallucination"] > 0.6).all()
    assert (found["g"]["hallucination"] > 0.6).all()


def test_nothing_is_split_where_nothing_differs() -> None:
    """An image that enlarging alone gives back, but for rounding, has no shares."""
    grey = np.full((1, 16, 16, 3), 100, np.uint8)
    assert np.isnan(split(DISTANCES["l1"], grey + np.uint8(1), grey, grey).shares()).all()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run over real servers: bicubic, nearest, and one that returns the same grey for every input."""
    folder, backends = tmp_path_factory.mktemp("run"), ("bicubic", "nearest", "faulty,fault=flat,name=flat")
    try:
        with Progress(disable=True) as progress:
            return run(Job(parse_suite(SUITE, "x.yaml"), "synthetic", backends, folder, 12, ""), progress)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tables(planted: RunFolder) -> dict[str, pd.DataFrame]:
    """Its tables, written."""
    return audit.write_tables(planted)


@pytest.fixture(scope="module")
def figures(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Measure x backend of the table."""
    return tables["hallucination"].pivot_table(index="measure", columns="backend", values="value", sort=False)


def test_the_goal_is_not_above_what_the_truth_reaches(tmp_path: Path) -> None:
    """Where rounding leaves the truth itself 40 dB, an output of 41 dB reaches the goal; where it has 58, 44 do not."""
    figures = {"passthrough": (40.0, 58.0, 58.0), "gan": (41.0, 44.0, 46.0)}
    folder, who = RunFolder(tmp_path), {"options": "{}", "digest": "d", "condition": "clean", "metric": "lr_psnr"}
    rows = [
        who | {"backend": label, "image": f"i{i}", "value": value}
        for label, values in figures.items()
        for i, value in enumerate(values)
    ]
    backends: list[dict[str, Any]] = [
        {"label": label, "options": {}, "digest": "d", "device": "", "precision": ""} for label in figures
    ]
    about = {"higher_is_better": False, "unit": "share"}
    record = {"schema": 1, "suite": {"content": {}}, "dataset": {}, "metrics": {"lr_psnr": about}, "backends": backends}
    folder.write_record(record | {"measures": {"hallucination_l1": about}})
    folder.write_table("images", pd.DataFrame({"image": ["i0", "i1", "i2"], "seed": range(3), "error": ""}))
    folder.append(rows)
    table = pd.DataFrame(hallucination_rows(Scores.of(folder)))
    missed = table[table["measure"] == "below_goal"].set_index("backend")["value"]
    assert missed.to_dict() == {"passthrough": 0, "gan": pytest.approx(1 / 3)}


def test_a_backend_that_ignores_its_input_is_found_out(figures: pd.DataFrame) -> None:
    """It fails consistency on every image, and no other backend has as large a share of hallucination."""
    assert figures.loc["below_goal", "flat"] == 1
    assert figures.loc["lr_psnr_p01"].idxmin() == "flat"
    for name in DISTANCES:
        assert figures.loc[f"hallucination_{name}"].idxmax() == "flat"
        assert figures["flat"][f"hallucination_{name}"] > 0.5


def test_the_control_arms_stand_at_the_corners(figures: pd.DataFrame) -> None:
    """The ground truth is improvement and never misses its own floor; the bicubic backend is omission."""
    assert figures.loc["below_goal", "passthrough"] == 0
    for name in DISTANCES:
        assert figures.loc[f"improvement_{name}", "passthrough"] == pytest.approx(PURE)
        assert figures.loc[f"omission_{name}", "bicubic"] == pytest.approx(PURE)
        assert figures.loc[[f"{kind}_{name}" for kind in KINDS]].sum().to_numpy() == pytest.approx(1)


def test_paired_differences_hold_the_shares(tables: dict[str, pd.DataFrame], figures: pd.DataFrame) -> None:
    """`pairs` compares them as it does scores, and calls less hallucination better."""
    pairs = tables["pairs"]
    row, found = pairs[pairs["metric"] == "hallucination_l1"].iloc[0], figures.loc["hallucination_l1"]
    assert (row["first"], row["second"]) == ("nearest", "flat")
    assert row["mean"] == pytest.approx(found["nearest"] - found["flat"])
    assert row["verdict"] == "better"


def stored(folder: RunFolder) -> pd.DataFrame:
    """The values of all rows, in a fixed order."""
    key = ["backend", "metric", "image"]
    return folder.rows("part")[[*key, "value"]].sort_values(key, ignore_index=True)


def test_all_of_it_comes_back_from_stored_outputs(planted: RunFolder) -> None:
    """Measured again, nothing is appended; without its rows and maps, the run has the same ones again."""
    before, parts = stored(planted), planted.parts("part")
    maps = {path: path.read_bytes() for path in (planted.path / "maps").rglob("*.png")}
    with Progress(disable=True) as progress:
        measure_hallucination(planted, progress)
        measure_uncertainty(planted, progress)
        assert planted.parts("part") == parts
        planted.drop("part")
        shutil.rmtree(planted.path / "maps")
        for measure in (score_run, measure_hallucination, measure_uncertainty):
            measure(planted, progress)
    draw_maps(planted)
    pd.testing.assert_frame_equal(stored(planted), before)
    assert {path: path.read_bytes() for path in maps} == maps
    assert len(maps) == 4


def test_the_map_is_red_where_it_is_hallucinated(planted: RunFolder, tables: dict[str, pd.DataFrame]) -> None:
    """The grey of the backend that ignores its input is red by most; each backend's examples have their pictures."""
    rows = tables["hallucinated"]
    assert rows[["backend", "place"]].to_numpy().tolist() == [
        [label, place] for label in ("nearest", "flat") for place in ("middle", "worst")
    ]
    assert (rows["uncertainty"] == "").all()  # deterministic
    worst = load(planted.path / rows.iloc[-1]["hallucination"]).astype(int)
    assert (worst[..., 0] - worst[..., 2] > 60).mean() > 0.5


@pytest.mark.usefixtures("tables")
def test_the_report_says_it_in_a_sentence(planted: RunFolder) -> None:
    """The section opens with the figures of each backend in words, and the page stays small."""
    build(planted.path)
    page = (planted.path / "report.html").read_text()
    assert "flat: 100 [76, 100] % of its 12 outputs miss the consistency goal of 45 dB" in page
    assert page.count("Hallucination of flat in red") == 2
    assert len(page) < 1_000_000


def test_shares_of_another_recipe_are_not_mixed(planted: RunFolder, tmp_path: Path) -> None:
    """A run whose record names another recipe is refused, and told what to do."""
    record = planted.read_record() or {}
    record["measures"]["hallucination_l1"]["recipe"] = "another"
    other = RunFolder(tmp_path)
    other.write_record(record)
    with Progress(disable=True) as progress, pytest.raises(StoreError, match="another --output"):
        measure_hallucination(other, progress)
