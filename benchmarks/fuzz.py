"""Sends a server what no client should: `python -m benchmarks.fuzz [NAME or HOST:PORT] [COUNT]`.

Requests are made from a seed, the i-th of them always the same: valid ones, and ones with a wrong scale, size, length,
id, option, class or seed, garbled and truncated bytes, streams out of order, and clients that leave. A valid request
must be answered correctly, any other refused with a typed error. For a backend that is started here, the memory
afterwards must be that of the idle, warm server before, up to `TOLERANCE_MB`.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
import psutil

from harness.client import Client, Item
from harness.errors import ConfigError, HarnessError, one_line
from harness.probe import Probe, names_fields, stream_messages
from harness.processes import LocalServer
from protos import CHUNK_BYTES, MAX_MESSAGE_BYTES, SERVICE
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value, option_message

COUNT, WARM_UP = 10_000, 500
"""Calls that are made, and before them those after which a server counts as warm: threads and buffers are there."""
THREADS = 4
DEADLINE, MOMENT = 60.0, 0.002
"""Seconds that a call may take, and after which a client that leaves is gone."""
IMAGES = 8
"""Images of valid requests, whose outputs are asked for once before."""
TOLERANCE_MB = 32.0
"""How much larger than when it was idle and warm a server may be afterwards: what allocators keep."""

S = grpc.StatusCode
VALID, INVALID, EITHER = {S.OK}, {S.INVALID_ARGUMENT}, {S.OK, S.INVALID_ARGUMENT}
GARBLED = EITHER | {S.INTERNAL}  # gRPC itself answers bytes that are no message with INTERNAL
LEAVING = EITHER | {S.CANCELLED, S.DEADLINE_EXCEEDED}

NAMES = (
    "",
    "x" * 257,
    "x" * 100_000,
    "\0",
    "\x1b[2J\r\n",
    "é" * 256,
    "🙂" * 256,
    "../../etc/passwd",
    "%s%n{0}",
    "\u202e",
)
VALUES: tuple[Value, ...] = ("", "x" * 10_000, "\0", True, 0, 2**63 - 1, -(2**63), float("nan"), float("inf"), -1e308)
LARGE = (0, 2**16, 2**31, 2**32 - 1)

SHARES = (0.3, 0.4, 0.15, 0.1, 0.05)
"""Of valid, mutated, garbled, disordered and left calls."""

Rng = np.random.Generator
T = TypeVar("T")


@dataclass
class Shot:
    """One call: the messages as bytes, the statuses that may answer it, and the pixels that an answer must have."""

    kind: str
    messages: list[bytes]
    may: set[grpc.StatusCode]
    stream: bool = False
    leaves: bool = False
    request: pb.UpscaleRequest | None = None
    outputs: list[bytes] | None = None


@dataclass
class Outcome:
    """What became of the calls: how many of each kind ended with each status, and what was wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def pick(rng: Rng, values: Sequence[T]) -> T:
    """One of the values."""
    return values[int(rng.integers(len(values)))]


class Fuzzer:
    """Makes and fires the calls against the upscaler at `address`.

    Raises:
        ConfigError: it enlarges nothing.
    """

    def __init__(self, address: str, seed: int = 0) -> None:
        self.seed = seed
        self.client = Client(address)
        self.client.wait_ready(10)
        self.d = self.client.describe()
        if not self.d.scales:
            self.client.close()
            raise ConfigError(f"{one_line(self.d.name, 60)} enlarges nothing; this check needs an upscaler")
        self.probe = Probe(self.client, self.d, {})
        self.probe.options |= cheap(self.d)
        self.items = [Item(f"known-{i}", self.probe.image(), i) for i in range(IMAGES)]
        self.outputs = [self.probe.ask([item]).images[0].tobytes() for item in self.items]
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=unlimited)
        self.unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{SERVICE}/Upscale")
        self.streams: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(
            f"/{SERVICE}/UpscaleStream"
        )

    def close(self) -> None:
        """Close the channels."""
        self.channel.close()
        self.client.close()

    def shot(self, index: int) -> Shot:
        """The call of this number."""
        rng = np.random.default_rng([self.seed, index])
        if index % 1000 == 500:
            return Shot("message over the limit", [bytes(MAX_MESSAGE_BYTES + 1)], {S.RESOURCE_EXHAUSTED})
        makers = (self.valid, self.mutated, self.garbled, self.disordered, self.left)
        return makers[int(rng.choice(len(makers), p=SHARES))](rng)

    def plain(self) -> pb.UpscaleRequest:
        """A valid request for one image."""
        return self.probe.request(self.probe.input(self.items[0].image, id="plain"))

    def valid(self, rng: Rng) -> Shot:
        """One to four known images, as one message or as a stream."""
        chosen = rng.integers(0, IMAGES, min(4, self.d.max_batch))[: int(rng.integers(1, 5))]
        inputs = [
            self.probe.input(self.items[k].image, id=f"{k}-{n}", seed=self.items[k].seed) for n, k in enumerate(chosen)
        ]
        request = self.probe.request(*inputs)
        return self.call(rng, "valid", request, VALID, [self.outputs[k] for k in chosen])

    def call(
        self, rng: Rng, kind: str, request: pb.UpscaleRequest, may: set[grpc.StatusCode], outputs: list[bytes] | None
    ) -> Shot:
        """A request as one message or, now and then, as a stream."""
        if pb.CAPABILITY_STREAM not in self.d.capabilities or rng.random() < 0.7:
            return Shot(kind, [request.SerializeToString()], may, request=request, outputs=outputs)
        messages = [m.SerializeToString() for m in stream_messages(request)]
        return Shot(f"{kind}, streamed", messages, may, stream=True, request=request, outputs=outputs)

    def mutated(self, rng: Rng) -> Shot:
        """A valid request with one thing changed."""
        base = self.valid(rng)
        request = pb.UpscaleRequest()
        request.CopyFrom(base.request)  # type: ignore[arg-type]
        mutation = pick(rng, MUTATIONS)
        may = mutation(rng, request, self.d)
        outputs = base.outputs if self.d.deterministic else None
        return self.call(rng, str(mutation.__name__), request, may, outputs)

    def garbled(self, rng: Rng) -> Shot:
        """The bytes of a request cut off, with some of them changed, or bytes of chance."""
        data = bytearray(self.plain().SerializeToString())
        manner = int(rng.integers(3))
        if manner == 0:
            del data[int(rng.integers(len(data))) :]
        elif manner == 1:
            for position in rng.integers(0, len(data), int(rng.integers(1, 9))):
                data[position] = int(rng.integers(256))
        else:
            data = bytearray(rng.bytes(int(rng.integers(1, 3000))))
        return Shot(("cut off", "flipped bytes", "bytes of chance")[manner], [bytes(data)], GARBLED)

    def disordered(self, rng: Rng) -> Shot:
        """A stream whose messages are not one header and the chunks that it announces."""
        header, *chunks = (m.SerializeToString() for m in stream_messages(self.plain()))
        large = pb.UpscaleStreamRequest(chunk=bytes(CHUNK_BYTES + 1)).SerializeToString()
        kinds = {
            "no messages": [],
            "no header": chunks,
            "header last": [*chunks, header],
            "header twice": [header, chunks[0], header, *chunks[1:]],
            "header alone": [header],
            "too few chunks": [header, *chunks[:-1]],
            "too many chunks": [header, *chunks, chunks[0]],
            "too large a chunk": [header, large],
            "empty message": [header, b"", *chunks],
            "a message of chance": [header, rng.bytes(20), *chunks],
        }
        kind = pick(rng, list(kinds))
        may = GARBLED if kind == "a message of chance" else INVALID
        if pb.CAPABILITY_STREAM not in self.d.capabilities:
            may = {S.UNIMPLEMENTED}
        return Shot(kind, kinds[kind], may, stream=True)

    def left(self, rng: Rng) -> Shot:
        """A valid call whose client leaves after some of its messages, or before the answer."""
        shot = self.valid(rng)
        sent = shot.messages[: int(rng.integers(1, len(shot.messages) + 1))]
        return Shot("left", sent, LEAVING, shot.stream, leaves=True)

    def fire(self, shot: Shot) -> tuple[str, str]:
        """Make the call; returns its status and what is wrong with the answer, "" if nothing is."""
        try:
            if shot.leaves:
                return self.leave(shot)
            if shot.stream:
                answers = [pb.UpscaleStreamResponse.FromString(m) for m in self.streams(iter(shot.messages), DEADLINE)]
                response = next((m.header for m in answers if m.HasField("header")), pb.UpscaleResponse())
                pixels = b"".join(m.chunk for m in answers)
            else:
                response = pb.UpscaleResponse.FromString(self.unary(shot.messages[0], DEADLINE))
                pixels = b"".join(image.data for image in response.images)
        except grpc.RpcError as error:
            return error.code().name, wrong_error(shot, error)
        return "OK", wrong_answer(shot, response, pixels, self.d)

    def leave(self, shot: Shot) -> tuple[str, str]:
        """Begin a call and leave it: a stream once its messages are on their way, another one after `MOMENT`."""
        code = self._leave_stream(shot) if shot.stream else self.unary.future(shot.messages[0], MOMENT).code()
        return code.name, "" if code in shot.may else f"was answered with {code.name}"

    def _leave_stream(self, shot: Shot) -> grpc.StatusCode:
        sent, gone = threading.Event(), threading.Event()

        def messages() -> Iterator[bytes]:
            yield from shot.messages
            sent.set()
            gone.wait(DEADLINE)

        call = self.streams(messages(), DEADLINE)
        sent.wait(DEADLINE)
        call.cancel()
        gone.set()
        return call.code()


def cheap(d: pb.DescribeResponse) -> dict[str, Value]:
    """Options with every whole number at its minimum, so that thousands of requests are computed soon."""
    whole = [o for o in d.options if o.default_value.WhichOneof("kind") == "integer" and o.HasField("minimum")]
    return {option.name: int(option.minimum) for option in whole}


def scale(rng: Rng, request: pb.UpscaleRequest, d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """A scale that is not listed."""
    request.scale = pick(rng, [0, max(d.scales) + 1, *LARGE])
    return INVALID


def size(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """A size that is not that of the pixels, of one image or of all."""
    sides = pick(rng, LARGE), pick(rng, LARGE)
    for image in request.images[: int(rng.integers(1, 5))]:
        image.height, image.width = sides
    return INVALID


def length(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """Too few or too many bytes."""
    image = pick(rng, request.images)
    image.data = pick(rng, [b"", image.data[:-1], image.data + b"\0", image.data * 2, bytes(2**20)])
    return INVALID


def sizes(_rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """Images of two sizes."""
    first = request.images[0]
    request.images.add(id="other", height=first.height, width=2 * first.width, data=first.data * 2)
    return INVALID


def identity(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """An id that is empty, huge or strange."""
    pick(rng, request.images).id = pick(rng, NAMES)
    return EITHER


def duplicate(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """An id twice."""
    request.images.append(pick(rng, request.images))
    return INVALID


def number(rng: Rng, request: pb.UpscaleRequest, d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """No image, or more than are listed."""
    first = request.images[0]
    count = 0 if rng.random() < 0.5 else min(d.max_batch, 5000) + 1
    del request.images[:]
    request.images.extend(pb.InputImage(id=str(i), height=first.height, width=first.width) for i in range(count))
    return INVALID


def unknown_options(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """Options that are not listed, with strange names, few or many."""
    for i in range(pick(rng, [1, 30, 300])):
        request.options[f"{i}{pick(rng, NAMES)[:1000]}"].CopyFrom(option_message(pick(rng, VALUES)))
    return INVALID


def options(rng: Rng, request: pb.UpscaleRequest, d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """A value that an option does not take: another type, none, or one beyond its limits."""
    if not d.options:
        return unknown_options(rng, request, d)
    spec = pick(rng, d.options)
    kind = spec.default_value.WhichOneof("kind")
    values = [option_message(v) for v in VALUES if option_message(v).WhichOneof("kind") != kind]
    values += [pb.OptionValue()]
    if spec.HasField("maximum") and kind == "integer":
        values.append(pb.OptionValue(integer=int(spec.maximum) + 1))
    request.options[spec.name].CopyFrom(pick(rng, values))
    return INVALID


def seed(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """Another seed, up to the largest."""
    pick(rng, request.images).seed = pick(rng, [0, 1, 2**31, 2**63, 2**64 - 1])
    return VALID


def class_index(rng: Rng, request: pb.UpscaleRequest, d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """A class that is not listed."""
    pick(rng, request.images).class_index = pick(rng, [len(d.classes), 2**32 - 1])
    return INVALID


def conditioning_level(rng: Rng, request: pb.UpscaleRequest, _d: pb.DescribeResponse) -> set[grpc.StatusCode]:
    """A conditioning level that is not in [0, 1]."""
    pick(rng, request.images).conditioning_level = pick(rng, [-1.0, 1.5, 1e38, float("nan"), float("inf")])
    return INVALID


MUTATIONS = (
    *(scale, size, length, sizes, identity, duplicate, number),
    *(unknown_options, options, seed, class_index, conditioning_level),
)


def wrong_error(shot: Shot, error: grpc.RpcError) -> str:
    """What is wrong with an error; "" if it is one that this call may have, with the details that belong to it."""
    if error.code() not in shot.may:
        return f"was answered with {error.code().name}: {one_line(error.details() or '', 200)}"
    if error.code() == S.INVALID_ARGUMENT and not names_fields(error):
        return "was refused without saying which field is wrong"
    return ""


def wrong_answer(shot: Shot, response: pb.UpscaleResponse, pixels: bytes, d: pb.DescribeResponse) -> str:
    """What is wrong with an answer; "" if the call may have one, and it has the ids, sizes and pixels asked for."""
    if S.OK not in shot.may:
        return "was accepted"
    if shot.request is None:
        return ""
    factor = shot.request.scale
    expected = [(i.id, i.height * factor, i.width * factor) for i in shot.request.images]
    if [(i.id, i.height, i.width) for i in response.images] != expected or response.digest != d.digest:
        return "was answered with other images or another digest"
    if len(pixels) != sum(height * width * 3 for _, height, width in expected):
        return f"was answered with {len(pixels)} bytes of pixels"
    if shot.outputs is None:
        return ""
    got, known = (np.frombuffer(data, np.uint8).astype(int) for data in (pixels, b"".join(shot.outputs)))
    return "was answered with other pixels" if np.abs(got - known).max() > (0 if d.batch_exact else 1) else ""


def fuzz(address: str, count: int, seed: int = 0) -> Outcome:
    """Fire `count` calls, a few at a time, at the backend that serves at `address` (host:port).

    Raises:
        BackendError: it cannot be reached, or it does not answer a plain request before or after the others.
        ConfigError: it enlarges nothing.
    """
    fuzzer, outcome = Fuzzer(address, seed), Outcome()

    def one(index: int) -> tuple[int, Shot, str, str]:
        shot = fuzzer.shot(index)
        return (index, shot, *fuzzer.fire(shot))

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for index, shot, status, problem in pool.map(one, range(count)):
                outcome.counts[shot.kind, status] += 1
                if problem:
                    outcome.failures.append(f"{index} ({shot.kind}) {problem}")
        fuzzer.probe.ask(fuzzer.items[:1])
    finally:
        fuzzer.close()
    return outcome


def report(outcome: Outcome, seconds: float) -> None:
    """Print the counts of each kind and status, and the first failures."""
    statuses = Counter[str]()
    for (kind, status), n in sorted(outcome.counts.items()):
        print(f"{n:6}  {status:18}  {kind}")
        statuses[status] += n
    print(f"{statuses.total()} calls in {seconds:.1f} s: {', '.join(f'{s} {n}' for s, n in statuses.most_common())}")
    for failure in outcome.failures[:10]:
        print(f"FAIL {failure}")
    print(f"{len(outcome.failures)} wrong answers")


def run_local(name: str, count: int) -> bool:
    """Fuzz a backend in a process of its own; whether it did well, its memory included."""
    with tempfile.TemporaryDirectory() as folder, LocalServer(name, Path(folder) / "log") as server:
        process = psutil.Process(server.process.pid)  # type: ignore[union-attr]

        def resident() -> float:
            return float(process.memory_info().rss) / 2**20

        fresh = resident()
        fuzz(server.address, WARM_UP, seed=1)
        before, started = resident(), time.perf_counter()
        outcome = fuzz(server.address, count)
        after = resident()
        report(outcome, time.perf_counter() - started)
    print(
        f"resident memory of the server: {fresh:.0f} MiB at its start, {before:.0f} MiB idle after {WARM_UP} calls, "
        f"{after:.0f} MiB at the end ({TOLERANCE_MB:g} MiB more are allowed)"
    )
    return not outcome.failures and after - before <= TOLERANCE_MB


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("backend", nargs="?", default="bicubic", help="one of the product's, or the HOST:PORT of any")
    parser.add_argument("count", nargs="?", type=int, default=COUNT)
    arguments = parser.parse_args()
    try:
        if ":" not in arguments.backend:
            return int(not run_local(arguments.backend, arguments.count))
        started = time.perf_counter()
        outcome = fuzz(arguments.backend, arguments.count)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(outcome, time.perf_counter() - started)
    print("resident memory: not measured, the server was not started here")
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
