"""Runs a suite: prepares the images, calls the backends, times them, scores, and derives the tables.

The same command continues an unfinished run: what is in the folder is not done again, except failures.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.client import Item
from harness.credentials import Credentials, load_credentials
from harness.datasets import Dataset, dataset_hash, limit, open_dataset
from harness.degrade import make_input
from harness.errors import BackendError, ConfigError
from harness.images import centre_square, load
from harness.metrics import preflight
from harness.plan import BackendSpec, Job, Step, parse_backend, plan
from harness.prepare import prepare
from harness.record import continued, new_record, now
from harness.replicas import Replicas
from harness.score import BASELINE, CONTROL, identity, image_labels, output_path, score_run
from harness.session import refused
from harness.set_measures import measure_sets
from harness.speed import Bench
from harness.store import Row, RunFolder
from harness.suite import Suite
from harness.timing import drop_disturbed


def run(job: Job, progress: Progress) -> RunFolder:
    """Run a job, or continue it.

    Raises:
        HarnessError: nothing can be run. Failures of single backends and images are recorded instead.
    """
    specs, credentials = backend_specs(job), load_credentials(job.credentials)
    preflight(job.suite.used_metrics)
    dataset = open_dataset(job.dataset)
    if job.limit is not None:
        dataset = limit(dataset, job.limit, job.suite.seed)
    folder = RunFolder(job.output)
    with folder.locked():
        Run(job, folder, dataset, progress).execute(specs, credentials)
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
        self.backends: list[Replicas] = []
        self.record: dict[str, Any] = {}
        self.images = pd.DataFrame()
        self.timing_inputs = cache(self._timing_inputs)

    def execute(self, specs: Sequence[BackendSpec], credentials: Mapping[str, Credentials]) -> None:
        """All stages in order; the record says how far they came."""
        self._prepare()
        earlier = self.folder.parts("failed")
        drop_disturbed(self.folder)
        self._write_record("running")
        try:
            for spec in specs:
                self._open(spec, credentials)
            self._write_record("running")
            for backend in self.backends:
                self._generate(backend)
                self._time(backend)
                self._note(backend)
            for part in earlier:  # only now: their cases have been tried again
                part.unlink(missing_ok=True)
            score_run(self.folder, self.progress)
            measure_sets(self.folder, self.progress)
        except BaseException as error:
            self._write_record("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        finally:
            for backend in self.backends:
                backend.close()
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

    def _open(self, spec: BackendSpec, credentials: Mapping[str, Credentials]) -> None:
        backend = Replicas(spec, self.suite, self.folder.path / "logs" / f"{spec.label}.log", credentials)
        try:
            backend.open()
            self.folder.claim(backend.record)
        except (BackendError, ConfigError) as error:
            backend.close()
            self.progress.console.print(f"{spec.label}: {error}", style="red", markup=False, highlight=False)
            self.record["backends"].append(refused(spec, error))
            self._fail_all(spec, error)
        else:
            self.backends.append(backend)
            self.record["backends"].append(backend.record)

    def _identity(self, backend: Replicas) -> Row:
        return identity(backend.record, self.dataset.spec)

    def _batches(self, size: int) -> Iterator[tuple[Step, list[str]]]:
        for step in self.steps:
            images = [image for image in step.images if image in self.usable]
            for start in range(0, len(images), size):
                yield step, images[start : start + size]

    def _generate(self, backend: Replicas) -> None:
        batches = list(self._batches(backend.batch))
        task = self.progress.add_task(backend.spec.label, total=sum(len(images) for _, images in batches))
        pool = ThreadPoolExecutor(len(backend.sessions) + 1)  # one more reads and writes while the replicas work
        try:
            for (_, images), failures in zip(batches, pool.map(partial(self._outputs, backend), batches), strict=True):
                self.folder.append(failures, "failed")
                self.progress.advance(task, len(images))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _outputs(self, backend: Replicas, work: tuple[Step, list[str]]) -> list[Row]:
        """Write the outputs of a batch that are not there yet; returns a row for each failure."""
        step, images = work
        missing = []
        for image in images:
            item = self._item(step.condition.folder, image)
            path = output_path(self.folder, backend.record, step.condition, image, item.seed, self.suite.scale)
            if path is not None and not path.exists():
                missing.append((item, path))
        failures = []
        results = backend.upscale([item for item, _ in missing]) if missing else []
        for (item, path), result in zip(missing, results, strict=True):
            if isinstance(result, BackendError):
                failures.append(self._failure(self._identity(backend), step, item.id, result))
            else:
                self.folder.write_image(path, result)
        return failures

    def _note(self, backend: Replicas) -> None:
        """Say and record what a reader should know of a backend's replicas."""
        notes = list(backend.notes)
        for text in notes:
            self.progress.console.print(text, style="yellow", markup=False, highlight=False)
        if self.suite.speed and len(backend.spec.addresses) > 1:
            notes.append(f"{backend.spec.label}: its times are those of a single one of its replicas")
        self.record["warnings"] += notes

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

    def _time(self, backend: Replicas) -> None:
        session = backend.sessions[0]
        if self.suite.speed is None or session.given_up is not None:
            return
        bench = Bench(session, self.suite.speed, self.folder, self.timing_inputs, self._identity(backend))
        task = self.progress.add_task(f"{backend.spec.label}: speed", total=len(bench.sizes))
        for size in bench.sizes:
            bench.measure(size)
            self.progress.advance(task)

    def _timing_inputs(self, side: int) -> list[Item]:
        """Photos at `side` pixels for the timed passes, enlarged where they are smaller."""
        count = self.suite.speed.images if self.suite.speed else 0
        chosen = [r for r in limit(self.dataset, count, self.suite.seed).records if r.id in self.usable]
        return [
            Item(r.id, make_input(centre_square(self.dataset.image(r)), side), int(self.labels[r.id]["seed"]))
            for r in chosen
        ]

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
