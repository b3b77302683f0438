"""Training of a cascade's parts: the class-conditional base, and the stages that enlarge what it makes."""

import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from backends.checkpoint import build
from backends.sr3.diffusion import Formulation, cosine_gamma, dpm_solver, gammas
from backends.training.config import TrainingConfig
from backends.training.diffusion import blurred, diffusion_loss, noisy
from backends.training.labelled import Labelled
from backends.training.pairs import FIGURES, Resizer, paired_figures, portions

STEPS = 8
"""Sampler steps behind the validation figures."""
UNLABELLED = 0.1
"""Share of the training images whose class a stage is not told, so that it can do without."""
IMAGES = Formulation(residual=False)
"""v-prediction of the image itself: the residual over an input with noise would be that noise."""


class CDMBaseTask:
    """The base of a cascade: diffusion at full size, conditional on the class (CDM, section 2)."""

    def __init__(self, config: TrainingConfig) -> None:
        self.data = Labelled(config)
        self.count = len(self.data.images)
        self.sizes = config.network.model_dump() | {"c_in": 3, "labels": len(self.data.names)}
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        images, classes = self.data.batch(indices, rng)
        yield "network", diffusion_loss(self.network, IMAGES, images, rng, labels=self.data.one_hot(classes))

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`."""
        rng = torch.Generator().manual_seed(1)
        data, held_out = self.data, torch.arange(len(self.data.held_out))
        labels = data.one_hot(data.held_out_classes)
        losses = [
            diffusion_loss(network, IMAGES, data.photos(part), rng, labels=labels[part]) for part in portions(held_out)
        ]
        samples = [self._sample(network, part, rng) for part in portions(labels)]
        return {"validation_loss": float(torch.stack(losses).mean()), **data.figures(torch.cat(samples))}

    def _sample(self, network: nn.Module, labels: Tensor, rng: torch.Generator) -> Tensor:
        size = self.data.images.shape[1]
        noise = torch.randn((len(labels), 3, size, size), generator=rng)
        return sample(network, noise, labels)

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        return self.sizes, {"classes": json.dumps(self.data.names), "size": str(self.data.images.shape[1])}


def sample(network: nn.Module, noise: Tensor, *told: Tensor, condition: Tensor | None = None) -> Tensor:
    """Images (N, 3, H, W) of noise and what the network is told beside the noise level, in bfloat16."""

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        x = y if condition is None else torch.cat([condition, y], dim=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v: Tensor = network(x.contiguous(memory_format=torch.channels_last), gamma, *told)
        return v.float()

    return dpm_solver(denoise, noise, gammas(STEPS), lambda _: None)


class CDMStageTask:
    """A stage that enlarges, conditional on the class, with conditioning augmentation (CDM, section 2.1).

    In training the level s of each image is uniform up to the config's `augmentation`; the low-resolution image z
    becomes z_s ~ q(z_s | z), and the network is told s.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.data, self.resizer = Labelled(config), Resizer(config.low, config.high)
        self.count = len(self.data.images)
        told = {"labels": len(self.data.names), "levels": int(config.augmentation > 0)}
        self.sizes = config.network.model_dump() | {"c_in": 6} | told
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        hr, classes = self.data.batch(indices, rng)
        labels = self.data.one_hot(classes) * (torch.rand((len(hr), 1), generator=rng) >= UNLABELLED)
        yield "network", self._loss(self.network, hr, labels, rng)

    def _loss(self, network: nn.Module, hr: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        low = blurred(self.resizer.down(hr), self.config.blur, rng)
        condition, level = self._augmented(low, self.config.augmentation * torch.rand(len(hr), generator=rng), rng)
        return diffusion_loss(network, IMAGES, hr, rng, condition=condition, labels=labels, level=level)

    def _augmented(self, low: Tensor, s: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs with noise of the level s, (N,), enlarged, and gamma of s; without augmentation, as they are."""
        low, gamma = noisy(low, s, rng) if self.config.augmentation else (low, cosine_gamma(s))
        return self.resizer.up(low), gamma

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`; the figures are of inputs at the level that the stage is used at."""
        rng = torch.Generator().manual_seed(1)
        data, held_out = self.data, torch.arange(len(self.data.held_out))
        labels = data.one_hot(data.held_out_classes)
        losses = [self._loss(network, data.photos(part), labels[part], rng) for part in portions(held_out)]
        outputs = [self._sample(network, part, rng) for part in portions(held_out[:FIGURES])]
        figures = paired_figures(torch.cat(outputs), data.held_out[:FIGURES])
        return {"validation_loss": float(torch.stack(losses).mean()), **figures}

    def _sample(self, network: nn.Module, held_out: Tensor, rng: torch.Generator) -> Tensor:
        """Outputs for validation photos by their place."""
        hr, labels = self.data.photos(held_out), self.data.one_hot(self.data.held_out_classes[held_out])
        low, s = self.resizer.down(hr), torch.full((len(hr),), self.config.level)
        condition, level = self._augmented(low, s, rng)
        return sample(network, torch.randn(hr.shape, generator=rng), labels, level, condition=condition)

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        config, names = self.config, ("low", "high", "augmentation", "level")
        settings = {name: str(getattr(config, name)) for name in names}
        settings |= {"std": "1.0", "target": "v", "residual": "false"}
        return self.sizes, settings | {"classes": json.dumps(self.data.names)}
