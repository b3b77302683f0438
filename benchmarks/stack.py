"""A stack of one backend's stages by 4, from 64 to 1024 pixels: `python -m benchmarks.stack BACKEND PHOTO`.

The input is the PHOTO's centre square, made small to 64 pixels. A further stage makes 2048 pixels of the output, made
small to 512. Prints for each stage the time and how far the server's memory rose above that of the idle server, also in
canvases of the stage's output (float32, three channels); then what a client leaves behind that leaves in the middle of
the stage to 1024, and the LR-PSNR of the stack's output made small to 64 pixels again. Exit status 1 when the rise to
1024 is not below `MOST_MB` or the LR-PSNR is below `ENOUGH_DB`.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.client import Client, Item, typed_options
from harness.degrade import make_target
from harness.errors import DeadlineExceeded, HarnessError
from harness.images import load
from harness.meters import Meter
from harness.metrics import score
from harness.plan import parse_backend
from harness.processes import LocalServer
from harness.resize import resize, to_uint8
from protos.values import Value

Pixels = NDArray[np.uint8]

LOW, SCALE = 64, 4
MOST_MB, ENOUGH_DB = 1536, 40
DEADLINE = 7200.0


@dataclass(frozen=True)
class Stage:
    """A stage's output, its seconds, and by how many MiB the server's memory rose above that of the idle server."""

    output: Pixels
    seconds: float
    rise_mb: float

    @property
    def canvases(self) -> float:
        """The rise in canvases of the output."""
        return self.rise_mb * 2**20 / (4 * self.output.size)


class Stack:
    """A backend under measurement, in a process of its own."""

    def __init__(self, server: LocalServer, client: Client, options: dict[str, Value]) -> None:
        self.server, self.client, self.options = server, client, options
        self.idle_mb = self._memory_mb()

    def _memory_mb(self) -> float:
        self.server.forget_peak_memory()
        return self.server.peak_memory_mb()

    def stage(self, image: Pixels, deadline: float = DEADLINE) -> Stage:
        """Enlarge one image.

        Raises:
            BackendError: the call failed, or took longer than the deadline.
        """
        meter, started = Meter([self.server]), time.perf_counter()
        reply = self.client.upscale([Item("a", image, 0)], SCALE, self.options, deadline)
        return Stage(reply.images[0], time.perf_counter() - started, meter.read().peak_memory_mb - self.idle_mb)

    def left_behind_mb(self, image: Pixels, seconds: float) -> float:
        """How far the memory is above that of the idle server after a client has left, and another one been served."""
        with contextlib.suppress(DeadlineExceeded):
            self.stage(image, seconds)
        self.stage(image[:LOW, :LOW])
        return self._memory_mb() - self.idle_mb


def measure(stack: Stack, low: Pixels) -> Iterator[tuple[str, bool]]:
    """Lines to print, and whether what each says is as it should be."""
    first = stack.stage(low)
    second = stack.stage(first.output)
    yield _line(first), True
    yield _line(second), second.rise_mb < MOST_MB
    half = len(second.output) // 2
    third = stack.stage(to_uint8(resize(second.output.astype(np.float64), half, half)))
    yield _line(third), True
    left = stack.left_behind_mb(first.output, second.seconds / 2)
    yield f"after a client has left in the middle: {left:.0f} MiB above idle", True
    psnr = float(score("lr_psnr", second.output[None], None, low[None], SCALE**2)[0])
    yield f"LR-PSNR of the stack at {LOW} pixels: {psnr:.2f} dB", psnr >= ENOUGH_DB


def _line(stage: Stage) -> str:
    side = stage.output.shape[0]
    rise = f"{stage.rise_mb:.0f} MiB above idle, {stage.canvases:.1f} canvases"
    return f"{side // SCALE:4} -> {side:4}: {stage.seconds:.1f} s, {rise}"


def run(backend: str, photo: Path) -> bool:
    """Print the figures; returns whether they are as they should be."""
    spec, low, good = parse_backend(backend), make_target(load(photo), LOW), True
    with tempfile.TemporaryDirectory() as folder, LocalServer(spec.name, Path(folder) / "log", spec.settings) as server:
        client = Client(server.address)
        stack = Stack(server, client, typed_options(spec.options, client.describe()))
        print(f"idle: {stack.idle_mb:.0f} MiB", flush=True)
        for line, fine in measure(stack, low):
            print(line if fine else f"{line}: NOT as it should be", flush=True)
            good = good and fine
        client.close()
    return good


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) != 3:
        print("usage: python -m benchmarks.stack BACKEND PHOTO", file=sys.stderr)
        return 2
    try:
        return int(not run(sys.argv[1], Path(sys.argv[2])))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
