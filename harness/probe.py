"""What the checks of the contract kit share: test images, requests with ids of their own, and refusals."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, cast

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from harness.client import Client, Differential, Draw, FloatItem, Item, Pixels, Reply, Response, typed_options
from harness.errors import BackendError, BadRequest, Incompatible
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value, option_message

DEADLINE = 120.0
"""Seconds that a request of the kit may take."""
FULL = 16
"""Most images of the full batch that is tried."""
MANY = 256
"""Backends that list fewer images a request than this are sent one more than they list."""
SIDE, LARGEST_SIDE = 16, 1024
"""Side of the test images in pixels, where the backend takes it, and the largest that is tried."""

Message = pb.UpscaleRequest | pb.GradientRequest | pb.GenerateRequest
Request = Message | list[pb.UpscaleStreamRequest]
"""A call: its message, or those of a stream."""


class Probe:
    """One backend under test, and the requests that are made of it.

    `smallest` and `side` are sides of images that the backend takes: the smallest, and that of the usual test image.

    Raises:
        Incompatible: no image that it takes can be tried. ConfigError: it does not have these options.
    """

    def __init__(self, client: Client, description: pb.DescribeResponse, options: dict[str, str]) -> None:
        self.client, self.d = client, description
        self.options: dict[str, Value] = typed_options(options, description)
        self.scale = int(min(description.scales, default=1))
        self.step = max(1, description.sizes.multiple_of)
        self.smallest = self.step * -(-max(1, description.sizes.minimum) // self.step)
        if self.smallest > LARGEST_SIDE:
            raise Incompatible(
                f"the smallest image it takes has a side of {self.smallest}; {LARGEST_SIDE} can be tried"
            )
        most = min(SIDE, description.sizes.maximum or SIDE)
        self.side = max(self.smallest, most // self.step * self.step)
        self.rng = np.random.default_rng(0)
        self.numbers = itertools.count()

    def image(self, height: int | None = None, width: int | None = None) -> Pixels:
        """(height, width, 3) of noise, square and of the usual side unless said otherwise."""
        height = height or self.side
        return self.rng.integers(0, 256, (height, width or height, 3), dtype=np.uint8)

    def item(self, image: Pixels, seed: int = 0, name: str = "") -> Item:
        """An image to send, with an id that no other request has unless `name` gives one."""
        return Item(name or self.name(), image, seed)

    def name(self) -> str:
        """An id that no other request has."""
        return f"image-{next(self.numbers)}"

    def full(self) -> list[Item]:
        """A full batch of the smallest images."""
        return [self.item(self.image(self.smallest), i) for i in range(min(FULL, self.d.max_batch))]

    def ask(self, items: Sequence[Item], scale: int | None = None, deadline: float = DEADLINE) -> Reply:
        """The backend's checked answer."""
        return self.client.upscale(items, scale or self.scale, self.options, deadline)

    def one(self, image: Pixels, seed: int = 0, name: str = "") -> Pixels:
        """The output of a request for one image, (1, scale * H, scale * W, 3)."""
        return self.ask([self.item(image, seed, name)]).images

    def differentiate(self, items: Sequence[FloatItem]) -> list[Differential]:
        """The backend's checked float outputs, and gradients where cotangents are given."""
        return self.client.gradient(items, self.scale, self.options, DEADLINE)

    @property
    def foreign_scale(self) -> int:
        """A scale that the backend does not list."""
        return int(max(self.d.scales, default=0)) + 1

    def generate(self, draws: Sequence[Draw]) -> Reply:
        """The backend's checked images of classes and seeds."""
        return self.client.generate(draws, self.options, DEADLINE)

    @cached_property
    def reference(self) -> tuple[Item, Pixels]:
        """A request that was made once, early, and its answer."""
        item = self.item(self.image(), 7)
        return item, self.ask([item]).images

    def input(self, image: Pixels | None = None, **changes: float | str | bytes) -> pb.InputImage:
        """An image as its message, with fields changed."""
        image = self.image() if image is None else image
        fields: dict[str, Any] = {"id": self.name(), "data": image.tobytes()}
        fields |= {"height": image.shape[0], "width": image.shape[1]} | changes
        return pb.InputImage(**fields)

    def request(
        self, *images: pb.InputImage, scale: int | None = None, options: dict[str, Value] | None = None
    ) -> pb.UpscaleRequest:
        """A request as its message; `options` are beside or instead of those of every request."""
        return pb.UpscaleRequest(images=images, scale=scale or self.scale, options=self.messages(options))

    def messages(self, options: dict[str, Value] | None = None) -> dict[str, pb.OptionValue]:
        """The options of every request as messages, and others beside or instead of them."""
        return {name: option_message(value) for name, value in (self.options | (options or {})).items()}

    def send(self, request: Message, deadline: float = DEADLINE) -> Response:
        """The answer to a message that the client would not send, unchecked."""
        stub = self.client.stub
        calls = {pb.UpscaleRequest: stub.Upscale, pb.GradientRequest: stub.Gradient, pb.GenerateRequest: stub.Generate}
        call = calls[type(request)]
        try:
            return call(request, timeout=deadline)  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            raise self.client.error(error) from error

    def stream(self, messages: Iterable[pb.UpscaleStreamRequest]) -> list[pb.UpscaleStreamResponse]:
        """All messages of the answer to a stream, unchecked."""
        try:
            return list(self.client.stub.UpscaleStream(iter(messages), timeout=DEADLINE))
        except grpc.RpcError as error:
            raise self.client.error(error) from error

    def refused(self, request: Request) -> str:
        """What is wrong with the way in which a bad request is refused; "" if nothing is."""
        try:
            if isinstance(request, list):
                self.stream(request)
            else:
                self.send(request)
        except BadRequest as error:
            return "" if names_fields(error.__cause__) else "refused without saying which field is wrong"
        except BackendError as error:
            return f"answered with {type(error).__name__}, not INVALID_ARGUMENT: {error}"
        return "was accepted"


def stream_messages(request: pb.UpscaleRequest) -> list[pb.UpscaleStreamRequest]:
    """A request as the messages of a stream, its pixels in up to seven chunks that end anywhere."""
    header = pb.UpscaleRequest()
    header.CopyFrom(request)
    pixels = b"".join(image.data for image in request.images)
    for image in header.images:
        image.data = b""
    size = len(pixels) // 7 + 1
    chunks = [pixels[i : i + size] for i in range(0, len(pixels), size)]
    return [pb.UpscaleStreamRequest(header=header), *(pb.UpscaleStreamRequest(chunk=chunk) for chunk in chunks)]


def names_fields(error: BaseException | None) -> bool:
    """Whether a failed call carries google.rpc.BadRequest with a field and what is wrong with it."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:
        return False
    bad = error_details_pb2.BadRequest()
    for detail in status.details if status is not None else ():
        if detail.Unpack(bad):
            return any(v.field and v.description for v in bad.field_violations)
    return False
