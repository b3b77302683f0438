"""Upscaling pipelines of diffusers (github.com/huggingface/diffusers) from a local folder, as `save_pretrained` writes.

Two are known: latent diffusion for super-resolution, and Stable Diffusion's x4 upscaler, which gets an empty prompt
and no guidance. Their parts are of the classes named here, whatever the folder asks for; weights are safetensors;
nothing is looked for in a network. Pixels are enlarged as they come: a size that the pipelines would change before
they begin is refused.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from backends import pixels
from backends.base import Batch, Description, Option, Progress
from backends.device import Device
from backends.foreign import files
from backends.foreign.files import named, regular_file, required
from harness.errors import one_line

LARGEST = 256
"""Side of the largest input: on 512 pixels Stable Diffusion's upscaler has been seen to ask for 256 GB."""
SCHEDULERS = {
    "scheduler": ("DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    "low_res_scheduler": ("DDPMScheduler",),
}
"""Without those that draw noise at each step: they draw it for the batch, not from each image's seed."""
MOST_STEPS = 10_000
SPACING = "timestep_spacing"
SPACINGS = ("leading", "linspace", "trailing")
FORBIDDEN = {"auto_map", "quantization_config"}
"""Configuration that asks for code or for other libraries."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Kind:
    """A pipeline: its networks as folder -> (module, class), the one that enlarges first, and how it is called.

    `grid` is the multiple to which the pipeline would change the sides of an input; 0 for that of its scale.
    """

    networks: dict[str, tuple[str, str]]
    schedulers: tuple[str, ...]
    call: Callable[[Any, Tensor, dict[str, Any]], Any]
    grid: int
    steps: int
    options: tuple[Option, ...] = ()


def _latent_diffusion(pipe: Any, x: Tensor, arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - a pipeline
    return pipe(x, eta=0.0, **arguments)


def _stable_diffusion(pipe: Any, x: Tensor, arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - a pipeline
    return pipe([""] * len(x), (x + 1) / 2, guidance_scale=1.0, **arguments)


KINDS = {
    "LDMSuperResolutionPipeline": Kind(
        {"vqvae": ("diffusers", "VQModel"), "unet": ("diffusers", "UNet2DModel")},
        ("scheduler",),
        _latent_diffusion,
        grid=32,
        steps=100,
    ),
    "StableDiffusionUpscalePipeline": Kind(
        {
            "vae": ("diffusers", "AutoencoderKL"),
            "unet": ("diffusers", "UNet2DConditionModel"),
            "text_encoder": ("transformers", "CLIPTextModel"),
        },
        ("scheduler", "low_res_scheduler"),
        _stable_diffusion,
        grid=0,
        steps=75,
        options=(
            Option("noise_level", 20, "noise on the input, of which the network is told", minimum=0, maximum=350),
        ),
    ),
}


class Diffusers:
    """The pipeline of a folder; `settings` are `device` and `precision` of `Device`.

    Raises:
        ValueError: one line; the folder cannot be used, or diffusers is not installed.
    """

    def __init__(self, path: str, **settings: str) -> None:
        self.device = Device(**settings)
        folder = Path(path)
        name = read_json(folder / "model_index.json").get("_class_name")
        if name not in KINDS:
            known = " and ".join(KINDS)
            raise ValueError(f"{named(folder)}: {one_line(str(name), 60)} is not served; {known} are")
        self.kind = KINDS[name]
        self.pipe = load(folder, name).to(self.device.where)
        self.description = self._describe(folder)

    def _describe(self, folder: Path) -> Description:
        decoder, unet = getattr(self.pipe, next(iter(self.kind.networks))), self.pipe.unet
        scale = 2 ** (len(decoder.config.block_out_channels) - 1)
        step = math.lcm(self.kind.grid or scale, 2 ** (len(unet.config.block_out_channels) - 1))
        return Description(
            name="diffusers",
            family="diffusion",
            digest=self.device.digest(Path(__file__), Path(files.__file__), *used_files(folder)),
            scales=(scale,),
            licence=licence(folder),
            domain=f"{type(self.pipe).__name__}, no prompt; what it was trained on is not in the folder",
            deterministic=False,
            batch_exact=True,
            minimum=step,
            maximum=LARGEST,
            multiple_of=step,
            options=(*self._steps(), *self.kind.options),
            device=self.device.name,
            precision=self.device.precision,
            max_batch=16,
            progress=True,
        )

    def _steps(self) -> tuple[Option, Option]:
        own = self.pipe.scheduler.config
        about = "which steps of the training's are taken; leading ones leave out the noisiest"
        return (
            Option("steps", self.kind.steps, "steps of the scheduler", minimum=1, maximum=own.num_train_timesteps),
            Option("spacing", own[SPACING], about, choices=SPACINGS),
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`.

        One image after the other: the first steps make visible what the size of a batch changes in the last bits.
        """
        options = dict(batch.options)
        own, spacing = self.pipe.scheduler, {SPACING: options.pop("spacing")}
        self.pipe.scheduler = type(own).from_config(own.config, **spacing)
        options["num_inference_steps"] = options.pop("steps")
        outputs = []
        for i, seed in enumerate(batch.seeds):
            x = pixels.to_model(batch.images[i : i + 1]).to(self.device.where)
            arguments = options | {"generator": [torch.Generator().manual_seed(seed)], "output_type": "pt"}
            with self._reported(i, len(batch.ids), progress), self.device.autocast():
                y = self.kind.call(self.pipe, x, arguments).images
            outputs.append(pixels.to_images(y.float() * 2 - 1)[0])
        return np.stack(outputs)

    @contextmanager
    def _reported(self, before: int, images: int, progress: Progress) -> Iterator[None]:
        """Tell of each evaluation of the U-Net, which neither pipeline does, after those of the images `before`."""
        done = 0

        def after(*_: object) -> None:
            nonlocal done
            done += 1
            self.device.synchronise()
            steps = len(self.pipe.scheduler.timesteps)
            progress(before * steps + done, images * steps)

        hook = self.pipe.unet.register_forward_hook(after)
        try:
            yield
        finally:
            hook.remove()


def read_json(path: Path) -> dict[str, Any]:
    """A file of configuration.

    Raises:
        ValueError: it is missing, no JSON object, or asks for code or other libraries.
    """
    try:
        data = json.loads(regular_file(str(path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{named(path)}: cannot be read as JSON: {one_line(str(error), 100)}") from error
    if not isinstance(data, dict) or FORBIDDEN & data.keys():
        raise ValueError(f"{named(path)}: not an object, or it names one of {', '.join(sorted(FORBIDDEN))}")
    return data


def load(folder: Path, name: str) -> Any:  # noqa: ANN401 - a pipeline
    """The pipeline of a folder, in float32 and evaluation mode.

    Raises:
        ValueError: one line; a part is missing or is not what its configuration says, or a library is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read on import
    modules = {module: required(module, "diffusers") for module in ("diffusers", "transformers")}
    modules["diffusers"].utils.logging.set_verbosity_error()
    kind = KINDS[name]
    parts = {part: _scheduler(folder / part, modules["diffusers"]) for part in kind.schedulers}
    for part, (module, class_name) in kind.networks.items():
        parts[part] = network(folder / part, getattr(modules[module], class_name))
    try:
        if "text_encoder" in parts:
            where = str(folder / "tokenizer")
            parts["tokenizer"] = modules["transformers"].CLIPTokenizer.from_pretrained(where, local_files_only=True)
        pipe = getattr(modules["diffusers"], name)(**parts)
    except Exception as error:
        raise ValueError(f"{named(folder)}: its parts make no {name}: {one_line(str(error), 160)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _scheduler(folder: Path, diffusers: Any) -> Any:  # noqa: ANN401 - the module, and one of its schedulers
    config = read_json(folder / "scheduler_config.json")
    name, known = config.get("_class_name"), SCHEDULERS[folder.name]
    if name not in known:
        raise ValueError(f"{named(folder)}: {one_line(str(name), 60)} is not served; {', '.join(known)} are")
    if config.get("num_train_timesteps", 1000) not in range(1, MOST_STEPS + 1):
        raise ValueError(f"{named(folder)}: num_train_timesteps is not a number from 1 to {MOST_STEPS}")
    try:
        return getattr(diffusers, name).from_config(config)
    except Exception as error:
        raise ValueError(f"{named(folder)}: not a scheduler's configuration: {one_line(str(error), 160)}") from error


def network(folder: Path, kind: Any) -> nn.Module:  # noqa: ANN401 - a class of diffusers or transformers
    """A network of a pipeline, all its weights from one file of safetensors.

    Raises:
        ValueError: one line; there is no such file, or it does not hold the network that the configuration describes.
    """
    held, config = _held(folder), read_json(folder / "config.json")
    try:
        declared = _declared(kind, config)
    except Exception as error:
        raise ValueError(f"{named(folder)}: config.json describes no network: {one_line(str(error), 160)}") from error
    if declared > held:
        raise ValueError(f"{named(folder)}: config.json describes {declared} weights, the file holds {held}")
    where, how = str(folder), {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        model, found = kind.from_pretrained(where, **how)
    except Exception as error:
        raise ValueError(f"{named(folder)}: not the network of its config.json: {one_line(str(error), 200)}") from error
    wrong = [str(name) for names in found.values() for name in names]
    if wrong:
        raise ValueError(f"{named(folder)}: weights are missing, left over or misshapen: {one_line(wrong[0], 80)}")
    made: nn.Module = model.float().eval()
    return made


def _declared(kind: Any, config: dict[str, Any]) -> int:  # noqa: ANN401 - a class of diffusers or transformers
    """How many weights a configuration describes; nothing of their size is allocated."""
    with torch.device("meta"):
        network = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
    return sum(p.numel() for p in network.parameters())


def _held(folder: Path) -> int:
    """How many weights are in the folder's file."""
    present = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not present or any(folder.glob("*.index.json")):
        raise ValueError(f"{named(folder)}: one file of safetensors is needed ({' or '.join(WEIGHTS)})")
    try:
        with safe_open(regular_file(str(present[0])), framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
    except Exception as error:
        raise ValueError(f"{named(present[0])}: is damaged: {one_line(str(error), 100)}") from error


def used_files(folder: Path) -> list[Path]:
    """Everything in the folder that makes pixels: configuration, vocabulary and safetensors."""
    kept = {".json", ".txt", ".safetensors"}
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in kept)


def licence(folder: Path) -> str:
    """The licence that the head of the folder's README names; publishers state it there."""
    readme = folder / "README.md"
    head = readme.read_text(encoding="utf-8", errors="replace")[:10_000] if readme.is_file() else ""
    found = re.search(r"^license: *(\S.*)$", head, re.MULTILINE)
    return f"{one_line(found[1], 60)}, says its README.md" if found else "not in the folder; that of its publisher"
