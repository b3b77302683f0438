"""Runs a suite: prepares the images, calls the backends, times them, scores, and derives the tables.

The same command continues an unfinished run: what is in the folder is not done again, except failures.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.client import Item
from harness.datasets import Dataset, dataset_hash, limit, open_dataset
from harness.errors import BackendError, ConfigError
from harness.images import load
from harness.metrics import preflight
from harness.plan import CLEAN, BackendSpec, Job, Step, parse_backend, plan
from harness.prepare import prepare
from harness.record import continued, new_record, now
from harness.score import BASELINE, CONTROL, identity, image_labels, output_path, score_run
from harness.session import Session, refused
from harness.set_measures import describe, measure_sets
from harness.store import Row, RunFolder
from harness.suite import Suite
from harness.timing import drop_disturbed, is_timed, time_backend


def run(job: Job, progress: Progress) -> RunFolder:
    """Run a job, or continue it.

    Raises:
        HarnessError: nothing can be run. Failures of single backends and images are recorded instead.
    """
    specs = backend_specs(job)
    preflight(job.suite.used_metrics)
    describe(job.suite)  # opens and checks the networks
    dataset = open_dataset(job.dataset)
    if job.limit is not None:
        dataset = limit(dataset, job.limit, job.suite.seed)
    folder = RunFolder(job.output)
    with folder.locked():
        Run(job, folder, dataset, progress).execute(specs)
    return folder


def backend_specs(job: Job) -> list[BackendSpec]:
    """The backends of a job, the bicubic control first.

    Raises:
        ConfigError: two of them have one label, or one cannot be started.
    """
    from backends.registry import ENTRIES

    specs = [parse_backend(text) for text in job.backends or job.suite.backends]
    if not any(spec.label == BASELINE for spec in specs):
        specs.insert(0, BackendSpec(BASELINE, None, BASELINE, {}))
    labels = [spec.label for spec in specs]
    for spec in specs:
        if labels.count(spec.label) > 1 or spec.label == CONTROL:
            raise ConfigError(f"the name {spec.label!r} is taken; tell backends apart with name=, as in sr3,name=sr3-b")
        if spec.label == BASELINE and (spec.name != BASELINE or spec.address):
            raise ConfigError(f"the name {BASELINE!r} belongs to the control; choose another with name=")
        if spec.address is None and spec.name not in ENTRIES:
            raise ConfigError(f"no backend {spec.name!r}; known: {', '.join(ENTRIES)}, or attach one by NAME@HOST:PORT")
    return specs


def new_progress() -> Progress:
    """A progress display with a bar, counts and an ETA."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )


class Run:
    """One execution of a job in its folder."""

    def __init__(self, job: Job, folder: RunFolder, dataset: Dataset, progress: Progress) -> None:
        self.job, self.suite, self.folder, self.dataset, self.progress = job, job.suite, folder, dataset, progress
        self.dataset_sha256 = dataset_hash(dataset)
        self.steps = plan(job.suite, dataset)
        self.sessions: list[Session] = []
        self.record: dict[str, Any] = {}
        self.images = pd.DataFrame()

    def execute(self, specs: Sequence[BackendSpec]) -> None:
        """All stages in order; the record says how far they came."""
        self._prepare()
        earlier = self.folder.parts("failed")
        drop_disturbed(self.folder)
        self._write_record("running")
        try:
            for spec in specs:
                self._open(spec)
            self._write_record("running")
            for session in self.sessions:
                self._generate(session)
                self._time(session)
            for part in earlier:  # only now: their cases have been tried again
                part.unlink(missing_ok=True)
            score_run(self.folder, self.progress)
            measure_sets(self.folder, self.progress)
        except BaseException as error:
            self._write_record("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        finally:
            for session in self.sessions:
                session.close()
        self._write_record("finished")

    def _prepare(self) -> None:
        task = self.progress.add_task("images", total=len(self.dataset.records))
        self.before = self.folder.read_record()
        self.images = prepare(
            self.folder, self.dataset, self.dataset_sha256, self.suite, self.steps, lambda: self.progress.advance(task)
        )
        self.progress.update(task, completed=len(self.dataset.records))
        self.usable = set(self.images.loc[self.images["error"] == "", "image"].astype(str))
        self.labels = image_labels(self.images)

    def _open(self, spec: BackendSpec) -> None:
        session = Session(spec, self.suite, self.folder.path / "logs" / f"{spec.label}.log")
        try:
            session.open()
        except (BackendError, ConfigError) as error:
            session.close()
            self.progress.console.print(f"{spec.label}: {error}", style="red", markup=False, highlight=False)
            self.record["backends"].append(refused(spec, error))
            self._fail_all(spec, error)
        else:
            self.sessions.append(session)
            self.record["backends"].append(session.record)

    def _identity(self, session: Session) -> Row:
        return identity(session.record, self.dataset.spec)

    def _generate(self, session: Session) -> None:
        chosen = [[image for image in step.images if image in self.usable] for step in self.steps]
        task = self.progress.add_task(session.spec.label, total=sum(map(len, chosen)))
        for step, images in zip(self.steps, chosen, strict=True):
            for start in range(0, len(images), session.batch):
                batch = images[start : start + session.batch]
                self._outputs(session, step, batch)
                self.progress.advance(task, len(batch))

    def _outputs(self, session: Session, step: Step, batch: list[str]) -> None:
        missing = []
        for image in batch:
            item = self._item(step.condition.folder, image)
            path = output_path(self.folder, session.record, step.condition, image, item.seed, self.suite.scale)
            if path is not None and not path.exists():
                missing.append((item, path))
        failures = []
        results = session.upscale([item for item, _ in missing]) if missing else []
        for (item, path), result in zip(missing, results, strict=True):
            if isinstance(result, BackendError):
                failures.append(self._failure(self._identity(session), step, item.id, result))
            else:
                self.folder.write_image(path, result)
        self.folder.append(failures, "failed")

    def _item(self, condition: str, image: str) -> Item:
        return Item(image, load(self.folder.input(condition, image)), int(self.labels[image]["seed"]))

    def _failure(self, who: Row, step: Step, image: str, error: Exception) -> Row:
        where = {"condition": step.condition.name, "severity": step.condition.severity, "scale": self.suite.scale}
        what = {"image": image, "metric": "output", "error": f"{type(error).__name__}: {error}"}
        return who | self.labels[image] | where | what

    def _fail_all(self, spec: BackendSpec, error: BackendError | ConfigError) -> None:
        who = identity(refused(spec, error), self.dataset.spec)
        rows = [
            self._failure(who, step, image, error)
            for step in self.steps
            for image in step.images
            if image in self.usable
        ]
        self.folder.append(rows, "failed")

    def _time(self, session: Session) -> None:
        speed, who = self.suite.speed, self._identity(session)
        if speed is None or session.given_up is not None or is_timed(self.folder.rows("timed"), who):
            return
        ordered = [r.id for r in limit(self.dataset, speed.images, self.suite.seed).records if r.id in self.usable]
        items = [self._item(CLEAN.folder, image) for image in ordered]
        task = self.progress.add_task(f"{session.spec.label}: speed", total=1)
        try:
            rows = time_backend(session, items, speed)
        except BackendError as error:
            failure = {"condition": CLEAN.name, "metric": "timed", "error": f"{type(error).__name__}: {error}"}
            self.folder.append([who | failure], "failed")
        else:
            common = who | {"condition": CLEAN.name, "scale": self.suite.scale}
            self.folder.append([common | self.labels.get(row.get("image", ""), {}) | row for row in rows], "timed")
        self.progress.advance(task)

    def _write_record(self, status: str) -> None:
        if not self.record:
            self.record = new_record(self.job, self.dataset, self.dataset_sha256, self.images, self.steps)
            self.record |= continued(self.before, self.record)
        self.record |= {"status": status, "finished": None if status == "running" else now()}
        self.folder.write_record(self.record)


def default_output(suite: Suite, dataset: str, backends: Sequence[str], count: int | None) -> Path:
    """Where a run goes without --output: the same command finds its folder again, another one gets its own."""
    key = hashlib.sha256(json.dumps([suite.sha256, dataset, list(backends), count]).encode()).hexdigest()[:8]
    return Path("runs") / f"{suite.name}-{key}"
