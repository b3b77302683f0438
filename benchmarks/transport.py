"""What the wire costs: `python -m benchmarks.transport`.

Sends square images of 16 to 1024 pixels to the nearest-neighbour backend at scale 1, in a process of its own, and
prints the median transport time of an image (end to end less queue and compute), one image a call, by unary and by
stream. The last column is the cheaper of the two relative to one step of SR3 (16 -> 64), timed in the same run.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from harness.client import Client, Item
from harness.processes import LocalServer

SIDES = (16, 64, 256, 1024)
CALLS = 21


def transport_ms(client: Client, side: int, *, stream: bool) -> float:
    """Median transport time of one image in milliseconds."""
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    calls = [client.upscale([Item("a", image, 0)], 1, {}, 60, stream=stream) for _ in range(CALLS)]
    return 1000 * statistics.median(call.transport_s for call in calls[1:])


def step_ms(client: Client) -> float:
    """Median compute time of one SR3 step for one face in milliseconds."""
    image = np.zeros((16, 16, 3), np.uint8)
    calls = [client.upscale([Item("a", image, 0)], 4, {"steps": 1}, 60) for _ in range(CALLS)]
    return 1000 * statistics.median(call.compute_s for call in calls[1:])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with LocalServer("nearest", log) as nearest, LocalServer("sr3", log) as sr3:
            wire, model = Client(nearest.address), Client(sr3.address)
            step = step_ms(model)
            print(f"one SR3 step (16 -> 64, batch 1): {step:.2f} ms compute")
            print("side  KiB each way  unary ms  stream ms  cheaper / SR3 step")
            for side in SIDES:
                unary, stream = (transport_ms(wire, side, stream=s) for s in (False, True))
                ratio = min(unary, stream) / step
                print(f"{side:4}  {side * side * 3 / 1024:12.1f}  {unary:8.2f}  {stream:9.2f}  {ratio:18.2f}")
            wire.close()
            model.close()


if __name__ == "__main__":
    main()
