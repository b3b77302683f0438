"""A complete backend, written from upscaler.proto alone: it repeats pixels and adds grain from each image's seed."""

import hashlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from upscaler.v1 import upscaler_pb2 as pb
from upscaler.v1 import upscaler_pb2_grpc as pb_grpc

SERVICE, LIMIT = "upscaler.v1.UpscalerService", 64 * 2**20
DESCRIPTION = pb.DescribeResponse(
    name="grainy",
    family=pb.FAMILY_OTHER,
    digest=hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),  # with the weights, where there are any
    scales=[2, 4],
    sizes=pb.SizeRequirements(minimum=1, maximum=256, multiple_of=1, domain_minimum=1),
    channels=3,
    deterministic=False,
    batch_exact=True,
    device="cpu",
    precision="uint8",
    licence="Apache-2.0",
    max_message_bytes=LIMIT,
    max_batch=8,
    domain="any image; an example, not a model",
)


def violations(request: pb.UpscaleRequest) -> list[tuple[str, str]]:
    """Every field of a request that is wrong, and what is needed."""
    d, images, side = DESCRIPTION, request.images, DESCRIPTION.sizes.maximum
    rules = [
        (request.scale in d.scales, "scale", f"one of {list(d.scales)} is needed"),
        (1 <= len(images) <= d.max_batch, "images", f"1 to {d.max_batch} are accepted"),
        (len({(i.height, i.width) for i in images}) <= 1, "images", "all must be of one size"),
        (len({i.id for i in images}) == len(images), "images", "each needs an id of its own"),
        (not request.options, "options", "there are none"),
    ]
    for n, i in enumerate(images):
        rules += [
            (1 <= i.height <= side and 1 <= i.width <= side, f"images[{n}]", f"sides of 1 to {side} are accepted"),
            (len(i.data) == i.height * i.width * 3, f"images[{n}].data", "height * width * 3 bytes are needed"),
            (not i.HasField("class_index"), f"images[{n}].class_index", "there are no classes"),
            (0 <= i.conditioning_level <= 1, f"images[{n}].conditioning_level", "0 to 1 is accepted"),
        ]
    return [(field, text) for good, field, text in rules if not good]


def upscale(image: pb.InputImage, scale: int) -> pb.OutputImage:
    """The model. Its randomness comes from the image's seed alone, so the rest of the batch does not matter."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1).astype(int)
    large += np.random.default_rng(image.seed).integers(-4, 5, large.shape)
    data = large.clip(0, 255).astype(np.uint8).tobytes()
    return pb.OutputImage(id=image.id, height=large.shape[0], width=large.shape[1], data=data)


class Upscaler(pb_grpc.UpscalerServiceServicer):
    device = threading.Lock()  # one request at a time computes

    def Describe(self, request, context):
        return DESCRIPTION

    def Upscale(self, request, context):
        if found := violations(request):
            detail = Any()
            fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=text) for f, text in found[:20]]
            detail.Pack(error_details_pb2.BadRequest(field_violations=fields))
            status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(found[0]), details=[detail])
            context.abort_with_status(rpc_status.to_status(status))
        arrived = time.perf_counter_ns()
        with self.device:
            started = time.perf_counter_ns()
            images = [upscale(image, request.scale) for image in request.images if context.is_active()]
        response = pb.UpscaleResponse(images=images, digest=DESCRIPTION.digest)
        response.queue_time.FromNanoseconds(started - arrived)
        response.compute_time.FromNanoseconds(time.perf_counter_ns() - started)
        return response


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", LIMIT)])
    state = health.HealthServicer()
    pb_grpc.add_UpscalerServiceServicer_to_server(Upscaler(), server)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    port = server.add_insecure_port(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
    server.start()
    state.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)  # the server as a whole, "", is by itself
    print("serves on port", port, flush=True)
    server.wait_for_termination()
