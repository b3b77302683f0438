"""The one resize of the product: antialiased bicubic, a = -0.5.

Every low-resolution image, back-projection and consistency score goes through `resize` (NumPy, float) or
through the matrices of `resize_matrix` (torch code multiplies with the same numbers).
The kernel is Keys' cubic convolution (Keys 1981, eq. 15) with a = -0.5, widened by the scale factor when
shrinking and renormalised at the borders: the convention of Pillow's BICUBIC and torch's
`interpolate(mode="bicubic", antialias=True)`.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def cubic(x: Float, a: float = -0.5) -> Float:
    """Keys' cubic convolution kernel at the offsets `x` (in pixels), support [-2, 2]."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def lanczos3(x: Float) -> Float:
    """Lanczos kernel with three lobes, support [-3, 3]."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def triangle(x: Float) -> Float:
    """Linear interpolation, support [-1, 1]; used only where published outputs were compared that way."""
    weight: Float = np.maximum(0.0, 1 - np.abs(x))
    return weight


def box(x: Float) -> Float:
    """Box kernel, support [-0.5, 0.5): the mean of the covered pixels when shrinking."""
    return np.where((x >= -0.5) & (x < 0.5), 1.0, 0.0)


KERNELS: dict[str, tuple[Callable[[Float], Float], float]] = {
    "bicubic": (cubic, 2.0),
    "lanczos": (lanczos3, 3.0),
    "bilinear": (triangle, 1.0),
    "box": (box, 0.5),
}


@lru_cache(maxsize=128)
def resize_matrix(n_in: int, n_out: int, kernel: str = "bicubic") -> Float:
    """The (n_out, n_in) matrix that resamples a line of `n_in` pixels to `n_out`; its rows sum to one.

    The transpose is the adjoint that back-projection and gradients need. The array is read-only.
    """
    function, support = KERNELS[kernel]
    scale = n_in / n_out
    stretch = max(scale, 1.0)  # antialiasing: widen the kernel when shrinking
    centre = (np.arange(n_out) + 0.5) * scale
    offset = np.arange(n_in)[None, :] + 0.5 - centre[:, None]
    inside = np.abs(offset) < support * stretch + 0.5
    weight = np.where(inside, function(offset / stretch), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    weight.flags.writeable = False
    return weight


def resize(image: NDArray[np.floating], height: int, width: int, kernel: str = "bicubic") -> Float:
    """Resample an (H, W, C) or (N, H, W, C) image to `height` x `width`; float in, float64 out, nothing is clipped."""
    rows = resize_matrix(image.shape[-3], height, kernel)
    columns = resize_matrix(image.shape[-2], width, kernel)
    result: Float = np.einsum("ai,...ijc,bj->...abc", rows, image, columns, optimize=True)
    return result


def to_uint8(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round a float image on the 0..255 scale to 8 bit: half up, clipped."""
    rounded: NDArray[np.uint8] = np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
    return rounded
