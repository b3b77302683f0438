"""Requests take turns at the model, oldest first; those that wait together and fit are computed as one batch.

A lone request starts at once: none waits for others to come. One whose client leaves does not stop the rest of its
batch, and one that fails does not fail them: after an error each is computed alone.

A model lives in one thread, in which it is loaded, too. OpenMP keeps helper threads for each thread that computes; with
those of a second one there are more than cores, and then they sleep between operations: small networks took 1.5 to 1.9
times as long.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from backends.base import (
    Backend,
    Batch,
    Cancelled,
    Described,
    Differentiable,
    FloatBatch,
    Generative,
    Gradients,
    Progress,
    SampleBatch,
)
from backends.validation import MAX_PIXELS
from harness.resize import to_uint8

if TYPE_CHECKING:
    from backends.device import Device

Answer = tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.float32] | None]
"""The pixels of a request, and its gradients where it asked for some."""
AnyBatch = Batch | FloatBatch | SampleBatch
Mergeable = TypeVar("Mergeable", Batch, SampleBatch)
POLL_SECONDS = 0.5
"""How often a waiting request looks whether its client is still there."""


@dataclass(frozen=True)
class Outcome:
    """What a request gets: the images (N, H, W, 3), and the figures of the computation that made them.

    The pixels are uint8; those of a `FloatBatch` are float32, neither clipped nor rounded, and `gradients` are
    float32 of its images' shape where it had cotangents. `queue_s` is the time from its arrival to the start of that
    computation, `compute_s` the time of the computation, other requests in the same batch included, and `device_bytes`
    the most device memory it used.
    """

    pixels: NDArray[np.uint8] | NDArray[np.float32]
    queue_s: float
    compute_s: float
    device_bytes: int
    gradients: NDArray[np.float32] | None = None


@dataclass(eq=False)
class Job:
    """A request in the queue; `active` says whether its client still waits for it."""

    batch: AnyBatch
    active: Callable[[], bool]
    progress: Progress
    arrived: float = field(default_factory=time.perf_counter)
    outcome: Outcome | Exception | None = None


class Batcher:
    """Runs one backend for many threads, one batch at a time, in the one `thread` that computes."""

    def __init__(self, backend: Described, thread: Executor | None = None) -> None:
        self.backend = backend
        self.thread = thread or model_thread()
        self.device: Device | None = getattr(backend, "device", None)
        self.changed = threading.Condition()
        self.waiting: list[Job] = []
        self.busy = False

    def run(self, job: Job) -> Outcome:
        """Wait for the job's turn, and compute it or find it computed with another.

        Raises:
            Cancelled: its client left.
            Exception: what the model raised for it.
        """
        jobs = self._wait(job)
        try:
            if jobs:
                self.thread.submit(self._compute, jobs).result()
        finally:
            if jobs:
                self._free()
        if isinstance(job.outcome, Outcome):
            return job.outcome
        raise job.outcome or Cancelled

    def _wait(self, job: Job) -> list[Job]:
        """The jobs to compute now, this one first; none if it was computed meanwhile."""
        with self.changed:
            self.waiting.append(job)
            while job.outcome is None and (self.busy or self.waiting[0] is not job):
                self.changed.wait(POLL_SECONDS)
                if not job.active():
                    self._leave([job])
                    raise Cancelled
            if job.outcome is not None:
                return []
            self.busy = True
            jobs = self._fitting(job)
            self._leave(jobs)
            return jobs

    def _fitting(self, first: Job) -> list[Job]:
        """The first job and the waiting ones that can be computed with it, in the order of their arrival."""
        jobs, room = [first], self._limit(first.batch) - len(first.batch.ids)
        for job in self.waiting:
            if job is not first and len(job.batch.ids) <= room and job.active() and _kind(job) == _kind(first):
                jobs.append(job)
                room -= len(job.batch.ids)
        return jobs

    def _limit(self, batch: AnyBatch) -> int:
        """The most images to compute at once; no more than the batch has, if the backend gains nothing by more.

        Gradients are computed one request at a time: what they hold in memory grows with the batch.
        """
        d = self.backend.description
        _, height, width, _ = _output_shape(batch)
        merge = d.merge and not isinstance(batch, FloatBatch)
        return min(d.max_batch, MAX_PIXELS // (height * width)) if merge else 0

    def _leave(self, jobs: list[Job]) -> None:
        self.waiting = [job for job in self.waiting if job not in jobs]
        self.changed.notify_all()

    def _free(self) -> None:
        with self.changed:
            self.busy = False
            self.changed.notify_all()

    def _compute(self, jobs: Sequence[Job]) -> None:
        """Set the outcome of each job."""
        started = time.perf_counter()
        try:
            parts = self._answers(jobs)
        except Exception as error:  # noqa: BLE001 - raised in the thread of its request
            clear_frames(error.__traceback__)  # else what the model held stays until the garbage collector comes
            if len(jobs) == 1:
                jobs[0].outcome = error
            else:
                for job in jobs:
                    self._compute([job])
            return
        took = time.perf_counter() - started
        memory = self.device.peak_memory() if self.device else 0
        for job, (pixels, gradients) in zip(jobs, parts, strict=True):
            job.outcome = Outcome(pixels, started - job.arrived, took, memory, gradients)

    def _answers(self, jobs: Sequence[Job]) -> list[Answer]:
        """The checked pixels of each job, and the gradients."""

        def step(done: int, total: int) -> None:
            if not any(job.active() for job in jobs):
                raise Cancelled
            for job in jobs:
                job.progress(done, total)

        if self.device:
            self.device.reset_peak_memory()
        step(0, 1)
        first, backend = jobs[0].batch, self.backend
        if isinstance(first, FloatBatch):
            return [checked_gradients(cast("Differentiable", backend).gradient(first, step), first)]
        if isinstance(first, SampleBatch):
            wanted = merged([job.batch for job in jobs if isinstance(job.batch, SampleBatch)])
            pixels = checked_pixels(cast("Generative", backend).generate(wanted, step), wanted)
        else:
            batch = merged([job.batch for job in jobs if isinstance(job.batch, Batch)])
            pixels = checked_pixels(cast("Backend", backend).upscale(batch, step), batch)
        ends = np.cumsum([len(job.batch.ids) for job in jobs])
        return [(part, None) for part in np.split(pixels, ends[:-1])]


def model_thread() -> Executor:
    """A thread for one model: what is submitted runs there, one after another."""
    return ThreadPoolExecutor(1, thread_name_prefix="model")


def _kind(job: Job) -> tuple[object, ...]:
    """What has to be equal in requests that are computed together."""
    batch = job.batch
    size = batch.size if isinstance(batch, SampleBatch) else (batch.images.shape[1:], batch.scale)
    return type(batch), size, batch.options


def merged(batches: Sequence[Mergeable]) -> Mergeable:
    """Batches of one kind as one, in their order."""
    joined: dict[str, Any] = {}
    for name, value in vars(batches[0]).items():
        parts = [getattr(batch, name) for batch in batches]
        if isinstance(value, tuple):
            joined[name] = sum(parts, ())
        elif isinstance(value, np.ndarray):
            joined[name] = np.concatenate(parts)
    return replace(batches[0], **joined)


def checked_pixels(output: NDArray[np.uint8] | NDArray[np.floating], batch: Batch | SampleBatch) -> NDArray[np.uint8]:
    """The model's output as uint8 of the right shape.

    Raises:
        ValueError: the shape is wrong or a value is not finite.
    """
    _check(output, _output_shape(batch))
    if output.dtype == np.uint8:
        return np.asarray(output, np.uint8)
    return np.stack([to_uint8(np.asarray(image, np.float64)) for image in output])  # one at a time: bounds memory


def checked_gradients(answer: Gradients, batch: FloatBatch) -> Answer:
    """The model's outputs and gradients as float32 of the right shapes.

    Raises:
        ValueError: a shape is wrong or a value is not finite.
    """
    outputs, gradients = answer
    floats = _floats(outputs, _output_shape(batch))
    return floats, None if batch.cotangents is None else _floats(gradients, batch.images.shape)


def _output_shape(batch: AnyBatch) -> tuple[int, ...]:
    if isinstance(batch, SampleBatch):
        return len(batch.ids), batch.size, batch.size, 3
    n, height, width, channels = batch.images.shape
    return n, height * batch.scale, width * batch.scale, channels


def _floats(values: NDArray[np.floating] | None, expected: tuple[int, ...]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an infinity is found next
        floats = np.asarray(values, np.float32)
    _check(floats, expected)
    return floats


def _check(values: NDArray[np.uint8] | NDArray[np.floating], expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise ValueError(f"the model returned shape {values.shape}; {expected} was expected")
    if not np.isfinite(values).all():
        raise ValueError("the model returned values that are not finite (NaN or infinity)")
