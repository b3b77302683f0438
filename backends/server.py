"""The gRPC server around any backend: validation, a queue for the device, cancellation, health, typed errors."""

import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from backends.access import OPEN, Access
from backends.base import (
    Backend,
    Batch,
    Cancelled,
    Described,
    Description,
    Differentiable,
    Generative,
    Progress,
    Refused,
    SampleBatch,
)
from backends.batching import Batcher, Job, Outcome, model_thread
from backends.decoding import Lenient
from backends.validation import (
    FLOAT,
    Violation,
    generate_violations,
    gradient_violations,
    header_violations,
    to_batch,
    to_float_batch,
    to_sample_batch,
    violations,
)
from protos import CHUNK_BYTES, MAX_MESSAGE_BYTES, MESSAGE_OPTIONS, SERVICE
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.upscaler.v1 import upscaler_pb2_grpc as pb_grpc
from protos.values import option_message

log = logging.getLogger(__name__)

WORKERS = 16
"""Handler threads: calls beyond the one that computes wait, to be computed together, or are answered at once."""


class UpscalerServicer(pb_grpc.UpscalerServiceServicer):
    """Serves one backend; the model runs in one thread at a time."""

    def __init__(self, backend: Described, warm_up_s: float | None = None, thread: Executor | None = None) -> None:
        self.description = backend.description
        self.batcher = Batcher(backend, thread)
        self.warm_up_s = warm_up_s

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: ARG002, N802 - gRPC's signature
        """Answer with the backend's description."""
        message = describe_message(self.description)
        if isinstance(self.batcher.backend, Differentiable):
            message.capabilities.append(pb.CAPABILITY_GRADIENT)
        if isinstance(self.batcher.backend, Generative):
            message.capabilities.append(pb.CAPABILITY_GENERATE)
        if self.warm_up_s is not None:
            message.warm_up_time.CopyFrom(duration(self.warm_up_s))
        return message

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Upscale a batch in one message."""
        refuse_if(violations(request, self.description), context)
        return self.compute(request, context, lambda _done, _total: None)

    def Gradient(self, request: pb.GradientRequest, context: grpc.ServicerContext) -> pb.GradientResponse:  # noqa: N802 - gRPC's name
        """Differentiate a batch in one message."""
        if not isinstance(self.batcher.backend, Differentiable):
            abort(context, code_pb2.UNIMPLEMENTED, f"{self.description.name} has no gradient")
        refuse_if(gradient_violations(request, self.description), context)
        batch = to_float_batch(request, self.description)
        outcome = self._outcome(Job(batch, context.is_active, lambda _done, _total: None), context)
        answer = pb.GradientResponse(**self._figures(outcome))
        for i, (name, image) in enumerate(zip(batch.ids, outcome.pixels, strict=True)):
            gradient = b"" if outcome.gradients is None else outcome.gradients[i].astype(FLOAT).tobytes()
            data = image.astype(FLOAT).tobytes()
            answer.images.add(id=name, height=image.shape[0], width=image.shape[1], data=data, gradient=gradient)
        return answer

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> pb.GenerateResponse:  # noqa: N802 - gRPC's name
        """Make a batch of images in one message."""
        if not isinstance(self.batcher.backend, Generative):
            abort(context, code_pb2.UNIMPLEMENTED, f"{self.description.name} does not generate")
        refuse_if(generate_violations(request, self.description), context)
        batch = to_sample_batch(request, self.description)
        outcome = self._outcome(Job(batch, context.is_active, lambda _done, _total: None), context)
        return pb.GenerateResponse(images=output_images(batch.ids, outcome), **self._figures(outcome))

    def UpscaleStream(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[pb.UpscaleStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.UpscaleStreamResponse]:
        """Upscale a batch in chunks, with progress."""
        request = self._receive(request_iterator, context)
        messages: queue.SimpleQueue[pb.UpscaleStreamResponse | pb.UpscaleResponse | BaseException] = queue.SimpleQueue()

        def progress(done: int, total: int) -> None:
            messages.put(pb.UpscaleStreamResponse(progress=pb.Progress(done=done, total=total)))

        def work() -> None:
            try:
                messages.put(self.compute(request, context, progress))
            except BaseException as error:  # noqa: BLE001 - handed to the calling thread, which raises it
                messages.put(error)

        threading.Thread(target=work, daemon=True).start()
        while not isinstance(message := messages.get(), pb.UpscaleResponse):
            if isinstance(message, BaseException):
                raise message
            yield message
        yield from response_messages(message)

    def _receive(self, messages: Iterator[pb.UpscaleStreamRequest], context: grpc.ServicerContext) -> pb.UpscaleRequest:
        first = next(messages, None)
        if first is None or first.WhichOneof("message") != "header":
            refuse_if([("header", "must come first")], context)
        request = pb.UpscaleRequest()
        request.CopyFrom(first.header)  # type: ignore[union-attr]
        refuse_if(header_violations(request, self.description), context)
        size = request.images[0].height * request.images[0].width * 3
        pixels = bytearray()
        for message in messages:
            if message.WhichOneof("message") != "chunk":
                refuse_if([("header", "comes once, before the chunks")], context)
            pixels += message.chunk
            if len(message.chunk) > CHUNK_BYTES or len(pixels) > size * len(request.images):
                refuse_if([("chunk", "is larger than 1 MiB or exceeds the sizes in the header")], context)
        for i, image in enumerate(request.images):
            image.data = bytes(pixels[i * size : (i + 1) * size])
        refuse_if(violations(request, self.description), context)
        return request

    def compute(
        self, request: pb.UpscaleRequest, context: grpc.ServicerContext, progress: Progress
    ) -> pb.UpscaleResponse:
        """Run the model on a valid request and answer with checked pixels and times."""
        batch = to_batch(request, self.description)
        outcome = self._outcome(Job(batch, context.is_active, progress), context)
        return pb.UpscaleResponse(images=output_images(batch.ids, outcome), **self._figures(outcome))

    def _figures(self, outcome: Outcome) -> dict[str, Any]:
        """What every answer says beside its images."""
        return {
            "digest": self.description.digest,
            "queue_time": duration(outcome.queue_s),
            "compute_time": duration(outcome.compute_s),
            "peak_device_memory": outcome.device_bytes,
        }

    def _outcome(self, job: Job, context: grpc.ServicerContext) -> Outcome:
        try:
            return self.batcher.run(job)
        except Cancelled:
            abort(context, code_pb2.CANCELLED, "the client left")
        except Refused as error:
            refuse_if([(error.field, str(error))], context)
        except MemoryError:
            abort(context, code_pb2.RESOURCE_EXHAUSTED, "out of memory; send fewer or smaller images")
        except Exception as error:
            log.exception("a request failed")
            code = code_pb2.RESOURCE_EXHAUSTED if "out of memory" in str(error).lower() else code_pb2.INTERNAL
            abort(context, code, f"{type(error).__name__}: {error}"[:500])
        raise AssertionError  # abort raises


def output_images(ids: Sequence[str], outcome: Outcome) -> list[pb.OutputImage]:
    """The images of an outcome as messages."""
    images = zip(ids, outcome.pixels, strict=True)
    return [pb.OutputImage(id=name, height=i.shape[0], width=i.shape[1], data=i.tobytes()) for name, i in images]


def describe_message(d: Description) -> pb.DescribeResponse:
    """A description as its wire message."""
    offered = {pb.CAPABILITY_STREAM: d.scales, pb.CAPABILITY_PROGRESS: d.scales and d.progress}
    capabilities = [capability for capability, there in offered.items() if there]
    return pb.DescribeResponse(
        name=d.name,
        family=f"FAMILY_{d.family.upper()}",
        digest=d.digest,
        scales=d.scales,
        sizes=pb.SizeRequirements(
            minimum=d.minimum, maximum=d.maximum, multiple_of=d.multiple_of, domain_minimum=d.domain_minimum
        ),
        channels=3,
        deterministic=d.deterministic,
        batch_exact=d.batch_exact,
        classes=d.classes,
        options=[
            pb.OptionSpec(
                name=o.name,
                help=o.help,
                default_value=option_message(o.default),
                choices=o.choices,
                minimum=o.minimum,
                maximum=o.maximum,
            )
            for o in d.options
        ],
        device=d.device,
        precision=d.precision,
        licence=d.licence,
        capabilities=capabilities,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_batch=d.max_batch,
        domain=d.domain,
        generated_size=d.generated_size,
    )


def response_messages(response: pb.UpscaleResponse) -> Iterator[pb.UpscaleStreamResponse]:
    """A response as stream messages: the header without pixels, then the pixels in chunks."""
    pixels = b"".join(image.data for image in response.images)
    for image in response.images:
        image.data = b""
    yield pb.UpscaleStreamResponse(header=response)
    for start in range(0, len(pixels), CHUNK_BYTES):
        yield pb.UpscaleStreamResponse(chunk=pixels[start : start + CHUNK_BYTES])


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a protobuf duration."""
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def abort(context: grpc.ServicerContext, code: int, message: str, *details: any_pb2.Any) -> NoReturn:
    """End the call with a google.rpc.Status."""
    status = status_pb2.Status(code=code, message=message, details=details)
    context.abort_with_status(rpc_status.to_status(status))


def refuse_if(found: list[Violation], context: grpc.ServicerContext) -> None:
    """End the call with INVALID_ARGUMENT and field violations, if there are any."""
    if not found:
        return
    detail = any_pb2.Any()
    detail.Pack(
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=name, description=text) for name, text in found[:20]
            ]
        )
    )
    message = "; ".join(f"{name} {text}" for name, text in found[:3])
    abort(context, code_pb2.INVALID_ARGUMENT, message, detail)


class AddressInUse(Exception):
    """The server cannot listen on the address it was given."""


def start(
    servicer: UpscalerServicer, address: str, access: Access = OPEN
) -> tuple[grpc.Server, health.HealthServicer, int]:
    """Start serving on `address` (`host:port`; port 0 chooses a free one), reported as SERVING.

    Returns:
        The server, its health service and the port.

    Raises:
        AddressInUse: nothing can listen there.
    """
    match = re.fullmatch(r"(?:[^:]+|\[.+\]):([0-9]{1,5})", address)
    if match is None or int(match[1]) > 65535:  # gRPC would choose another host or port
        raise AddressInUse(f"cannot listen on {address!r}: an address is HOST:PORT")
    options = [*MESSAGE_OPTIONS, ("grpc.so_reuseport", 0)]
    interceptors = [*access.interceptors(), Lenient()]  # who may not call is told nothing about the bytes
    server = grpc.server(ThreadPoolExecutor(WORKERS), interceptors=interceptors, options=options)
    pb_grpc.add_UpscalerServiceServicer_to_server(servicer, server)
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = access.listen(server, address)
    except RuntimeError as error:
        raise AddressInUse(f"cannot listen on {address}: the port is in use or the host is not here") from error
    server.start()
    for name in ("", SERVICE):
        state.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, state, port


def serve(make: Callable[[], Described], address: str, handshake: Path | None, access: Access = OPEN) -> None:
    """Load a backend, warm it up and serve it until SIGTERM, SIGINT or (with a handshake) the end of stdin.

    Args:
        make: creates the backend.
        address: where to listen.
        handshake: file that receives `host:port` once the server is ready; the parent keeps our stdin open,
            so that we end when it does.
        access: what is asked of those who call.
    """
    thread = model_thread()
    backend = thread.submit(make).result()
    servicer_type = getattr(backend, "servicer", UpscalerServicer)
    warm_up_s = thread.submit(warm_up, backend).result()
    servicer: UpscalerServicer = servicer_type(backend, warm_up_s, thread)
    server, state, port = start(servicer, address, access)
    host = address.rpartition(":")[0]
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: done.set())
    if handshake is not None:
        partial = handshake.with_suffix(".part")
        partial.write_text(f"{host}:{port}")
        partial.rename(handshake)
        threading.Thread(target=_wait_for_parent, args=(done,), daemon=True).start()
    print(f"{backend.description.name} serves on {host}:{port}", flush=True)
    done.wait()
    state.enter_graceful_shutdown()
    server.stop(grace=2).wait()


def _wait_for_parent(done: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    done.set()


def warm_up(backend: Described) -> float:
    """Run the smallest input, or make one image, so that the first request finds all loaded; no request has its id, "".

    Returns the seconds that it took.
    """
    d = backend.description
    options = {option.name: option.default for option in d.options}
    started = time.perf_counter()
    if d.scales:
        side = max(d.minimum, d.multiple_of, min(16, d.maximum or 16))
        images = np.zeros((1, side, side, 3), np.uint8)
        batch = Batch(images, d.scales[0], ("",), (0,), options, (None,), (None,))
        cast("Backend", backend).upscale(batch, lambda _done, _total: None)
    else:
        wanted = SampleBatch(d.generated_size, ("",), (0,), options, (0 if d.classes else None,))
        cast("Generative", backend).generate(wanted, lambda _done, _total: None)
    return time.perf_counter() - started
