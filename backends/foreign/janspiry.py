"""SR3 as the public reimplementation trains it (github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement).

Written from the names and shapes of its weights and its configurations. What differs from the paper: DDPM's residual
blocks, sqrt(gamma) in the place of gamma, the posterior's variance. The file holds the sizes of all layers, but not
the groups of the normalisation, nor the scale and the size of the images it was trained with.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backends.foreign.files import Shapes, State, count, shapes_of
from backends.foreign.sampling import linear_gammas
from backends.pixels import enlarge

PREFIX = "denoise_fn."
GROUPS: dict[tuple[int, ...], int] = {(64, 128, 256, 512, 1024): 16}
"""Groups of the published configuration that does not have 32 (64 -> 512), by the channels of its blocks downwards."""


class Janspiry:
    """The family: its schedule and its conventions."""

    entry = "downs.0.weight"
    gammas = linear_gammas(1e-6, 1e-2, 2000)  # of all published configurations, in training and use
    scale = 8  # of both published models
    classes = 0
    licence = "not in the file; the published weights: Apache-2.0 repository, trained on FFHQ (CC BY-NC-SA 4.0)"
    domain = "what it was trained on is not in the file; the published models: aligned faces, 16 -> 128 and 64 -> 512"

    def __init__(self, state: State, groups: int | None) -> None:
        self.state = {name.removeprefix(PREFIX): t for name, t in state.items() if name.startswith(PREFIX)}
        self.network = UNet(shapes_of(self.state), groups)  # the file's own schedule is left aside

    def enlarge(self, images: NDArray[np.uint8], scale: int) -> Tensor:
        """What the network is conditioned on: bicubic, in 8 bits as its training images were."""
        return ((enlarge(images, scale) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1

    def inputs(self, y: Tensor, up: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(N, 6, H, W), the enlarged images before the noisy ones; and the noise level of all, (1,)."""
        return torch.cat([up, y], dim=1), y.new_full((1,), math.sqrt(self.gammas[t]))

    def outputs(self, predicted: Tensor) -> tuple[Tensor, None]:
        """The network predicts eps alone."""
        return predicted, None


class UNet(nn.Module):
    """The network whose weights have these names and shapes."""

    def __init__(self, shapes: Shapes, groups: int | None) -> None:
        super().__init__()
        width = shapes["noise_level_mlp.1.weight"][1]
        groups = groups or GROUPS.get(_channels(shapes), 32)
        layers = nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        self.noise_level_mlp = nn.Sequential(LevelEncoding(width), *layers)
        self.downs, self.mid, self.ups = (
            nn.ModuleList(_layer(shapes, f"{part}.{i}", groups) for i in range(count(shapes, part)))
            for part in ("downs", "mid", "ups")
        )
        self.final_conv = Block(*_sizes(shapes, "final_conv"), groups)
        self.multiple = 2 ** sum(isinstance(layer, Down) for layer in self.downs)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map (N, 6, H, W) and sqrt(gamma), (N,) or (1,), to eps, (N, 3, H, W)."""
        emb = self.noise_level_mlp(level)
        skips = []
        for layer in self.downs:
            x = layer(x, emb) if isinstance(layer, Level) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, emb)
        for layer in self.ups:
            x = layer(torch.cat([x, skips.pop()], dim=1), emb) if isinstance(layer, Level) else layer(x)
        out: Tensor = self.final_conv(x)
        return out


def _channels(shapes: Shapes) -> tuple[int, ...]:
    """Output channels of the residual blocks on the way down."""
    names = (f"downs.{i}.res_block.block2.block.3.bias" for i in range(count(shapes, "downs")))
    return tuple(shapes[name][0] for name in names if name in shapes)


def _layer(shapes: Shapes, name: str, groups: int) -> nn.Module:
    """The layer of a name: the first convolution, a step between levels, or a residual block."""
    if f"{name}.weight" in shapes:
        c_out, c_in = shapes[f"{name}.weight"][:2]
        return nn.Conv2d(c_in, c_out, 3, padding=1)
    if f"{name}.conv.weight" in shapes:
        step = Down if name.startswith("downs") else Up
        return step(shapes[f"{name}.conv.weight"][0])
    return Level(shapes, name, groups)


def _sizes(shapes: Shapes, block: str) -> tuple[int, int]:
    """Channels into and out of a `Block`."""
    return shapes[f"{block}.block.0.weight"][0], shapes[f"{block}.block.3.weight"][0]


class LevelEncoding(nn.Module):
    """Sines and cosines of the noise level, at frequencies from 1 down to 1e-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, level: Tensor) -> Tensor:
        """Map (N,) to (N, width)."""
        exponents = torch.arange(self.pairs, device=level.device) / self.pairs
        angles = level[:, None] * torch.exp(-math.log(1e4) * exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Down(nn.Module):
    """Halves the sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2)."""
        out: Tensor = self.conv(x)
        return out


class Up(nn.Module):
    """Doubles the sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2 H, 2 W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Block(nn.Module):
    """Normalisation, SiLU, (dropout in training,) convolution."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.block = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Identity(), convolution)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to (N, c_out, H, W)."""
        out: Tensor = self.block(x)
        return out


class ResBlock(nn.Module):
    """DDPM's residual block, the embedded noise level added between its convolutions."""

    def __init__(self, shapes: Shapes, name: str, groups: int) -> None:
        super().__init__()
        c_in, c_out = _sizes(shapes, f"{name}.block1")
        width = shapes[f"{name}.noise_func.noise_func.0.weight"][1]
        self.noise_func = nn.ModuleDict({"noise_func": nn.Sequential(nn.Linear(width, c_out))})
        self.block1, self.block2 = Block(c_in, c_out, groups), Block(c_out, c_out, groups)
        self.res_conv = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) and the embedding (N, width) to (N, c_out, H, W)."""
        h = self.block1(x) + self.noise_func["noise_func"](emb)[:, :, None, None]
        out: Tensor = self.block2(h) + self.res_conv(x)
        return out


class Attention(nn.Module):
    """Self-attention over all positions, one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.out(h)
        return out


class Level(nn.Module):
    """A residual block, followed by attention where the file has it."""

    def __init__(self, shapes: Shapes, name: str, groups: int) -> None:
        super().__init__()
        self.res_block = ResBlock(shapes, f"{name}.res_block", groups)
        attended = shapes.get(f"{name}.attn.norm.weight")
        self.attn = Attention(attended[0], groups) if attended else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) and the embedding (N, width) to (N, c_out, H, W)."""
        out: Tensor = self.attn(self.res_block(x, emb))
        return out
