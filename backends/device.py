"""Where and how a torch backend computes: the settings `device`, `precision` and `compile`.

A torch backend makes a `Device` of its settings, places its network with it, and computes within `autocast()`.
Noise is drawn on the CPU from each image's seed, so that a seed means the same on every device.
"""

import hashlib
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.base import code_digest

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SWITCH = {"true": True, "false": False}
BATCHES = (1, 2, 16)
"""PyTorch parts one image, up to 15, and more: when compiled, each becomes a program of its own."""

Network = Callable[..., Tensor]
"""Takes the image tensor (N, C, H, W) first, and whatever else the network takes."""


class Device:
    """One device and the arithmetic on it. The settings are text, as a command line gives them.

    Args:
        device: `cpu`, `cuda` (the first GPU) or `cuda:N`.
        precision: `float32` (IEEE: no TF32), or `bfloat16` for what autocast lists (convolutions, products) and what
            follows from it; stored weights, inputs and a sampler's state stay float32. Slower than float32 on
            processors without bfloat16 instructions.
        compile: `true` compiles networks by torch.compile while the server starts.

    Raises:
        ValueError: one line; the text is none of these, or this machine cannot do it.
    """

    def __init__(self, device: str = "cpu", precision: str = "float32", compile: str = "false") -> None:  # noqa: A002 - the setting's name
        _one_of("precision", precision, PRECISIONS)
        self.where = _find(device)
        self.precision = precision
        self.compiled = SWITCH[_one_of("compile", compile, SWITCH)]
        if self.where.type == "cuda":
            _prepare_cuda(self.where, precision)
        if self.compiled:
            _check_compiler()

    @property
    def name(self) -> str:
        """For `Describe`: "cpu", "cuda NVIDIA H100"; ", compiled" follows where networks are.

        Which of several equal GPUs it is makes no difference to an output, so replicas on two of them are twins.
        """
        gpu = f" {torch.cuda.get_device_name(self.where)}" if self.where.type == "cuda" else ""
        return f"{self.where.type}{gpu}{', compiled' if self.compiled else ''}"

    def digest(self, *paths: Path) -> str:
        """The digest of a backend's code and weights, and of how they are computed: each changes the last bits."""
        files = code_digest(Path(__file__), *paths)
        text = f"{files} {self.where.type} {self.precision} {'compiled' if self.compiled else 'eager'}"
        return hashlib.sha256(text.encode()).hexdigest()

    def place(self, network: nn.Module, *, own: bool = True, batches: Sequence[int] = BATCHES) -> Network:
        """The network on this device, its weights constant, in evaluation mode and channels-last.

        Compiled, if so set, for these `batches` (see `Compiled`); otherwise, in float32 on a CPU, with `Packed`
        convolutions if it is one of our `own`: code of others may reach into its convolutions.
        """
        network = network.eval().requires_grad_(False).to(self.where).to(memory_format=torch.channels_last)
        if self.compiled:
            return Compiled(network, batches)
        float32 = self.where.type == "cpu" and self.precision == "float32"
        if own and float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            pack(network)
        return network

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, networks compute in `precision`; open it once around all evaluations of a request."""
        return torch.autocast(self.where.type, PRECISIONS[self.precision], enabled=self.precision != "float32")

    def normal(self, generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
        """Standard normal noise on the device, (N, *shape): each image's from its own generator, which is the CPU's.

        That generator (mt19937) reads the low 32 bits of a seed alone: 5 and 5 + 2**32 draw the same.
        """
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(self.where)

    def synchronise(self) -> None:
        """Wait until everything that was asked of a GPU is done: before progress is told, so that it is true.

        The server's times need no more: an output that has become a NumPy array has been waited for.
        """
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `peak_memory`."""
        if self.where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.where)

    def peak_memory(self) -> int:
        """Most bytes of GPU memory in use by tensors, weights included, since the reset; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.where) if self.where.type == "cuda" else 0


class Packed(nn.Module):
    """A convolution whose weights are kept in the order that oneDNN computes in.

    PyTorch puts them into that order at every call, which for one small image takes a third of the time. The operators
    are those that torch.compile writes. Gradients go through the convolution itself.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.shape = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.shape, None)  # noqa: SLF001

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            output: Tensor = self.conv(x)
        else:
            output = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
                x, self.weight, self.conv.bias, *self.shape, "none", [], ""
            )
        return output


def pack(network: nn.Module) -> None:
    """Replace the convolutions inside a network by `Packed` ones, where that is possible and of use."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _packable(child):
                setattr(module, name, Packed(child))


def _packable(conv: nn.Conv2d) -> bool:
    """Whether it pads by zeros or not at all, and its packed weights are in the order that is computed in.

    With 48 outputs, or a multiple, the order is another for small images: a 3 x 3 convolution of 96 channels on 4 x 4
    pixels takes 14 times as long packed.
    """
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.out_channels % 48 > 0


class Compiled:
    """A network compiled, at its first call, for images of the size it is shown then and for `batches` of them.

    `BATCHES` stand for batches of any size. That call is the server's warm-up. No later one compiles: what does not
    fit, another image size, runs as written. What the network takes beside the images must be the same for all.
    """

    def __init__(self, network: nn.Module, batches: Sequence[int]) -> None:
        self.network: Network = torch.compile(network)
        self.batches = batches
        self.ready = False

    def __call__(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The network's output."""
        if not self.ready:
            for n in self.batches:
                self.network(x[:1].repeat(n, 1, 1, 1).contiguous(memory_format=torch.channels_last), *rest)
            self.ready = True
        with torch.compiler.set_stance("eager_on_recompile"):
            return self.network(x, *rest)


def _one_of(name: str, text: str, known: dict[str, Any]) -> str:
    if text not in known:
        raise ValueError(f"{name}={text[:40]!r}: choose {' or '.join(known)}")
    return text


def _find(text: str) -> torch.device:
    """The device of a setting; `cuda` is `cuda:0`."""
    if text == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::([0-9]{1,2}))?", text)
    if match is None:
        raise ValueError(f"device={text[:40]!r}: choose cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        known = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise ValueError(f"device={text}: PyTorch finds {count or 'no'} CUDA devices here; choose {known}")
    return torch.device("cuda", index)


def _prepare_cuda(where: torch.device, precision: str) -> None:
    """Same request, same bytes: only deterministic algorithms, chosen without timing them; float32 is IEEE's."""
    if precision == "bfloat16" and torch.cuda.get_device_capability(where) < (8, 0):
        raise ValueError(f"precision=bfloat16: {torch.cuda.get_device_name(where)} has none; choose float32")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: without it, not deterministic
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid: costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _check_compiler() -> None:
    """What torch.compile needs beside PyTorch: it looks for them only in the middle of its work."""
    compiler, header = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        raise ValueError(f"compile=true: there is no C++ compiler ({compiler}); install one, or leave it out")
    if not header.exists():
        raise ValueError(f"compile=true: {header} is not there; install Python's headers, or leave it out")
