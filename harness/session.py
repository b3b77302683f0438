"""One backend during a run: started or attached, described, called with recovery, timed.

A failed batch is tried again image by image, so that an image costs only itself; a local backend that died or
hung is restarted; after `PATIENCE` failed calls in a row, refusals aside, it is ended and the rest of its cases fail
without being tried.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from harness.client import Client, Item, Pixels, Reply, typed_options
from harness.errors import (
    BackendError,
    BackendFailed,
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Incompatible,
    Unavailable,
)
from harness.plan import BackendSpec
from harness.processes import LocalServer
from harness.suite import Suite
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value

PATIENCE = 4
"""Failed calls in a row after which a backend is given up."""

CLOCK_ERROR = 0.05
"""Seconds by which the system's processor clocks may be off: they count in ticks of 10 ms for each core and process."""


@dataclass(frozen=True)
class TimedPass:
    """What a timed pass measured: one reply a request, and the processor time that others used, in cores.

    The load is NaN for a backend that we did not start: its own work cannot be told from that of others.
    """

    replies: list[Reply]
    other_load: float


class Session:
    """A backend in use; `open()` before anything else, `close()` at the end."""

    def __init__(self, spec: BackendSpec, suite: Suite, log: Path) -> None:
        self.spec, self.suite = spec, suite
        self.server = None if spec.address else LocalServer(spec.name, log, spec.settings)
        self.client: Client | None = None
        self.options: dict[str, Value] = {}
        self.cold_start_s = float("nan")
        self.failures_in_a_row = 0
        self.given_up: BackendError | None = None

    def open(self) -> pb.DescribeResponse:
        """Start or attach, and check that the backend can do what the suite asks.

        Raises:
            BackendError, ConfigError: it cannot be used.
        """
        start = self.server.start() if self.server else 0.0
        self._connect()
        d = self._client().describe()
        self._check(d)
        self.options = typed_options(self.spec.options, d)
        self.cold_start_s = start if self.server else float("nan")
        return d

    def _check(self, d: pb.DescribeResponse) -> None:
        suite, who = self.suite, self.spec.label
        if suite.scale not in d.scales:
            raise Incompatible(f"{who} has no scale {suite.scale}; it has {sorted(d.scales)}: change the suite's scale")
        if suite.reference:
            self.check_size(suite.low, suite.low)

    def check_size(self, height: int, width: int) -> None:
        """Refuse inputs of a size that the backend does not take.

        Raises:
            Incompatible: it does not.
        """
        sizes = self.description.sizes
        step, most = max(1, sizes.multiple_of), sizes.maximum or max(height, width)
        if min(height, width) < sizes.minimum or max(height, width) > most or height % step or width % step:
            limits = f"{sizes.minimum} to {sizes.maximum}" if sizes.maximum else f"at least {sizes.minimum}"
            steps = f" in steps of {step}" if step > 1 else ""
            raise Incompatible(f"{self.spec.label} takes inputs of {limits} pixels{steps}, not {width} x {height}")

    def _connect(self) -> None:
        if self.client is not None:
            self.client.close()
        address = self.server.address if self.server else self.spec.address
        self.client = Client(str(address))
        self.client.wait_ready(10)

    def _client(self) -> Client:
        if self.client is None:
            raise Unavailable(f"{self.spec.label} is not connected")
        return self.client

    @property
    def description(self) -> pb.DescribeResponse:
        """What the backend said of itself."""
        return self._client().description or self._client().describe()

    @property
    def batch(self) -> int:
        """Images a request: the suite's, or fewer if the backend takes fewer."""
        return min(self.suite.batch, self.description.max_batch)

    def upscale(self, items: Sequence[Item]) -> list[Pixels | BackendError]:
        """An output or an error for each item, all of one size; never raises a BackendError."""
        if self.given_up is not None:
            return [self.given_up] * len(items)
        try:
            self.check_size(*items[0].image.shape[:2])
        except Incompatible as error:
            return [error] * len(items)
        try:
            return list(self._call(items).images)
        except BackendError as error:
            if len(items) == 1 and not isinstance(error, Unavailable):
                return [error]
        return [self._alone(item) for item in items]

    def _alone(self, item: Item) -> Pixels | BackendError:
        if self.given_up is not None:
            return self.given_up
        try:
            (output,) = self._call([item]).images
        except BackendError as error:
            return error
        return np.asarray(output)

    def _call(self, items: Sequence[Item]) -> Reply:
        try:
            reply = self._client().upscale(items, self.suite.scale, self.options, self.suite.deadline_s)
        except BackendError as error:
            self._failed(error, len(items))
            raise
        self.failures_in_a_row = 0
        return reply

    def _failed(self, error: BackendError, images: int) -> None:
        lost = isinstance(error, Unavailable | DeadlineExceeded)
        if isinstance(error, BadRequest) or (images > 1 and not lost):
            return  # a refusal is about the image; a failed batch is tried image by image first
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= PATIENCE:
            text = f"not tried: given up after {PATIENCE} failed calls in a row, the last: {error}"
            self.given_up = BackendFailed(text)
            if self.server is not None:
                self.server.kill()
        elif lost:
            try:
                self._recover()
            except BackendError as second:
                self.given_up = second

    def _recover(self) -> None:
        before = self.description.digest
        if self.server is not None:
            self.server.kill()
            self.server.start()
        self._connect()
        if self._client().describe().digest != before:
            raise Incompatible(f"{self.spec.label}: came back with another digest; start the run again")

    def timed(self, items: Sequence[Item], size: int, seconds: float = 0.0) -> TimedPass:
        """Send the items in requests of `size`, one after another, again from the start until `seconds` have passed.

        Nothing is tried twice.

        Raises:
            BackendError: a call failed.
        """
        requests = [items[i : i + size] for i in range(0, len(items) - size + 1, size)]
        before, own_before, started = _busy_seconds(), self._own_seconds(), time.perf_counter()
        replies: list[Reply] = []
        while len(replies) < len(requests) or time.perf_counter() - started < seconds:
            request = requests[len(replies) % len(requests)]
            replies.append(self._client().upscale(request, self.suite.scale, self.options, self.suite.deadline_s))
        took = time.perf_counter() - started
        others = _busy_seconds() - before - (self._own_seconds() - own_before)
        known = self.server is not None and took > 0
        return TimedPass(replies, max(0.0, others - CLOCK_ERROR) / took if known else math.nan)

    def _own_seconds(self) -> float:
        processes = [psutil.Process()]
        if self.server is not None and self.server.process is not None:
            processes.append(psutil.Process(self.server.process.pid))
        return sum(sum(p.cpu_times()[:2]) for p in processes)

    def peak_memory_mb(self) -> float:
        """Peak resident size of a local backend; NaN for a remote one."""
        return self.server.peak_memory_mb() if self.server and self.server.alive() else float("nan")

    def close(self) -> None:
        """Disconnect, and end a local backend."""
        if self.client is not None:
            self.client.close()
        if self.server is not None:
            self.server.stop()

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run record says of a backend, once it is open."""
        d = self.description
        return {
            "label": self.spec.label,
            "name": d.name[:80],
            "address": self.spec.address,
            "options": self.options,
            "family": _family(d),
            "digest": d.digest[:128],
            "device": d.device[:80],
            "precision": d.precision[:40],
            "licence": d.licence[:200],
            "domain": d.domain[:300],
            "domain_minimum": d.sizes.domain_minimum,
            "deterministic": d.deterministic,
            "status": "ok",
            "error": None,
        }


def _family(d: pb.DescribeResponse) -> str:
    known = d.family in pb.Family.values() and d.family != pb.FAMILY_UNSPECIFIED
    return pb.Family.Name(d.family).removeprefix("FAMILY_").lower() if known else "other"


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return float(sum(times) - idle)


def refused(spec: BackendSpec, error: BackendError | ConfigError) -> dict[str, Any]:
    """What the run record says of a backend that could not be used."""
    return {
        "label": spec.label,
        "name": spec.name,
        "address": spec.address,
        "options": spec.options,
        "family": "other",
        "digest": "",
        "device": "",
        "precision": "",
        "licence": "",
        "domain": "",
        "domain_minimum": 0,
        "out_of_domain": False,
        "deterministic": False,
        "status": "failed",
        "error": str(error),
    }
