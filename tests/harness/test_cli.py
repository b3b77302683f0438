"""The command line: lists, one-line errors, and text of others that is printed as it is."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
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
