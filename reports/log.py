"""The test log in the style of Annex IV, point 2(g), of the EU AI Act, as JSON and Markdown, and its verification.

It says what was tested on what, by which measures and with what result, and names every file by its SHA-256. The JSON
holds everything, the Markdown what a person signs; that names the JSON by its hash. It is no legal advice.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness import __version__, environment
from harness.errors import StoreError, one_line
from harness.judge import Judgement
from harness.record import now
from harness.score import BASELINE, CONTROL
from reports import verdict
from reports.load import Run, bounded
from reports.markdown import escape, table
from reports.numbers import NOTHING
from reports.parts import Cell, Column, Table
from reports.readiness import answers
from reports.stored import ACCURACY, COST, IMPACT, OTHER, of_backends, options

SCHEMA = 1
JSON = Path("documents/test-log.json")
MARKDOWN = Path("documents/test-log.md")
TITLE = "Test log in the style of Annex IV, point 2(g), of Regulation (EU) 2024/1689"
NOTICE = (
    "It follows that point in what it lists: procedures, data, metrics of accuracy and robustness, potentially "
    "discriminatory impacts, logs dated and signed. Whether the regulation applies and is met is for counsel to say."
)
REPORTS = ("run.json", "images.parquet", "report.html", "report.md", "report.json")
SIGNATURES = ("Tested by", "Reviewed by", "Released by")
PARTS = {"accuracy": ACCURACY, "discriminatory impact": IMPACT, "robustness and behaviour": OTHER, "cost": COST}
"""What the figures are of, with the tables that hold them."""
PRINTED = {
    "accuracy": ACCURACY,
    "discriminatory impact": (
        *("gaps", "contrasts", "excess_flips", "verification", "perceptual", "indices"),
        *("corruption_gaps", "group_slopes"),
    ),
    "robustness and behaviour": OTHER,
    "cost": COST,
}
"""The tables that the Markdown prints of each part; the JSON and the files have all."""


def content(run: Run, judgement: Judgement, documents: Sequence[Path]) -> dict[str, Any]:
    """Everything that the log says; `documents` are files that go with it, relative to the run folder."""
    record, labels = run.record, [v.label for v in judgement.verdicts]
    return {
        "schema": SCHEMA,
        "title": TITLE,
        "notice": NOTICE,
        "dated": now(),
        "written_by": {"harness_version": __version__, "git": environment.describe()["git"]},
        "run": {"name": run.folder.resolve().name}
        | {key: record.get(key) for key in ("started", "finished", "status", "command", "harness_version", "warnings")},
        "product": [bounded(v.backend) for v in judgement.verdicts],
        "controls": [run.backends[label] for label in (CONTROL, BASELINE) if label in run.backends],
        "suite": record["suite"],
        "dataset": record["dataset"],
        "instruments": record["instruments"],
        "environment": record["environment"],
        "metrics": _metrics(run),
        "results": {part: _rows(run, names, labels) for part, names in PARTS.items()},
        "verdict": verdict.content(record, judgement),
        "not_measured": run.missing,
        "files": [_file(run.folder, path) for path in [*_listed(run.folder), *documents]],
        "signatures": [{"role": role, "name": "", "date": "", "signature": ""} for role in SIGNATURES],
    }


def _metrics(run: Run) -> list[dict[str, Any]]:
    return [
        {"metric": name, "title": run.title(name), "definition": about.get("recipe")}
        | {"unit": about.get("unit"), "higher_is_better": about.get("higher_is_better")}
        for name, about in {**run.measures, **run.record["set_metrics"]}.items()
    ]


def _rows(run: Run, names: Sequence[str], labels: Sequence[str]) -> dict[str, list[dict[Any, Any]]]:
    """The rows of the judged backends and of the control arms, by table."""
    wanted = {*labels, CONTROL, BASELINE}
    frames = {name: run.table(name) for name in names}
    return {name: frame[frame["backend"].isin(wanted)].to_dict("records") for name, frame in frames.items()}


def _listed(folder: Path) -> list[Path]:
    """The files of a run that the log names, relative to its folder."""
    tables = sorted(p for kind in ("parquet", "csv") for p in (folder / "tables").glob(f"*.{kind}"))
    return [p.relative_to(folder) for p in (*(folder / name for name in REPORTS), *tables) if p.is_file()]


def _file(folder: Path, path: Path) -> dict[str, Any]:
    return {"path": path.as_posix(), "bytes": (folder / path).stat().st_size, "sha256": _sha256(folder / path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# For people


def text(run: Run, judgement: Judgement, log: dict[str, Any], whole: str) -> str:
    """The log as Markdown, to be signed; `whole` is the text of the JSON file, which it names by its hash."""
    labels = [v.label for v in judgement.verdicts]
    blocks = [f"# {TITLE}", NOTICE, *table(_identity(log)), *table(_product(log)), *table(_definitions(log))]
    for part, names in PRINTED.items():
        blocks.append(f"## {part.capitalize()}")
        blocks += [line for each in of_backends(run, names, labels) for line in table(each)] or ["Not measured."]
    blocks.append(f"## Gates of the policy {judgement.policy.name}")
    for answer in answers(judgement, {}):
        blocks += [f"**{escape(answer.label)}: {answer.word}.** {answer.counts}", *table(answer.gates)]
    blocks += ["## Not measured", _gaps(log), "## Files", _hashes(log, whole), "## Signatures", *table(_signatures())]
    return "\n\n".join(blocks) + "\n"


def _identity(log: dict[str, Any]) -> Table:
    environment, git = log["environment"], log["environment"].get("git") or {}
    suite, data, policy = log["suite"], log["dataset"], log["verdict"]["policy"]
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    return _pairs(
        "What was tested, on what and when",
        {
            "Dated": log["dated"],
            "Run": f"{log['run']['name']}, started {log['run']['started']}, finished {log['run']['finished']}",
            "Command": log["run"]["command"],
            "Harness": f"{log['run']['harness_version']}, git revision {git.get('commit') or 'unknown'}{changed}",
            "Suite": f"{suite.get('name')}, SHA-256 {suite.get('sha256')}",
            "Policy": f"{policy['name']}, SHA-256 {policy['sha256']}",
            "Data": f"{data.get('spec')} ({data.get('images')} images), SHA-256 {data.get('sha256')}",
            "Licence of the data": data.get("licence"),
            "Demonstration data": "yes: no evidence" if data.get("demonstration") else "no",
            "Machine": f"{environment.get('cpu')}, {environment.get('cores')} cores, {environment.get('platform')}",
            "Packages": ", ".join(f"{k} {v}" for k, v in (environment.get("packages") or {}).items()),
        },
    )


def _pairs(caption: str, pairs: dict[str, Any]) -> Table:
    rows = [[Cell(key), Cell(str(told or NOTHING))] for key, told in pairs.items()]
    return Table(caption, [Column("Item"), Column("Value", wide=True)], rows)


def _product(log: dict[str, Any]) -> Table:
    keys = ("label", "name", "family", "digest", "options", "device", "precision", "licence", "domain")
    told = [about | {"options": options(about)} for about in log["product"]]
    rows = [[Cell(str(about.get(key) or NOTHING)) for key in keys] for about in told]
    columns = [Column("digest (code and weights)" if key == "digest" else key, wide=True) for key in keys]
    return Table("The product: backends as they describe themselves", columns, rows)


def _definitions(log: dict[str, Any]) -> Table:
    better = {True: "higher", False: "lower", None: "neither"}
    told = [
        (m["metric"], m["title"], better.get(m["higher_is_better"], NOTHING), m["definition"] or "not stated")
        for m in log["metrics"]
    ]
    columns = [Column(title, wide=i > 0) for i, title in enumerate(("Metric", "Title", "Better", "Definition"))]
    return Table("Metrics", columns, [[Cell(str(text)) for text in texts] for texts in told])


def _gaps(log: dict[str, Any]) -> str:
    return "\n".join(f"- {escape(why)}" for why in log["not_measured"].values()) or "Nothing is missing."


def _hashes(log: dict[str, Any], whole: str) -> str:
    """Lines as `sha256sum --check` reads them in the run folder."""
    files = [(file["sha256"], file["path"]) for file in log["files"]]
    files.append((hashlib.sha256(whole.encode()).hexdigest(), JSON.as_posix()))
    return "\n".join(f"    {digest}  {one_line(path)}" for digest, path in files)


def _signatures() -> Table:
    columns = [Column("Role"), *(Column(title, wide=True) for title in ("Name", "Date", "Signature"))]
    return Table("To be filled in by hand", columns, [[Cell(r), *([Cell("")] * 3)] for r in SIGNATURES])


# Later


class File(BaseModel):
    """A file as the log names it."""

    path: str
    sha256: str


class Log(BaseModel):
    """What of a log is needed to verify files."""

    dated: str
    files: list[File]


def read_log(folder: Path) -> Log:
    """The test log of a run.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    path = folder / JSON
    try:
        return Log.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: is missing; `harness report RUN --policy POLICY` writes it") from None
    except (OSError, ValidationError) as error:
        raise StoreError(f"{path}: is no test log ({one_line(str(error), 80)})") from error


def changes(folder: Path, log: Log) -> list[str]:
    """Files of a run that are not as its log names them, a line each: changed, missing, or not in the log."""
    named = {file.path: file.sha256 for file in log.files}
    found = [f"{state}: {one_line(path)}" for path, digest in named.items() if (state := _state(folder, path, digest))]
    found += [f"not in the log: {path}" for path in map(Path.as_posix, _listed(folder)) if path not in named]
    signed = folder / MARKDOWN
    if not signed.is_file() or _sha256(folder / JSON) not in signed.read_text(encoding="utf-8", errors="replace"):
        found.append(f"changed: {JSON} is not the one that {MARKDOWN} names")
    return found


def _state(folder: Path, path: str, digest: str) -> str:
    """What is wrong with a file; empty if nothing is."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return "missing"
    return "" if _sha256(file) == digest else "changed"
