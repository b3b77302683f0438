"""Diffusion upscalers that others trained, from their weights alone: SR3 as Janspiry's, guided-diffusion's upsamplers.

The schedule is rebuilt from the published configuration, whatever the file says of it; a family's order of channels,
its time and its enlargement are in the family's module.
"""

import hashlib
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import harness.resize
from backends import pixels
from backends.base import Batch, Description, Option, Progress
from backends.device import Device
from backends.foreign import files, guided, janspiry, sampling
from backends.foreign.files import State, named, read_tensors, regular_file
from backends.foreign.guided import Guided
from backends.foreign.janspiry import Janspiry
from harness.errors import one_line

Family = Janspiry | Guided
LARGEST = 1024
"""Side of the largest output: attention and activations grow with its area."""
SMALLEST = 2
"""Least side of the features where they are smallest: a single value cannot be normalised."""
MODULES = (files, guided, janspiry, sampling, pixels, harness.resize)


class SR3Checkpoint:
    """A checkpoint of one of the families.

    Args:
        path: the file.
        scale: how much the model enlarges; the file does not hold it. The default is the published models'.
        groups: normalisation groups of a Janspiry model of other sizes than the published ones, 32 if not given.
        heads: attention heads of a guided-diffusion model of other sizes than the published ones.
        label: the class, from 0, of images that come without one; a model that knows classes needs it.
        settings: those of `Device`.

    Raises:
        ValueError: one line; the file or a setting cannot be used.
    """

    def __init__(
        self, path: str, *, scale: str = "", label: str = "", groups: str = "", heads: str = "", **settings: str
    ) -> None:
        self.device = Device(**settings)
        file = regular_file(path)
        self.family = load_family(file, groups=_number("groups", groups), heads=_number("heads", heads))
        self.network = self.device.place(self.family.network, batches=[1])
        self.label = default_label(label, self.family.classes)
        enlargement = _number("scale", scale) or self.family.scale
        code = [Path(module.__file__ or "") for module in MODULES]
        made_of = f"{self.device.digest(Path(__file__), *code, file)} {label} {groups} {heads}"
        self.description = self._describe(enlargement, hashlib.sha256(made_of.encode()).hexdigest())

    def _describe(self, scale: int, digest: str) -> Description:
        multiple = self.family.network.multiple
        step = math.lcm(multiple, scale) // scale
        minimum = step * math.ceil(SMALLEST * multiple / (step * scale))
        return Description(
            name="sr3-checkpoint",
            family="diffusion",
            digest=digest,
            scales=(scale,),
            licence=self.family.licence,
            domain=self.family.domain,
            deterministic=False,
            batch_exact=True,
            minimum=minimum,
            maximum=max(minimum, LARGEST // scale),
            multiple_of=step,
            classes=tuple(str(i) for i in range(self.family.classes)),
            options=(
                Option("steps", 20, "network evaluations for each image", minimum=1, maximum=len(self.family.gammas)),
                Option(
                    "sampler",
                    "ddim",
                    "ancestral: the authors', with 2000 (SR3) or 250 steps",
                    choices=("ddim", "ancestral"),
                ),
            ),
            device=self.device.name,
            precision=self.device.precision,
            max_batch=16,
            progress=True,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`.

        One image after the other: the first step divides by sqrt(gamma_T), about 1/150, and so would make visible what
        the size of a batch changes in the last bits.
        """
        outputs: list[NDArray[np.floating]] = []
        steps = sampling.strided(self.family.gammas, int(batch.options["steps"]))
        sampler = sampling.ancestral if batch.options["sampler"] == "ancestral" else sampling.ddim

        def on_step(done: int) -> None:
            self.device.synchronise()
            progress(len(outputs) * len(steps) + done, len(batch.ids) * len(steps))

        for i, seed in enumerate(batch.seeds):
            up = self.family.enlarge(batch.images[i : i + 1], batch.scale).to(self.device.where)
            generator = torch.Generator().manual_seed(seed)
            source = sampling.Source(partial(self.device.normal, [generator], up.shape[1:]), on_step)
            with self.device.autocast():
                y = sampler(partial(self._denoise, up, self._label(batch.classes[i])), steps, source)
            outputs.append(pixels.to_images(y.cpu())[0])
        return np.stack(outputs)

    def _label(self, index: int | None) -> list[Tensor]:
        """The class as the network's last argument; nothing for a model without classes."""
        chosen = self.label if index is None else index
        return [torch.tensor([chosen], device=self.device.where)] if self.family.classes else []

    def _denoise(self, up: Tensor, label: list[Tensor], y: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        x, level = self.family.inputs(y, up, t)
        return self.family.outputs(self.network(x.contiguous(memory_format=torch.channels_last), level, *label).float())


def load_family(path: Path, *, groups: int | None = None, heads: int | None = None) -> Family:
    """The family of a file, its network holding the file's weights as float32.

    Raises:
        ValueError: one line; these are not the weights of a network of a known family.
    """
    state = read_tensors(path)
    try:
        with torch.device("meta"):  # no memory before the file's shapes are known to fit
            family = family_of(state, groups, heads)
            check(family)
        family.network.load_state_dict(family.state, assign=True)
        family.state.clear()
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(str(error), 200)
        raise ValueError(f"{named(path)}: not an upscaler that can be rebuilt: {reason}") from error
    return family


def family_of(state: State, groups: int | None = None, heads: int | None = None) -> Family:
    """The family whose names these are.

    Raises:
        ValueError: of none; or a setting is given that the family does not have.
    """
    if any(name.startswith(f"{janspiry.PREFIX}noise_level_mlp.") for name in state) and heads is None:
        return Janspiry(state, groups)
    if "input_blocks.0.0.weight" in state and groups is None:
        return Guided(state, heads)
    raise ValueError("neither SR3 in Janspiry's layout (which has groups) nor guided-diffusion's (which has heads)")


def check(family: Family) -> None:
    """Walk once through the network without computing: it takes two images, and gives what its family says.

    Raises:
        ValueError, RuntimeError: it does not, or its layers do not fit.
    """
    taken = family.state[family.entry].shape[1]
    if taken != 6:
        raise ValueError(f"it takes {taken} channels, not an image to enlarge and a noisy one: 6")
    image = torch.empty(1, 3, SMALLEST * family.network.multiple, SMALLEST * family.network.multiple)
    x, level = family.inputs(image, image, 0)
    labels = [torch.zeros(1, dtype=torch.long)] if family.classes else []
    eps, _ = family.outputs(family.network(x, level, *labels))
    if eps.shape != image.shape:
        raise ValueError(f"it maps {tuple(x.shape)} to {tuple(eps.shape)}, not to an image's eps")


def _number(name: str, text: str) -> int | None:
    """A setting as a number; None where it is not given."""
    if text and not (text.isdecimal() and 1 <= int(text) <= 64):
        raise ValueError(f"{name}={text[:40]!r}: a number from 1 to 64")
    return int(text) if text else None


def default_label(text: str, classes: int) -> int:
    """The class of images that come without one; 0 for a model without classes."""
    if not classes and not text:
        return 0
    if not (text.isdecimal() and int(text) < classes):
        raise ValueError(
            f"label={text[:40]!r}: the model knows {classes} classes; write label=N for images without one"
        )
    return int(text)
