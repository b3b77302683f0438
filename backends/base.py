"""What a backend is: a description and one method.

To add one, write a class with `description` and `upscale` (or `generate`), and name it in `backends.registry`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from protos.values import Value

Progress = Callable[[int, int], None]
"""Called as (done, total) after each step; raises `Cancelled` when the client has gone."""
Family = Literal["interpolation", "regression", "gan", "diffusion", "replay", "other"]


class Cancelled(Exception):
    """The client no longer waits for this request."""


class Refused(Exception):
    """A request that this model cannot serve; `field` names the part of the request that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Option:
    """An option that a request may set; the type of `default` is the option's type."""

    name: str
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Description:
    """What a backend says of itself; the fields are those of `DescribeResponse` in the contract.

    One that only generates has no `scales`; `generated_size` is the side of its images in pixels. `merge` is for our
    server: requests that wait together are computed as one batch. Set it where a batch costs less than its images one
    by one.
    """

    name: str
    family: Family
    digest: str
    scales: tuple[int, ...]
    licence: str
    domain: str
    deterministic: bool = True
    batch_exact: bool = False
    minimum: int = 1
    maximum: int = 0
    multiple_of: int = 1
    domain_minimum: int = 1
    classes: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    device: str = "cpu"
    precision: str = "float32"
    max_batch: int = 64
    merge: bool = False
    progress: bool = False
    generated_size: int = 0


@dataclass(frozen=True)
class Batch:
    """Images of one size, validated by the server.

    `images` is (N, H, W, 3) uint8; `ids`, `seeds`, `classes` and `levels` have N entries; `options` is complete.
    """

    images: NDArray[np.uint8]
    scale: int
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    options: dict[str, Value] = field(default_factory=dict)
    classes: tuple[int | None, ...] = ()
    levels: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class FloatBatch:
    """Images of one size at which a model is differentiated, validated by the server.

    `images` is (N, H, W, 3) float32 on the 0..255 scale, `cotangents` (N, scale * H, scale * W, 3) float32, or None
    where only the outputs are asked for. The rest is as in `Batch`.
    """

    images: NDArray[np.float32]
    cotangents: NDArray[np.float32] | None
    scale: int
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    options: dict[str, Value] = field(default_factory=dict)
    classes: tuple[int | None, ...] = ()
    levels: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class SampleBatch:
    """Images to generate, of `size` x `size` pixels, validated by the server; the rest is as in `Batch`."""

    size: int
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    options: dict[str, Value] = field(default_factory=dict)
    classes: tuple[int | None, ...] = ()


Gradients = tuple[NDArray[np.floating], NDArray[np.floating] | None]
"""Outputs (N, scale * H, scale * W, 3) and, where cotangents were given, gradients (N, H, W, 3)."""


class Described(Protocol):
    """What a server can serve; it has at least one of the methods of the classes below.

    They are called by one thread at a time. One on a device with memory of its own also has it as `device`
    (`backends.device.Device`).
    """

    description: Description


class Backend(Described, Protocol):
    """An upscaler."""

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
        """Return (N, scale * H, scale * W, 3): uint8, or floats on the 0..255 scale that the server rounds.

        Raises:
            Refused: this model cannot serve the request.
            Cancelled: from `progress`; let it pass.
        """


@runtime_checkable
class Differentiable(Protocol):
    """A backend that has a derivative as well; having the method is all it takes to offer the call `Gradient`."""

    def gradient(self, batch: FloatBatch, progress: Progress) -> Gradients:
        """The outputs of `upscale`, neither clipped nor rounded, and the gradients of sum(output * cotangent).

        Raises:
            Refused: this model cannot serve the request.
            Cancelled: from `progress`; let it pass.
        """


@runtime_checkable
class Generative(Described, Protocol):
    """A backend that makes images of a class and a seed; having the method is all it takes to offer `Generate`."""

    def generate(self, batch: SampleBatch, progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
        """Return (N, size, size, 3): uint8, or floats on the 0..255 scale that the server rounds.

        Raises:
            Refused: this model cannot serve the request.
            Cancelled: from `progress`; let it pass.
        """


def code_digest(*paths: Path) -> str:
    """SHA-256 over the names and contents of files: the digest of a backend's code and weights.

    A torch backend's is `Device.digest`, which adds how they are computed.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
