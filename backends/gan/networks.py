"""Generators that map a low-resolution image to the residual over its bicubic enlargement in one pass.

SRResNet is that of SRGAN (Ledig et al., arXiv 1609.04802, figure 4), RRDBNet that of ESRGAN (Wang et al.,
arXiv 1809.00219, section 3.1). Departures: no batch normalisation in SRResNet, so that an image's output does not
depend on training statistics; both predict the residual over bicubic, not the image.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESIDUAL = 0.2
"""ESRGAN's residual scaling, in the dense blocks and around three of them."""


class ResidualBlock(nn.Module):
    """Convolution, PReLU, convolution, and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        out: Tensor = x + self.conv2(self.act(self.conv1(x)))
        return out


class SRResNet(nn.Module):
    """SRGAN's generator.

    Args:
        channels: width of the trunk.
        blocks: residual blocks at the input's size.
        scale: factor of enlargement, a power of two.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.entrance = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU(channels))
        self.trunk = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.trunk_exit = nn.Conv2d(channels, channels, 3, padding=1)
        stages = [
            nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(channels))
            for _ in range(doublings(scale))
        ]
        self.up = nn.Sequential(*stages)
        self.exit = nn.Conv2d(channels, 3, 9, padding=4)
        _start_at_nothing(self.exit)

    def forward(self, low: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [-1, 1] to the residual, (N, 3, scale H, scale W)."""
        h = self.entrance(low)
        out: Tensor = self.exit(self.up(h + self.trunk_exit(self.trunk(h))))
        return out


class DenseBlock(nn.Module):
    """Five convolutions, each seeing the outputs of all before it (a residual dense block)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        outputs = [growth] * 4 + [channels]
        convs = [nn.Conv2d(channels + i * growth, out, 3, padding=1) for i, out in enumerate(outputs)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data *= 0.1  # ESRGAN, section 3.1: smaller initial weights
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        features = [x]
        for conv in self.convs[:-1]:
            features.append(F.leaky_relu(conv(torch.cat(features, dim=1)), 0.2))
        out: Tensor = x + RESIDUAL * self.convs[-1](torch.cat(features, dim=1))
        return out


class RRDB(nn.Module):
    """Residual in residual: three dense blocks and a scaled skip connection."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        out: Tensor = x + RESIDUAL * self.dense(x)
        return out


class RRDBNet(nn.Module):
    """ESRGAN's generator; the paper has 23 blocks.

    Args:
        channels: width of the trunk.
        growth: channels that each convolution of a dense block adds.
        blocks: RRDBs at the input's size.
        scale: factor of enlargement, a power of two.
    """

    def __init__(self, *, channels: int = 64, growth: int = 32, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.entrance = nn.Conv2d(3, channels, 3, padding=1)
        self.trunk = nn.Sequential(*(RRDB(channels, growth) for _ in range(blocks)))
        self.trunk_exit = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(doublings(scale)))
        self.full = nn.Conv2d(channels, channels, 3, padding=1)
        self.exit = nn.Conv2d(channels, 3, 3, padding=1)
        _start_at_nothing(self.exit)

    def forward(self, low: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [-1, 1] to the residual, (N, 3, scale H, scale W)."""
        h = self.entrance(low)
        h = h + self.trunk_exit(self.trunk(h))
        for conv in self.up:
            h = F.leaky_relu(conv(F.interpolate(h, scale_factor=2.0, mode="nearest")), 0.2)
        out: Tensor = self.exit(F.leaky_relu(self.full(h), 0.2))
        return out


def _start_at_nothing(exit_: nn.Conv2d) -> None:
    """An untrained network gives bicubic."""
    nn.init.zeros_(exit_.weight)
    nn.init.zeros_(cast("Tensor", exit_.bias))


def doublings(scale: int) -> int:
    """How often an image is doubled to grow by `scale`.

    Raises:
        ValueError: the scale is not a power of two.
    """
    count = int(math.log2(scale)) if scale > 0 else 0
    if 2**count != scale or scale < 2:
        raise ValueError(f"scale {scale} is not a power of two from 2 on")
    return count
