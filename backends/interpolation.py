"""Fixed resampling kernels: nearest, bicubic and Lanczos, all through the product's one resize."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import harness.resize
from backends.base import Batch, Description, FloatBatch, Gradients, Progress, code_digest

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

    def gradient(self, batch: FloatBatch, progress: Progress) -> Gradients:
        """See `Differentiable.gradient`."""
        progress(1, 1)
        return batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2), blocks(batch)


def blocks(batch: FloatBatch) -> NDArray[np.float32] | None:
    """The gradients of repeated pixels, (N, H, W, 3): the sums of the cotangents over each pixel's block."""
    if batch.cotangents is None:
        return None
    n, height, width, channels = batch.images.shape
    parts = batch.cotangents.reshape(n, height, batch.scale, width, batch.scale, channels)
    gradients: NDArray[np.float32] = parts.sum(axis=(2, 4))
    return gradients


class Kernel:
    """Resamples with one of the kernels of `harness.resize`."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.description = _description(kernel, "any image")

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        output = self._enlarged(batch)
        progress(1, 1)
        return output

    def gradient(self, batch: FloatBatch, progress: Progress) -> Gradients:
        """See `Differentiable.gradient`: the map is linear, so its derivative is its transpose."""
        output = self._enlarged(batch)
        progress(1, 1)
        if batch.cotangents is None:
            return output, None
        rows, columns = (harness.resize.resize_matrix(n, n * batch.scale, self.kernel) for n in batch.images.shape[1:3])
        return output, np.einsum("ai,nabc,bj->nijc", rows, batch.cotangents, columns, optimize=True)

    def _enlarged(self, batch: Batch | FloatBatch) -> NDArray[np.floating]:
        height, width = (n * batch.scale for n in batch.images.shape[1:3])
        return np.stack(
            [harness.resize.resize(image.astype(np.float64), height, width, self.kernel) for image in batch.images]
        )


def Bicubic() -> Kernel:  # noqa: N802 - stands where a class stands
    """Antialiased bicubic, a = -0.5."""
    return Kernel("bicubic")


def Lanczos() -> Kernel:  # noqa: N802 - stands where a class stands
    """Lanczos, three lobes."""
    return Kernel("lanczos")
