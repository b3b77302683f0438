"""A stack of one backend's stages by 4, from 64 to 1024 pixels: `python -m benchmarks.stack BACKEND PHOTO`.

The input is the PHOTO's centre square, made small to 64 pixels. A further stage makes 2048 pixels of the output, made
small to 512. Prints for each stage the time and how far the server's memory rose above that of the idle server, also in
canvases of the stage's output (float32, three channels). Exit status 1 unless

- the rise of the stage to 1024 is below `MOST_MB`;
- beyond `CANVASES` canvases of its own output, the rise grows from 1024 to 2048 by `GROWTH_MB` at most: they alone may
  grow with the image;
- a client that leaves in the middle of the stage to 1024 leaves at most `KEPT_MB` more behind than one that stayed.
  That one is the measure since a server that has served an image keeps buffers and tables of that size for the next;
- the stack's output, made small to 64 pixels again, has an LR-PSNR of `ENOUGH_DB` at least.
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
from harness.errors import ConfigError, DeadlineExceeded, HarnessError
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
CANVASES = 10
"""Most canvases that a server holds at once: the enlarged input, the noisy image, and what a step makes of them.

The ancestral sampler of `sr3-x4` was seen to hold 9.5, DDIM 8.
"""
GROWTH_MB, KEPT_MB = 32, 32
"""What allocators may keep, as in `benchmarks.fuzz`; three canvases at 1024 pixels are more."""
DEADLINE = 7200.0


@dataclass(frozen=True)
class Stage:
    """A stage's output, its seconds, and by how many MiB the server's memory rose above that of the idle server."""

    output: Pixels
    seconds: float
    rise_mb: float

    @property
    def canvas_mb(self) -> float:
        """The size of a canvas of the output."""
        return 4 * self.output.size / 2**20

    @property
    def beyond_mb(self) -> float:
        """The rise beyond the canvases that grow with the output; below 0 where there were fewer."""
        return self.rise_mb - CANVASES * self.canvas_mb


class Stack:
    """A backend under measurement, in a process of its own.

    Raises:
        ConfigError: the system does not let a peak of memory be forgotten.
    """

    def __init__(self, server: LocalServer, client: Client, options: dict[str, Value]) -> None:
        self.server, self.client, self.options = server, client, options
        self.idle_mb = self._memory_mb()

    def _memory_mb(self) -> float:
        if not self.server.forget_peak_memory():
            raise ConfigError("this system does not tell the peak memory of a stage; measure on Linux")
        return self.server.peak_memory_mb()

    def stage(self, image: Pixels, deadline: float = DEADLINE) -> Stage:
        """Enlarge one image.

        Raises:
            BackendError: the call failed, or took longer than the deadline.
        """
        meter, started = Meter([self.server]), time.perf_counter()
        reply = self.client.upscale([Item("a", image, 0)], SCALE, self.options, deadline)
        return Stage(reply.images[0], time.perf_counter() - started, meter.read().peak_memory_mb - self.idle_mb)

    def resting_mb(self, small: Pixels) -> float:
        """The memory above that of the idle server, once a small image was served and the call before it is let go."""
        self.stage(small)
        return self._memory_mb() - self.idle_mb

    def leave(self, image: Pixels, seconds: float) -> None:
        """Ask for an image and leave after so many seconds; after half of them if it was served before, and so on."""
        with contextlib.suppress(DeadlineExceeded):
            while True:
                self.stage(image, seconds)
                seconds /= 2


def measure(stack: Stack, low: Pixels) -> Iterator[tuple[str, bool]]:
    """Lines to print of a stack from an image, and whether what each says is as it should be."""
    first = stack.stage(low)
    yield _line(first), True
    second = stack.stage(first.output)
    yield _line(second), second.rise_mb < MOST_MB
    stayed = stack.resting_mb(low)
    stack.leave(first.output, second.seconds / 2)
    left = stack.resting_mb(low)
    told = f"{left:.0f} MiB above idle, {left - stayed:.0f} above one that stayed"
    yield f"a client that leaves in the middle: {told}", left - stayed <= KEPT_MB
    half = len(second.output) // 2
    third = stack.stage(to_uint8(resize(second.output.astype(np.float64), half, half)))
    yield _line(third), True
    growth = third.beyond_mb - second.beyond_mb
    yield f"growth beyond {CANVASES} canvases: {growth:.0f} MiB", growth <= GROWTH_MB
    psnr = float(score("lr_psnr", second.output[None], None, low[None], SCALE**2)[0])
    yield f"LR-PSNR of the stack at {len(low)} pixels: {psnr:.2f} dB", psnr >= ENOUGH_DB


def _line(stage: Stage) -> str:
    side = stage.output.shape[0]
    rise = f"{stage.rise_mb:.0f} MiB above idle, {stage.rise_mb / stage.canvas_mb:.1f} canvases"
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
