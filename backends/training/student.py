"""Distillation: a student of a diffusion model that needs one step, and keeps the variety of its teacher.

The teacher's deterministic sampler maps each noise to one face. Samples of it are drawn once, for several noises an
image, and the student learns that map: first by the squared error, then by L1 and LPIPS-VGG to the teacher's own
sample. LPIPS-VGG to the photo brings the samples nearer to it, and to each other: alone it would have the student
ignore the noise. What holds them apart is a critic that sees two samples of one image beside each other, so that two
alike are told from the teacher's, and a cost of two that are closer than a share of the teacher's distance.

The student begins as its teacher, which is told that the noise is y_t at a level short of 1: at 1 it would answer with
the mean of all faces that fit the input, whatever the noise.
"""

import hashlib
import math
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lpips import normalize_tensor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backends import pixels
from backends.checkpoint import FOLDER, build, load_network
from backends.pixels import to_model
from backends.sr3.diffusion import cosine_gamma, dpm_solver, gammas, one_step
from backends.sr3.unet import UNet
from backends.training.config import ConfigError, Distillation, TrainingConfig
from backends.training.data import read_array, write_array
from backends.training.feedforward import Critic
from backends.training.pairs import FIGURES, Pairs, portions
from backends.training.warm import start_from
from harness.metrics import LPIPS_MINIMUM, lpips_network, score
from harness.resize import to_uint8

PART = 256
"""Training images whose samples are drawn, and written, at a time."""


def noise(image: int, sample: int, size: int) -> Tensor:
    """The noise (3, size, size) of a sample of a training image."""
    generator = torch.Generator().manual_seed(image * 1_000 + sample)
    return torch.randn((3, size, size), generator=generator)


class Teacher:
    """A diffusion model of `backends/weights`, and how it is sampled.

    Raises:
        ConfigError: it is not there, for other sizes than the config's, or predicts something else than v of the
            residual.
    """

    def __init__(self, config: TrainingConfig, distillation: Distillation) -> None:
        self.path = FOLDER / f"{distillation.teacher}.safetensors"
        self.steps = distillation.sampler_steps
        try:
            network, metadata = load_network(self.path, UNet)
            sizes = int(metadata["low"]), int(metadata["high"])
            self.std = float(metadata["std"])
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{config.name}: teacher: {error}") from error
        if sizes != (config.low, config.high):
            raise ConfigError(f"{config.name}: teacher: {distillation.teacher} enlarges {sizes[0]} to {sizes[1]}")
        if (metadata.get("target", "v"), metadata.get("residual", "true")) != ("v", "true"):
            raise ConfigError(f"{config.name}: teacher: {distillation.teacher} does not predict v of the residual")
        self.network = network.to(memory_format=torch.channels_last).requires_grad_(requires_grad=False)

    def copy_to(self, network: nn.Module) -> None:
        """Start a student, which may have fewer blocks.

        Raises:
            ConfigError: its other sizes are not the teacher's.
        """
        if missing := start_from(network, self.network):
            raise ConfigError(f"network: not that of the teacher {self.path.stem}, which has no {min(missing)}")

    @torch.inference_mode()
    def sample(self, up: Tensor, z: Tensor) -> Tensor:
        """Images (N, 3, H, W) from enlarged inputs and noise of that shape."""
        return up + self.std * dpm_solver(Predictor(self.network, up), z, gammas(self.steps), lambda _: None)


class Predictor:
    """A network and the enlarged inputs that condition it, as a `Denoiser`; it computes in bfloat16."""

    def __init__(self, network: nn.Module, up: Tensor) -> None:
        self.network, self.up = network, up

    def __call__(self, y: Tensor, gamma: Tensor) -> Tensor:
        """The prediction at y_t, in float32."""
        x = torch.cat([self.up, y], dim=1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction: Tensor = self.network(x, gamma)
        return prediction.float()


def draw_samples(teacher: Teacher, pairs: Pairs, noises: int) -> NDArray[np.uint8]:
    """The teacher's samples of all training images, (N, noises, H, W, 3), each from `noise(image, sample, H)`.

    They are kept under .cache/ in parts, so that an interrupted drawing goes on where it was.
    """
    text = f"{hashlib.sha256(pairs.images.tobytes()).hexdigest()} {teacher.steps} {noises}"
    key = hashlib.sha256(text.encode() + teacher.path.read_bytes()).hexdigest()[:16]
    folder = Path(".cache/training") / f"samples-{key}"
    parts, begun, drawn = [], time.monotonic(), 0
    for start in range(0, len(pairs.images), PART):
        path = folder / f"{start:06d}.npy"
        samples = read_array(path)
        if samples is None:
            samples = write_array(path, _draw_part(teacher, pairs, noises, start))
            drawn += 1
            left = (len(pairs.images) - start - PART) / PART * (time.monotonic() - begun) / drawn / 60
            print(
                f"samples of the teacher: {start} of {len(pairs.images)} images, {max(0, left):.0f} min left",
                file=sys.stderr,
            )
        parts.append(samples)
    return np.concatenate(parts)


def _draw_part(teacher: Teacher, pairs: Pairs, noises: int, start: int) -> NDArray[np.uint8]:
    hr = to_model(pairs.images[start : start + PART])
    size = hr.shape[-1]
    up = pairs.resizer.up(pairs.resizer.down(hr))
    samples = []
    for k in range(noises):
        z = torch.stack([noise(start + i, k, size) for i in range(len(hr))])
        outputs = [teacher.sample(*both) for both in zip(portions(up), portions(z), strict=True)]
        samples.append(to_uint8(pixels.to_images(torch.cat(outputs)).astype(np.float64)))
    return np.stack(samples, axis=1)


class Perception:
    """LPIPS on VGG16, with the features of an image computed once however many it is compared with."""

    def __init__(self) -> None:
        lpips = lpips_network("vgg")
        self.scale, self.trunk = cast("nn.Module", lpips.scaling_layer), cast("nn.Module", lpips.net)
        self.heads = cast("nn.ModuleList", lpips.lins)

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit features of (N, 3, H, W) images at five depths."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self.trunk(self.scale(x))
        return [normalize_tensor(each.float()) for each in outputs]

    def distances(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """LPIPS between images of these features, (N,)."""
        parts = zip(self.heads, x, y, strict=True)
        layers = [head((a - b) ** 2).mean(dim=(1, 2, 3)) for head, a, b in parts]
        return torch.stack(layers).sum(dim=0)


def halves(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The features of the first samples, and those of the second."""
    first, second = zip(*(each.chunk(2) for each in features), strict=True)
    return list(first), list(second)


def beside(images: Tensor) -> Tensor:
    """First and second samples, (2 N, 3, H, W), beside each other: (N, 6, H, W)."""
    return torch.cat(images.chunk(2), dim=1)


class StudentTask:
    """A one-step student; `batch` counts inputs, with two samples of each in every step."""

    def __init__(self, config: TrainingConfig) -> None:
        if config.distillation is None:
            raise ValueError("a student needs a teacher")
        self.config, self.weights = config, config.distillation
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.teacher = Teacher(config, self.weights)
        self.samples = draw_samples(self.teacher, self.pairs, self.weights.noises)
        self.sizes = config.network.model_dump() | {"c_in": 6}
        self.network = build(self.sizes)
        self.teacher.copy_to(self.network)
        self.critic = Critic(self.weights.critic_channels, c_in=9)
        self.parts: dict[str, nn.Module] = {"network": self.network, "critic": self.critic}
        t = torch.tensor(self.weights.level, dtype=torch.float64)
        self.gamma = float(cosine_gamma(t))

    def _output(self, network: nn.Module, up: Tensor, z: Tensor) -> Tensor:
        return up + self.teacher.std * one_step(Predictor(network, up), z, self.gamma)

    def _enlarged(self, images: NDArray[np.uint8]) -> Tensor:
        return self.pairs.resizer.up(self.pairs.resizer.down(to_model(images)))

    def _draw(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise and the teacher's sample, (2 N, 3, H, W): of each image two, chosen by `rng` from those drawn."""
        chosen = torch.rand(len(indices), self.weights.noises, generator=rng).argsort(dim=1)[:, :2].T.flatten()
        images = indices.repeat(2)
        z = torch.stack([noise(i, k, self.config.high) for i, k in zip(images.tolist(), chosen.tolist(), strict=True)])
        return z, to_model(self.samples[images.numpy(), chosen.numpy()])

    def losses(self, step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        photos = self.pairs.images[indices.numpy()]
        up = self._enlarged(photos)
        z, targets = self._draw(indices, rng)
        outputs = self._output(self.network, up.repeat(2, 1, 1, 1), z)
        if step < self.weights.pretrain:
            yield "network", F.mse_loss(outputs, targets) / self.teacher.std**2
            return
        real, fake = self.critic(beside(targets), up), self.critic(beside(outputs.detach()), up)
        yield "critic", (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
        yield "network", self._student_loss(outputs, targets, up, to_model(photos))

    def _student_loss(self, outputs: Tensor, targets: Tensor, up: Tensor, photos: Tensor) -> Tensor:
        w, perception = self.weights, self.perception
        ours, theirs = perception.features(outputs), perception.features(targets)
        apart, wanted = (perception.distances(*halves(each)) for each in (ours, theirs))
        loss: Tensor = w.pixel * F.l1_loss(outputs, targets) + w.perceptual * perception.distances(ours, theirs).mean()
        if w.photo:
            real = [torch.cat([each, each]) for each in perception.features(photos)]
            loss = loss + w.photo * perception.distances(ours, real).mean()
        loss = loss + w.spread * F.relu(w.share * wanted - apart).mean()
        return loss + w.critic * F.softplus(-self.critic(beside(outputs), up)).mean()

    @cached_property
    def perception(self) -> Perception:
        """LPIPS, loaded when it is first needed."""
        return Perception()

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`; the loss is the squared error of the residual against the teacher's samples."""
        up, z, theirs = self._held_out
        ours = torch.stack([self._outputs(network, up, each) for each in z])
        beside_theirs = ours[:, : theirs.shape[1]]
        return {
            "validation_loss": float(F.mse_loss(beside_theirs, theirs)) / self.teacher.std**2,
            **self.pairs.figures(ours[0]),
            **_diversity("diversity", beside_theirs),
            **_diversity("teacher_diversity", theirs),
            "lr_mse": self._lr_mse(ours[0]),
        }

    def _outputs(self, network: nn.Module, up: Tensor, z: Tensor) -> Tensor:
        parts = zip(portions(up), portions(z), strict=True)
        return torch.cat([self._output(network, *part) for part in parts])

    def _lr_mse(self, outputs: Tensor) -> float:
        """Mean squared difference, on the scale 0 to 1, between validation inputs and the outputs made small again."""
        down = self.pairs.resizer.down
        return float(F.mse_loss(down(outputs), down(to_model(self.pairs.held_out[:FIGURES])))) / 4

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Enlarged validation photos (N, ...), two noises of each (2, N, ...), the teacher's samples of half of all."""
        up = self._enlarged(self.pairs.held_out[:FIGURES])
        z = torch.randn((2, *up.shape), generator=torch.Generator().manual_seed(1))
        half = math.ceil(len(up) / 2)
        return up, z, torch.stack([self.teacher.sample(up[:half], each[:half]) for each in z])

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        c = self.config
        settings = {"std": f"{self.teacher.std:.8f}", "low": str(c.low), "high": str(c.high), "gamma": repr(self.gamma)}
        return self.sizes, settings


def _diversity(name: str, samples: Tensor) -> dict[str, float]:
    """Mean LPIPS (AlexNet) between two samples (2, N, 3, H, W) of each image; none for tiny images."""
    if samples.shape[-1] < LPIPS_MINIMUM:
        return {}
    first, second = (to_uint8(pixels.to_images(each).astype(np.float64)) for each in samples)
    return {name: float(score("lpips_alex", first, second, second, 1).mean())}
