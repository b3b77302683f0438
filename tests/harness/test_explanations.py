"""Explanations in a run: maps stored once, resumed, judged; what cannot be run is said and passes nothing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backends.server import UpscalerServicer, start
from harness.attribution import Window
from harness.errors import ConfigError, StoreError
from harness.explainer import overlay
from harness.explanations import load_explanation, reason_not_run
from harness.judge import judge
from harness.policy import Policy
from harness.store import RunFolder
from harness.suite import parse_suite
from tests.harness.test_contract import Model

SuiteFile = Callable[..., Path]


def run_harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def table(output: Path, name: str) -> pd.DataFrame:
    """A table of a run."""
    return pd.read_parquet(output / "tables" / f"{name}.parquet")


@pytest.fixture
def plain() -> Iterator[str]:
    """The address of a server without Gradient that repeats pixels."""
    server, _, port = start(UpscalerServicer(Model()), "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_run_explains_and_makes_no_map_twice(suite_file: SuiteFile, photos: Path, tmp_path: Path, plain: str) -> None:
    """Every map is stored and judged; the same command makes a lost one again and touches no other.

    Both backends look at the window's own pixels and nowhere else, so that their maps beat both rivals; the one without
    Gradient has no LAM and says so. The diffusion index of all images has its interval, small groups have none.
    """
    suite, output = suite_file(explanations="{images: 32}"), tmp_path / "run"
    command = ["run", suite, "--dataset", f"folder:{photos}", "--output", output, "--backend", f"plain@{plain}"]
    first = run_harness(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    verdicts = table(output, "explanations").set_index(["backend", "map"])["verdict"].to_dict()
    assert verdicts == {
        **{("bicubic", name): "faithful" for name in ("lam", "occlusion", "cem")},
        **{("plain", name): "faithful" for name in ("occlusion", "cem")},
        ("plain", "lam"): "not run: no Gradient",
    }
    for name in ("explanations", "diffusion_index", "maps"):
        assert not table(output, name).isna().all().any(), name
    index = table(output, "diffusion_index").set_index(["backend", "attribute", "group"])
    everybody, groups = index.xs(("bicubic", "all", "all")), index.drop(index="all", level="attribute")
    assert everybody["n"] == 32
    assert 0 < everybody["low"] < everybody["mean"] < everybody["high"] < 100
    assert set(groups["status"]) == {"insufficient"}
    assert index.xs(("plain", "all", "all"))["status"] == "not run: no Gradient"
    made = {path: path.stat().st_mtime_ns for path in output.glob("explanations/*/*.npz")}
    assert len(made) == 32 * (5 + 4)
    assert len(list(output.glob("explanations/*/*.png"))) == 32 * (3 + 2)
    lost = next(path for path in made if path.name.endswith(".cem.npz"))
    before = lost.read_bytes()
    lost.unlink()
    assert run_harness(*command).returncode == 0
    assert {path for path in made if path.stat().st_mtime_ns != made[path]} == {lost}
    assert lost.read_bytes() == before
    page = (output / "report.html").read_text()
    assert "Not run: no Gradient: LAM of plain." in page
    assert page.count('alt="CEM of bicubic') == 4


def test_a_gate_on_a_map_that_was_not_run_does_not_pass(tmp_path: Path) -> None:
    """To a policy, "not run: no Gradient" is not measured, "not faithful" fails, and "faithful" passes."""
    gate = {"id": "a", "title": "t", "evidence": "e", "table": "explanations", "column": "verdict", "is": "faithful"}
    section = {"name": "s", "title": "t", "gates": [gate | {"where": {"map": "lam"}}]}
    policy = Policy.model_validate({"name": "p", "title": "t", "sections": [section]})
    folder = RunFolder(tmp_path)
    words = {"not run: no Gradient": "not measured", "not faithful": "failed", "faithful": "passed"}
    for number, (word, status) in enumerate(words.items()):
        about = {"label": f"b{number}", "status": "ok", "digest": ""}
        record = {"schema": 1, "suite": {}, "dataset": {}, "metrics": {}, "status": "finished", "backends": [about]}
        folder.write_record(record)
        folder.write_table(
            "tables/explanations", pd.DataFrame([{"backend": f"b{number}", "map": "lam", "verdict": word}])
        )
        assert judge(folder, policy, f"b{number}").status == status


def test_stored_outputs_answer_nothing_else() -> None:
    """A backend of stored outputs, one that failed and one without Gradient each say why they are not explained."""
    sound = {"status": "ok", "family": "gan", "gradient": True}
    assert reason_not_run(sound, "lam") == reason_not_run(sound | {"gradient": False}, "cem") == ""
    assert reason_not_run(sound | {"gradient": False}, "lam") == "no Gradient"
    assert "stored" in reason_not_run(sound | {"family": "replay"}, "occlusion")
    assert "could not" in reason_not_run(sound | {"status": "failed"}, "cem")


def test_a_damaged_map_is_one_line(tmp_path: Path) -> None:
    """A file that is no map, and one with pickled objects in it, is refused with what to do."""
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4nothing")
    np.savez(tmp_path / "pickled.npz", map=np.array([{}], dtype=object), deletion=0.1, insertion=0.2)
    for name in ("cut.npz", "pickled.npz"):
        with pytest.raises(StoreError, match="damaged; delete it"):
            load_explanation(tmp_path / name)


def test_a_picture_shows_the_map_and_its_window() -> None:
    """Positive pixels are orange, negative ones blue, the rest is the output in grey; the window has a white frame."""
    found = np.zeros((4, 4))
    found[0, 0], found[0, 3] = 2, -2
    shown = overlay(np.full((32, 32, 3), 100, np.uint8), found, Window(10, 12))
    assert shown[2, 2].tolist() == [255, 140, 0]
    assert shown[2, 30].tolist() == [0, 120, 255]
    assert shown[30, 2].tolist() == [100, 100, 100]
    assert shown[10, 12].tolist() == shown[25, 27].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("explanations: {images: 1}", "explanations.images: .*greater than or equal to 2"),
        ("explanations: {images: 4, maps: [lam, lam]}", "lam is there twice"),
        ("explanations: {images: 4, maps: [lime]}", "'lam', 'occlusion' or 'cem'"),
        ("explanations: {images: 4, block: 1}", "blocks an image are more than 1024"),
    ],
)
def test_suites_that_cannot_be_explained_are_refused(lines: str, words: str) -> None:
    """A single image, a map twice or unknown, and more blocks than anybody would wait for are errors of a line each."""
    text = f"name: s\ntitle: t\nlow: 64\nhigh: 256\nmetrics: [psnr]\n{lines}\n"
    with pytest.raises(ConfigError, match=words):
        parse_suite(text, "s.yaml")
