"""Between the contract's pixels and a torch network's: 8-bit sRGB and floats in [-1, 1]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.resize import resize_matrix


def to_model(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: Tensor) -> NDArray[np.floating]:
    """(N, 3, H, W) in about [-1, 1] -> (N, H, W, 3) on the 0..255 scale, neither clipped nor rounded."""
    images: NDArray[np.floating] = ((x + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    return images


def enlarge(images: NDArray[np.uint8], scale: int) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, scale H, scale W) float32 in about [-1, 1], by the one resize."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    rows, columns = (torch.from_numpy(resize_matrix(n, n * scale).copy()) for n in images.shape[1:3])
    return (rows @ x @ columns.T).float()
