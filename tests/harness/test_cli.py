"""The command line: lists, one-line errors, and text of others that is printed as it is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from backends.base import Batch, Progress
from backends.interpolation import Nearest
from backends.registry import ENTRIES
from backends.server import UpscalerServicer, start
from harness import __version__
from harness.cli import app
from harness.datasets import KINDS
from harness.suite import built_in_suites
from harness.weights import WEIGHTS

EVIL = "[red]boom[/red] [/] <script>alert(1)</script>"
ESCAPES = "\x1b[31m\x07\r\nfailed: a second line"


def harness(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments)


class Evil:
    """Fails with a text that means something to terminals, to rich and to browsers."""

    description = replace(Nearest.description, name=EVIL + ESCAPES, domain=EVIL, licence=EVIL)

    def upscale(self, batch: Batch, progress: Progress) -> np.typing.NDArray[np.uint8]:
        """See `Backend.upscale`."""
        progress(0, 1)
        raise RuntimeError(f"{EVIL}{ESCAPES} for {len(batch.ids)} images")


@pytest.fixture
def evil() -> Iterator[str]:
    """The address of a hostile backend."""
    server, _, port = start(UpscalerServicer(Evil()), "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_the_version_is_the_packages() -> None:
    """`harness --version` prints it and nothing else."""
    result = harness("--version")
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["suites", "list"], list(built_in_suites())),
        (["backends", "list"], list(ENTRIES)),
        (["weights", "list"], list(WEIGHTS)),
        (["datasets"], list(KINDS)),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_lists_name_everything_once(command: list[str], names: list[str]) -> None:
    """Each list has one line for each thing, beginning with its name."""
    result = harness(*command)
    assert result.exit_code == 0
    assert [line.split()[0].split(":")[0] for line in result.output.splitlines()] == names


def test_missing_weights_are_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache nothing is ready, and a file of other bytes is damaged."""
    monkeypatch.delenv("HARNESS_WEIGHTS", raising=False)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    damaged, *others = WEIGHTS
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / damaged).write_bytes(b"other bytes")
    states = dict(line.split()[:2] for line in harness("weights", "list").output.splitlines())
    assert states == {damaged: "damaged"} | dict.fromkeys(others, "missing")


def test_built_in_suites_are_valid() -> None:
    """Every suite that ships passes its own validation."""
    for name in built_in_suites():
        result = harness("suites", "validate", name)
        assert (result.exit_code, result.output) == (0, f"{name}: valid\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\ntitle: t\nlow: 5\nhigh: 16\nmetrics: [psnr]\n", "x.yaml:4: high: 16 is not a whole multiple"),
        ("name: x\ntitle: t\nlow: 4\nhigh: 16\nmetrics: [pnsr]\n", "did you mean psnr?"),
        ("name: x\ntitle: t\nlow: 4\nhigh: 16\nmetrics: [psnr]\nsede: 1\n", "x.yaml:6: sede: unknown field"),
        ("[red]: <script>\n", "x.yaml"),
        ("- : [", "not YAML"),
    ],
)
def test_a_wrong_suite_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    """The file, the line and the field are named, with status 2."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    result = harness("suites", "validate", str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_checking_a_hostile_backend_prints_its_text_as_it_is(evil: str) -> None:
    """Markup in a backend's errors is printed literally, control characters are not, each check has one line."""
    result = harness("backends", "check", evil)
    assert result.exit_code == 1
    assert EVIL in result.output
    assert not set("\x1b\x07\r") & set(result.output)
    assert all(line.startswith(("ok  ", "FAIL")) for line in result.output.splitlines())


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `harness run` in a process of its own."""
    command = [sys.executable, "-m", "harness", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_run_with_a_hostile_backend_prints_its_text_as_it_is(
    evil: str, suite_file: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """Neither the terminal nor the report takes a backend's text for anything but text, on success and on refusal."""
    attached = ("--backend", f"evil@{evil}", "--backend", f"worse@{evil},colour=1")
    output = tmp_path / "run"
    done = run(suite_file(), "--dataset", f"folder:{photos}", "--limit", 6, "--output", output, *attached)
    assert done.returncode == 1, done.stderr
    assert f"BackendFailed: {evil}: INTERNAL: RuntimeError: {EVIL}" in done.stderr
    assert "[red]boom[/red] [/] <script>alert(1)" in " ".join(done.stdout.split())
    assert not set("\x1b\x07\r") & set(done.stderr + done.stdout)
    assert "Traceback" not in done.stderr
    page = (output / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "[red]boom[/red]" in page


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of nearest and bicubic on twelve portraits, without LPIPS."""
    folder = tmp_path_factory.mktemp("gate")
    lines = "name: small\ntitle: t\nlow: 12\nhigh: 48\nmetrics: [psnr, lr_psnr]\ndataset: synthetic\n"
    (folder / "small.yaml").write_text(lines)
    output = folder / "run"
    attached = ("--backend", "bicubic", "--backend", "nearest", "--backend", "lanczos")
    done = run(folder / "small.yaml", "--limit", 12, "--output", output, *attached)
    assert done.returncode == 0, done.stderr
    return output


GATES = """\
name: p
title: t
sections:
  - name: quality
    title: Quality
    gates:
      - {id: psnr, title: t, evidence: e, table: differences, where: {metric: psnr}, column: mean, at_least: -0.1}
      - {id: whole, title: t, evidence: e, table: failures, column: n, at_most: 0}
"""
SIGNED = "      - {id: seen, title: t, evidence: e, checklist: true}\n"


def test_gates_of_a_real_run_give_the_exit_status(small_run: Path, tmp_path: Path) -> None:
    """Lanczos is no worse than bicubic and passes, nearest fails, and both files tell the same."""
    policy, junit, told = tmp_path / "p.yaml", tmp_path / "j.xml", tmp_path / "v.json"
    policy.write_text(GATES)
    arguments = ("gate", str(small_run), "--policy", str(policy))
    assert harness(*arguments, "--backend", "lanczos").exit_code == 0
    done = harness(*arguments, "--junit", str(junit), "--json", str(told))
    assert done.exit_code == 1
    assert "nearest, p: FAILED (quality failed)" in done.output
    assert {b["backend"]: b["status"] for b in json.loads(told.read_text())["backends"]} == {
        "nearest": "failed",
        "lanczos": "passed",
    }
    assert junit.read_text().count("<failure") == 1


def test_a_checklist_gate_waits_for_its_evidence_or_a_waiver(small_run: Path, tmp_path: Path) -> None:
    """Unsigned it is not measured (2), signed it passes, waived it is shown as waived; both are of one backend."""
    policy, evidence, waivers = (tmp_path / name for name in ("p.yaml", "e.yaml", "w.yaml"))
    policy.write_text(GATES + SIGNED)
    evidence.write_text("evidence: {seen: {who: A. Reader, date: 2024-02-29, text: '[red]fine[/red]'}}\n")
    waivers.write_text("waivers: {seen: {name: A. Board, reason: later, expires: 2999-12-31}}\n")
    arguments = ("gate", str(small_run), "--policy", str(policy), "--backend", "lanczos")
    assert harness(*arguments).exit_code == 2
    signed, waived = harness(*arguments, "--evidence", str(evidence)), harness(*arguments, "--waivers", str(waivers))
    assert (signed.exit_code, waived.exit_code) == (0, 0)
    assert "[red]fine[/red]" in signed.output
    assert "WAIVED" in waived.output
    several = harness(*arguments[:-2], "--evidence", str(evidence))
    assert (several.exit_code, several.stderr.count("\n")) == (2, 1)
    assert "say which with --backend" in several.stderr


def test_a_judged_report_can_be_verified_later(small_run: Path, tmp_path: Path) -> None:
    """With a policy documents go with the report; `verify` says 0 while all is as it was, 1 after, 2 without a log."""
    folder, policy = shutil.copytree(small_run, tmp_path / "run"), tmp_path / "p.yaml"
    policy.write_text(GATES)
    assert (harness("verify", str(folder)).exit_code, harness("report", str(folder), "--backend", "a").exit_code) == (
        2,
        2,
    )
    done = harness("report", str(folder), "--policy", str(policy), "--backend", "lanczos")
    assert done.exit_code == 0, done.stderr
    assert "verdict: lanczos: passed" in done.output
    names = {path.name for path in (folder / "documents").iterdir()}
    assert names == {"model-card-lanczos.md", "test-log.json", "test-log.md"}
    assert (same := harness("verify", str(folder))).exit_code == 0
    assert "files are as in the test log of" in same.output
    (folder / "tables" / "summary.csv").write_text("n\n")
    assert (other := harness("verify", str(folder))).exit_code == 1
    assert other.output == "changed: tables/summary.csv\n"


def test_two_backends_of_a_run_are_compared(small_run: Path, tmp_path: Path) -> None:
    """Regressions come first on the screen and in the CSV, which pandas reads back."""
    output = tmp_path / "differences.csv"
    done = harness("compare", str(small_run), "--backend", "nearest", "--backend", "bicubic", "--output", str(output))
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv(output)
    assert table[["verdict", "candidate", "baseline"]].to_numpy()[0].tolist() == ["regression", "nearest", "bicubic"]
    assert set(table["metric"]) == {"psnr", "lr_psnr"}
    assert "regression" in done.output
    same = harness("compare", str(small_run), str(small_run), "--backend", "nearest", "--output", str(output))
    assert (same.exit_code, set(pd.read_csv(output)["verdict"])) == (0, {"tie"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "RUN"), "give two run folders"),
        (("compare", "RUN", "RUN", "--backend", "nearest", "--backend", "bicubic"), "give two run folders"),
        (("compare", "RUN", "/nowhere"), "holds no run"),
        (("gate", "RUN", "--policy", "research-comparisons"), "did you mean research-comparison?"),
        (("gate", "RUN", "--policy", "research-comparison", "--backend", "neares"), "did you mean nearest?"),
        (("gate", "RUN", "--policy", "research-comparison", "--json", "/proc/x/y.json"), "cannot be written"),
    ],
)
def test_wrong_gates_and_comparisons_are_one_line(small_run: Path, arguments: tuple[str, ...], words: str) -> None:
    """What cannot be judged or compared ends with status 2 and one line."""
    done = harness(*(str(small_run) if a == "RUN" else a for a in arguments))
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
