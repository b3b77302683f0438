"""The generator of BigGAN (arXiv 1809.11096, section 3 and appendix B), sized for CPUs.

From the paper: residual blocks with class-conditional batch normalisation, whose gains and biases are linear in one
shared class embedding and in a part of z (hierarchical latents). Departures: pixel-shuffle before the last layer, which
alone runs at full size; no self-attention. Spectral norm belongs to the training (`backends.training.biggan`); weights
files hold the normalised weights.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

START = 4
"""Height and width of the first feature map."""


class ConditionalNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear in a condition; by stored statistics where it is evaluated."""

    def __init__(self, channels: int, c_cond: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Linear(c_cond, channels, bias=False)
        self.bias = nn.Linear(c_cond, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (N, C, H, W) and (N, c_cond) to (N, C, H, W)."""
        gain, bias = (each(condition)[:, :, None, None] for each in (self.gain, self.bias))
        out: Tensor = self.norm(x) * (1 + gain) + bias
        return out


class UpBlock(nn.Module):
    """Residual block that doubles the size (the paper's figure 15b)."""

    def __init__(self, c_in: int, c_out: int, c_cond: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(c_in, c_cond), ConditionalNorm(c_out, c_cond)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to (N, c_out, 2 H, 2 W)."""
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2.0, mode="nearest"))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        out: Tensor = h + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")
        return out


class Generator(nn.Module):
    """G(z, y).

    Args:
        classes: number of classes.
        channels: unit of width; `multipliers` give the width of each block, which doubles the size.
        latent: values of z for each block, and for the first layer.
        embedding: width of the shared class embedding.
        patch: factor of the pixel-shuffle before the last layer, which has `channels` inputs.
    """

    def __init__(  # noqa: PLR0913 - the numbers of the paper's architecture tables, and one of ours
        self,
        *,
        classes: int,
        channels: int = 32,
        multipliers: tuple[int, ...] = (8, 4, 2),
        latent: int = 20,
        embedding: int = 64,
        patch: int = 2,
    ) -> None:
        super().__init__()
        self.latents, self.patch = latent * (len(multipliers) + 1), patch
        self.size = START * 2 ** len(multipliers) * patch
        widths = [channels * m for m in (multipliers[0], *multipliers)]
        self.embedding = nn.Embedding(classes, embedding)
        self.first = nn.Linear(latent, widths[0] * START**2)
        self.blocks = nn.ModuleList(UpBlock(a, b, latent + embedding) for a, b in itertools.pairwise(widths))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.exit = nn.Conv2d(widths[-1], channels * patch**2, 3, padding=1)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map z (N, latents) and classes y (N,) to images (N, 3, size, size) in [-1, 1]."""
        first, *rest = z.chunk(len(self.blocks) + 1, dim=1)
        h = self.first(first).unflatten(1, (-1, START, START)).contiguous(memory_format=torch.channels_last)
        embedded = self.embedding(y)
        for block, part in zip(self.blocks, rest, strict=True):
            h = block(h, torch.cat([embedded, part], dim=1))
        h = F.pixel_shuffle(self.exit(F.relu(self.norm(h))), self.patch)
        out: Tensor = self.last(F.relu(h).contiguous(memory_format=torch.channels_last)).tanh()
        return out
