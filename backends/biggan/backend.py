"""BigGAN as a backend: an image of a class in one pass."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from backends import classes
from backends.base import Description, Progress, SampleBatch
from backends.biggan import networks
from backends.checkpoint import load_weights
from backends.device import Device
from backends.pixels import to_images


class BigGAN:
    """A generator from `weights` of the training kit; the other settings are those of `Device`.

    Raises:
        ValueError: the weights are another backend's.
    """

    def __init__(self, weights: str = "biggan-64", device: str = "cpu", precision: str = "float32") -> None:
        self.device = Device(device, precision)
        path, network, metadata = load_weights(weights, networks.Generator, backend="biggan")
        self.network, self.latents = self.device.place(network), network.latents
        code = [Path(module.__file__ or "") for module in (classes, networks)]
        self.description = Description(
            name=path.stem.removesuffix("-64"),
            family="gan",
            digest=self.device.digest(Path(__file__), *code, path),
            scales=(),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain="none: makes faces by class",
            deterministic=False,
            classes=classes.class_names(metadata, network.embedding.num_embeddings),
            device=self.device.name,
            precision=self.device.precision,
            merge=True,
            generated_size=network.size,
        )

    @torch.inference_mode()
    def generate(self, batch: SampleBatch, _progress: Progress) -> NDArray[np.floating]:
        """See `Generative.generate`."""
        y = classes.needed(batch.classes).to(self.device.where)
        z = self.device.normal([torch.Generator().manual_seed(seed) for seed in batch.seeds], (self.latents,))
        with self.device.autocast():
            images = self.network(z, y).float()
        self.device.synchronise()
        return to_images(images)
