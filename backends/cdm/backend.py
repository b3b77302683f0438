"""A cascade's parts as backends: the base makes small images of a class, a stage enlarges what another one made."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends import classes
from backends.base import Batch, Description, FloatBatch, Progress, SampleBatch
from backends.checkpoint import STAGE, load_weights
from backends.device import Device
from backends.pixels import Pixels, to_images
from backends.sr3 import backend as sr3
from backends.sr3 import diffusion, unet

LICENCE = "Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)"


class CDMBase:
    """The base of a cascade, from `weights` of the training kit; the other settings are those of `Device`.

    Not compiled: what its network is told differs from image to image.

    Raises:
        ValueError: the weights are another backend's.
    """

    def __init__(self, weights: str = "cdm-base-16", device: str = "cpu", precision: str = "float32") -> None:
        self.device = Device(device, precision)
        path, network, metadata = load_weights(weights, unet.UNet, backend="cdm-base")
        self.network = self.device.place(network)
        code = [Path(module.__file__ or "") for module in (classes, diffusion, unet, sr3)]
        self.description = Description(
            name=path.stem.removesuffix("-16"),
            family="diffusion",
            digest=self.device.digest(Path(__file__), *code, path),
            scales=(),
            licence=LICENCE,
            domain="none: makes faces by class",
            deterministic=False,
            classes=classes.class_names(metadata, _labels(metadata)),
            options=sr3.OF_STEPS,
            device=self.device.name,
            precision=self.device.precision,
            merge=True,
            generated_size=int(metadata["size"]),
        )

    @torch.inference_mode()
    def generate(self, batch: SampleBatch, progress: Progress) -> NDArray[np.floating]:
        """See `Generative.generate`."""
        classes.needed(batch.classes)
        labels = classes.one_hot(batch.classes, len(self.description.classes)).to(self.device.where)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        noise = partial(self.device.normal, generators, (3, batch.size, batch.size))

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            return self.network(y.contiguous(memory_format=torch.channels_last), gamma, labels).float()

        report = sr3.on_step(self.device, progress, batch.options)
        with self.device.autocast():
            y0 = sr3.sample(denoise, noise, batch.options, 0.0, report)
        self.device.synchronise()
        return to_images(y0)


class CDMStage(sr3.SR3):
    """A stage of a cascade, from `weights` of the training kit; the other settings are those of `Device`.

    It has a conditioning augmentation, of what another backend has made; without a class it enlarges what it sees.

    Raises:
        ValueError: the weights are another backend's.
    """

    CODE: ClassVar[tuple[Path, ...]] = (Path(__file__), Path(classes.__file__))
    NAME: ClassVar[str] = STAGE

    def __init__(self, weights: str, device: str = "cpu", precision: str = "float32") -> None:
        super().__init__(weights, device=device, precision=precision)
        names = classes.class_names(self.metadata, _labels(self.metadata))
        self.description = replace(self.description, classes=names)

    def _inputs(
        self, images: Pixels, batch: Batch | FloatBatch, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        up, (_, gamma) = super()._inputs(images, batch, generators)
        labels = classes.one_hot(batch.classes, len(self.description.classes))
        return up, (labels.to(self.device.where), gamma)


def cdm_32(weights: str = "cdm-16-32", **settings: str) -> CDMStage:
    """The stage from 16 to 32 pixels."""
    return CDMStage(weights, **settings)


def cdm_64(weights: str = "cdm-32-64", **settings: str) -> CDMStage:
    """The stage from 32 to 64 pixels."""
    return CDMStage(weights, **settings)


def _labels(metadata: dict[str, str]) -> int:
    """The number of label inputs of a U-Net."""
    return int(json.loads(metadata["network"]).get("labels", 0))
