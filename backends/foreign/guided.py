"""The upsamplers of guided-diffusion (Dhariwal and Nichol, arXiv 2105.05233; github.com/openai/guided-diffusion).

Written from the names and shapes of their weights, their flags in its README and the paper. The file holds the sizes
of all layers, but not the number of attention heads, nor the scale and the size of the images it was trained with.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backends.foreign.files import Shapes, State, count, shapes_of
from backends.foreign.sampling import linear_gammas
from backends.pixels import to_model

Heads = Callable[[int], int]
"""Attention heads for a number of channels."""

HEADS: dict[tuple[int, ...], Heads] = {
    (8, 16, 32): lambda _channels: 4,  # 64 -> 256
    (16, 32): lambda channels: channels // 64,  # 128 -> 512
}
"""Of the published models, by how much smaller than the image they attend."""


class Guided:
    """The family: its schedule and its conventions."""

    entry = "input_blocks.0.0.weight"
    gammas = linear_gammas(1e-4, 2e-2, 1000)  # "linear" of both published upsamplers
    scale = 4  # of both published upsamplers
    licence = "not in the file; the published weights: MIT repository, ImageNet; for research, not for commercial use"
    domain = "what it was trained on is not in the file; the published models: ImageNet, 64 -> 256 and 128 -> 512"

    def __init__(self, state: State, heads: int | None) -> None:
        self.state = state
        self.network = UNet(shapes_of(state), heads)
        self.classes = int(state["label_emb.weight"].shape[0]) if "label_emb.weight" in state else 0

    def enlarge(self, images: NDArray[np.uint8], scale: int) -> Tensor:
        """What the network is conditioned on: bilinear, corners not aligned."""
        return F.interpolate(to_model(images), scale_factor=float(scale), mode="bilinear")

    def inputs(self, y: Tensor, up: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(N, 6, H, W), the noisy images before the enlarged ones; and the step of all, (1,)."""
        return torch.cat([y, up], dim=1), y.new_full((1,), t)

    def outputs(self, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """The network predicts eps, and the variance between its bounds."""
        eps, place = predicted.chunk(2, dim=1)
        return eps, place


class UNet(nn.Module):
    """The network whose weights have these names and shapes.

    Raises:
        ValueError: it attends where no published model does, and `heads` is not given.
    """

    def __init__(self, shapes: Shapes, heads: int | None) -> None:
        super().__init__()
        width, self.width = shapes["time_embed.0.weight"]
        self.time_embed = nn.Sequential(nn.Linear(self.width, width), nn.SiLU(), nn.Linear(width, width))
        if "label_emb.weight" in shapes:
            classes, _ = shapes["label_emb.weight"]
            self.label_emb = nn.Embedding(classes, width)
        layout = Layout(shapes, heads)
        self.input_blocks = nn.ModuleList(map(layout.stage, layout.names("input_blocks")))
        self.middle_block = layout.stage("middle_block")
        self.output_blocks = nn.ModuleList(map(layout.stage, layout.names("output_blocks")))
        c_out, c_in = shapes["out.2.weight"][:2]
        self.out = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.multiple = 2**layout.halvings

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Map (N, 6, H, W), step and, if it has classes, label, (N,) or (1,), to (N, 6, H, W): eps and its variance."""
        emb = self.time_embed(encode_step(t, self.width))
        if label is not None:
            emb = emb + self.label_emb(label)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        out: Tensor = self.out(x)
        return out


def encode_step(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of the step, at frequencies from 1 down to 1e-4: (N,) -> (N, width)."""
    half = width // 2
    angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Layout:
    """Reads the order of the layers from their names.

    A level is `period` stages long. Residual blocks that change the size have no names of their own: on the way up
    they stand second to another in a stage; on the way down they are every `period`-th stage.

    Raises:
        ValueError: there are fewer stages on the way up than levels.
    """

    def __init__(self, shapes: Shapes, heads: int | None) -> None:
        self.shapes = shapes
        self.halvings = sum(len(self._blocks(name)) == 2 for name in self.names("output_blocks"))
        self.period = count(shapes, "output_blocks") // (self.halvings + 1)
        if self.period == 0:
            raise ValueError("output_blocks: stages are missing")
        self.heads = self._published() if heads is None else lambda _channels: heads

    def names(self, part: str) -> list[str]:
        """The stages of a part."""
        return [f"{part}.{i}" for i in range(count(self.shapes, part))]

    def _blocks(self, stage: str) -> list[str]:
        return [name for name in self.names(stage) if f"{name}.in_layers.0.weight" in self.shapes]

    def _published(self) -> Heads:
        inputs = self.names("input_blocks")
        levels = {(i - 1) // self.period for i, name in enumerate(inputs) if f"{name}.1.qkv.weight" in self.shapes}
        attended = tuple(sorted(2**level for level in levels))
        if attended not in HEADS:
            raise ValueError("the number of its attention heads is not in the file: write heads=N")
        return HEADS[attended]

    def stage(self, name: str) -> "Stage":
        """The layers of one stage."""
        return Stage(self._layer(layer) for layer in self.names(name))

    def _layer(self, name: str) -> nn.Module:
        shapes = self.shapes
        if f"{name}.weight" in shapes:
            c_out, c_in = shapes[f"{name}.weight"][:2]
            return nn.Conv2d(c_in, c_out, 3, padding=1)
        if f"{name}.qkv.weight" in shapes:
            channels = shapes[f"{name}.norm.weight"][0]
            return Attention(channels, self.heads(channels))
        return ResBlock(shapes, name, self._resize(name))

    def _resize(self, name: str) -> float:
        part, stage = name.split(".")[:2]
        if part == "input_blocks" and int(stage) % self.period == 0:
            return 0.5
        if part == "output_blocks" and name in self._blocks(f"{part}.{stage}")[1:]:
            return 2.0
        return 1.0


class Stage(nn.ModuleList):
    """Layers one after the other; residual blocks see the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) and (N, width) to (N, c_out, H', W')."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """BigGAN's residual block: it can halve or double the sides; the embedding scales and shifts the second half."""

    def __init__(self, shapes: Shapes, name: str, resize: float) -> None:
        super().__init__()
        c_out, c_in = shapes[f"{name}.in_layers.2.weight"][:2]
        width = shapes[f"{name}.emb_layers.1.weight"][1]
        self.resize = resize
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * c_out))
        convolution = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Identity(), convolution)
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) and (N, width) to (N, c_out, resize H, resize W)."""
        norm, activate, convolve = self.in_layers
        h = convolve(self._resized(activate(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        out: Tensor = self.skip_connection(self._resized(x)) + h
        return out

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == 1:
            return x
        return F.avg_pool2d(x, 2) if self.resize < 1 else F.interpolate(x, scale_factor=2.0, mode="nearest")


class Attention(nn.Module):
    """Self-attention over all positions; q, k and v of a head lie side by side."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x.flatten(2))).reshape(n, self.heads, -1, height * width)
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=3)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, channels, -1)
        out: Tensor = x + self.proj_out(h).reshape(x.shape)
        return out
