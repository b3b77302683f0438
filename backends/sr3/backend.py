"""SR3 as a backend: noise and the enlarged image in, a face out, by a sampler of `backends.sr3.diffusion`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import harness.resize
from backends.base import Batch, Description, Option, Progress
from backends.checkpoint import FOLDER, load_network
from backends.device import Device
from backends.pixels import enlarge, to_images
from backends.sr3 import diffusion, unet
from backends.sr3.diffusion import Denoiser

Noise = Callable[[], Tensor]
"""Draws standard normal noise, (N, 3, H, W)."""
SAMPLERS = ("ddim", "dpm++2m", "ancestral")


class _Faces:
    """A network of the training kit that makes faces of noise, on its device, with its description."""

    def __init__(self, name: str, weights: str, options: tuple[Option, ...], **settings: str) -> None:
        self.device = Device(**settings)
        path = FOLDER / f"{weights}.safetensors"
        network, self.metadata = load_network(path, unet.UNet)
        self.network = self.device.place(network)
        self.std = float(self.metadata["std"])
        low, high = int(self.metadata["low"]), int(self.metadata["high"])
        code = [Path(module.__file__ or "") for module in (diffusion, unet, harness.resize)]
        scale = high // low
        self.description = Description(
            name=name,
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

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        up = enlarge(batch.images, batch.scale).to(self.device.where)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        noise = partial(self.device.normal, generators, up.shape[1:])

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            x = torch.cat([up, y], dim=1).contiguous(memory_format=torch.channels_last)
            return self.network(x, gamma).float()

        with self.device.autocast():
            residual = self._sample(denoise, noise, batch, progress)
        self.device.synchronise()
        return to_images(up + self.std * residual)

    def _sample(self, denoise: Denoiser, noise: Noise, batch: Batch, progress: Progress) -> Tensor:
        raise NotImplementedError


class SR3(_Faces):
    """The shipped 16 -> 64 face model; its card lies beside the weights. The settings are those of `Device`."""

    def __init__(self, **settings: str) -> None:
        options = (
            Option("steps", 16, "network evaluations for each image", minimum=1, maximum=1000),
            Option("sampler", "ddim", "ddim, dpm++2m: deterministic; ancestral: the paper's", choices=SAMPLERS),
        )
        super().__init__("sr3", "sr3-16-64", options, **settings)

    def _sample(self, denoise: Denoiser, noise: Noise, batch: Batch, progress: Progress) -> Tensor:
        steps, sampler = int(batch.options["steps"]), str(batch.options["sampler"])

        def on_step(done: int) -> None:
            self.device.synchronise()
            progress(done, steps)

        if sampler == "ancestral":
            return diffusion.ancestral(denoise, noise(), steps, on_step, noise)
        solve = diffusion.ddim if sampler == "ddim" else diffusion.dpm_solver
        return solve(denoise, noise(), steps, on_step)


class SR3Fast(_Faces):
    """A one-step student of SR3, from weights of the training kit; none are shipped yet."""

    def __init__(self, **settings: str) -> None:
        super().__init__("sr3-fast", "sr3-fast-16-64", (), **settings)
        self.gamma = float(self.metadata["gamma"])

    def _sample(self, denoise: Denoiser, noise: Noise, _batch: Batch, _progress: Progress) -> Tensor:
        return diffusion.one_step(denoise, noise(), self.gamma)
