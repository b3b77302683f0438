"""What is trained: for each task the network, the loss of one batch, and the metadata its backend needs."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backends.sr3.diffusion import cosine_gamma, diffuse, v_target
from backends.sr3.unet import UNet
from backends.training.config import TrainingConfig
from backends.training.data import load_images, load_labels
from harness.resize import resize_matrix


class Task(Protocol):
    """A training task over `count` images."""

    count: int
    network: nn.Module

    def loss(self, network: nn.Module, indices: Tensor, rng: torch.Generator) -> Tensor:
        """Mean loss of one batch; all randomness comes from `rng`."""

    def validation_loss(self, network: nn.Module) -> float:
        """The loss on validation images with fixed noise."""

    def metadata(self) -> dict[str, str]:
        """Settings that are stored in the weights file."""


def stratified_t(count: int, rng: torch.Generator) -> Tensor:
    """`count` values in (0, 1), one in each of `count` equal strata, shuffled."""
    t = (torch.arange(count) + torch.rand(count, generator=rng)) / count
    return t[torch.randperm(count, generator=rng)]


def v_loss(network: nn.Module, y0: Tensor, rng: torch.Generator, **inputs: Tensor | None) -> Tensor:
    """Mean squared error of the v-prediction at stratified noise levels."""
    gamma = cosine_gamma(stratified_t(len(y0), rng))
    eps = torch.randn(y0.shape, generator=rng)
    y_t = diffuse(y0, eps, gamma)
    condition, labels = inputs.get("condition"), inputs.get("labels")
    x = y_t if condition is None else torch.cat([condition, y_t], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(x, gamma) if labels is None else network(x, gamma, labels)
    return F.mse_loss(prediction.float(), v_target(y0, eps, gamma))


def to_model(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability one half."""
    chosen = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Resizer:
    """The one resize as torch matrices: `down` rounds to 8 bit as a server receives it, `up` stays in float."""

    def __init__(self, low: int, high: int) -> None:
        self.down_matrix = torch.from_numpy(resize_matrix(high, low).copy()).float()
        self.up_matrix = torch.from_numpy(resize_matrix(low, high).copy()).float()

    def down(self, x: Tensor) -> Tensor:
        """(N, 3, high, high) in [-1, 1] -> (N, 3, low, low), rounded to the 8-bit grid."""
        y = self.down_matrix @ x @ self.down_matrix.T
        return ((y.clamp(-1, 1) + 1) * 127.5 + 0.5).floor() / 127.5 - 1

    def up(self, x: Tensor) -> Tensor:
        """(N, 3, low, low) -> (N, 3, high, high)."""
        return self.up_matrix @ x @ self.up_matrix.T


class SR3Task:
    """SR3 on the residual over bicubic, scaled to unit variance, with v-prediction."""

    def __init__(self, config: TrainingConfig) -> None:
        self.images = load_images(config.train, config.high)
        self.held_out = load_images(config.validation, config.high)
        self.count = len(self.images)
        self.config = config
        self.resizer = Resizer(config.low, config.high)
        sample = to_model(self.images[:: max(1, self.count // 2000)])
        self.std = float((sample - self.resizer.up(self.resizer.down(sample))).std())
        self.network: nn.Module = UNet(**config.network.model_dump())

    def _loss(self, network: nn.Module, hr: Tensor, rng: torch.Generator) -> Tensor:
        up = self.resizer.up(self.resizer.down(hr))
        return v_loss(network, (hr - up) / self.std, rng, condition=up)

    def loss(self, network: nn.Module, indices: Tensor, rng: torch.Generator) -> Tensor:
        """See `Task.loss`."""
        return self._loss(network, flip(to_model(self.images[indices.numpy()]), rng), rng)

    def validation_loss(self, network: nn.Module) -> float:
        """See `Task.validation_loss`."""
        rng = torch.Generator().manual_seed(1)
        parts = [
            self._loss(network, to_model(self.held_out[i : i + 64]), rng) for i in range(0, len(self.held_out), 64)
        ]
        return float(torch.stack(parts).mean())

    def metadata(self) -> dict[str, str]:
        """See `Task.metadata`."""
        return {"std": f"{self.std:.8f}", "low": str(self.config.low), "high": str(self.config.high)}


class PortraitsTask:
    """The generator behind the embedded portraits: label-conditional diffusion at full size, labels dropped 10 %."""

    def __init__(self, config: TrainingConfig) -> None:
        self.images = load_images(config.train, config.high)
        self.held_out = load_images(config.validation, config.high)
        self.labels = load_labels(config.train)
        self.held_out_labels = load_labels(config.validation)
        self.count = len(self.images)
        self.network: nn.Module = UNet(c_in=3, labels=9, **config.network.model_dump())

    def loss(self, network: nn.Module, indices: Tensor, rng: torch.Generator) -> Tensor:
        """See `Task.loss`."""
        labels = self.labels[indices]
        labels = labels * (torch.rand(len(labels), 1, generator=rng) >= 0.1)
        return v_loss(network, flip(to_model(self.images[indices.numpy()]), rng), rng, labels=labels)

    def validation_loss(self, network: nn.Module) -> float:
        """See `Task.validation_loss`."""
        rng = torch.Generator().manual_seed(1)
        parts = [
            v_loss(network, to_model(self.held_out[i : i + 64]), rng, labels=self.held_out_labels[i : i + 64])
            for i in range(0, len(self.held_out), 64)
        ]
        return float(torch.stack(parts).mean())

    def metadata(self) -> dict[str, str]:
        """See `Task.metadata`."""
        return {}


TASKS: dict[str, type[SR3Task] | type[PortraitsTask]] = {"sr3": SR3Task, "portraits": PortraitsTask}
