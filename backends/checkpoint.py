"""The product's own weights files: safetensors whose metadata says which network they belong to.

`load_network` checks a file before it builds anything of the size that the file claims; `load_weights` takes those
alone that are for one backend.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backends.biggan.networks import Generator
from backends.gan.networks import RRDBNet, SRResNet
from backends.sr3.unet import UNet
from harness.errors import one_line

FOLDER = Path(__file__).parent / "weights"
"""Where the shipped weights lie, each with its model card."""

MAX_BYTES = 200_000_000  # of a weights file
Network = TypeVar("Network", bound=nn.Module)
NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "srresnet": SRResNet, "rrdb": RRDBNet, "biggan": Generator}
LARGEST = {"c_in": 64, "channels": 1024, "multipliers": 64, "blocks": 64, "patch": 16, "labels": 1024}
LARGEST |= {"growth": 256, "scale": 16, "levels": 1, "input_skip": 1, "classes": 1024, "latent": 256, "embedding": 1024}
MAY_BE_0 = ("labels", "levels", "input_skip")

STAGE = "cdm-32 or cdm-64"
TELLING = ("gamma", "classes", "augmentation", "tile")
"""What the metadata of some U-Nets say, and those of others do not."""
UNETS = {
    (3, ()): "regression",
    (3, ("classes",)): "cdm-base",
    (6, ()): "sr3",
    (6, ("augmentation",)): "sr3",
    (6, ("gamma",)): "sr3-fast",
    (6, ("classes", "augmentation")): STAGE,
    (6, ("tile",)): "sr3-x4",
}
"""The backends of U-Nets, by the channels that these take and by those of `TELLING` that their metadata have.

Those with label inputs say which classes these are, others do not.
"""
OTHERS: dict[type[nn.Module], str] = {SRResNet: "srgan", RRDBNet: "esrgan", Generator: "biggan"}


class Metadata(dict[str, str]):
    """What a weights file says of its network beside its sizes.

    Raises:
        ValueError: one line; it is asked for what the file does not say.
    """

    def __missing__(self, name: str) -> str:
        """What is not there."""
        raise ValueError(f"the weights' metadata do not say {name}")


def load_weights(name: str, expected: type[Network], *, backend: str) -> tuple[Path, Network, Metadata]:
    """The file of a backend's weights, their network, which is of the class `expected`, and the file's metadata.

    Raises:
        ValueError: one line; see `weights_file` and `load_network`; or the weights are another backend's.
    """
    path = weights_file(name)
    network, metadata = load_network(path, nn.Module)
    if (owner := backend_of(network, metadata)) != backend:
        other = f"use the backend {owner}, or other weights" if owner else "use other weights"
        raise ValueError(f"weights={one_line(name, 60)}: not weights of {backend}; {other}")
    return path, _expected(network, expected), metadata


def backend_of(network: nn.Module, metadata: dict[str, str]) -> str | None:
    """The backend, or backends, that a network is for; None if there is none."""
    if not isinstance(network, UNet):
        return OTHERS.get(type(network))
    told = tuple(name for name in TELLING if name in metadata)
    labelled = network.label is not None
    return UNETS.get((network.c_in, told)) if labelled == ("classes" in told) else None


def weights_file(name: str) -> Path:
    """The weights of a model by its name, such as `sr3-16-64`, or a file of the training kit's anywhere.

    Raises:
        ValueError: that is neither.
    """
    if name.endswith(".safetensors"):
        return Path(name)
    if not re.fullmatch(r"[a-z0-9-]{1,60}", name):
        allowed = "a name is lower-case letters, digits and dashes; a file ends in .safetensors"
        raise ValueError(f"weights={one_line(name, 60)}: {allowed}")
    return FOLDER / f"{name}.safetensors"


def load_network(path: Path, expected: type[Network]) -> tuple[Network, Metadata]:
    """The network of a weights file, its parameters as float32, in evaluation mode, and the file's metadata.

    Raises:
        ValueError: one line; the file is missing, larger than `MAX_BYTES`, not a whole set of weights for the
            network that its metadata describes, that network is not of the class `expected`, or the metadata's
            sides of images, their scale or the noise levels cannot be.
    """
    try:
        tensors, metadata = _read(path)
        with torch.device("meta"):  # no memory before the file's shapes are known to fit
            network = _expected(build(json.loads(metadata["network"])), expected)
        network.load_state_dict(tensors, assign=True)
        _check_numbers(metadata)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: not the weights of this network: {one_line(str(error))}") from error
    return network.eval(), Metadata(metadata)


def _check_numbers(metadata: dict[str, str]) -> None:
    """Refuse sides of images, `low` and `high`, a scale of the residual, `std`, and noise levels that cannot be."""
    for name in sorted({"low", "high", "std"} & metadata.keys()):
        if not (re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,20})?", metadata[name]) and float(metadata[name])):
            raise ValueError(f"{name}={one_line(metadata[name], 40)}: not a number that is positive and below 10,000")
    for name in sorted({"augmentation", "gamma", "level"} & metadata.keys()):
        if not (re.fullmatch(r"[0-9](\.[0-9]{1,20})?(e-[0-9]{1,3})?", metadata[name]) and float(metadata[name]) <= 1):
            raise ValueError(f"{name}={one_line(metadata[name], 40)}: not a number from 0 to 1")
    if {"low", "high"} <= metadata.keys() and float(metadata["low"]) > float(metadata["high"]):
        raise ValueError("high is below low")


def _expected(network: nn.Module, kind: type[Network]) -> Network:
    if not isinstance(network, kind):
        raise TypeError(f"it holds a {type(network).__name__}, not a {kind.__name__}")
    return network


def build(sizes: dict[str, Any]) -> nn.Module:
    """A network from its sizes: `kind` (a U-Net where it is missing) and the arguments of its class.

    Raises:
        TypeError, ValueError, KeyError: there is no such network, or a size is out of `LARGEST`.
    """
    if not isinstance(sizes, dict):
        raise TypeError("the network's sizes are no JSON object")
    arguments = {name: value for name, value in sizes.items() if name != "kind"}
    for name, value in arguments.items():
        numbers = value if isinstance(value, list | tuple) and len(value) <= 8 else [value]
        if not all(type(n) is int and (name in MAY_BE_0 or n > 0) and 0 <= n <= LARGEST[name] for n in numbers):
            raise ValueError(f"{name}: not within 1 and {LARGEST[name]}")
    kind = sizes.get("kind", "unet")
    if kind not in NETWORKS:
        raise ValueError(f"{kind}: no network of a backend")
    return NETWORKS[kind](**arguments)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 1_000_000} MB")
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        return {name: file.get_tensor(name).float() for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
