"""The denoising U-Net of SR3 (arXiv 2104.07636, section 2 and appendix), sized for CPUs.

From the paper: BigGAN residual blocks, skip connections scaled by 1/sqrt(2), the low-resolution image
(bicubic-enlarged) concatenated to y_t, and the noise level gamma instead of a time step as input.
Departures: pixel-unshuffle at the entrance and pixel-shuffle at the exit, so that no layer runs at full
size; GroupNorm of 8 groups; attention in the middle only; the noise level scales and shifts (FiLM).
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SKIP = 1 / math.sqrt(2)


class NoiseLevel(nn.Module):
    """Embeds the noise level gamma in [0, 1] as a vector, by sinusoids of the angle t with gamma = cos(t pi/2)^2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels))

    def forward(self, gamma: Tensor) -> Tensor:
        """Map gamma of shape (N,) to an embedding of shape (N, 2 * channels)."""
        t = torch.acos(gamma.float().clamp(0, 1).sqrt()) * (2 / math.pi)
        half = self.channels // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angle = 1000 * t[:, None] * frequency[None]
        embedded: Tensor = self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))
        return embedded


class ResidualBlock(nn.Module):
    """BigGAN residual block, resampling inside (`up`, `down` or `same`), modulated by the embedding."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, resample: str = "same") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to (N, c_out, H', W')."""
        h = self.conv1(_resize(F.silu(self.norm1(x)), self.resample))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = (self.shortcut(_resize(x, self.resample)) + h) * SKIP
        return out


class FixedBlock(nn.Module):
    """A residual block for one embedding, (1, c_emb): scale, shift and the factor of the sum are in the weights."""

    @torch.no_grad()
    def __init__(self, block: ResidualBlock, emb: Tensor) -> None:
        super().__init__()
        block = copy.deepcopy(block)
        self.resample = block.resample
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.shortcut = block.shortcut
        scale, shift = block.emb(F.silu(emb))[0].chunk(2)
        self.norm2.weight.mul_(1 + scale)
        self.norm2.bias.mul_(1 + scale).add_(shift)
        for parameter in (*self.conv2.parameters(), *self.shortcut.parameters()):
            parameter.mul_(SKIP)
        self.factor = SKIP if isinstance(self.shortcut, nn.Identity) else 1.0

    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to (N, c_out, H', W')."""
        h = self.conv1(_resize(F.silu(self.norm1(x)), self.resample))
        h = self.conv2(F.silu(self.norm2(h)))
        return torch.add(h, self.shortcut(_resize(x, self.resample)), alpha=self.factor)


def _resize(x: Tensor, resample: str) -> Tensor:
    if resample == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if resample == "down" else x


class Attention(nn.Module):
    """Self-attention over all positions of a small feature map, four heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, 4, c // 4, h * w).transpose(-1, -2).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        out: Tensor = (x + self.out(a)) * SKIP
        return out


class UNet(nn.Module):
    """f(inputs, gamma, labels, level): the network that predicts the training target from noisy images.

    Args:
        c_in: channels of the input (6 for SR3: enlarged LR image and y_t; 3 for an unconditional model).
        channels: width at the first level; `multipliers` give the width of each further level.
        patch: factor of the pixel-unshuffle at the entrance.
        labels: number of real-valued label inputs added to the embedding (0: none).
        levels: 1 for a network that is told the noise level of its conditioning too (0: none).
        input_skip: 1 to add each of the images at the input to the output, times a factor learned of the embedding
            (0: none). The entrance is narrower than what it takes in; what it drops of the noise in y_t comes back so,
            as by the c_skip of EDM (arXiv 2206.00364, section 5), which has one factor, given, and one image.
    """

    def __init__(  # noqa: PLR0913 - the five numbers of the paper's architecture tables, and four of ours
        self,
        *,
        c_in: int = 6,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        patch: int = 4,
        labels: int = 0,
        levels: int = 0,
        input_skip: int = 0,
    ) -> None:
        super().__init__()
        self.c_in, self.patch = c_in, patch
        c_emb = 2 * channels
        self.noise: nn.Module = NoiseLevel(channels)
        self.label = nn.Sequential(nn.Linear(labels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb)) if labels else None
        self.level = NoiseLevel(channels) if levels else None
        self.entrance = nn.Conv2d(c_in * patch**2, channels, 3, padding=1)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        widths = [channels]
        c = channels
        for level, m in enumerate(multipliers):
            if level:
                self.down.append(ResidualBlock(c, c, c_emb, "down"))
                widths.append(c)
            for _ in range(blocks):
                self.down.append(ResidualBlock(c, channels * m, c_emb))
                c = channels * m
                widths.append(c)
        self.middle.extend([ResidualBlock(c, c, c_emb), Attention(c), ResidualBlock(c, c, c_emb)])
        for level, m in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(c + widths.pop(), channels * m, c_emb))
                c = channels * m
            if level:
                self.up.append(ResidualBlock(c, c, c_emb, "up"))
        self.norm = nn.GroupNorm(8, c)
        self.exit = nn.Conv2d(c, 3 * patch**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        self.factors = nn.Linear(c_emb, c_in // 3) if input_skip else None
        if self.factors is not None:
            nn.init.zeros_(self.factors.weight)

    @property
    def multiple(self) -> int:
        """Height and width of the input must be a multiple of this."""
        return int(self.patch * 2 ** sum(getattr(b, "resample", "") == "down" for b in self.down))

    def forward(self, x: Tensor, gamma: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Map (N, c_in, H, W) and gamma (N,), or (1,) for all images, to (N, 3, H, W).

        `labels` are (N, labels), zeros for none; `level` is the gamma of the conditioning, (N,).
        """
        emb = self.noise(gamma)
        if self.label is not None and labels is not None:
            emb = emb + self.label(labels)
        if self.level is not None and level is not None:
            emb = emb + self.level(level)
        h = self.entrance(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for block in self.down:
            h = block(h, emb)
            skips.append(h)
        for block in self.middle:
            h = block(h) if isinstance(block, Attention) else block(h, emb)
        for block in self.up:
            joined = h if block.resample == "up" else torch.cat([h, skips.pop()], dim=1)
            h = block(joined, emb)
        out: Tensor = F.pixel_shuffle(self.exit(F.silu(self.norm(h))), self.patch)
        if self.factors is not None:
            images = x.reshape(len(x), -1, 3, *x.shape[2:])
            out = out + (self.factors(emb)[:, :, None, None, None] * images).sum(dim=1)
        return out


def at_level(network: UNet, gamma: float) -> UNet:
    """The network, one without labels, for a single noise level: equal there, with fewer operations.

    What depends on the noise level alone is computed here, once, and kept in the weights.

    Raises:
        ValueError: it has an input skip, whose factors follow the noise level.
    """
    if network.factors is not None:
        raise ValueError("a network for one noise level has no input_skip: use other weights")
    fixed = copy.deepcopy(network)
    emb = network.noise(torch.full((1,), gamma))
    for blocks in (fixed.down, fixed.middle, fixed.up):
        for i, block in enumerate(blocks):
            if isinstance(block, ResidualBlock):
                blocks[i] = FixedBlock(block, emb)
    fixed.noise = nn.Identity()
    return fixed
