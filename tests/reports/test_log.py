"""The test log: what was tested, with which result, and whether the files are still those that it names."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.policy import load_policy
from reports.log import JSON, MARKDOWN, changes, read_log


def log_of(folder: Path) -> dict[str, Any]:
    """The JSON of a run's log, parsed strictly."""
    return dict(json.loads((folder / JSON).read_text(encoding="utf-8"), parse_constant=pytest.fail))


@pytest.fixture
def logged(judged_run: Path, tmp_path: Path) -> Path:
    """A copy of a run with its log."""
    return shutil.copytree(judged_run, tmp_path / "copy", ignore=shutil.ignore_patterns("pictures"))


def test_the_log_identifies_what_was_tested(judged_run: Path) -> None:
    """Date, harness with its revision, suite, data, policy, weights by digest and machine are there."""
    log, record = log_of(judged_run), json.loads((judged_run / "run.json").read_text())
    assert log["dated"].endswith("+00:00")
    assert (log["run"]["harness_version"], log["environment"]["git"]["commit"]) == ("0.1.0", "1cc6c50")
    assert (log["suite"]["sha256"], log["dataset"]["sha256"]) == ("ab" * 32, "cd" * 32)
    assert log["verdict"]["policy"]["sha256"] == load_policy("face-restoration-product").sha256
    assert [b["digest"] for b in log["product"]] == [b["digest"] for b in record["backends"][2:]]
    assert log["environment"]["cpu"] == "Example CPU"


def test_every_metric_has_its_definition_and_figures(judged_run: Path) -> None:
    """What was measured is defined, with values and intervals of the product and of the control arms, by group too."""
    log = log_of(judged_run)
    assert {m["metric"]: m["definition"] for m in log["metrics"]}["psnr"] == "RGB, no border crop"
    (row,) = [
        r for r in log["results"]["accuracy"]["summary"] if (r["backend"], r["metric"]) == ("bicubic", "lpips_alex")
    ]
    assert row["low"] < row["mean"] < row["high"]
    impact = log["results"]["discriminatory impact"]
    assert {"disparity", "inconclusive", "insufficient"} == {r["verdict"] for r in impact["gaps"]}
    assert log["results"]["robustness and behaviour"]["noise"]
    gates = [g for b in log["verdict"]["backends"] for s in b["sections"] for g in s["gates"]]
    assert {g["status"] for g in gates} >= {"passed", "failed", "not measured"}


def test_the_log_names_every_file_by_its_hash(judged_run: Path) -> None:
    """Tables, reports and model cards are listed with the SHA-256 of what they hold, and the signed text the log's."""
    files = {file["path"]: file["sha256"] for file in log_of(judged_run)["files"]}
    expected = {*(f"report.{kind}" for kind in ("html", "md", "json")), "run.json"}
    for pattern in ("tables/*", "documents/model-card-*"):
        expected |= {path.relative_to(judged_run).as_posix() for path in judged_run.glob(pattern)}
    assert files.keys() == expected
    for path, digest in files.items():
        assert hashlib.sha256((judged_run / path).read_bytes()).hexdigest() == digest
    signed = (judged_run / MARKDOWN).read_text(encoding="utf-8")
    assert hashlib.sha256((judged_run / JSON).read_bytes()).hexdigest() in signed
    assert "| Released by |  |  |  |" in signed


def test_hostile_text_is_inert_in_the_log(judged_run: Path) -> None:
    """In the Markdown no markup, link or table break of a backend survives; in the JSON its text is whole."""
    text = (judged_run / MARKDOWN).read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert all(mark not in text for mark in ("<", "](", "://"))
    assert "<script>alert(1)</script>" in log_of(judged_run)["product"][1]["licence"]


def add(name: str) -> Callable[[Path], object]:
    """Adds a line to a file."""
    return lambda run: (run / name).write_bytes((run / name).read_bytes() + b"Signed: A. Reader\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "report.md").touch(), []),
        (add(MARKDOWN.as_posix()), []),
        (add("tables/gaps.csv"), ["changed: tables/gaps.csv"]),
        (add("report.html"), ["changed: report.html"]),
        (lambda run: (run / "run.json").unlink(), ["missing: run.json"]),
        (lambda run: (run / "tables" / "more.csv").touch(), ["not in the log: tables/more.csv"]),
        (lambda run: (run / JSON).write_text("{}"), [f"changed: {JSON} is not the one that {MARKDOWN} names"]),
    ],
    ids=["touched", "signed", "table", "page", "missing", "added", "log"],
)
def test_changes_are_found(change: Callable[[Path], object], words: list[str], logged: Path) -> None:
    """A signature changes nothing; a changed, missing or added file and another log are named."""
    log = read_log(logged)
    change(logged)
    assert changes(logged, log) == words


def test_a_log_cannot_lead_out_of_its_run(logged: Path, tmp_path: Path) -> None:
    """A path that leaves the folder counts as missing, whatever lies there."""
    (tmp_path / "secret").write_bytes(b"x")
    log = read_log(logged)
    log.files[0].path = "../secret"
    assert "missing: ../secret" in changes(logged, log)


@pytest.mark.parametrize("content", [None, "{", '{"dated": 1, "files": [{}]}'])
def test_a_run_without_a_log_is_refused(content: str | None, tmp_path: Path) -> None:
    """A missing log is one line with the command that writes it, a damaged one is called so."""
    (tmp_path / "documents").mkdir()
    if content is not None:
        (tmp_path / JSON).write_text(content)
    with pytest.raises(StoreError, match=r"harness report RUN --policy|is no test log") as caught:
        read_log(tmp_path)
    assert "\n" not in str(caught.value)
