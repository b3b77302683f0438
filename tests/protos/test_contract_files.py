"""The contract's files: stubs fresh, style clean, breaking changes caught."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from protos.generate import PACKAGE, generate, stale

ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[2]))
BUF = shutil.which("buf", path=sysconfig.get_path("scripts")) or shutil.which("buf")
needs_buf = pytest.mark.skipif(BUF is None, reason="buf is not installed (pip install buf-bin)")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run buf in the repository."""
    return subprocess.run([str(BUF), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository that holds only the contract, to be changed by a test."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def replace(root: Path, old: str, new: str) -> None:
    """Change one place of the contract."""
    path = root / PACKAGE / "upscaler.proto"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_committed_stubs_are_what_the_contract_gives() -> None:
    """The committed stubs are, byte for byte, what the compiler makes of the contract."""
    assert stale(ROOT) == []


def test_a_changed_contract_makes_the_stubs_stale_until_they_are_written(copy: Path) -> None:
    """A new field makes the message stubs stale, and writing them makes them fresh."""
    replace(copy, "uint32 total = 2;", "uint32 total = 2;\n  // What it does.\n  string phase = 3;")
    assert stale(copy) == ["upscaler_pb2.py", "upscaler_pb2.pyi"]
    generate(copy, copy)
    assert stale(copy) == []


def test_a_missing_and_a_left_over_stub_are_named(copy: Path) -> None:
    """A stub that was deleted and one without a source are both reported."""
    (copy / PACKAGE / "upscaler_pb2.pyi").unlink()
    (copy / PACKAGE / "old_pb2.py").touch()
    assert stale(copy) == ["old_pb2.py", "upscaler_pb2.pyi"]


def test_a_contract_that_does_not_compile_gives_the_compilers_message(copy: Path) -> None:
    """A syntax error is reported with the file and the line."""
    replace(copy, "uint32 total = 2;", "uint32 total = ;")
    with pytest.raises(ValueError, match=r"upscaler\.proto:\d+:\d+"):
        generate(copy, copy)


@needs_buf
def test_contract_has_clean_style() -> None:
    """The linter finds nothing in the contract."""
    done = buf("lint", "protos")
    assert (done.returncode, done.stdout) == (0, "")


@needs_buf
def test_contract_keeps_the_released_one() -> None:
    """Clients of the released contract can talk to today's."""
    done = buf("breaking", "protos", "--against", "protos/baseline.binpb")
    assert (done.returncode, done.stdout) == (0, "")


@needs_buf
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("uint32 total = 2;", "uint32 total = 3;", id="moved field"),
        pytest.param("uint32 total = 2;", "string total = 2;", id="changed type"),
        pytest.param("rpc Describe(DescribeRequest) returns (DescribeResponse);", "", id="removed call"),
        pytest.param("FAMILY_GAN = 3;", "FAMILY_ADVERSARIAL = 3;", id="renamed value"),
    ],
)
def test_breaking_change_is_caught(copy: Path, old: str, new: str) -> None:
    """A change that would break released clients fails the check."""
    replace(copy, old, new)
    done = buf("breaking", str(copy / "protos"), "--against", "protos/baseline.binpb")
    assert done.returncode == 100
    assert "upscaler.proto" in done.stdout


@needs_buf
def test_added_field_is_compatible(copy: Path) -> None:
    """A new field is no breaking change."""
    replace(copy, "uint32 total = 2;", "uint32 total = 2;\n  // What it does.\n  string phase = 3;")
    assert buf("breaking", str(copy / "protos"), "--against", "protos/baseline.binpb").returncode == 0
