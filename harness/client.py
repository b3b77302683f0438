"""The client of one backend: typed calls, deadlines, and checks of every answer against the contract."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import numpy as np
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from numpy.typing import NDArray

from harness.credentials import OPEN, Credentials
from harness.errors import (
    BackendError,
    BackendFailed,
    BadRequest,
    ConfigError,
    ContractBroken,
    DeadlineExceeded,
    Incompatible,
    Unauthenticated,
    Unavailable,
    one_line,
)
from protos import CHUNK_BYTES, MESSAGE_OPTIONS, SERVICE
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.upscaler.v1 import upscaler_pb2_grpc as pb_grpc
from protos.values import Value, option_message

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
FLOAT = np.dtype("<f4")
"""A value of `Gradient` on the wire."""

Shape = tuple[int, int, int]
Response = pb.UpscaleResponse | pb.GradientResponse | pb.GenerateResponse

CONNECTING = "failed to connect"
"""How gRPC's core begins to say that a connection did not come about."""
CONNECTION_PROBLEMS: tuple[tuple[str, type[BackendError], str], ...] = (
    ("certificate has expired", Unauthenticated, "its certificate has expired"),
    ("Hostname Verification", Unauthenticated, "its certificate belongs to another host name"),
    ("CERTIFICATE_VERIFY_FAILED", Unauthenticated, "its certificate is not one of the ca in the credentials"),
    ("WRONG_VERSION_NUMBER", Incompatible, "does not speak TLS: take its ca out of the credentials"),
    ("HTTP/2", Incompatible, "something answers that is not a gRPC server"),
    ("http1", Incompatible, "an HTTP server, not a gRPC server"),
)
"""Words that may follow, the error that they stand for, and its sentence."""


@dataclass(frozen=True)
class Item:
    """One image of a request: (H, W, 3) uint8, its id and its seed.

    `class_index` is the place of its class in the backend's list, `conditioning_level` the strength of the conditioning
    augmentation, 0 to 1; None leaves either to the backend.
    """

    id: str
    image: Pixels
    seed: int
    class_index: int | None = None
    conditioning_level: float | None = None


@dataclass(frozen=True)
class Draw:
    """One image to generate: its id, its seed, and the place of its class in the backend's list, if it has one."""

    id: str
    seed: int
    class_index: int | None = None


@dataclass(frozen=True)
class FloatItem:
    """One image to differentiate at: (H, W, 3) float32 on the 0..255 scale, its id and its seed.

    `cotangent` is the weight of each output value in the sum that is differentiated, (sH, sW, 3) float32; None in all
    images of a request that asks for outputs only. The rest is as in `Item`.
    """

    id: str
    image: Floats
    seed: int
    cotangent: Floats | None = None
    class_index: int | None = None
    conditioning_level: float | None = None


@dataclass(frozen=True)
class Differential:
    """What a model makes of an image before clipping and rounding, (sH, sW, 3) float32 on the 0..255 scale.

    `gradient`, (H, W, 3) float32, is that of sum(output * cotangent) by the input; None without a cotangent.
    """

    output: Floats
    gradient: Floats | None


@dataclass(frozen=True)
class Reply:
    """The answer to one request: (N, H, W, 3) uint8, its times in seconds and the device memory in MiB.

    `stages` are the answers of a chain's stages, in order; the times are then sums.
    """

    images: Pixels
    end_to_end_s: float
    queue_s: float
    compute_s: float
    peak_device_memory_mb: float = 0.0
    stages: tuple["Reply", ...] = ()

    @property
    def transport_s(self) -> float:
        """What remains of the time: encoding, sending and decoding."""
        return max(0.0, self.end_to_end_s - self.queue_s - self.compute_s)


class Client:
    """Talks to the backend at `address` (`host:port`); one channel for its whole life."""

    def __init__(self, address: str, credentials: Credentials = OPEN) -> None:
        self.address, self.credentials = address, credentials
        self.channel = credentials.channel(address, MESSAGE_OPTIONS)
        self.stub = pb_grpc.UpscalerServiceStub(self.channel)
        self.description: pb.DescribeResponse | None = None

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the health service says SERVING.

        Raises:
            Unavailable: nothing answers within `timeout` seconds.
            Unauthenticated: one side does not accept the other's certificate or token.
            Incompatible: something answers that is no upscaler backend.
        """
        try:
            status = self._health(timeout)
        except Unavailable as error:
            try:
                grpc.channel_ready_future(self.channel).result(timeout=timeout)
            except grpc.FutureTimeoutError:
                text = f"{self.address}: no gRPC server answers within {timeout:g} s{self._hint(error)}"
                raise Unavailable(text) from error
            status = self._health(timeout)
        if status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable(f"{self.address}: the backend reports that it is not serving")

    def _health(self, timeout: float) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=timeout)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
                raise Incompatible(f"{self.address}: a gRPC server, but not an upscaler ({SERVICE})") from error
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Unavailable(f"{self.address}: no gRPC server answers within {timeout:g} s") from error
            raise self.error(error) from error
        return int(reply.status)

    def describe(self, timeout: float = 10) -> pb.DescribeResponse:
        """The backend's description, checked for what the harness relies on."""
        try:
            d = self.stub.Describe(pb.DescribeRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise self.error(error) from error
        generates = pb.CAPABILITY_GENERATE in d.capabilities
        wrong = [
            text
            for bad, text in (
                (not d.name, "has no name"),
                (not d.digest, "has no digest"),
                (not (d.scales or generates) or 0 in d.scales, "lists no valid scale"),
                (generates and not d.generated_size, "gives no size of the images that it generates"),
                (d.channels != 3, f"has {d.channels} channels; 3 are needed"),
                (d.max_batch < 1, "accepts no images (max_batch is 0)"),
                (not all(map(_can_be_set, d.options)), "lists an option without a name or a default"),
            )
            if bad
        ]
        if wrong:
            raise Incompatible(f"{self.address}: the description {' and '.join(wrong)}")
        self.description = d
        return d  # type: ignore[no-any-return]

    def upscale(
        self,
        items: Sequence[Item],
        scale: int,
        options: dict[str, Value],
        deadline: float,
        *,
        stream: bool | None = None,
    ) -> Reply:
        """Upscale equally sized images; above 1 MiB of output the call streams, unless `stream` decides.

        Raises:
            BackendError: the call failed or its answer breaks the contract.
        """
        d = self.description or self.describe()
        request = pb.UpscaleRequest(
            images=[pb.InputImage(**_fields(item)) for item in items],
            scale=scale,
            options={name: option_message(value) for name, value in options.items()},
        )
        pixels = [item.image.tobytes() for item in items]
        if stream is None:
            stream = sum(map(len, pixels)) * scale**2 > CHUNK_BYTES and pb.CAPABILITY_STREAM in d.capabilities
        started = time.perf_counter()
        try:
            response, data = (self._stream if stream else self._unary)(request, pixels, deadline)
        except grpc.RpcError as error:
            raise self.error(error) from error
        return self._checked(response, data, items, _enlarged(items[0], scale), started)

    def generate(self, draws: Sequence[Draw], options: dict[str, Value], deadline: float) -> Reply:
        """Have images made of classes and seeds.

        Raises:
            Incompatible: the backend does not offer `Generate`.
            BackendError: the call failed or its answer breaks the contract.
        """
        d = self.description or self.describe()
        if pb.CAPABILITY_GENERATE not in d.capabilities:
            raise Incompatible(f"{self.address}: {one_line(d.name, 40)} does not offer Generate")
        request = pb.GenerateRequest(
            images=[pb.GenerateInput(id=draw.id, seed=draw.seed, class_index=draw.class_index) for draw in draws],
            options={name: option_message(value) for name, value in options.items()},
        )
        started = time.perf_counter()
        try:
            response = self.stub.Generate(request, timeout=deadline)
        except grpc.RpcError as error:
            raise self.error(error) from error
        data = [image.data for image in response.images]
        return self._checked(response, data, draws, (d.generated_size, d.generated_size, 3), started)

    def gradient(
        self, items: Sequence[FloatItem], scale: int, options: dict[str, Value], deadline: float
    ) -> list[Differential]:
        """Differentiate a backend at equally sized images.

        Raises:
            Incompatible: it does not offer `Gradient`.
            BackendError: the call failed or its answer breaks the contract.
        """
        d = self.description or self.describe()
        if pb.CAPABILITY_GRADIENT not in d.capabilities:
            raise Incompatible(f"{self.address}: {one_line(d.name, 40)} does not offer Gradient")
        request = pb.GradientRequest(
            images=[_gradient_input(item) for item in items],
            scale=scale,
            options={name: option_message(value) for name, value in options.items()},
        )
        started = time.perf_counter()
        try:
            response = self.stub.Gradient(request, timeout=deadline)
        except grpc.RpcError as error:
            raise self.error(error) from error
        shape = _enlarged(items[0], scale)
        self._check_header(response, items, shape)
        self._checked_times(response, started)
        return [
            Differential(
                self._floats(image.data, shape),
                None if item.cotangent is None else self._floats(image.gradient, item.image.shape),
            )
            for image, item in zip(response.images, items, strict=True)
        ]

    def _floats(self, data: bytes, shape: tuple[int, ...]) -> Floats:
        expected = math.prod(shape) * FLOAT.itemsize
        if len(data) != expected:
            raise ContractBroken(f"{self.address}: {len(data)} bytes of floats came back; {expected} were asked for")
        values = np.frombuffer(data, FLOAT).reshape(shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise ContractBroken(f"{self.address}: values that are not finite (NaN or infinity) came back")
        return values

    def _unary(
        self, request: pb.UpscaleRequest, pixels: list[bytes], deadline: float
    ) -> tuple[pb.UpscaleResponse, list[bytes]]:
        for image, data in zip(request.images, pixels, strict=True):
            image.data = data
        response = self.stub.Upscale(request, timeout=deadline)
        return response, [image.data for image in response.images]

    def _stream(
        self, request: pb.UpscaleRequest, pixels: list[bytes], deadline: float
    ) -> tuple[pb.UpscaleResponse, list[bytes]]:
        header, received = None, bytearray()
        limit = sum(map(len, pixels)) * request.scale**2
        for message in self.stub.UpscaleStream(_stream_requests(request, pixels), timeout=deadline):
            kind = message.WhichOneof("message")
            if kind == "header":
                header = message.header
            elif kind == "chunk":
                received += message.chunk
            if len(received) > limit:
                raise ContractBroken(f"{self.address}: streamed more than the {limit} bytes that were asked for")
        if header is None:
            raise ContractBroken(f"{self.address}: the stream ended without a header")
        size = len(pixels[0]) * request.scale**2
        return header, [bytes(received[i * size : (i + 1) * size]) for i in range(len(pixels))]

    def _checked(
        self, response: Response, data: list[bytes], items: Sequence[Item | Draw], shape: Shape, started: float
    ) -> Reply:
        self._check_header(response, items, shape)
        for pixels in data:
            if len(pixels) != math.prod(shape):
                raise ContractBroken(
                    f"{self.address}: an image has {len(pixels)} bytes; {math.prod(shape)} belong to its size"
                )
        end_to_end = self._checked_times(response, started)
        images = np.stack([np.frombuffer(pixels, np.uint8).reshape(shape) for pixels in data])
        compute, queue = seconds(response.compute_time), seconds(response.queue_time)
        return Reply(images, end_to_end, queue, compute, response.peak_device_memory / 2**20)

    def _check_header(self, response: Response, items: Sequence[Item | FloatItem | Draw], shape: Shape) -> None:
        """Check digest, ids and sizes against the shape that an output has."""

        def broken(text: str) -> ContractBroken:
            return ContractBroken(f"{self.address}: {text}")

        if self.description is not None and response.digest != self.description.digest:
            raise broken(f"the answer's digest {one_line(response.digest, 16)} is not the described one")
        if [image.id for image in response.images] != [item.id for item in items]:
            raise broken(f"{len(response.images)} images came back, not the {len(items)} asked for in their order")
        height, width, _ = shape
        for image in response.images:
            if (image.height, image.width) != (height, width):
                raise broken(f"an image of {image.height} x {image.width} came back; {height} x {width} was asked for")

    def _checked_times(self, response: Response, started: float) -> float:
        """Check the times that an answer claims; returns how long its call took, in seconds."""
        compute, queue = seconds(response.compute_time), seconds(response.queue_time)
        end_to_end = time.perf_counter() - started
        if compute < 0 or queue < 0 or compute + queue > end_to_end * 1.01 + 0.01:
            text = f"claims {compute + queue:.3f} s of work in a call that took {end_to_end:.3f} s"
            raise ContractBroken(f"{self.address}: {text}")
        return end_to_end

    def error(self, error: grpc.RpcError) -> BackendError:
        """The error of the harness that a failed call stands for."""
        code, text = error.code(), self._quoted(error.details() or "")
        where = self.address
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return BadRequest(f"{where}: refused: {self._quoted(_violations(error)) or text}")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{where}: no answer within the deadline")
        if code == grpc.StatusCode.UNAVAILABLE:
            return self._unavailable(text)
        if code == grpc.StatusCode.UNAUTHENTICATED:
            given = "does not accept the token of" if self.credentials.token else "needs a token: name a token_file in"
            return Unauthenticated(f"{where}: {given} the credentials: {text}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return Incompatible(f"{where}: not an upscaler backend, or a call it lacks: {text}")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger" in text:
            return ContractBroken(f"{where}: the answer is larger than a message may be: {text}")
        return BackendFailed(f"{where}: {code.name}: {text}")

    def _quoted(self, text: str) -> str:
        """A server's words as one line, without the token that it may have repeated."""
        token = self.credentials.token
        return one_line(text.replace(token, "TOKEN") if token else text)

    def _unavailable(self, text: str) -> BackendError:
        for words, kind, sentence in CONNECTION_PROBLEMS:
            if text.startswith(CONNECTING) and words in text:
                return kind(f"{self.address}: {sentence}")
        return Unavailable(f"{self.address}: the backend is gone or cannot be reached")

    def _hint(self, error: Unavailable) -> str:
        """What may be wrong where a server closes every new connection, which servers of gRPC do without a word."""
        details = str(getattr(error.__cause__, "details", str)())
        if not details.startswith(CONNECTING) or "Socket closed" not in details:
            return ""
        if self.credentials.ca is None:
            return "; if it speaks TLS, name its ca in the credentials"
        if self.credentials.cert is None:
            return "; if it asks for a client certificate, name cert and key in the credentials"
        return "; it may not accept the client certificate in the credentials"


def _enlarged(item: Item | FloatItem, scale: int) -> Shape:
    height, width, _ = item.image.shape
    return height * scale, width * scale, 3


def _fields(item: Item | FloatItem) -> dict[str, Any]:
    """What an image's message says beside its pixels."""
    names = ("id", "seed", "class_index", "conditioning_level")
    return {"height": item.image.shape[0], "width": item.image.shape[1]} | {n: getattr(item, n) for n in names}


def _gradient_input(item: FloatItem) -> pb.GradientInput:
    weight = b"" if item.cotangent is None else item.cotangent.astype(FLOAT).tobytes()
    return pb.GradientInput(data=item.image.astype(FLOAT).tobytes(), cotangent=weight, **_fields(item))


def _stream_requests(request: pb.UpscaleRequest, pixels: list[bytes]) -> Iterator[pb.UpscaleStreamRequest]:
    yield pb.UpscaleStreamRequest(header=request)
    everything = b"".join(pixels)
    for start in range(0, len(everything), CHUNK_BYTES):
        yield pb.UpscaleStreamRequest(chunk=everything[start : start + CHUNK_BYTES])


def _violations(error: grpc.RpcError) -> str:
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:
        return ""
    if status is None or status.code != code_pb2.INVALID_ARGUMENT:
        return ""
    texts = []
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            texts += [f"{v.field} {v.description}" for v in bad.field_violations]
    return "; ".join(texts)


def seconds(duration: object) -> float:
    """A protobuf duration as seconds; a non-finite one as -1."""
    value = getattr(duration, "seconds", 0) + getattr(duration, "nanos", 0) / 1e9
    return float(value) if math.isfinite(value) else -1.0


def typed_options(texts: dict[str, str], d: pb.DescribeResponse) -> dict[str, Value]:
    """All options of a request: those given as text, typed by the description, the others at their defaults.

    Raises:
        ConfigError: an option is unknown or its text does not fit its type or limits.
    """
    known = {spec.name: spec for spec in d.options}
    for name in texts:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"{one_line(d.name, 40)} has no option {one_line(name, 40)!r}; it has: {one_line(listed)}"
            )
    values: dict[str, Value] = {}
    for name, spec in known.items():
        kind = spec.default_value.WhichOneof("kind")
        values[name] = _typed(spec, texts[name]) if name in texts else getattr(spec.default_value, kind or "text")
    return values


def _can_be_set(spec: pb.OptionSpec) -> bool:
    return bool(spec.name) and spec.default_value.WhichOneof("kind") is not None


def _typed(spec: pb.OptionSpec, text: str) -> Value:
    kind = spec.default_value.WhichOneof("kind")
    readers = {"boolean": _boolean, "integer": _integer, "number": float, "text": str}
    option = f"option {one_line(spec.name, 40)}={one_line(text, 40)!r}"
    try:
        value: Value = readers[kind](text)  # type: ignore[operator]
    except ValueError as error:
        raise ConfigError(f"{option}: a value of type {kind} is needed") from error
    if spec.choices and value not in spec.choices:
        raise ConfigError(f"{option}: choose one of {one_line(', '.join(spec.choices))}")
    low = spec.minimum if spec.HasField("minimum") else -math.inf
    high = spec.maximum if spec.HasField("maximum") else math.inf
    if not isinstance(value, str) and not low <= value <= high:
        raise ConfigError(f"{option}: must lie between {low:g} and {high:g}")
    return value


def _integer(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]
