"""Whole runs over real servers: rows, resumption after kills, failures that stay local, unusable images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from harness import weights
from harness.errors import WeightsError
from harness.store import RunFolder

SuiteFile = Callable[..., Path]
KEY = ["backend", "digest", "options", "condition", "severity", "image", "sample", "stage", "metric"]


def harness(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def run_arguments(suite: Path, photos: Path, output: Path, *backends: str) -> list[object]:
    """Arguments of `harness run` over a folder of photos."""
    chosen = [text for backend in backends for text in ("--backend", backend)]
    return ["run", suite, "--dataset", f"folder:{photos}", "--output", output, *chosen]


def rows_of(output: Path) -> pd.DataFrame:
    """All rows of a run folder, each key present once."""
    rows = RunFolder(output).rows()
    assert not rows.duplicated(KEY).any()
    return rows


def test_a_run_writes_what_scripts_rely_on(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """Names of files and columns, one row per image and metric, the control arm exact, groups and report there."""
    out = tmp_path / "run"
    suite = suite_file(
        noise="{sigmas: [0.05], images: 12, metrics: [psnr]}",
        corruptions="{names: [contrast, glass_blur], severities: [1, 5], images: 6, metrics: [psnr, lr_mse]}",
        speed="{images: 12, batch: 4, reference: nearest}",
    )
    done = harness(*run_arguments(suite, photos, out, "bicubic", "nearest"))
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    rows = rows_of(out)
    expected = "backend options digest device precision dataset image condition severity scale class seed sample stage"
    assert list(rows.columns)[:18] == [*expected.split(), "metric", "value", "unit", "error"]
    assert set(rows.columns[18:]) == {"race", "gender", "age"}
    clean = rows[(rows["condition"] == "clean") & (rows["metric"] == "psnr")]
    assert clean.groupby("backend")["image"].nunique().to_dict() == {"passthrough": 70, "bicubic": 70, "nearest": 70}
    assert (clean.loc[clean["backend"] == "passthrough", "value"] == float("inf")).all()
    noisy = rows[rows["condition"] == "gaussian_noise"]
    assert noisy.groupby("metric").size().to_dict() == {"psnr": 24, "change_mse": 24}
    corrupted, changes = rows[rows["condition"].isin(["contrast", "glass_blur"])], ("lr_mse", "change_mse")
    assert corrupted.groupby(["condition", "severity", "metric"]).size().to_dict() == {
        **{("contrast", severity, metric): 12 for severity in (1, 5) for metric in (*changes, "psnr")},
        **{("glass_blur", severity, metric): 12 for severity in (1, 5) for metric in changes},
    }
    assert {"end_to_end_s", "compute_s", "transport_s", "cold_start_s"} <= set(rows["metric"])
    assert set(rows.loc[rows["metric"] == "end_to_end_s", "stage"]) == {"batch-1", "batch-4"}
    turns = rows[rows["metric"] == "reference_compute_s"]
    assert set(turns["backend"] + " " + turns["stage"]) == {"bicubic turns-1-nearest", "bicubic turns-4-nearest"}
    assert set(rows["race"]) >= {"white", "black", "unknown"}
    tables = {p.stem for p in (out / "tables").glob("*.parquet")}
    assert {
        "summary",
        "groups",
        "gaps",
        "noise",
        "corruptions",
        "amplification",
        "speed",
        "scenarios",
        "untimed",
        "worst",
        "failures",
        "differences",
    } <= tables
    groups = pd.read_parquet(out / "tables/groups.parquet")
    unknown = groups[(groups["group"] == "unknown") & (groups["attribute"] == "race")]
    assert set(unknown["status"]) == {"insufficient"}
    assert unknown["mean"].isna().all()


def test_the_same_command_computes_nothing_twice(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A finished run, run again, leaves every row and output as it is, and `score` adds nothing."""
    out = tmp_path / "run"
    arguments = run_arguments(suite_file(), photos, out, "bicubic")
    assert harness(*arguments).returncode == 0
    before = {p: p.stat().st_mtime_ns for folder in ("rows", "outputs") for p in (out / folder).rglob("*.p*")}
    assert harness(*arguments).returncode == 0
    assert harness("score", out).returncode == 0
    after = {p: p.stat().st_mtime_ns for folder in ("rows", "outputs") for p in (out / folder).rglob("*.p*")}
    assert before == after


def test_scores_come_back_without_a_backend(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """With the rows deleted, `harness score` gives the same scores from the stored outputs."""
    out = tmp_path / "run"
    assert harness(*run_arguments(suite_file(), photos, out, "bicubic")).returncode == 0
    before = rows_of(out).sort_values(KEY).reset_index(drop=True)
    for part in (out / "rows").iterdir():
        part.unlink()
    assert harness("score", out).returncode == 0
    pd.testing.assert_frame_equal(rows_of(out).sort_values(KEY).reset_index(drop=True), before)


def wait_for_outputs(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has written so many outputs."""
    limit = time.monotonic() + 60
    while len(list((out / "outputs").rglob("*.png"))) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit


@pytest.mark.parametrize("victim", ["harness", "backend"])
def test_a_killed_run_is_finished_by_the_same_command(
    victim: str, suite_file: SuiteFile, photos: Path, tmp_path: Path
) -> None:
    """SIGKILL of the harness or of its backend in the middle: the same command completes it, every row once."""
    out = tmp_path / "run"
    arguments = run_arguments(suite_file(batch="4"), photos, out, "faulty,fault=slow")
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_outputs(out, 75, process)
    children = psutil.Process(process.pid).children(recursive=True)
    if victim == "harness":
        process.kill()
        process.wait()
        psutil.wait_procs(children, timeout=20)
        assert not any(child.is_running() for child in children)
    else:
        next(child for child in children if "faulty" in child.cmdline()).send_signal(signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    kept = {p: p.stat().st_mtime_ns for p in (out / "outputs").rglob("*.png")}
    done = harness(*arguments)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert (rows[rows["metric"] == "psnr"].groupby("backend")["image"].nunique() == 70).all()
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in (out / "outputs").rglob("*.png")}.items()
    assert (rows["error"] == "").all()


def test_one_bad_image_costs_only_itself(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A backend that crashes on one image of a batch fails that case alone, typed and counted."""
    out = tmp_path / "run"
    done = harness(*run_arguments(suite_file(), photos, out, "faulty,fault=crash,only=p07"))
    assert done.returncode == 1
    failed = rows_of(out).query("metric == 'output'")
    assert list(failed["image"]) == ["p07"]
    assert failed["error"].iloc[0].startswith("BackendFailed: ")
    failures = pd.read_parquet(out / "tables/failures.parquet")
    assert failures[["backend", "kind", "n"]].to_numpy().tolist() == [["faulty", "BackendFailed", 1]]


def test_a_hung_backend_costs_its_deadlines_not_the_run(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A backend that hangs on everything is given up, its cases fail, and the others are measured."""
    out = tmp_path / "run"
    arguments = run_arguments(suite_file(deadline_s="0.6"), photos, out, "faulty,fault=hang", "nearest")
    done = harness(*arguments)
    assert done.returncode == 1
    rows = rows_of(out)
    failed = rows[rows["metric"] == "output"]
    assert len(failed) == 70
    assert failed["error"].str.contains("DeadlineExceeded|given up").all()
    assert (rows["backend"] == "nearest").any()


def test_failures_are_tried_again(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """What failed in one attempt is tried in the next, and its failure rows go."""
    out, outputs = tmp_path / "run", tmp_path / "outputs"
    shutil.copytree(photos, outputs, ignore=shutil.ignore_patterns("*.csv"))
    held_back = (outputs / "p03.png").rename(tmp_path / "p03.png")
    arguments = run_arguments(suite_file(), photos, out, f"replay,outputs={outputs}")
    assert harness(*arguments).returncode == 1
    assert list(rows_of(out).query("metric == 'output'")["image"]) == ["p03"]
    held_back.rename(outputs / "p03.png")
    assert harness(*arguments).returncode == 0
    assert len(rows_of(out).query("metric == 'output'")) == 0


def test_outputs_of_other_images_are_one_sentence(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """Precomputed outputs of which none is named after an image end the command before anything is done."""
    others, out = tmp_path / "others", tmp_path / "run"
    others.mkdir()
    shutil.copy(photos / "p00.png", others / "someone.png")
    done = harness(*run_arguments(suite_file(), photos, out, f"replay,outputs={others},name=gan"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: gan: none of the 1 outputs in ")
    assert "outputs such as someone, images such as p00" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_a_backend_that_cannot_serve_the_suite_fails_alone(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A backend without the scale is one red line and failed cases; the rest of the run is intact."""
    out = tmp_path / "run"
    suite = suite_file(low="16", high="48")
    done = harness(*run_arguments(suite, photos, out, "sr3", "nearest"))
    assert done.returncode == 1
    assert "has no scale 3" in " ".join(done.stdout.split())
    summary = pd.read_parquet(out / "tables/summary.parquet").set_index(["backend", "metric"])
    assert summary.loc[("nearest", "psnr"), "n"] == 70
    assert summary.loc[("sr3", "psnr"), "failed"] == 70


def test_unusable_images_are_left_out_by_name(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A truncated and an empty file cost themselves, and the report says which and why."""
    data = (photos / "p00.png").read_bytes()
    (photos / "p00.png").write_bytes(data[: len(data) // 2])
    (photos / "p01.png").write_bytes(b"")
    out = tmp_path / "run"
    done = harness(*run_arguments(suite_file(), photos, out, "bicubic"))
    assert done.returncode == 1
    record = json.loads((out / "run.json").read_text())
    assert record["dataset"]["images"] == 68
    notes = " ".join(record["dataset"]["notes"])
    assert "2 of 70 images left out" in notes
    assert "p00.png" in notes
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quik"], "did you mean quick"),
        (["run", "faces"], "needs a dataset"),
        (["run", "faces", "--dataset", "folder:/no/such/folder"], "/no/such/folder"),
        (["run", "quick", "--backend", "sr4"], "no backend 'sr4'"),
        (["run", "quick", "--backend", "replay,outputs=/no/such"], "replay: /no/such: holds no output images"),
        (["run", "quick", "--backend", "sr3", "--backend", "sr3"], "is taken"),
        (["run", "quick", "--backend", "lanczos,name=bicubic"], "belongs to the control"),
        (["score", "/no/such/run"], "holds no run"),
        (["backends", "check", "sr4"], "no backend"),
        (["backends", "serve", "sr4"], "no backend"),
        (["datasets", "utkfaces:/tmp"], "utkface"),
    ],
)
def test_wrong_commands_are_one_line(arguments: list[str], words: str) -> None:
    """A wrong command ends with status 2 and one line that says what to do."""
    done = harness(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_suite_cannot_take_the_folder(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A folder that holds another run is refused, not mixed."""
    out = tmp_path / "run"
    assert harness(*run_arguments(suite_file(), photos, out, "bicubic")).returncode == 0
    done = harness(*run_arguments(suite_file(seed="9"), photos, out, "bicubic"))
    assert done.returncode == 2
    assert "another suite" in done.stderr


def test_a_remote_backend_is_attached_by_address(
    serve: Callable[[str], object], suite_file: SuiteFile, photos: Path, tmp_path: Path
) -> None:
    """NAME@ADDRESS uses a server that somebody else started, and leaves it running."""
    client = serve("lanczos")
    address = getattr(client, "address")  # noqa: B009 - the fixture's type is wider
    out = tmp_path / "run"
    done = harness(*run_arguments(suite_file(), photos, out, f"mine@{address}"))
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    mine = next(b for b in record["backends"] if b["label"] == "mine")
    assert (mine["name"], mine["address"]) == ("lanczos", address)
    assert not harness("backends", "check", address).returncode


def test_no_space_left_is_one_line(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """A full disk ends the run with one line; what was written stays."""
    if os.geteuid() != 0 or not Path("/dev/full").exists():
        pytest.skip("needs root to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], check=False)  # noqa: S607
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        done = harness(*run_arguments(suite_file(), photos, small / "run", "bicubic"))
        assert done.returncode == 2
        assert "no space left" in done.stderr
        assert list((small / "run").rglob("*.png"))
    finally:
        subprocess.run(["umount", small], check=False)  # noqa: S607


def test_interruption_is_clean(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with status 130 and one sentence, leaves no process behind, and the record says interrupted."""
    out = tmp_path / "run"
    arguments = run_arguments(suite_file(batch="4"), photos, out, "faulty,fault=slow")
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_outputs(out, 75, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() for child in children)


def test_sets_are_measured_from_stored_features(suite_file: SuiteFile, photos: Path, tmp_path: Path) -> None:
    """The ground truth has KID 0, a blurred set more; features are stored and a second scoring changes nothing."""
    try:
        weights.resolve("alexnet.ckpt", fetch=False)
    except WeightsError as error:
        pytest.skip(str(error))
    out = tmp_path / "run"
    assert harness(*run_arguments(suite_file(set_metrics="[kid_alexnet]"), photos, out, "bicubic")).returncode == 0
    values = rows_of(out).query("metric == 'kid_alexnet'").set_index("backend")["value"]
    assert values["passthrough"] == pytest.approx(0, abs=1e-12)
    assert values["bicubic"] > 0
    table = pd.read_parquet(out / "tables/sets.parquet").set_index("backend")
    assert table.loc["bicubic", "low"] < values["bicubic"] < table.loc["bicubic", "high"]
    assert table.loc["bicubic", "n"] == 70
    stored = {p: p.stat().st_mtime_ns for folder in ("features", "rows") for p in (out / folder).rglob("*.parquet")}
    assert any("features" in str(p) for p in stored)
    assert harness("score", out).returncode == 0
    assert stored == {p: p.stat().st_mtime_ns for p in stored}


def describe_tint(folder: Path, write_graph: Callable[..., Path], labels: str) -> str:
    """The `networks` of a suite: one whose features are the logarithm of the mean colour."""
    write_graph(folder / "tint.onnx", log=True)
    text = f"path: tint.onnx\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nfeatures: features\nattributes: {labels}\n"
    (folder / "tint.yaml").write_text(text)
    return f"{{tint: {folder / 'tint.yaml'}}}"


def test_a_described_network_measures_sets(
    suite_file: SuiteFile, write_graph: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """A described network gives KID and FID; an image it fails on is left out and named; another one is refused."""
    networks = describe_tint(tmp_path, write_graph, "{tint: [red, green, blue], light: 1}")
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(photos / "black.png")
    suite, out = suite_file(networks=networks, set_metrics="[kid_tint, fid_tint]"), tmp_path / "run"
    done = harness(*run_arguments(suite, photos, out, "bicubic", "nearest"))
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(out / "tables/sets.parquet").set_index(["backend", "metric"])
    assert set(table["n"]) == {70}
    assert set(table["note"]) == {"1 left out, features not finite: black"}
    values = table["value"]
    assert values["passthrough", "kid_tint"] == pytest.approx(0, abs=1e-12)
    assert values["bicubic", "fid_tint"] > 0
    (pair,) = pd.read_parquet(out / "tables/set_pairs.parquet").to_dict("records")
    assert (pair["first"], pair["second"], pair["metric"], pair["n"]) == ("nearest", "bicubic", "kid_tint", 70)
    assert pair["difference"] == pytest.approx(values["nearest", "kid_tint"] - values["bicubic", "kid_tint"])
    report = (out / "report.md").read_text()
    assert "KID (tint features)" in report
    assert "| nearest − bicubic | KID (tint features)" in report
    assert "features: ONNX tint.onnx sha256" in report
    shutil.rmtree(out / "features")
    (tmp_path / "tint.yaml").write_text((tmp_path / "tint.yaml").read_text().replace("32", "16"))
    again = harness("score", out)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_a_network_that_does_not_fit_ends_the_run_first(
    suite_file: SuiteFile, write_graph: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """A network with other outputs than its labels is refused in one line before anything is written."""
    networks = describe_tint(tmp_path, write_graph, "{tint: [red, green, blue]}")
    suite, out = suite_file(networks=networks, set_metrics="[kid_tint]"), tmp_path / "run"
    done = harness(*run_arguments(suite, photos, out, "bicubic"))
    assert done.returncode == 2
    assert "tint.yaml: the network has 4 outputs, its attributes name 3" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()
