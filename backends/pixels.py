"""Between the contract's pixels and a torch network's: sRGB on the 0..255 scale and floats in [-1, 1]."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import FloatBatch, Gradients
from harness.resize import resize_matrix

Pixels = NDArray[np.uint8] | Tensor
"""(N, H, W, 3) on the 0..255 scale: 8-bit, or floats that may be differentiated."""


def to_model(images: Pixels) -> Tensor:
    """(N, H, W, 3) on the 0..255 scale -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: Tensor) -> NDArray[np.floating]:
    """(N, 3, H, W) in about [-1, 1] -> (N, H, W, 3) on the 0..255 scale, neither clipped nor rounded."""
    images: NDArray[np.floating] = ((x + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    return images


def differentiate(model: Callable[[Tensor], Tensor], batch: FloatBatch) -> Gradients:
    """What `Differentiable.gradient` returns, for a model of (N, H, W, 3) on the 0..255 scale.

    The model returns (N, 3, scale H, scale W) in about [-1, 1], and must not run in inference mode.
    """
    images = torch.from_numpy(batch.images)
    if batch.cotangents is None:
        with torch.no_grad():
            return to_images(model(images)), None
    with torch.enable_grad():
        output = model(images.requires_grad_())
        cotangents = 127.5 * torch.from_numpy(batch.cotangents).permute(0, 3, 1, 2)
        (gradients,) = torch.autograd.grad(output, images, cotangents.to(output.device))
    return to_images(output.detach()), gradients.numpy()


def enlarge(images: Pixels, scale: int) -> Tensor:
    """(N, H, W, 3) on the 0..255 scale -> (N, 3, scale H, scale W) float32 in about [-1, 1], by the one resize."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    rows, columns = (torch.from_numpy(resize_matrix(n, n * scale).copy()) for n in images.shape[1:3])
    return (rows @ x @ columns.T).float()


def back_project(x: Tensor, low: NDArray[np.uint8]) -> Tensor:
    """Images nearer to their inputs: x + up(low - down(x)), clipped (Irani and Peleg 1991, eq. 4, with the one resize).

    Args:
        x: (N, 3, scale H, scale W) in about [-1, 1]; is changed.
        low: (N, H, W, 3), the inputs.
    """
    x.clamp_(-1, 1)
    small, large = low.shape[1:3], x.shape[2:]
    missing = to_model(low).to(x) - _resized(x, small)
    return x.add_(_resized(missing, large)).clamp_(-1, 1)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    pairs = zip(x.shape[2:], size, strict=True)
    rows, columns = (torch.from_numpy(resize_matrix(old, new).copy()).to(x) for old, new in pairs)
    return rows @ x @ columns.T
