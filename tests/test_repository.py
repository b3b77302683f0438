"""The repository as a whole: documented, small functions, a README that is true, a light command line."""

import ast
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[1]))
PACKAGES = ("harness", "backends", "benchmarks", "reports", "protos")
HEAVY = {"torch", "torchvision", "pandas", "pyarrow", "scipy", "statsmodels", "altair", "lpips", "torchmetrics"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Path (relative to the repository) and syntax tree of the modules that people wrote."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> list[Function]:
    """All functions and methods of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines of a function from `def` to its end, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return lines - len((ast.get_docstring(function, clean=False) or "").splitlines())


def readme_lines(start: str) -> list[str]:
    """Lines of the README's code blocks that begin with a command, continued lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text.replace("\\\n", " "), re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in "\n".join(blocks).splitlines()]
    return sorted({line.strip() for line in lines if line.startswith(start)})


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_files_that_exist(document: str) -> None:
    """Every path inside the packages that a document names is there."""
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests)/[\w./-]+)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_modules_say_what_is_in_them() -> None:
    """Every module that is not an empty package marker begins with a docstring."""
    missing = [str(path) for path, tree in modules(*PACKAGES) if tree.body and not ast.get_docstring(tree)]
    assert missing == []


def test_every_test_states_a_behaviour() -> None:
    """Every test function has a docstring."""
    tests = [(path, node) for path, tree in modules("tests") for node in functions(tree)]
    missing = [
        f"{path}::{node.name}" for path, node in tests if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("package", ["harness", "backends", "reports"])
def test_functions_are_short(package: str) -> None:
    """Half of the functions have at most 10 lines, nine in ten at most 30."""
    lengths = [length(node) for _, tree in modules(package) for node in functions(tree)]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


def test_help_loads_nothing_heavy() -> None:
    """`harness --help` answers without importing the numerical libraries."""
    command = [sys.executable, "-X", "importtime", "-m", "harness", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "harness" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_readme_names_targets_that_exist() -> None:
    """Every `make` command of the README is a target, and `make demo` and `make test` are among them."""
    commands = readme_lines("make ")
    assert {"make demo", "make test"} <= {" ".join(line.split()[:2]) for line in commands}
    for line in commands:
        command = shlex.split(line, comments=True)
        done = subprocess.run([command[0], "--dry-run", *command[1:]], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, line


@pytest.mark.parametrize("line", readme_lines("harness "))
def test_readme_commands_exist(line: str) -> None:
    """Every `harness` command of the README parses, its options included."""
    command = [sys.executable, "-m", *shlex.split(line, comments=True), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
