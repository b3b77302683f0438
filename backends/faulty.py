"""A backend that misbehaves on request: it tests harnesses, ours and others'.

`fault` names what it does wrong; with `only` it happens to the image of that id alone, else to every image.
Where nothing goes wrong it repeats pixels. The names are no listed choices: a contract check tries those.
"""

import os
import time
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from backends.base import Batch, Description, FloatBatch, Gradients, Option, Progress, Refused, code_digest
from backends.cheats import CHEATS, GRADIENT_CHEATS, Cheater, cheat_gradient
from backends.interpolation import blocks
from backends.server import UpscalerServicer
from protos import MAX_MESSAGE_BYTES
from protos.upscaler.v1 import upscaler_pb2 as pb

MODEL_FAULTS = ("die", "hang", "nan", "wrong_shape", "crash", "out_of_memory", "slow", "nondeterministic")
WIRE_FAULTS = ("lie_size", "lie_digest", "lie_time", "missing", "wrong_id", "short_data", "oversized")
FAULTS = ("none", *MODEL_FAULTS, *WIRE_FAULTS, *CHEATS, *GRADIENT_CHEATS)


class FaultyServicer(UpscalerServicer):
    """The shared server, its answers spoilt on their way out."""

    def compute(
        self, request: pb.UpscaleRequest, context: grpc.ServicerContext, progress: Progress
    ) -> pb.UpscaleResponse:
        """Answer, then break the answer as the request's `fault` says."""
        response = super().compute(request, context, progress)
        fault, only = request.options["fault"].text, request.options["only"].text
        if fault in WIRE_FAULTS and (not only or only in {image.id for image in request.images}):
            _spoil(response, fault)
        return response


def _spoil(response: pb.UpscaleResponse, fault: str) -> None:
    first = response.images[0]
    if fault == "lie_size":
        first.height += 1
    elif fault == "lie_digest":
        response.digest = "0" * 64
    elif fault == "lie_time":
        response.compute_time.seconds += 3600
    elif fault == "missing":
        del response.images[-1]
    elif fault == "wrong_id":
        first.id = first.id[::-1] + "'"
    elif fault == "short_data":
        first.data = first.data[:-1]
    elif fault == "oversized":
        first.data = bytes(MAX_MESSAGE_BYTES)


class Faulty:
    """Nearest neighbour with a fault."""

    servicer = FaultyServicer

    def __init__(self) -> None:
        self.description = Description(
            name="faulty",
            family="other",
            digest=code_digest(Path(__file__)),
            scales=(2, 4),
            licence="Apache-2.0",
            domain="tests of harnesses",
            batch_exact=True,
            options=(
                Option("fault", "none", f"what goes wrong: {', '.join(FAULTS)}"),
                Option("only", "", "id of the only image it happens to"),
                Option("once", "", "file that is made when it happens; while it exists nothing goes wrong"),
            ),
        )
        self.cheater = Cheater()

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
        """See `Backend.upscale`."""
        output = batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2)
        fault, only, once = (str(batch.options[name]) for name in ("fault", "only", "once"))
        if fault not in FAULTS:
            raise Refused("options.fault", f"must be one of {', '.join(FAULTS)}")
        if fault in CHEATS:
            return self.cheater.answer(fault, batch, output, progress)
        if fault not in MODEL_FAULTS or (only and only not in batch.ids) or (once and Path(once).exists()):
            return output
        if once:
            Path(once).touch()
        return _misbehave(fault, output, progress)

    def gradient(self, batch: FloatBatch, progress: Progress) -> Gradients:
        """See `Differentiable.gradient`; of the faults, only the cheats of `GRADIENT_CHEATS` show here."""
        progress(1, 1)
        output = batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2)
        return cheat_gradient(str(batch.options["fault"]), output, blocks(batch))


def _misbehave(fault: str, output: NDArray[np.uint8], progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
    if fault == "die":
        os._exit(9)
    if fault in ("hang", "slow"):
        for step in range(36_000 if fault == "hang" else 5):
            time.sleep(0.1)
            progress(step, 36_000)
    if fault == "nan":
        return np.full(output.shape, np.nan)
    if fault == "wrong_shape":
        return output[:, :-1]
    if fault == "crash":
        raise RuntimeError("the model crashed on purpose")
    if fault == "out_of_memory":
        raise MemoryError
    if fault == "nondeterministic":
        return np.random.default_rng().integers(0, 256, output.shape, np.uint8)
    return output
