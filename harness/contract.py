"""The contract kit: what `harness backends check` asks of any backend over the wire."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from backends.registry import ENTRIES
from harness import compliance, derivatives, descriptions, generation
from harness.client import Client, Pixels
from harness.compliance import NotJudged
from harness.credentials import OPEN, Credentials
from harness.errors import BackendError, ConfigError, ContractBroken, DeadlineExceeded, one_line
from harness.plan import parse_backend, takes_path
from harness.probe import MANY, Probe, Request, stream_messages
from harness.processes import LocalServer
from protos import CHUNK_BYTES, SERVICE
from protos.upscaler.v1 import upscaler_pb2 as pb

FLAT = 16
"""An output whose values span fewer levels, made of noise over all levels, is constant or not on a 0..255 scale."""
LIKENESS = 0.5
"""Least correlation of the colours of an image's quarters before and after."""
PROMPT = 2.0
"""Seconds, beside the time of four such requests, within which a backend answers after a client has left."""
REPLAY = "replay answers by image id and has no outputs for the images of these checks; only a run can try it"


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
        raise ConfigError(REPLAY)
    bare = ":" in head and "@" not in head and not takes_path(head)
    spec = parse_backend(f"server@{backend}" if bare else backend)
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
        ConfigError: it does not have these options, or replays outputs.
        BackendError: it cannot be reached, or describes nothing that can be checked.
    """
    client = Client(address, credentials)
    try:
        client.wait_ready(10)
        probe = Probe(client, client.describe(), dict(options or {}))
        if probe.d.family == pb.FAMILY_REPLAY:
            raise ConfigError(REPLAY)
        return [_result(name, test, probe) for name, test in CHECKS.items()]
    finally:
        client.close()


def _result(name: str, test: Callable[[Probe], str], probe: Probe) -> Result:
    if not probe.d.scales and test not in WITHOUT_SCALES:
        return Result(name, passed=True, detail="not judged: it only generates")
    try:
        problem = test(probe)
    except NotJudged as note:
        return Result(name, passed=True, detail=str(note))
    except BackendError as error:
        problem = f"{type(error).__name__}: {error}"
    return Result(name, not problem, one_line(problem))


def health(p: Probe) -> str:
    """The server and the service are SERVING, and a service that is not there is NOT_FOUND."""
    for service, expected in (("", "SERVING"), (SERVICE, "SERVING"), ("no.such.Service", "NOT_FOUND")):
        if (found := _health(p, service)) != expected:
            return f"service {service!r} is {found}, not {expected}"
    return ""


def _health(p: Probe, service: str) -> str:
    stub: Any = health_pb2_grpc.HealthStub(p.client.channel)
    try:
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    except grpc.RpcError as error:
        return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def repeatable(p: Probe) -> str:
    """Two equal requests give the same bytes."""
    item, output = p.reference
    return "" if np.array_equal(p.ask([item]).images, output) else "two equal requests gave different bytes"


def picture(p: Probe) -> str:
    """The output uses the range, and its quarters have the colours of the input's."""
    _, output = p.reference
    if np.ptp(output) < FLAT:
        return f"noise over all levels became values from {output.min()} to {output.max()}"
    if p.side == 1:
        return ""
    image = np.zeros((p.side, p.side, 3), np.uint8)
    colours = ((230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 230))
    for quarter, colour in zip(_quarters(image), colours, strict=True):
        quarter[:] = colour
    before, after = (
        np.concatenate([quarter.mean(axis=(0, 1)) for quarter in _quarters(picture)])
        for picture in (image, p.one(image)[0])
    )
    likeness = float(np.corrcoef(before, after)[0, 1])
    return "" if likeness >= LIKENESS else "colours or places are not the input's: the order is rows of RGB triples"


def _quarters(image: Pixels) -> Iterator[Pixels]:
    middle = len(image) // 2
    for rows in (slice(None, middle), slice(middle, None)):
        for columns in (slice(None, middle), slice(middle, None)):
            yield image[rows, columns]


def batch_rule(p: Probe) -> str:
    """An image's output does not depend on the rest of its batch."""
    return compliance.in_a_batch(p, [p.item(p.image(), i) for i in range(min(4, p.d.max_batch))])


def seeds(p: Probe) -> str:
    """Another seed gives another output if, and only if, the backend is said to be stochastic."""
    item, first = p.reference
    same = np.array_equal(first, p.one(item.image, item.seed + 1, item.id))
    if p.d.deterministic and not same:
        return "deterministic is claimed, but another seed gives other bytes"
    return "" if p.d.deterministic or not same else "is said to be stochastic, but ignores the seed"


def stream(p: Probe) -> str:
    """UpscaleStream takes pixels cut anywhere, keeps the order of messages and gives the bytes of Upscale.

    Raises:
        NotJudged: the backend has no UpscaleStream.
    """
    if pb.CAPABILITY_STREAM not in p.d.capabilities:
        raise NotJudged("not offered")
    request = p.request(*(p.input() for _ in range(min(2, p.d.max_batch))))
    messages = p.stream(stream_messages(request))
    if not re.fullmatch("p*hc+", "".join((m.WhichOneof("message") or "?")[0] for m in messages)):
        return "the answer is not progress at will, then one header, then chunks"
    if max(len(m.chunk) for m in messages) > CHUNK_BYTES:
        return "a chunk is larger than 1 MiB"
    reports = [(m.progress.done, m.progress.total) for m in messages if m.HasField("progress")]
    if pb.CAPABILITY_PROGRESS in p.d.capabilities and not reports:
        return "progress is claimed, but none was reported"
    if any(done > total for done, total in reports):
        return "more steps are done than there are"
    pixels = b"".join(image.data for image in p.send(request).images)
    return "" if b"".join(m.chunk for m in messages) == pixels else "UpscaleStream gave other bytes"


def refusals(p: Probe) -> str:
    """Every bad request is refused with INVALID_ARGUMENT and the field that is wrong."""
    for what, request in bad_requests(p):
        if problem := p.refused(request):
            return f"{what}: {problem}"
    return ""


def bad_requests(p: Probe) -> Iterator[tuple[str, Request]]:
    """What is wrong with a request, and the request."""
    image = p.input()
    other = p.image(p.side, p.side + p.step)
    yield "a scale it does not have", p.request(image, scale=p.foreign_scale)
    yield "no image", p.request()
    yield "an id twice", p.request(image, image)
    yield "images of two sizes", p.request(image, p.input(other))
    yield "an unknown option", p.request(image, options={"no such option": 1})
    yield "an image of no size", p.request(p.input(height=0, width=0, data=b""))
    yield "too few bytes", p.request(p.input(data=image.data[:-1]))
    yield "too many bytes", p.request(p.input(data=image.data + b"\0"))
    yield "a class it does not have", p.request(p.input(class_index=len(p.d.classes)))
    yield "a conditioning level above 1", p.request(p.input(conditioning_level=1.5))
    if p.d.max_batch < MANY:
        yield "more images than it lists", p.request(*(p.input(p.image(p.smallest)) for _ in range(p.d.max_batch + 1)))
    if pb.CAPABILITY_STREAM in p.d.capabilities:
        header, *chunks = stream_messages(p.request(image))
        yield "a stream without a header", chunks
        yield "a stream with two headers", [header, header, *chunks]
        yield "a stream that is too short", [header, *chunks[:-1]]
        yield "a stream that is too long", [header, *chunks, *chunks]
    if pb.CAPABILITY_GRADIENT in p.d.capabilities:
        yield from derivatives.bad_gradient_requests(p)
    if pb.CAPABILITY_GENERATE in p.d.capabilities:
        yield from generation.bad_generate_requests(p)


def after_cancel(p: Probe) -> str:
    """After a client has left in the middle of a request, the next one is answered soon and correctly."""
    usual = p.ask(p.full())
    middle = (usual.compute_s or usual.end_to_end_s) / 2
    for deadline in (0.001, middle):
        try:
            p.ask(p.full(), deadline=deadline)
        except ContractBroken:
            raise
        except BackendError:
            pass
    item, output = p.reference
    patience = PROMPT + 4 * usual.end_to_end_s
    try:
        reply = p.ask([item], deadline=patience)
    except DeadlineExceeded:
        return f"the next request was not answered within {patience:.1f} s"
    return "" if np.array_equal(reply.images, output) else "the next request got other bytes than before"


def stable_description(p: Probe) -> str:
    """Describe says now what it said at first; every answer's digest was compared with it."""
    return "" if p.client.describe() == p.d else "two Describe calls differ"


CHECKS: dict[str, Callable[[Probe], str]] = {
    "describes itself without contradiction": descriptions.consistent,
    "answers health checks": health,
    "gives the same bytes for the same request": repeatable,
    "returns the picture it was sent": picture,
    "returns every size it lists": descriptions.sizes,
    "refuses sizes it does not list": descriptions.other_sizes,
    "takes as many images as it lists": descriptions.full_batch,
    "takes messages as large as it lists": descriptions.large_message,
    "keeps the batch rule": batch_rule,
    "is as deterministic as it says": seeds,
    "streams as it says": stream,
    "differentiates as it says": derivatives.gradients,
    "generates as it says": generation.generates,
    "refuses bad requests with field violations": refusals,
    "answers the image, whatever its id": compliance.by_id,
    "answers a change of any pixel": compliance.every_pixel,
    "computes each of nearly equal images in a batch": compliance.batch_mates,
    "computes a repeated image again": compliance.repeated,
    "takes the options and classes it lists, and no others": descriptions.options,
    "answers again after a client has left": after_cancel,
    "gives the same bytes after other work": compliance.later,
    "describes itself the same way after the work": stable_description,
}
"""What each check finds out, and the check: it returns "" or what is wrong."""
WITHOUT_SCALES = (
    descriptions.consistent,
    health,
    generation.generates,
    refusals,
    descriptions.options,
    stable_description,
)
"""The checks of a backend that only generates; the others send images to enlarge."""
