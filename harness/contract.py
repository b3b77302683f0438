"""The contract kit: what `harness backends check` asks of any backend over the wire."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from backends.registry import ENTRIES
from harness.client import Client, Item, Pixels, Reply, typed_options
from harness.credentials import OPEN, Credentials
from harness.errors import BackendError, BadRequest, ConfigError, ContractBroken, Incompatible, one_line
from harness.plan import parse_backend
from harness.processes import LocalServer
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value

DEADLINE = 120.0
SHARE = 1e-4
"""Share of values that may differ by one level between an image alone and in a batch."""

FULL = 16
"""Most images of the full batch that is tried."""
MANY = 256
"""Backends that list fewer images a request than this are sent one more than they list."""
SIDE, LARGEST_SIDE = 16, 1024
"""Side of the test images in pixels, where the backend takes it, and the largest that is tried."""


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str = ""


def check(backend: str, credentials: Mapping[str, Credentials] | None = None) -> list[Result]:
    """Check a backend, named as for a run (`NAME[@ADDRESS][,option=value]...`) or by HOST:PORT alone.

    `credentials` are those of each address that needs some.

    Raises:
        ConfigError: there is no such backend, or it cannot be checked. BackendError: it cannot be reached at all.
    """
    head = backend.partition(",")[0]
    if head == "replay":
        raise ConfigError("replay has no outputs for the images of these checks; only a run can try it")
    spec = parse_backend(f"server@{backend}" if ":" in head and "@" not in head else backend)
    if len(spec.addresses) > 1:
        raise ConfigError(f"{one_line(backend, 80)!r}: replicas are checked one at a time; give one HOST:PORT")
    if spec.address:
        return check_address(spec.address, spec.options, (credentials or {}).get(spec.address, OPEN))
    if spec.name not in ENTRIES:
        raise ConfigError(f"no backend {one_line(spec.name, 60)!r}; known: {', '.join(ENTRIES)}, or give HOST:PORT")
    folder = Path(tempfile.mkdtemp())  # stays when the backend cannot start: the error names the log in it
    with LocalServer(spec.name, folder / "log", spec.settings) as server:
        results = check_address(server.address, spec.options)
    shutil.rmtree(folder)
    return results


def check_address(
    address: str, options: Mapping[str, str] | None = None, credentials: Credentials = OPEN
) -> list[Result]:
    """Check the backend that serves at `host:port`; `options` go with every request.

    Raises:
        ConfigError: it does not have these options.
        BackendError: it cannot be reached, or describes nothing that can be checked.
    """
    client = Client(address, credentials)
    try:
        client.wait_ready(10)
        probe = _Probe(client, client.describe(), dict(options or {}))
        return [_result(name, test) for name, test in probe.checks()]
    finally:
        client.close()


def _result(name: str, test: Callable[[], str]) -> Result:
    try:
        problem = test()
    except BackendError as error:
        problem = f"{type(error).__name__}: {error}"
    return Result(name, not problem, one_line(problem))


class _Probe:
    """The checks of one backend; each returns "" or what is wrong."""

    def __init__(self, client: Client, description: pb.DescribeResponse, options: dict[str, str]) -> None:
        self.client, self.d = client, description
        self.options: dict[str, Value] = typed_options(options, description)
        self.scale = int(min(description.scales))
        self.step = max(1, description.sizes.multiple_of)
        self.smallest = self.step * -(-max(1, description.sizes.minimum) // self.step)
        if self.smallest > LARGEST_SIDE:
            raise Incompatible(
                f"the smallest image it takes has a side of {self.smallest}; {LARGEST_SIDE} can be tried"
            )
        most = min(SIDE, description.sizes.maximum or SIDE)
        self.side = max(self.smallest, most // self.step * self.step)
        self.rng = np.random.default_rng(0)

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "describes itself the same way twice", self.stable_description
        yield "returns every size it lists", self.sizes
        yield "takes as many images as it lists", self.full_batch
        yield "gives the same bytes for the same request", self.repeatable
        yield "keeps the batch rule", self.batch_rule
        yield "is as deterministic as it says", self.seeds
        yield "streams the same bytes", self.stream
        yield "refuses bad requests with field violations", self.refusals
        yield "answers again after a client has left", self.after_cancel

    def image(self, side: int) -> Pixels:
        return self.rng.integers(0, 256, (side, side, 3), dtype=np.uint8)

    def batch(self, count: int) -> list[Item]:
        return [Item(f"full-{i}", self.image(self.smallest), i) for i in range(count)]

    def ask(self, items: list[Item], scale: int | None = None) -> Reply:
        return self.client.upscale(items, scale or self.scale, self.options, DEADLINE)

    def stable_description(self) -> str:
        return "" if self.client.describe() == self.d else "two Describe calls differ"

    def sizes(self) -> str:
        for scale in self.d.scales:
            for side in (self.smallest, self.smallest + self.step):
                if not self.d.sizes.maximum or side <= self.d.sizes.maximum:
                    self.ask([Item("size", self.image(side), 1)], scale)
        return ""

    def full_batch(self) -> str:
        self.ask(self.batch(min(FULL, self.d.max_batch)))
        return ""

    def repeatable(self) -> str:
        items = [Item("same", self.image(self.side), 7)]
        same = np.array_equal(self.ask(items).images, self.ask(items).images)
        return "" if same else "two equal requests gave different bytes"

    def batch_rule(self) -> str:
        count = min(4, self.d.max_batch)
        items = [Item(f"batch-{i}", self.image(self.side), i) for i in range(count)]
        together = self.ask(items).images
        alone = np.concatenate([self.ask([item]).images for item in items])
        difference = np.abs(together.astype(int) - alone.astype(int))
        share = float((difference > 0).mean())
        if self.d.batch_exact and share:
            return f"batch_exact is claimed, but {share:.2%} of the values differ in a batch"
        if difference.max() > 1 or share > SHARE:
            return f"in a batch {share:.3%} of the values differ, by up to {difference.max()} levels"
        return ""

    def seeds(self) -> str:
        image = self.image(self.side)
        first, second = (self.ask([Item("seed", image, seed)]).images for seed in (1, 2))
        same = np.array_equal(first, second)
        if self.d.deterministic and not same:
            return "deterministic is claimed, but another seed gives other bytes"
        return "" if self.d.deterministic or not same else "is said to be stochastic, but ignores the seed"

    def stream(self) -> str:
        if pb.CAPABILITY_STREAM not in self.d.capabilities:
            return ""
        items = [Item("stream", self.image(self.side), 3)]
        streamed = self.client.upscale(items, self.scale, self.options, DEADLINE, stream=True)
        return "" if np.array_equal(streamed.images, self.ask(items).images) else "UpscaleStream gave other bytes"

    def refusals(self) -> str:
        image = self.image(self.side)
        bad: dict[str, Callable[[], object]] = {
            "a scale it does not have": lambda: self.ask([Item("a", image, 0)], 977),
            "an id twice": lambda: self.ask([Item("a", image, 0), Item("a", image, 0)]),
            "an unknown option": lambda: self.client.upscale(
                [Item("a", image, 0)], self.scale, self.options | {"no such option": 1}, DEADLINE
            ),
            "an image of no size": lambda: self.ask([Item("a", np.zeros((0, 0, 3), np.uint8), 0)]),
            "too few bytes": self._short,
        }
        if self.d.max_batch < MANY:
            bad["more images than it lists"] = lambda: self.ask(self.batch(self.d.max_batch + 1))
        for what, call in bad.items():
            try:
                call()
            except BadRequest as error:
                if not _names_fields(error):
                    return f"{what}: refused without saying which field is wrong"
                continue
            except BackendError as error:
                return f"{what}: answered with {type(error).__name__}, not INVALID_ARGUMENT: {error}"
            return f"{what}: was accepted"
        return ""

    def _short(self) -> None:
        image = pb.InputImage(id="a", height=self.side, width=self.side, data=b"\0")
        try:
            self.client.stub.Upscale(pb.UpscaleRequest(images=[image], scale=self.scale), timeout=DEADLINE)
        except grpc.RpcError as error:
            raise self.client.error(error) from error

    def after_cancel(self) -> str:
        item = Item("cancel", self.image(self.side), 5)
        try:
            self.client.upscale([item], self.scale, self.options, 0.001)
        except ContractBroken:
            raise
        except BackendError:
            pass
        self.ask([item])
        return ""


def _names_fields(error: BadRequest) -> bool:
    """Whether a refusal carries google.rpc.BadRequest details."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error.__cause__))
    except ValueError:
        return False
    return status is not None and any(d.Is(error_details_pb2.BadRequest.DESCRIPTOR) for d in status.details)
