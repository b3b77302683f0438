"""Answers that were not computed, or not from the image: what the contract kit's audits must catch.

by_id         an id decides a pixel
cache_id      an output is kept for each id
cache_part    an output is kept for each first row of pixels
cache         an output is kept for each image, so that a repeated one takes no time
one_in_batch  images of a batch that are nearly the first one get its output
drift         the output grows brighter from call to call
stuck         the device stays busy when a client leaves
stale         the call after a client has left gets a wrong answer
flat          a constant image
bgr           channels in the wrong order

Of gradients:
other_gradient  the gradient of another map: it belongs to the neighbouring pixels
steep_gradient  the gradient of the output in other units, a tenth too large
other_output    the output that is differentiated is brighter than the one that is returned as pixels
"""

import time
import zlib

import numpy as np
from numpy.typing import NDArray

from backends.base import Batch, Cancelled, Gradients, Progress

Pixels = NDArray[np.uint8]
CHEATS = ("by_id", "cache_id", "cache_part", "cache", "one_in_batch", "drift", "stuck", "stale", "flat", "bgr")
GRADIENT_CHEATS = ("other_gradient", "steep_gradient", "other_output")
NEW, WORK = 0.05, 0.02
"""Seconds that a call with a new image takes where a cache saves them, and an image where a client is to leave."""
STUCK = 4.0
"""Seconds for which a device that is stuck stays busy."""


def cheat_gradient(cheat: str, output: NDArray[np.float32], gradient: NDArray[np.float32] | None) -> Gradients:
    """The output and the gradient as a cheat gives them; as they are for any other word."""
    if cheat == "other_output":
        return output + 4, gradient
    if cheat == "other_gradient" and gradient is not None:
        return output, np.roll(gradient, 1, axis=2)
    if cheat == "steep_gradient" and gradient is not None:
        return output, 1.1 * gradient
    return output, gradient


class Cheater:
    """Spoils the honest output of a batch; remembers what the cheats need."""

    def __init__(self) -> None:
        self.seen: dict[tuple[object, tuple[int, ...]], Pixels] = {}
        self.calls = 0
        self.left = False

    def answer(self, cheat: str, batch: Batch, output: Pixels, progress: Progress) -> Pixels:
        """The output, (N, scale * H, scale * W, 3), as the cheat gives it."""
        self.calls += 1
        if cheat.startswith("cache"):
            return self._cached(cheat, batch, output)
        if cheat in ("stuck", "stale"):
            return self._left(cheat, output, progress)
        if cheat == "by_id":
            output[:, 0, 0, 0] = [zlib.crc32(name.encode()) & 255 for name in batch.ids]
        elif cheat == "one_in_batch":
            near = np.abs(batch.images.astype(int) - batch.images[0]).mean(axis=(1, 2, 3)) < 2
            output[near] = output[0]
        elif cheat == "drift":
            output += np.uint8(self.calls // 16 % 256)
        elif cheat == "flat":
            output[:] = 128
        return output[..., ::-1] if cheat == "bgr" else output

    def _cached(self, cheat: str, batch: Batch, output: Pixels) -> Pixels:
        keys = {
            "cache_id": list(batch.ids),
            "cache_part": [image[0].tobytes() for image in batch.images],
            "cache": [image.tobytes() for image in batch.images],
        }[cheat]
        known = len(self.seen)
        kept = [self.seen.setdefault((key, image.shape), image) for key, image in zip(keys, output, strict=True)]
        if cheat == "cache" and len(self.seen) > known:
            time.sleep(NEW)
        return np.stack(kept)

    def _left(self, cheat: str, output: Pixels, progress: Progress) -> Pixels:
        wrong, self.left = self.left, False
        time.sleep(WORK * len(output))
        try:
            progress(1, 1)
        except Cancelled:
            self.left = cheat == "stale"
            time.sleep(STUCK if cheat == "stuck" else 0)
            raise
        return 255 - output if wrong else output
