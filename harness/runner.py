"""Runs a suite: prepares the images, calls the backends, times them, scores, and derives the tables.

The same command continues an unfinished run: what is in the folder is not done again, except failures.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.attacker import Attacker
from harness.client import Item
from harness.credentials import Credentials, load_credentials
from harness.datasets import Dataset, dataset_hash, limit, open_dataset
from harness.degrade import make_input, sample_seed
from harness.errors import BackendError, ConfigError, one_line
from harness.explainer import Explainer
from harness.fairness.readings import describe_instruments
from harness.generated_sets import describe_generation
from harness.images import centre_square, load
from harness.measure import measure
from harness.metrics import preflight
from harness.plan import CLEAN, BackendSpec, Job, Step, images_of, parse_entry, plan
from harness.prepare import prepare
from harness.record import continued, input_sizes, new_record, now, usual_size
from harness.replicas import Replicas
from harness.sampling import GENERATED, REAL, Sampler, prepare_training, training_split
from harness.score import BASELINE, CONTROL, identity, image_labels, output_path
from harness.session import Passage, refused
from harness.set_measures import describe
from harness.speed import Bench, reference_of
from harness.stages import handed_on, stage_rows
from harness.store import Row, RunFolder, equal_sizes, png_size
from harness.suite import Suite
from harness.timing import drop_disturbed

REQUEST_PIXELS = 2**23
"""Most output pixels of a request of several images: 24 MiB, which any backend may answer in one message."""

REPLAY = "replay"
"""The family of backends whose outputs were made before."""


def run(job: Job, progress: Progress) -> RunFolder:
    """Run a job, or continue it.

    Raises:
        HarnessError: nothing can be run. Failures of single backends and images are recorded instead.
    """
    specs, credentials = backend_specs(job), load_credentials(job.credentials)
    preflight(job.suite.used_metrics)
    describe(job.suite)  # opens and checks the networks
    describe_instruments(job.suite)
    describe_generation(job.suite)
    dataset = open_dataset(job.dataset)
    if job.limit is not None:
        dataset = limit(dataset, job.limit, job.suite.seed)
    check_replays(specs, dataset)
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

    specs = [parse_entry(text) for text in job.backends or job.suite.backends]
    if not (job.suite.generation or any(spec.label == BASELINE for spec in specs)):
        specs.insert(0, BackendSpec(BASELINE, None, BASELINE, {}))
    if not specs:
        raise ConfigError("no generator is named: give one by --backend, as in --backend NAME@HOST:PORT")
    labels = [spec.label for spec in specs]
    for spec in specs:
        if labels.count(spec.label) > 1 or spec.label in (CONTROL, REAL):
            raise ConfigError(f"the name {spec.label!r} is taken; tell backends apart with name=, as in sr3,name=sr3-b")
        if spec.label == BASELINE and (spec.name != BASELINE or spec.address):
            raise ConfigError(f"the name {BASELINE!r} belongs to the control; choose another with name=")
        for one in spec.stages or (spec,):
            if one.address is None and one.name not in ENTRIES:
                known = ", ".join(ENTRIES)
                raise ConfigError(f"no backend {one.name!r}; known: {known}, or attach one by NAME@HOST:PORT")
    return specs


def check_replays(specs: Sequence[BackendSpec], dataset: Dataset) -> None:
    """Refuse precomputed outputs of which none is named after an image.

    Raises:
        ConfigError: so it is, or there are no outputs.
    """
    from backends.replay import stored_outputs

    for spec in specs:
        if "outputs" not in spec.settings:
            continue
        try:
            names = stored_outputs(spec.settings["outputs"])
        except ValueError as error:
            raise ConfigError(f"{spec.label}: {error}") from error
        if not any(record.id in names for record in dataset.records):
            theirs, ours = one_line(min(names), 60), one_line(dataset.records[0].id, 60)
            raise ConfigError(
                f"{spec.label}: none of the {len(names)} outputs in {spec.settings['outputs']} is named after an image "
                f"(outputs such as {theirs}, images such as {ours}); give the outputs of this dataset"
            )


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
        self.training = training_split(dataset, job.suite.generation) if job.suite.generation else None
        self.timing_inputs = cache(self._timing_inputs)
        self.benches: dict[str, Bench] = {}

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
                self._ask_further(backend)
                self._note(backend)
            self._compare_times()
            for part in earlier:  # only now: their cases have been tried again
                part.unlink(missing_ok=True)
            measure(self.folder, self.progress)
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
        usable = self.images.loc[self.images["error"] == "", "image"].astype(str)
        inputs = {image: self.folder.input(CLEAN.folder, image) for image in usable}
        self.sizes = {image: png_size(path) for image, path in inputs.items() if path.exists()}
        if self.training and self.suite.generation:
            prepare_training(self.folder, self.training, self.suite, self.suite.generation)
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
            small = sum(min(size) < backend.record["domain_minimum"] for size in self.sizes.values())
            self.record["backends"].append(backend.record | {"out_of_domain": small > 0, "inputs_below_domain": small})

    def _identity(self, backend: Replicas) -> Row:
        return identity(backend.record, self.dataset.spec)

    def _generate(self, backend: Replicas) -> None:
        """Store the outputs that are missing, and a row for each failure; one that failed is not sampled further."""
        steps = [step for step in self.steps if _answers(backend.record, step)]
        if not steps:
            return
        task = self.progress.add_task(backend.spec.label, total=sum(len(self._usable(step)) for step in steps))
        failed: set[str] = set()
        pool = ThreadPoolExecutor(len(backend.sessions) + 1)  # one more reads and writes while the replicas work
        try:
            for step in steps:
                tried = [image for image in self._usable(step) if not (step.sample and image in failed)]
                batches = [*self._batches(step, tried, backend.batch)]
                results = pool.map(partial(self._outputs, backend, step), batches)
                for images, failures in zip(batches, results, strict=True):
                    self.folder.append(failures, "failed")
                    failed |= {str(row["image"]) for row in failures if step.condition == CLEAN}
                    self.progress.advance(task, len(images))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask_further(self, backend: Replicas) -> None:
        """Store the generated images, the attacks and the maps that are missing, and a row for each failure."""
        common = self._identity(backend) | {"condition": CLEAN.name, "scale": self.suite.scale}
        for stage in self._further(backend):
            for failure in stage.run(self.progress):
                self.folder.append([common | self.labels.get(failure["image"], {}) | failure], "failed")

    def _further(self, backend: Replicas) -> Iterator[Attacker | Explainer | Sampler]:
        if self.suite.generation:
            yield Sampler(self.folder, self.suite, backend, self._identity(backend))
        if part := self.suite.attacks:
            yield Attacker(self.folder, self.suite, part, backend, self._chosen(part.images))
        if maps := self.suite.explanations:
            yield Explainer(self.folder, self.suite, maps, backend, self._chosen(maps.images))

    def _chosen(self, count: int) -> pd.DataFrame:
        """The rows of the images that a part of the suite over so many of them uses."""
        return self.images[self.images["image"].isin(images_of(self.suite, self.dataset, count))]

    def _usable(self, step: Step) -> list[str]:
        return [i for i in step.images if i in self.sizes and self.folder.input(step.condition.folder, i).exists()]

    def _batches(self, step: Step, images: list[str], most: int) -> Iterator[list[str]]:
        files = ((image, self.folder.input(step.condition.folder, image)) for image in images)
        for batch in equal_sizes(files, most, REQUEST_PIXELS // self.suite.scale**2):
            yield [image for image, _ in batch]

    def _outputs(self, backend: Replicas, step: Step, images: list[str]) -> list[Row]:
        """Write the outputs of a batch that are not there yet, after the rows of a chain's stages; returns failures.

        An output that is there is not made again, so what is known of its making must be there before it.
        """
        missing = []
        for image in images:
            item = self._item(step, image)
            path = output_path(self.folder, backend.record, step.condition, image, item.seed, self.suite.scale)
            if path is not None and not path.exists():
                missing.append((item, path))
        failures, stages, made = list[Row](), list[Row](), list[tuple[Path, list[Passage]]]()
        results = backend.staged([item for item, _ in missing]) if missing else []
        for (item, path), result in zip(missing, results, strict=True):
            if isinstance(result, BackendError):
                failures.append(self._failure(self._identity(backend), step, item.id, result))
            else:
                made.append((path, result))
                stages += self._stage_rows(backend, step, item, result)
        self.folder.append(stages)
        for path, passages in made:
            self._keep(step, path, passages)
        return failures

    def _keep(self, step: Step, path: Path, passages: Sequence[Passage]) -> None:
        """Write an output; beside that of a clean input, what the stages before the last made on the way to it."""
        if step == self.steps[0]:
            for number, passage in enumerate(passages[:-1], 1):
                self.folder.write_image(handed_on(path, number), passage.image)
        self.folder.write_image(path, passages[-1].image)

    def _stage_rows(self, backend: Replicas, step: Step, item: Item, passages: Sequence[Passage]) -> list[Row]:
        """Nothing of further draws of a corruption, whose rows would be those of the first."""
        if step.condition.draw:
            return []
        where = {"condition": step.condition.name, "severity": step.condition.severity, "sample": step.sample}
        common = self._identity(backend) | self.labels[item.id] | where | {"image": item.id}
        return [common | row for row in stage_rows(backend.record, item.seed, passages)]

    def _note(self, backend: Replicas) -> None:
        """Say and record what a reader should know of a backend's replicas."""
        notes = list(backend.notes)
        for text in notes:
            self.progress.console.print(text, style="yellow", markup=False, highlight=False)
        if self.suite.speed and len(backend.spec.addresses) > 1:
            notes.append(f"{backend.spec.label}: its times are those of a single one of its replicas")
        self.record["warnings"] += notes

    def _item(self, step: Step, image: str) -> Item:
        seed = sample_seed(int(self.labels[image]["seed"]), step.sample)
        return Item(image, load(self.folder.input(step.condition.folder, image)), seed)

    def _failure(self, who: Row, step: Step, image: str, error: Exception) -> Row:
        condition = step.condition
        where = {"condition": condition.name, "severity": condition.severity, "scale": self.suite.scale}
        where["stage"] = f"draw-{condition.draw}" if condition.draw else ""
        what = {"image": image, "sample": step.sample, "metric": "output", "error": f"{type(error).__name__}: {error}"}
        return who | self.labels[image] | where | what

    def _fail_all(self, spec: BackendSpec, error: BackendError | ConfigError) -> None:
        who = identity(refused(spec, error), self.dataset.spec)
        rows = [
            self._failure(who, step, image, error)
            for step in self.steps
            for image in step.images
            if image in self.sizes and not (step.sample or step.condition.draw)
        ]
        if self.suite.generation:
            rows = [who | {"condition": GENERATED, "metric": "output", "error": f"{type(error).__name__}: {error}"}]
        self.folder.append(rows, "failed")

    def _time(self, backend: Replicas) -> None:
        session = backend.sessions[0]
        if self.suite.speed is None or session.given_up is not None:
            return
        bench = Bench(session, self.suite.speed, self.folder, self.timing_inputs, self._identity(backend))
        self.benches[backend.spec.label] = bench
        for size in self._timed_sizes(f"{backend.spec.label}: speed"):
            bench.measure(size)

    def _compare_times(self) -> None:
        """Time every backend once more in turns with the reference, when all have been timed alone."""
        if self.suite.speed is None:
            return
        name = reference_of(self.suite.speed.model_dump(), self.record["backends"])
        if name not in self.benches:
            return
        for label in [label for label in self.benches if label != name]:
            for size in self._timed_sizes(f"{label}: in turns with {name}"):
                self.benches[label].compare(self.benches[name], size)

    def _timed_sizes(self, task: str) -> Iterator[int]:
        """The sizes of the timed passes, the longer side of the output in pixels, with progress."""
        part = self.suite.speed
        sizes = (part.sizes if part else ()) or (self.suite.scale * max(usual_size(self.sizes.values())),)
        yield from self.progress.track(sizes, description=task)

    def _timing_inputs(self, side: int) -> list[Item]:
        """For the timed passes: inputs as they are, where the usual size has this longer side; else squares of it."""
        count = self.suite.speed.images if self.suite.speed else 0
        size = usual_size(self.sizes.values())
        if side == max(size):
            same = tuple(record for record in self.dataset.records if self.sizes.get(record.id) == size)
            chosen = limit(replace(self.dataset, records=same), count, self.suite.seed).records
            return [self._item(self.steps[0], record.id) for record in chosen]
        return [
            Item(r.id, make_input(centre_square(self.dataset.image(r)), side), int(self.labels[r.id]["seed"]))
            for r in limit(self.dataset, count, self.suite.seed).records
            if r.id in self.sizes
        ]

    def _write_record(self, status: str) -> None:
        if not self.record:
            self.record = new_record(self.job, self.dataset, self.dataset_sha256, self.images, self.steps)
            self.record |= continued(self.before, self.record)
            self.record["inputs"] = input_sizes(self.sizes.values())
            self.record["training"] = self.training.spec if self.training else None
        self.record |= {"status": status, "finished": None if status == "running" else now()}
        self.folder.write_record(self.record)


def _answers(backend: dict[str, Any], step: Step) -> bool:
    """Whether a step asks something of a backend: one output is all of a deterministic one, stored ones know no other.

    What `replay` returns depends on the image's name alone, so it is no answer to another input.
    """
    return not (step.sample and backend["deterministic"]) and not (
        step.condition != CLEAN and backend["family"] == REPLAY
    )


def default_output(suite: Suite, dataset: str, backends: Sequence[str], count: int | None) -> Path:
    """Where a run goes without --output: the same command finds its folder again, another one gets its own."""
    key = hashlib.sha256(json.dumps([suite.sha256, dataset, list(backends), count]).encode()).hexdigest()[:8]
    return Path("runs") / f"{suite.name}-{key}"
