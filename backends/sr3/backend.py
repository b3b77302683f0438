"""SR3 as a backend: noise and the enlarged image in, a face out, by a sampler of `backends.sr3.diffusion`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import harness.resize
from backends.base import Batch, Description, FloatBatch, Gradients, Option, Progress, Refused
from backends.checkpoint import load_weights, weights_file
from backends.device import Device
from backends.pixels import Pixels, differentiate, enlarge, to_images, to_model
from backends.sr3 import diffusion, unet
from backends.sr3.diffusion import Denoiser, Formulation
from harness.errors import one_line
from protos.values import Value

Noise = Callable[[], Tensor]
"""Draws standard normal noise, (N, 3, H, W)."""
Options = dict[str, Value]
SAMPLERS = ("ddim", "dpm++2m", "ancestral")
OF_STEPS = (
    Option("steps", 16, "network evaluations for each image", minimum=1, maximum=1000),
    Option("sampler", "ddim", "ddim, dpm++2m: deterministic; ancestral: the paper's", choices=SAMPLERS),
    Option("schedule", 1.0, "power of the steps' times; 1: equal steps, 2: short last ones", minimum=0.25, maximum=2.0),
)
"""The options of a model of several steps."""
ROUNDING = 1e-6
"""A level that travels as a 32-bit float may come to lie this much above what was meant."""
SCHEDULES = {"sr3-16-64": 0.7}
"""Weights -> their default schedule, chosen by KID on the validation split (suite `sr3-schedules`); of others 1."""


class _Faces(ABC):
    """A network of the training kit that makes faces of noise, on its device, with its description."""

    CODE: ClassVar[tuple[Path, ...]] = ()
    """Files of a derived class, for the digest."""
    NAME: ClassVar[str]
    """The backend, as `backends.checkpoint` names it."""

    def __init__(self, weights: str, options: tuple[Option, ...], **settings: str) -> None:
        self.device = Device(**settings)
        path, network, self.metadata = load_weights(weights, unet.UNet, backend=self.NAME)
        self.network = self.device.place(self._prepare(network))
        self.formulation = formulation(self.metadata)
        low, high = int(self.metadata["low"]), int(self.metadata["high"])
        code = [*self.CODE, *(Path(module.__file__ or "") for module in (diffusion, unet, harness.resize))]
        scale = high // low
        self.description = Description(
            name=path.stem.removesuffix("-16-64"),
            family="diffusion",
            digest=self.device.digest(Path(__file__), *code, path),
            scales=(scale,),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain=f"aligned faces of {low} x {low} pixels",
            deterministic=False,
            minimum=low,
            maximum=4 * low,
            multiple_of=max(1, network.multiple // scale),
            domain_minimum=low,
            options=options,
            device=self.device.name,
            precision=self.device.precision,
            merge=True,
            progress=bool(options),
        )

    def _prepare(self, network: unet.UNet) -> unet.UNet:
        """The network as it is evaluated."""
        return network

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        return to_images(self._output(batch.images, batch, progress))

    def gradient(self, batch: FloatBatch, progress: Progress) -> Gradients:
        """See `Differentiable.gradient`: through all steps of the sampler, whose noise is the seed's.

        One step at a time is in memory; it is computed again on the way back.
        """
        return differentiate(lambda images: self._output(images, batch, progress), batch)

    def _output(self, images: Pixels, batch: Batch | FloatBatch, progress: Progress) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        up, told = self._inputs(images, batch, generators)
        noise = partial(self.device.normal, generators, up.shape[1:])

        def evaluate(y: Tensor, gamma: Tensor) -> Tensor:
            if up.requires_grad:
                progress(0, 1)  # on the way back no sampler asks whether the client is still there
            x = torch.cat([up, y], dim=1).contiguous(memory_format=torch.channels_last)
            return self.formulation.v(self.network(x, gamma, *told).float(), y, gamma)

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            if not up.requires_grad:
                return evaluate(y, gamma)
            v: Tensor = checkpoint(evaluate, y, gamma, use_reentrant=False, preserve_rng_state=False)
            return v

        with self.device.autocast():
            y0 = self._sample(denoise, noise, batch.options, progress)
        self.device.synchronise()
        return self.formulation.image(y0, up)

    def _inputs(
        self, images: Pixels, batch: Batch | FloatBatch, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The enlarged images, (N, 3, scale H, scale W), and what the network is told beside the noise level.

        The conditioning augmentation is that of CDM's section 2.1, not truncated: an image z becomes z_s ~ q(z_s | z)
        by its seed, and the network is told s, the conditioning level. Without a level it is that of the weights.
        """
        if "augmentation" not in self.metadata:
            return enlarge(images, batch.scale).to(self.device.where), ()
        gamma = diffusion.cosine_gamma(torch.tensor([self._level(i, level) for i, level in enumerate(batch.levels)]))
        if self.largest:
            low = to_model(images)
            eps = self.device.normal(generators, low.shape[1:]).to(low.device)
            images = ((diffusion.diffuse(low, eps, gamma) + 1) * 127.5).permute(0, 2, 3, 1)
        return enlarge(images, batch.scale).to(self.device.where), (None, gamma.to(self.device.where))

    @property
    def largest(self) -> float:
        """The largest conditioning level that the network was trained at."""
        return float(self.metadata["augmentation"])

    def _level(self, place: int, asked: float | None) -> float:
        if asked is not None and asked > self.largest + ROUNDING:
            text = f"{asked:g} is above {self.largest:g}, the largest that this network was trained at"
            raise Refused(f"images[{place}].conditioning_level", text)
        return float(self.metadata["level"]) if asked is None else asked

    @abstractmethod
    def _sample(self, denoise: Denoiser, noise: Noise, options: Options, progress: Progress) -> Tensor:
        """y_0 of the sampler and the options of this kind of model."""


class SR3(_Faces):
    """A face model of several steps; its card lies beside its `weights`. The other settings are those of `Device`.

    Raises:
        ValueError: the weights are another backend's, such as a one-step student's.
    """

    NAME: ClassVar[str] = "sr3"

    def __init__(self, weights: str = "sr3-16-64", **settings: str) -> None:
        *options, schedule = OF_STEPS
        default = SCHEDULES.get(weights_file(weights).stem, schedule.default)
        super().__init__(weights, (*options, replace(schedule, default=default)), **settings)

    def _sample(self, denoise: Denoiser, noise: Noise, options: Options, progress: Progress) -> Tensor:
        return sample(denoise, noise, options, self.formulation.first, on_step(self.device, progress, options))


class SR3Fast(_Faces):
    """A one-step student of SR3; its card lies beside its `weights`. The other settings are those of `Device`.

    Raises:
        ValueError: the weights are another backend's.
    """

    NAME: ClassVar[str] = "sr3-fast"

    def __init__(self, weights: str = "sr3-fast-16-64", **settings: str) -> None:
        super().__init__(weights, (), **settings)

    @property
    def gamma(self) -> float:
        """The noise level that the network is told."""
        return float(self.metadata["gamma"])

    def _prepare(self, network: unet.UNet) -> unet.UNet:
        return unet.at_level(network, self.gamma)

    def _sample(self, denoise: Denoiser, noise: Noise, _options: Options, _progress: Progress) -> Tensor:
        return diffusion.one_step(denoise, noise(), self.gamma)


def on_step(device: Device, progress: Progress, options: Options) -> Callable[[int], None]:
    """What a sampler calls after each of the steps that the options ask for."""

    def report(done: int) -> None:
        device.synchronise()
        progress(done, int(options["steps"]))

    return report


def sample(denoise: Denoiser, noise: Noise, options: Options, first: float, report: Callable[[int], None]) -> Tensor:
    """y_0 by the steps and the sampler that the options ask for, from noise at the level gamma = `first`."""
    levels = diffusion.gammas(int(options["steps"]), first, float(options["schedule"]))
    if options["sampler"] == "ancestral":
        return diffusion.ancestral(denoise, noise(), levels, report, noise)
    solve = diffusion.ddim if options["sampler"] == "ddim" else diffusion.dpm_solver
    return solve(denoise, noise(), levels, report)


def formulation(metadata: dict[str, str]) -> Formulation:
    """What a weights file says its network was trained for; the first files, which say nothing, predict v.

    Raises:
        ValueError: it says what no network here is trained for.
    """
    target, residual = metadata.get("target", "v"), metadata.get("residual", "true")
    if target not in {"v", "eps"} or residual not in {"true", "false"}:
        raise ValueError(f"the weights' metadata: target={one_line(target)}, residual={one_line(residual)}")
    return Formulation("v" if target == "v" else "eps", residual == "true", float(metadata["std"]))
