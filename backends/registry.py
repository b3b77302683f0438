"""The names of the backends that ship with the product. Add yours here, or serve it anywhere and attach by address."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from backends.base import Backend, Family


@dataclass(frozen=True)
class Entry:
    """A backend by name: where its class is, and one line for lists. Nothing is imported until `load`.

    `settings` are the arguments that its class needs when it starts, `optional` those that have defaults; `hints` are
    options of its requests that its class takes at the start as well, so that it loads only what they will use. All are
    text. `licence` is that of the code and of what is shipped with it.
    """

    name: str
    target: str
    summary: str
    family: Family = "other"
    licence: str = "that of the checkpoint"
    settings: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    def load(self) -> Callable[..., Backend]:
        """Import the class."""
        module, _, attribute = self.target.partition(":")
        factory: Callable[..., Backend] = getattr(importlib.import_module(module), attribute)
        return factory


TORCH = ("device", "precision", "compile")
"""The optional settings of every torch backend; `backends.device.Device` says what they are."""

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "nearest",
            "backends.interpolation:Nearest",
            "nearest neighbour",
            family="interpolation",
            licence="Apache-2.0",
        ),
        Entry(
            "bicubic",
            "backends.interpolation:Bicubic",
            "bicubic, a = -0.5: the control of every audit",
            family="interpolation",
            licence="Apache-2.0",
        ),
        Entry(
            "lanczos",
            "backends.interpolation:Lanczos",
            "Lanczos with three lobes",
            family="interpolation",
            licence="Apache-2.0",
        ),
        Entry(
            "realesrgan",
            "backends.realesrgan:RealESRGAN",
            "Real-ESRGAN x4plus and animevideov3 (GAN, x4)",
            family="gan",
            licence="BSD-3-Clause",
            hints=("model",),
        ),
        Entry(
            "regression",
            "backends.gan.backend:regression",
            "SR3's U-Net on the squared error, for faces, 16 -> 64; weights=regression-16-128",
            family="regression",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "srgan",
            "backends.gan.backend:srgan",
            "SRGAN for faces, 16 -> 64; weights=srgan-16-128",
            family="gan",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "esrgan",
            "backends.gan.backend:esrgan",
            "ESRGAN for faces, 16 -> 64",
            family="gan",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "sr3",
            "backends.sr3.backend:SR3",
            "SR3 diffusion for faces, 16 -> 64; weights=sr3-64-128",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "sr3-fast",
            "backends.sr3.backend:SR3Fast",
            "SR3 in one step, its student, 16 -> 64",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "sr3-x4",
            "backends.sr3.tiled:SR3Tiled",
            "SR3 for photos up to 512 pixels, by tiles, x4",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH),
        ),
        Entry(
            "cdm-base",
            "backends.cdm.backend:CDMBase",
            "CDM's base: generates faces of 16 pixels by class",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH[:2]),
        ),
        Entry(
            "cdm-32",
            "backends.cdm.backend:cdm_32",
            "CDM's stage for faces by class, 16 -> 32",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH[:2]),
        ),
        Entry(
            "cdm-64",
            "backends.cdm.backend:cdm_64",
            "CDM's stage for faces by class, 32 -> 64",
            family="diffusion",
            licence="non-commercial research",
            optional=("weights", *TORCH[:2]),
        ),
        Entry(
            "biggan",
            "backends.biggan.backend:BigGAN",
            "BigGAN: generates faces of 64 pixels by class",
            family="gan",
            licence="non-commercial research",
            optional=("weights", *TORCH[:2]),
        ),
        Entry(
            "replay",
            "backends.replay:Replay",
            "precomputed outputs: replay,outputs=PATH",
            family="replay",
            licence="that of the outputs",
            settings=("outputs",),
        ),
        Entry(
            "spandrel",
            "backends.foreign.spandrel:Spandrel",
            "a checkpoint that spandrel knows: spandrel:PATH",
            settings=("path",),
            optional=TORCH[:2],
        ),
        Entry(
            "diffusers",
            "backends.foreign.diffusers:Diffusers",
            "an upscaling pipeline in a folder: diffusers:PATH",
            family="diffusion",
            settings=("path",),
            optional=TORCH[:2],
        ),
        Entry(
            "sr3-checkpoint",
            "backends.foreign.sr3_checkpoint:SR3Checkpoint",
            "SR3 as Janspiry's, guided-diffusion's upsamplers: sr3-checkpoint:PATH",
            family="diffusion",
            settings=("path",),
            optional=("scale", "label", "groups", "heads", *TORCH),
        ),
        Entry("onnx", "backends.foreign.onnx:ONNX", "an upscaler in an ONNX file: onnx:PATH", settings=("path",)),
        Entry(
            "faulty",
            "backends.faulty:Faulty",
            "misbehaves on request; for tests of harnesses",
            family="other",
            licence="Apache-2.0",
        ),
    )
}
