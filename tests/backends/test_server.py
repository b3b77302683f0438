"""The shared server: typed errors, streaming with progress, cancellation, health, reflection, occupied ports."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from backends.interpolation import Nearest
from backends.server import AddressInUse, UpscalerServicer, start
from harness.client import Client, Item
from harness.errors import BadRequest, DeadlineExceeded
from harness.probe import names_fields
from protos import CHUNK_BYTES, SERVICE
from protos.upscaler.v1 import upscaler_pb2 as pb

Serve = Callable[[str], Client]
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def request(**changes: Any) -> pb.UpscaleRequest:
    """A valid request for one 16 x 16 image at scale 4, with changes."""
    image = pb.InputImage(id="a", height=16, width=16, data=PIXELS.tobytes(), seed=1)
    fields: dict[str, Any] = {"images": [image], "scale": 4} | changes
    return pb.UpscaleRequest(**fields)


def test_all_violations_are_named(serve: Serve) -> None:
    """A bad request is answered with INVALID_ARGUMENT and one field violation for each fault."""
    with pytest.raises(grpc.RpcError) as caught:
        serve("sr3").stub.Upscale(request(scale=3, options={"steps": pb.OptionValue(integer=0)}), timeout=20)
    status = rpc_status.from_call(cast("grpc.Call", caught.value))
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert {v.field for v in bad.field_violations} == {"scale", "options.steps"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": pb.OptionValue(text="8")}, "must be of type int"),
        ({"steps": pb.OptionValue(integer=10**9)}, "at most 1000"),
        ({"steps": pb.OptionValue()}, "must be of type int"),
        ({"sampler": pb.OptionValue(text="magic")}, "must be one of"),
        ({"seed": pb.OptionValue(integer=1)}, "not an option"),
    ],
)
def test_option_violations_say_what_is_needed(serve: Serve, options: dict[str, pb.OptionValue], words: str) -> None:
    """A wrong option is refused with a sentence that says what is accepted."""
    client = serve("sr3")
    with pytest.raises(grpc.RpcError) as caught:
        client.stub.Upscale(request(options=options), timeout=20)
    assert words in str(client.error(caught.value))


def test_too_large_a_request_is_refused_by_its_header(serve: Serve) -> None:
    """A stream that announces a gigantic image is refused before any pixels are read."""
    header = request(images=[pb.InputImage(id="a", height=60_000, width=60_000)])
    messages = iter([pb.UpscaleStreamRequest(header=header)])
    with pytest.raises(grpc.RpcError) as caught:
        list(serve("bicubic").stub.UpscaleStream(messages, timeout=20))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_must_begin_with_its_header(serve: Serve) -> None:
    """Pixels before the header, or no message at all, are refused."""
    for messages in ([pb.UpscaleStreamRequest(chunk=b"123")], []):
        with pytest.raises(grpc.RpcError) as caught:
            list(serve("bicubic").stub.UpscaleStream(iter(messages), timeout=20))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_that_are_no_message_are_refused(serve: Serve) -> None:
    """A cut-off message, alone or in a stream, is refused like any other bad request, not an internal error."""
    channel: Any = serve("bicubic").channel
    cut = request().SerializeToString()[:-5]
    with pytest.raises(grpc.RpcError) as alone:
        channel.unary_unary(f"/{SERVICE}/Upscale")(cut, timeout=20)
    with pytest.raises(grpc.RpcError) as streamed:
        list(channel.stream_stream(f"/{SERVICE}/UpscaleStream")(iter([cut]), timeout=20))
    for caught in (alone, streamed):
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert names_fields(caught.value)


def test_a_stream_has_one_header(serve: Serve) -> None:
    """A second header is refused, instead of taken for a chunk without pixels."""
    header = pb.UpscaleStreamRequest(header=request(images=[pb.InputImage(id="a", height=16, width=16)]))
    chunk = pb.UpscaleStreamRequest(chunk=PIXELS.tobytes())
    with pytest.raises(grpc.RpcError, match="header comes once"):
        list(serve("bicubic").stub.UpscaleStream(iter([header, header, chunk]), timeout=20))


def test_a_stream_reports_each_denoising_step(serve: Serve) -> None:
    """SR3 streams one progress message a step, then the header, then the pixels."""
    header = request(options={"steps": pb.OptionValue(integer=5)})
    data, header.images[0].data = header.images[0].data, b""

    def messages() -> Iterator[pb.UpscaleStreamRequest]:
        yield pb.UpscaleStreamRequest(header=header)
        yield pb.UpscaleStreamRequest(chunk=data)

    answers = list(serve("sr3").stub.UpscaleStream(messages(), timeout=60))
    kinds = [answer.WhichOneof("message") for answer in answers]
    steps = [a.progress.done for a in answers if a.WhichOneof("message") == "progress"]
    assert steps[-5:] == [1, 2, 3, 4, 5]
    assert kinds[len(steps) :] == ["header", "chunk"]


def test_large_images_travel_in_chunks(serve: Serve) -> None:
    """A megapixel result arrives whole through the stream, chunk by chunk."""
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    reply = serve("nearest").upscale([Item("big", image, 0)], 4, {}, 60)
    assert reply.images.nbytes > 2 * CHUNK_BYTES
    assert np.array_equal(reply.images[0, ::4, ::4], image)


def test_a_client_that_leaves_frees_the_device(serve: Serve) -> None:
    """After the deadline of a hanging call the server stops computing, and the next call is answered."""
    client = serve("faulty")
    with pytest.raises(DeadlineExceeded):
        client.upscale([Item("a", PIXELS, 0)], 4, {"fault": "hang"}, 0.5)
    assert client.upscale([Item("b", PIXELS, 0)], 4, {}, 10).images.shape == (1, 64, 64, 3)


def test_a_cancelled_diffusion_ends_at_a_step(serve: Serve) -> None:
    """A request for 1000 steps is dropped soon after its client has gone: the next one need not wait for it."""
    client = serve("sr3")
    with pytest.raises(DeadlineExceeded):
        client.upscale([Item(str(i), PIXELS, 0) for i in range(16)], 4, {"steps": 1000}, 1.0)
    reply = client.upscale([Item("b", PIXELS, 0)], 4, {"steps": 1}, 30)
    assert reply.queue_s < 10


def test_health_and_reflection_answer(serve: Serve) -> None:
    """The standard health service says SERVING, and reflection lists the service."""
    channel = serve("nearest").channel
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    listed = next(iter(stub.ServerReflectionInfo(asked, timeout=10))).list_services_response.service
    assert SERVICE in {service.name for service in listed}


def test_a_port_in_use_is_one_line(serve: Serve) -> None:
    """Serving on an occupied port ends with one sentence and no traceback."""
    command = [sys.executable, "-m", "backends.serve", "nearest", "--address", serve("bicubic").address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "port is in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["localhost", "::1", ":0", "localhost:", "localhost:99999"])
def test_an_address_needs_host_and_port(address: str) -> None:
    """The server guesses neither the host nor the port that an address lacks."""
    with pytest.raises(AddressInUse, match="cannot listen on"):
        start(UpscalerServicer(Nearest()), address)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sr3,steps=4"], "steps: .* requests"),
        (["sr3@localhost:50051"], "--address"),
        (["no-such"], "no backend 'no-such'"),
        (["nearest", "--address", "localhost"], "an address is HOST:PORT"),
        (["nearest", "--address", "localhost:65536"], "an address is HOST:PORT"),
        (["nearest", "--address", ":0"], "an address is HOST:PORT"),
        (["nearest", "--address", "OCCUPIED"], "port is in use"),
        (["replay,outputs=no/such/folder"], "no output images"),
    ],
)
def test_what_cannot_be_served_is_one_line(serve: Serve, arguments: list[str], words: str) -> None:
    """`harness backends serve` refuses options, bad addresses and occupied ports with exit status 2 and one line."""
    occupied = serve("bicubic").address
    command = [sys.executable, "-m", "harness", "backends", "serve"]
    command += [occupied if text == "OCCUPIED" else text for text in arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert re.search(words, done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_seeds_make_the_sample(serve: Serve) -> None:
    """SR3 gives another face for another seed, and the same one in whatever batch the seed comes."""
    client = serve("sr3")
    items = [Item("a", PIXELS, 5), Item("b", PIXELS, 6), Item("c", PIXELS, 5)]
    first, second, third = client.upscale(items, 4, {"steps": 4}, 60).images.astype(int)
    assert np.abs(first - third).max() <= 1
    assert np.abs(first - second).mean() > 0.5


def test_an_unknown_option_text_is_refused(serve: Serve) -> None:
    """The refusal reaches the caller as BadRequest with the field's name."""
    with pytest.raises(BadRequest, match=r"options\.colour"):
        serve("nearest").upscale([Item("a", PIXELS, 0)], 4, {"colour": "red"}, 10)
