"""Distillation: a student of a diffusion model that needs one step, and keeps much of its teacher's variety.

The teacher's deterministic sampler maps each noise to one face. Two samples of each image are drawn once, and the
student learns that map by the squared error, which leaves its faces a little soft and grainy. Then it learns from the
photo as well, as SRGAN does: by LPIPS-VGG, and against a critic that sees photos. Alone these would have it ignore the
noise. What keeps its faces apart is L1 to the teacher's sample of the same noise, and a cost of two faces of one input
that are nearer to each other than a share of the teacher's distance.

The student begins as its teacher, which is told that the noise is y_t at a level short of 1: at 1 it would answer with
the mean of all faces that fit the input, whatever the noise.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

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
"""Training images whose samples, or the distances between them, are made and written at a time."""
SAMPLES = 2
"""Samples of each training image: one, and another to be apart from."""


def noise(image: int, sample: int, size: int) -> Tensor:
    """The noise (3, size, size) of a sample of a training image."""
    generator = torch.Generator().manual_seed(image * 1_000 + sample)
    return torch.randn((3, size, size), generator=generator)


class Teacher:
    """A diffusion model of `backends/weights`, and how it is sampled.

    Raises:
        ConfigError: it is not there, for other sizes than the config's, or predicts something else than v of the
            residual, or has a conditioning augmentation.
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
        if "augmentation" in metadata:
            raise ConfigError(f"{config.name}: teacher: {distillation.teacher} wants noise on its inputs")
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


def _key(teacher: Teacher, pairs: Pairs) -> str:
    """What the samples of a teacher depend on: its weights and steps, and the training images."""
    text = f"{hashlib.sha256(pairs.images.tobytes()).hexdigest()} {teacher.steps} {SAMPLES}"
    return hashlib.sha256(text.encode() + teacher.path.read_bytes()).hexdigest()[:16]


def in_parts(what: str, key: str, count: int, make: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """An array (count, ...) that `make` makes part by part, such as the samples of a teacher.

    The parts are kept under .cache/, so that what is interrupted goes on where it was.
    """
    folder = Path(".cache/training") / f"{what}-{key}"
    parts, begun, made = [], time.monotonic(), 0
    for start in range(0, count, PART):
        path = folder / f"{start:06d}.npy"
        part = read_array(path)
        if part is None:
            part = write_array(path, make(slice(start, start + PART)))
            made += 1
            left = max(0, count - start - PART) / PART * (time.monotonic() - begun) / made / 60
            print(
                f"{what} of the teacher: {min(start + PART, count)} of {count} images, {left:.0f} min left",
                file=sys.stderr,
            )
        parts.append(part)
    return np.concatenate(parts)


def draw_samples(teacher: Teacher, pairs: Pairs, part: slice) -> NDArray[np.uint8]:
    """The teacher's samples of training images, (N, SAMPLES, H, W, 3), each from `noise(image, sample, H)`."""
    hr = to_model(pairs.images[part])
    up = pairs.resizer.up(pairs.resizer.down(hr))
    samples = []
    for k in range(SAMPLES):
        z = torch.stack([noise(part.start + i, k, hr.shape[-1]) for i in range(len(hr))])
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


def _twice(images: Tensor) -> Tensor:
    """Images or features (N, C, H, W) for both samples: (2 N, C, H, W), all for the first, then all for the second."""
    return images.repeat(SAMPLES, 1, 1, 1)


def halves(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The features of the first samples, and those of the second."""
    first, second = zip(*(each.chunk(2) for each in features), strict=True)
    return list(first), list(second)


class StudentTask:
    """A one-step student; `batch` counts inputs, with two samples of each in every step."""

    def __init__(self, config: TrainingConfig) -> None:
        if config.distillation is None:
            raise ValueError("a student needs a teacher")
        self.config, self.weights = config, config.distillation
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.teacher = Teacher(config, self.weights)
        key = _key(self.teacher, self.pairs)
        self.samples = in_parts("samples", key, self.count, partial(draw_samples, self.teacher, self.pairs))
        self.perception = Perception()
        self.apart = torch.from_numpy(in_parts("distances", key, self.count, self._measure))
        self.sizes = config.network.model_dump() | {"c_in": 6}
        self.network = build(self.sizes)
        self.teacher.copy_to(self.network)
        self.critic = Critic(self.weights.critic_channels)
        self.parts: dict[str, nn.Module] = {"network": self.network, "critic": self.critic}
        t = torch.tensor(self.weights.level, dtype=torch.float64)
        self.gamma = float(cosine_gamma(t))

    def _output(self, network: nn.Module, up: Tensor, z: Tensor) -> Tensor:
        return up + self.teacher.std * one_step(Predictor(network, up), z, self.gamma)

    def losses(self, step: int, indices: Tensor, _rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        photos = to_model(self.pairs.images[indices.numpy()])
        up = self.pairs.resizer.up(self.pairs.resizer.down(photos))
        z, targets = self._draw(indices)
        outputs = self._output(self.network, _twice(up), z)
        if step < self.weights.pretrain:
            yield "network", F.mse_loss(outputs, targets) / self.teacher.std**2
            return
        real, fake = self.critic(photos, up), self.critic(outputs.detach(), _twice(up))
        yield "critic", (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
        judged = F.softplus(-self.critic(outputs, _twice(up))).mean()
        yield "network", self.weights.critic * judged + self._distances(outputs, targets, photos, self.apart[indices])

    def _draw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and the teacher's sample, (2 N, 3, H, W): the first of each image, then the second of each."""
        places = [(i, k) for k in range(SAMPLES) for i in indices.tolist()]
        z = torch.stack([noise(i, k, self.config.high) for i, k in places])
        return z, to_model(np.stack([self.samples[place] for place in places]))

    def _distances(self, outputs: Tensor, targets: Tensor, photos: Tensor, apart: Tensor) -> Tensor:
        """What two outputs of each image cost, (2 N, 3, H, W), but for the critic.

        They are held against the teacher's samples (2 N, 3, H, W) and the photos (N, 3, H, W), and against each other;
        `apart` is LPIPS-VGG between the teacher's two samples of each, (N,).
        """
        w, perception = self.weights, self.perception
        ours, theirs = perception.features(outputs), perception.features(photos)
        to_photo = perception.distances(ours, [_twice(each) for each in theirs]).mean()
        too_near = F.relu(w.share * apart - perception.distances(*halves(ours))).mean()
        return w.pixel * F.l1_loss(outputs, targets) + w.perceptual * to_photo + w.spread * too_near

    @torch.no_grad()
    def _measure(self, part: slice) -> NDArray[np.float32]:
        """LPIPS-VGG between the teacher's two samples of training images, (N,)."""
        first, second = (portions(to_model(self.samples[part, k])) for k in range(SAMPLES))
        features = self.perception.features
        distances = [self.perception.distances(features(x), features(y)) for x, y in zip(first, second, strict=True)]
        return np.concatenate([each.numpy() for each in distances])

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
        resizer = self.pairs.resizer
        up = resizer.up(resizer.down(to_model(self.pairs.held_out[:FIGURES])))
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
