"""Training of BigGAN (Brock et al., arXiv 1809.11096): hinge loss, spectral norm, a projection discriminator.

From the paper: spectral norm in both networks, orthogonal initial weights, the hinge loss, two learning rates, a
running average of the generator whose batch normalisation gets standing statistics. Departures: one step of the
discriminator for each of the generator, and images enter it by pixel-unshuffle.
"""

import itertools
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from backends.biggan.networks import Generator
from backends.training.config import BigGAN, TrainingConfig
from backends.training.labelled import Labelled
from backends.training.pairs import portions

STANDING = 16
"""Batches of samples over which the statistics of the normalisation are taken (the paper's appendix D)."""


class DownBlock(nn.Module):
    """Residual block of the discriminator; halves the size where `down` is set (the paper's figure 15c)."""

    def __init__(self, c_in: int, c_out: int, *, down: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_in, 3, padding=1)
        self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1)
        self.resize: nn.Module = nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to (N, c_out, H / 2, W / 2), or of the same size."""
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        out: Tensor = self.resize(h + self.shortcut(x))
        return out


class Discriminator(nn.Module):
    """D(x, y) with projection (Miyato and Koyama, arXiv 1802.05637): psi(phi(x)) + <embedding(y), phi(x)>."""

    def __init__(self, classes: int, channels: int, sizes: BigGAN) -> None:
        super().__init__()
        widths = [channels * m for m in reversed(sizes.multipliers)]
        self.patch = sizes.patch
        self.entrance = nn.Conv2d(3 * sizes.patch**2, widths[0], 3, padding=1)
        pairs = list(itertools.pairwise([*widths, widths[-1]]))
        last = DownBlock(widths[-1], widths[-1], down=False)
        self.blocks = nn.Sequential(*(DownBlock(a, b, down=True) for a, b in pairs), last)
        self.psi = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(classes, widths[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (N,) of images (N, 3, H, W) and their classes (N,)."""
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = F.relu(self.blocks(self.entrance(h)))
        phi = h.float().sum(dim=(2, 3))
        logits: Tensor = self.psi(phi)[:, 0] + (self.embedding(y) * phi).sum(dim=1)
        return logits


def prepare(network: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    """Orthogonal initial weights, then spectral norm, for the modules of these kinds."""
    for module in list(network.modules()):
        if isinstance(module, kinds):
            nn.init.orthogonal_(module.weight)  # type: ignore[arg-type]  # a tensor, in all kinds given here
            spectral_norm(module)
    return network


class BigGANTask:
    """The generator against the discriminator, on images and their classes."""

    def __init__(self, config: TrainingConfig) -> None:
        if config.hinge is None or not isinstance(config.network, BigGAN):
            raise ValueError("a BigGAN needs its discriminator")
        self.config, self.data = config, Labelled(config)
        self.count, classes = len(self.data.images), len(self.data.names)
        self.sizes = config.network.model_dump() | {"classes": classes}
        self.generator = Generator(**{k: v for k, v in self.sizes.items() if k != "kind"})
        prepare(self.generator, nn.Conv2d, nn.Linear)
        nn.init.orthogonal_(self.generator.embedding.weight)
        critic = Discriminator(classes, config.hinge.critic_channels, config.network)
        self.critic = prepare(critic, nn.Conv2d, nn.Linear, nn.Embedding)
        self.parts: dict[str, nn.Module] = {"network": self.generator, "critic": self.critic}

    def _fake(self, network: nn.Module, classes: Tensor, rng: torch.Generator) -> Tensor:
        z = torch.randn((len(classes), self.generator.latents), generator=rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images: Tensor = network(z, classes)
        return images.float()

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        real, classes = self.data.batch(indices, rng)
        fake = self._fake(self.generator, classes, rng)
        yield "critic", self._critic_loss(real, fake.detach(), classes)
        yield "network", -self.critic(fake, classes).mean()

    def _critic_loss(self, real: Tensor, fake: Tensor, classes: Tensor) -> Tensor:
        """The hinge loss (Lim and Ye, arXiv 1705.02894)."""
        return F.relu(1 - self.critic(real, classes)).mean() + F.relu(1 + self.critic(fake, classes)).mean()

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`; the loss is the discriminator's. Gives the network its standing statistics first."""
        rng = torch.Generator().manual_seed(1)
        self._stand(network, rng)
        data = self.data
        fake = [self._fake(network, part, rng) for part in portions(data.held_out_classes)]
        real = portions(data.photos(torch.arange(len(data.held_out))))
        self.critic.eval()  # no power iteration here, which would change the training
        parts = zip(real, fake, portions(data.held_out_classes), strict=True)
        losses = [self._critic_loss(*part) for part in parts]
        self.critic.train()
        return {"validation_loss": float(torch.stack(losses).mean()), **data.figures(torch.cat(fake))}

    def _stand(self, network: nn.Module, rng: torch.Generator) -> None:
        """Statistics of the averaged network's own samples, for its normalisation to be evaluated by."""
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for _ in range(STANDING):
            drawn = torch.randint(self.count, (self.config.batch,), generator=rng)
            self._fake(network, self.data.classes[drawn], rng)
        for norm in norms:
            norm.eval()

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        return self.sizes, {"classes": json.dumps(self.data.names), "size": str(self.config.high)}
