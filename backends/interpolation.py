"""Fixed resampling kernels: nearest, bicubic and Lanczos, all through the product's one resize."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import harness.resize
from backends.base import Batch, Description, Progress, code_digest

SCALES = (1, 2, 3, 4, 8, 16)


def _description(name: str, domain: str) -> Description:
    return Description(
        name=name,
        family="interpolation",
        digest=code_digest(Path(__file__), Path(harness.resize.__file__)),
        scales=SCALES,
        licence="Apache-2.0",
        domain=domain,
        batch_exact=True,
    )


class Nearest:
    """Repeats every pixel."""

    description = _description("nearest", "any image")

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8]:
        """See `Backend.upscale`."""
        output = batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2)
        progress(1, 1)
        return output


class Kernel:
    """Resamples with one of the kernels of `harness.resize`."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.description = _description(kernel, "any image")

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        _, height, width, _ = batch.images.shape
        images = [
            harness.resize.resize(image.astype(np.float64), height * batch.scale, width * batch.scale, self.kernel)
            for image in batch.images
        ]
        progress(1, 1)
        return np.stack(images)


def Bicubic() -> Kernel:  # noqa: N802 - stands where a class stands
    """Antialiased bicubic, a = -0.5."""
    return Kernel("bicubic")


def Lanczos() -> Kernel:  # noqa: N802 - stands where a class stands
    """Lanczos, three lobes."""
    return Kernel("lanczos")
