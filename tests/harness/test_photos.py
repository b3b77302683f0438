"""Photos without ground truth: a whole run over an album of mixed sizes and formats, and what its report says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import weights
from harness.datasets import open_dataset
from harness.errors import WeightsError
from harness.images import load
from harness.store import RunFolder, png_size

SUITE = """name: album
title: An album
photos:
  scale: 4
  max_pixels: 5000
metrics: [lr_psnr, lr_mse, sharpness]
diversity: {images: 4, samples: 3}
speed: {images: 2, batch: 2}
"""
SIZES = {"square": (20, 20), "square2": (20, 20), "square3": (20, 20), "wide": (40, 24), "tiny": (9, 7)}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits of several sizes, one turned by EXIF, one CMYK, one grey, one too large, one broken; two labelled."""
    folder = tmp_path_factory.mktemp("album")
    dataset = open_dataset("synthetic")
    faces = [Image.fromarray(dataset.image(record)) for record in dataset.records[:9]]
    for face, (name, size) in zip(faces, SIZES.items(), strict=False):
        face.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    turned = Image.Exif()
    turned[274] = 6  # orientation: turn by 90 degrees
    faces[5].resize((28, 16)).save(folder / "turned.jpg", exif=turned)
    faces[6].resize((24, 20)).convert("CMYK").save(folder / "cmyk.jpg")
    faces[7].resize((24, 20)).convert("L").save(folder / "grey.png")
    faces[8].resize((100, 80)).save(folder / "snapshot.png")
    (folder / "broken.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:400])
    (folder / "metadata.csv").write_text("file_name,gender\nwide.png,female\ngrey.png,male\n")
    return folder


@pytest.fixture(scope="module")
def run(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the album with bicubic, nearest and SR3, which takes 16 to 64 pixels in steps of 4."""
    try:
        weights.resolve("alexnet.ckpt", fetch=False)
    except WeightsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("photos")
    (folder / "album.yaml").write_text(SUITE)
    done = harness(*command(folder, album))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return folder / "run"


def command(folder: Path, album: Path) -> list[str]:
    """Arguments of the run."""
    backends = ["--backend", "nearest", "--backend", "sr3,steps=2"]
    return ["run", f"{folder}/album.yaml", "--dataset", f"folder:{album}", "--output", f"{folder}/run", *backends]


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    line = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=240)


def table(run: Path, name: str) -> pd.DataFrame:
    """A table of the run."""
    return pd.read_parquet(run / "tables" / f"{name}.parquet")


def test_the_photos_are_the_inputs_as_they_are(run: Path, album: Path) -> None:
    """Every usable photo goes to the backends whole, upright and unresized, and comes back four times as large."""
    folder = RunFolder(run)
    assert png_size(folder.input("clean", "turned")) == (28, 16)
    for name in (*SIZES, "grey"):
        assert np.array_equal(load(folder.input("clean", name)), load(album / f"{name}.png"))
    sizes = {png_size(path) for path in (run / "outputs").rglob("*.png")}
    assert sizes == {(80, 80), (96, 160), (28, 36), (112, 64), (80, 96)}
    assert not (run / "targets").exists()


def test_only_what_can_be_known_is_measured(run: Path) -> None:
    """No row or table holds a figure that needs the truth, and the ground truth is no control arm."""
    assert set(table(run, "summary")["metric"]) == {"lr_psnr", "lr_mse", "sharpness"}
    assert set(table(run, "summary")["backend"]) == {"bicubic", "nearest", "sr3"}
    assert table(run, "sets").empty
    gains = table(run, "differences").query("metric == 'sharpness'").set_index("backend")
    assert gains.loc["nearest", "n"] == 8
    assert gains.loc["nearest", "verdict"] == "higher"
    assert set(table(run, "worst")["metric"]) == {"lr_psnr"}
    counted = table(run, "groups").query("metric == 'sharpness' and backend == 'nearest'").set_index("group")["n"]
    assert counted.to_dict() == {"female": 1, "male": 1, "unknown": 6}


def test_unusable_photos_and_refused_sizes_are_counted(run: Path) -> None:
    """A broken and a too large photo cost themselves; a size that a backend does not take is that backend's failure."""
    record = json.loads((run / "run.json").read_text())
    notes = " ".join(record["dataset"]["notes"])
    assert record["dataset"]["images"] == 8
    assert "2 of 10 images left out" in notes
    assert "snapshot.png: 100 x 80 is more than the suite's max_pixels, 5000" in notes
    assert "broken.jpg" in notes
    failures = table(run, "failures").set_index("backend")
    assert failures.loc["sr3", "n"] == 1
    assert failures.loc["sr3", "message"] == "sr3 takes inputs of 16 to 64 pixels in steps of 4, not 9 x 7"
    sr3 = next(b for b in record["backends"] if b["label"] == "sr3")
    assert (sr3["out_of_domain"], sr3["inputs_below_domain"]) == (True, 1)


def test_diversity_is_that_of_the_stochastic(run: Path) -> None:
    """SR3's samples of one photo differ; a deterministic backend has one output, not a diversity of 0."""
    diversity = table(run, "diversity").set_index("backend")
    assert (diversity.loc[["sr3"], "mean"] > 0).all()
    assert diversity.loc["sr3", "samples"] == 3
    assert set(diversity.loc[["bicubic", "nearest"], "note"]) == {"deterministic: one output"}
    assert diversity.loc[["bicubic", "nearest"], "mean"].isna().all()


def test_the_timed_pass_is_of_one_size(run: Path) -> None:
    """Requests of a timed pass hold photos of the size that most have."""
    rows = RunFolder(run).rows("timed")
    single = rows[(rows["metric"] == "end_to_end_s") & (rows["stage"] == "batch-1")]
    assert set(single["image"]) <= {"square", "square2", "square3"}
    assert json.loads((run / "run.json").read_text())["inputs"] == {
        "sizes": 5,
        "columns": [32, 64],
        "smallest": "9 x 7",
        "largest": "40 x 24",
        "timed": "20 x 20",
    }


def test_the_report_says_what_is_absent(run: Path) -> None:
    """The page opens with the figures that need the truth and are absent, shows no target, and ranks no sharpness."""
    text = re.sub(r"<[^>]+>", " ", (run / "report.html").read_text(encoding="utf-8"))
    opening = text[text.index("In short") : text.index("Limits of this run")]
    for part in ("PSNR (RGB)", "SSIM (Y)", "LPIPS (AlexNet)", "KID, FID", "passthrough", "are absent", "consistency"):
        assert part in opening
    assert "KID and FID compare with the ground truth, which this run does not have" in text
    assert "Target" not in text
    assert "Inputs of 20 x 20 pixels, the size that most photos have" in text
    assert "deterministic: one output" in text
    summary = (run / "report.md").read_text(encoding="utf-8").split("**Quality of each backend")[1]
    row = next(line for line in summary.splitlines() if line.startswith("| sr3"))
    assert "rank" in row
    assert "rank" not in row.split("|")[-2]


def test_the_same_command_continues(run: Path, album: Path) -> None:
    """Run again, nothing is computed twice."""
    kinds = ("rows/part-*.parquet", "outputs/**/*.png")
    before = {p: p.stat().st_mtime_ns for kind in kinds for p in run.glob(kind)}
    assert harness(*command(run.parent, album)).returncode == 1
    assert before == {p: p.stat().st_mtime_ns for kind in kinds for p in run.glob(kind)}
