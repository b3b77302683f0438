"""One backend during a run: started or attached, described, called with recovery, timed.

A failed batch is tried again image by image, so that an image costs only itself; a local backend that died or
hung is restarted; after `PATIENCE` failed calls in a row, refusals aside, or where its credentials are no longer
accepted, it is ended and the rest of its cases fail without being tried.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from harness.client import Client, Differential, Draw, FloatItem, Item, Pixels, Reply, seconds, typed_options
from harness.credentials import OPEN, Credentials
from harness.errors import (
    BackendError,
    BackendFailed,
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Incompatible,
    Unauthenticated,
    Unavailable,
    one_line,
)
from harness.meters import Meter, Usage
from harness.plan import BackendSpec
from harness.processes import LocalServer
from harness.suite import Generation, Suite
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value

Asked = TypeVar("Asked", Item, FloatItem, Draw)
Sent = TypeVar("Sent", Item, FloatItem)
Made = TypeVar("Made", Item, Draw)
Got = TypeVar("Got")

PATIENCE = 4
"""Failed calls in a row after which a backend is given up."""

RECONNECT_SECONDS = 10.0
"""How long a backend may take to answer, at first and after its connection was lost."""

MOST_OPEN = 256
"""Most calls of a timed pass that are open at once; later ones wait with us, and their waiting counts."""


class Passage(NamedTuple):
    """What a stage made of an image, (H, W, 3) uint8, and its share in seconds of the request's compute time."""

    image: Pixels
    compute_s: float


@dataclass(frozen=True)
class TimedPass:
    """What a timed pass measured: one reply a request, its pixels dropped, and what the pass used.

    A latency counts in seconds from the moment when its request was due.
    """

    replies: list[Reply]
    latencies: list[float]
    usage: Usage


class Session:
    """A backend in use; `open()` before anything else, `close()` at the end."""

    def __init__(self, spec: BackendSpec, suite: Suite, log: Path, credentials: Credentials = OPEN) -> None:
        self.spec, self.suite, self.credentials = spec, suite, credentials
        self.server = None if spec.address or spec.stages else LocalServer(spec.name, log, spec.settings)
        self.scale = suite.scale
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
        d = self.attach()
        self._check(d)
        return d

    def attach(self) -> pb.DescribeResponse:
        """Start or attach, and type the options; errors as of `open`."""
        start = self.server.start() if self.server else float("nan")
        self._connect()
        d = self._client().describe()
        self.options = typed_options(self.spec.options, d)
        self.cold_start_s = start
        return d

    def _check(self, d: pb.DescribeResponse) -> None:
        suite, who = self.suite, self.spec.label
        if suite.generation:
            self._check_generator(suite.generation)
            return
        if d.scales and suite.scale not in d.scales:
            raise Incompatible(f"{who} has no scale {suite.scale}; it has {sorted(d.scales)}: change the suite's scale")
        if suite.reference and (reason := self.refusal(suite.low, suite.low)):
            raise Incompatible(f"{who} {reason}")

    def _check_generator(self, part: Generation) -> None:
        who, side = self.spec.label, self.description.generated_size
        if not self.generative:
            raise Incompatible(f"{who} does not generate images, and this suite asks for nothing else; take it out")
        if side != part.size:
            raise Incompatible(f"{who} generates {side} x {side} pixels, the suite is about {part.size} x {part.size}")
        unknown = next((name for name in part.classes if name not in self.description.classes), None)
        if unknown is not None:
            known = one_line(", ".join(self.description.classes) or "none")
            raise Incompatible(f"{who} has no class {unknown!r}; its classes: {known}")

    def refusal(self, height: int, width: int) -> str:
        """Why the backend does not take inputs of a size in pixels; "" if it does."""
        if not self.description.scales:
            return "only generates images, it does not upscale"
        sizes = self.description.sizes
        step, most = max(1, sizes.multiple_of), sizes.maximum or max(height, width)
        if sizes.minimum <= min(height, width) and max(height, width) <= most and not (height % step or width % step):
            return ""
        limits = f"{sizes.minimum} to {sizes.maximum}" if sizes.maximum else f"at least {sizes.minimum}"
        steps = f" in steps of {step}" if step > 1 else ""
        return f"takes inputs of {limits} pixels{steps}, not {width} x {height}"

    def _connect(self) -> None:
        if self.client is not None:
            self.client.close()
        address = self.server.address if self.server else self.spec.address
        self.client = Client(str(address), self.credentials)
        self.client.wait_ready(RECONNECT_SECONDS)

    def _client(self) -> Client:
        if self.client is None:
            raise Unavailable(f"{self.spec.label} is not connected")
        return self.client

    @property
    def description(self) -> pb.DescribeResponse:
        """What the backend said of itself."""
        return self._client().description or self._client().describe()

    @property
    def servers(self) -> list[LocalServer]:
        """The processes that do its work; none where some of it is done elsewhere."""
        return [self.server] if self.server else []

    @property
    def choices(self) -> dict[str, Value]:
        """Everything that was chosen for its requests, by name: part of an output's key."""
        level = self.spec.level
        return self.options if level is None else self.options | {"conditioning_level": level}

    @property
    def batch(self) -> int:
        """Images a request: the suite's, or fewer if the backend takes fewer."""
        return min(self.suite.batch, self.description.max_batch)

    @property
    def differentiable(self) -> bool:
        """Whether the backend offers `Gradient`."""
        return pb.CAPABILITY_GRADIENT in self.description.capabilities

    @property
    def generative(self) -> bool:
        """Whether the backend offers `Generate`."""
        return pb.CAPABILITY_GENERATE in self.description.capabilities

    def upscale(self, items: Sequence[Item]) -> list[Pixels | BackendError]:
        """An output or an error for each item, all of one size; never raises a BackendError."""
        return self._answers(items, self._outputs)

    def gradient(self, items: Sequence[FloatItem]) -> list[Differential | BackendError]:
        """A float output, and a gradient where a cotangent is given, or an error for each item; else as `upscale`.

        A backend without `Gradient` gives `Incompatible` for each.
        """
        return self._answers(items, self._gradient)

    def staged(self, asked: Sequence[Made]) -> list[list[Passage] | BackendError]:
        """As `upscale`, and for draws; what each stage made: the last passage of an image has the output."""
        return self._answers(asked, self._staged)

    def once(self, asked: Sequence[Item] | Sequence[Draw], deadline: float) -> Reply:
        """Upscale or generate in one call, tried once.

        Raises:
            BackendError: it failed.
        """
        if items := [one for one in asked if isinstance(one, Item)]:
            return self._client().upscale(self._levelled(items), self.scale, self.options, deadline)
        return self._client().generate([one for one in asked if isinstance(one, Draw)], self.options, deadline)

    def _levelled(self, items: Sequence[Sent]) -> Sequence[Sent]:
        level = self.spec.level
        return items if level is None else [replace(item, conditioning_level=level) for item in items]

    def _outputs(self, asked: Sequence[Item] | Sequence[Draw]) -> list[Pixels]:
        return list(self.once(asked, self.suite.deadline_s).images)

    def _staged(self, asked: Sequence[Item] | Sequence[Draw]) -> list[list[Passage]]:
        reply = self.once(asked, self.suite.deadline_s)
        stages = reply.stages or (reply,)
        return [[Passage(s.images[i], s.compute_s / len(asked)) for s in stages] for i in range(len(asked))]

    def _gradient(self, items: Sequence[FloatItem]) -> list[Differential]:
        return self._client().gradient(self._levelled(items), self.scale, self.options, self.suite.deadline_s)

    def _answers(self, items: Sequence[Asked], ask: Callable[[Sequence[Asked]], list[Got]]) -> list[Got | BackendError]:
        if self.given_up is not None:
            return [self.given_up] * len(items)
        if reason := self._obstacle(items[0]):
            return [Incompatible(f"{self.spec.label} {reason}")] * len(items)
        try:
            return [*self._call(items, ask)]
        except BackendError as error:
            if len(items) == 1 and not isinstance(error, Unavailable):
                return [error]
        answers: list[Got | BackendError] = []
        for item in items:
            answer = self._alone(item, ask)
            answers.append(answer)
        return answers

    def _obstacle(self, item: Item | FloatItem | Draw) -> str:
        """Why the backend cannot be asked for this at all; "" if it can."""
        if isinstance(item, Draw):
            return "" if self.generative else "does not offer Generate"
        if isinstance(item, FloatItem) and not self.differentiable:
            return "does not offer Gradient"
        return self.refusal(*item.image.shape[:2])

    def _alone(self, item: Asked, ask: Callable[[Sequence[Asked]], list[Got]]) -> Got | BackendError:
        if self.given_up is not None:
            return self.given_up
        try:
            (output,) = self._call([item], ask)
        except BackendError as error:
            return error
        return output

    def _call(self, items: Sequence[Asked], ask: Callable[[Sequence[Asked]], list[Got]]) -> list[Got]:
        try:
            answers = ask(items)
        except BackendError as error:
            self._failed(error, len(items))
            raise
        self.failures_in_a_row = 0
        return answers

    def _failed(self, error: BackendError, images: int) -> None:
        lost = isinstance(error, Unavailable | DeadlineExceeded)
        if isinstance(error, Unauthenticated):
            self._give_up(error)  # it would say the same of every image
            return
        if isinstance(error, BadRequest) or (images > 1 and not lost):
            return  # a refusal is about the image; a failed batch is tried image by image first
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= PATIENCE:
            text = f"not tried: given up after {PATIENCE} failed calls in a row, the last: {error}"
            self._give_up(BackendFailed(text))
        elif lost:
            self.recover()

    def _give_up(self, error: BackendError) -> None:
        self.given_up = error
        self.kill()

    def kill(self) -> None:
        """End at once what runs on this machine: it may hang, and would compute on."""
        if self.server is not None:
            self.server.kill()

    def recover(self) -> None:
        """Start it again or attach again after a lost call; if that fails, it is given up."""
        try:
            self.restart()
        except BackendError as second:
            self._give_up(second)

    def restart(self) -> None:
        """Start it again or attach again.

        Raises:
            BackendError: it does not come back, or is another.
        """
        before = self.description
        if self.server is not None:
            self.server.kill()
            self.server.start()
        self._connect()
        after = self._client().describe()
        for name in ("digest", "device", "precision"):
            if getattr(after, name) != getattr(before, name):
                raise Incompatible(f"{self.spec.label}: came back with another {name}; start the run again")

    def timed(self, requests: Sequence[Sequence[Item]], *, seconds: float = 0.0, limit: float = math.inf) -> TimedPass:
        """Send requests one after another: `in_turns` of one backend."""
        (made,) = in_turns([self], requests, seconds=seconds, limit=limit)
        return made

    def arriving(self, requests: Sequence[Sequence[Item]], arrivals: Sequence[float], patience: float) -> TimedPass:
        """Send each request when it is due, `arrivals` seconds after the start in rising order, awaiting none.

        A latency counts from when its request was due, also where it was sent late. A call may take `patience` seconds
        beyond the suite's deadline, since it may wait for others.

        Raises:
            BackendError: a call failed; the first is raised when all have ended.
        """
        meter, started = Meter(self.servers), time.perf_counter()

        def call(items: Sequence[Item], due: float) -> tuple[Reply, float]:
            reply = self.timed_call(items, self.suite.deadline_s + patience)
            return reply, time.perf_counter() - started - due

        with ThreadPoolExecutor(min(len(requests), MOST_OPEN)) as pool:
            calls = []
            for items, due in zip(requests, arrivals, strict=True):
                time.sleep(max(0.0, started + due - time.perf_counter()))
                calls.append(pool.submit(call, items, due))
        replies, latencies = zip(*(c.result() for c in calls), strict=True)
        return TimedPass(list(replies), list(latencies), meter.read())

    def timed_call(self, items: Sequence[Item], deadline: float) -> Reply:
        """As `once`, without the images."""
        reply, nothing = self.once(items, deadline), np.empty((0, 0, 0, 3), np.uint8)
        return replace(reply, images=nothing, stages=())  # the images of a whole pass may not fit in memory

    def warm_up_s(self) -> float:
        """Seconds that the backend spent on trial images before it was ready; NaN if it does not say."""
        d = self.description
        return seconds(d.warm_up_time) if d.HasField("warm_up_time") else math.nan

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
            "options": self.choices,
            "family": _family(d),
            "digest": d.digest[:128],
            "device": d.device[:80],
            "precision": d.precision[:40],
            "licence": d.licence[:200],
            "domain": d.domain[:300],
            "domain_minimum": d.sizes.domain_minimum,
            "deterministic": d.deterministic,
            "gradient": self.differentiable,
            "classes": [one_line(name, 100) for name in d.classes],
            "status": "ok",
            "error": None,
        }


def in_turns(
    sessions: Sequence[Session], requests: Sequence[Sequence[Item]], *, seconds: float = 0.0, limit: float = math.inf
) -> list[TimedPass]:
    """Send each request to every backend, one call at a time, again from the first until `seconds` have passed.

    It ends early where one more turn as slow as the slowest would last longer than `limit` seconds, but not before one
    turn. Nothing is tried twice. Each backend has its pass; what was used is that of all together.

    Raises:
        BackendError: a call failed.
    """
    ours = all(session.servers for session in sessions)
    meter = Meter([server for session in sessions for server in session.servers] if ours else [])
    turns, started = list[list[Reply]](), time.perf_counter()
    now = slowest = 0.0
    while len(turns) < len(requests) or now < seconds:
        request, before = requests[len(turns) % len(requests)], now
        turns.append([session.timed_call(request, session.suite.deadline_s) for session in sessions])
        now = time.perf_counter() - started
        slowest = max(slowest, now - before)
        if now + slowest > limit:
            break
    usage = meter.read()
    return [TimedPass([*made], [reply.end_to_end_s for reply in made], usage) for made in zip(*turns, strict=True)]


def _family(d: pb.DescribeResponse) -> str:
    known = d.family in pb.Family.values() and d.family != pb.FAMILY_UNSPECIFIED
    return pb.Family.Name(d.family).removeprefix("FAMILY_").lower() if known else "other"


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
