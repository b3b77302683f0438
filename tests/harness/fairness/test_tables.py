"""The audit of a run end to end: real photos, a bias planted in stored outputs, and the tables that must find it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.progress import Progress
from scipy.ndimage import gaussian_filter

from harness.audit import FAIRNESS, write_tables
from harness.images import encode_png, load
from harness.plan import CLEAN, Job
from harness.runner import run
from harness.score import output_path
from harness.store import RunFolder, open_run, read_table
from harness.suite import parse_suite
from reports.build import build

SUITE = """
name: small
title: small
low: 16
high: 64
metrics: [psnr]
fairness:
  uninformative: {images: 40}
  claims:
    - {measure: psnr, attribute: race, margin: 3}
    - {measure: psnr, attribute: race, of: gain, margin: 0.5}
    - {measure: race_flip_attributes, attribute: race, margin: 0.05}
"""
IMAGES, VICTIM = 160, "indian"


def audited(dataset: str, out: Path, *backends: str) -> RunFolder:
    """A finished run of the suite with its tables."""
    with Progress(disable=True) as progress:
        folder = run(Job(parse_suite(SUITE, "x.yaml"), dataset, backends, out, IMAGES, ""), progress)
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def planted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Bicubic outputs of which those of one race are blurred, replayed by image id beside bicubic itself."""
    dataset, where = f"utkface:{data_root}/utkface#validation", tmp_path_factory.mktemp("runs")
    first = audited(dataset, where / "first", "bicubic")
    backend = next(b for b in (first.read_record() or {})["backends"] if b["label"] == "bicubic")
    (where / "outputs").mkdir()
    for row in read_table(first.path / "images.parquet").to_dict("records"):
        path = output_path(first, backend, CLEAN, str(row["image"]), int(row["seed"]), 4)
        assert path is not None
        image = load(path)
        if row["race"] == VICTIM:
            image = np.rint(gaussian_filter(image.astype(float), (1.6, 1.6, 0))).astype(np.uint8)
        (where / "outputs" / f"{row['image']}.png").write_bytes(encode_png(image))
    shutil.rmtree(first.path)
    return audited(dataset, where / "second", "bicubic", f"replay,outputs={where / 'outputs'},name=biased")


@pytest.fixture(scope="module")
def tables(planted: RunFolder) -> dict[str, pd.DataFrame]:
    """The tables of the audit, from Python."""
    return planted.fairness()


def only(frame: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows that have these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_a_planted_bias_is_found_and_named(tables: dict[str, pd.DataFrame]) -> None:
    """The claims against the biased backend fall, with the right group and direction; its gain shows it most purely."""
    gap = only(tables["gaps"], backend="biased", metric="psnr", of="gain", attribute="race").iloc[0]
    assert (gap["family"], gap["worst"], gap["verdict"]) == ("primary", VICTIM, "disparity")
    contrasts = only(tables["contrasts"], backend="biased", metric="psnr", of="gain").set_index("group")
    assert contrasts["verdict"].to_dict()[VICTIM] == "worse"
    assert contrasts["difference"].idxmin() == VICTIM
    found = only(tables["subgroups"], backend="biased", metric="psnr", of="gain").iloc[0]
    assert VICTIM in found["subgroup"]
    assert found["difference"] < 0
    assert found["p_value"] < 0.05


def test_control_arms_are_in_no_claim(tables: dict[str, pd.DataFrame]) -> None:
    """Claims are made of backends: the ground truth and bicubic are shown, and judged in the exploratory family."""
    primary = only(tables["gaps"], family="primary")
    assert set(primary["backend"]) == {"biased"}
    assert len(primary) == 3


def test_flips_are_counted_and_the_control_exceeds_nothing(tables: dict[str, pd.DataFrame]) -> None:
    """A matrix counts every image once; the control arm's excess is 0, a blurred output's is not below it."""
    flips = only(tables["flips"], backend="biased", attribute="race")
    assert flips["count"].sum() == IMAGES
    excess = only(tables["excess_flips"], attribute="race")
    assert (only(excess, backend="passthrough")["excess"].dropna() == 0).all()
    victim = only(excess, backend="biased", group=VICTIM).iloc[0]
    assert victim["excess"] > only(excess, backend="bicubic", group=VICTIM).iloc[0]["excess"] - 0.1
    assert victim["n"] == IMAGES // 5


def test_uninformative_inputs_say_only_the_group(planted: RunFolder, tables: dict[str, pd.DataFrame]) -> None:
    """The images of a group share one average, noise is each image's own, and a deterministic backend counts once."""
    images = read_table(planted.path / "images.parquet").set_index("image")["race"]
    inputs = {name: dict(_inputs(planted, name, images.index)) for name in ("average", "average_noise")}
    assert len(inputs["average"]) == len(inputs["average_noise"]) == 40
    assert len(set(inputs["average"].values())) == 5
    assert len(set(inputs["average_noise"].values())) == 40
    ucpr = tables["parity"][tables["parity"]["measure"] == "UCPR-chi2"].set_index("backend")
    assert list(ucpr["note"]["bicubic"]) == [
        "average faces: 5 outputs share 5 averages, no test",
        "noisy averages: 40 outputs share 5 averages, no test",
    ]
    assert ucpr["p_value"].isna().all()
    assert "biased" not in ucpr.index  # stored outputs are no answer to other inputs


def _inputs(folder: RunFolder, condition: str, images: pd.Index) -> list[tuple[str, bytes]]:
    paths = {str(image): folder.input(condition, str(image)) for image in images}
    return [(image, path.read_bytes()) for image, path in paths.items() if path.exists()]


def test_the_report_tells_it_in_words(planted: RunFolder, tables: dict[str, pd.DataFrame]) -> None:
    """The first page names the attribute, the measure and the worst group; every table of the audit is beside it."""
    build(planted.path)
    text = (planted.path / "report.md").read_text(encoding="utf-8")
    assert "**biased, race.**" in text
    assert f"worst {VICTIM}" in text
    assert set(tables) == set(FAIRNESS)
    assert {f"{name}.csv" for name in FAIRNESS} <= {path.name for path in (planted.path / "tables").iterdir()}
    assert open_run(planted.path).fairness().keys() == tables.keys()
