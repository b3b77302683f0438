"""Files from strangers: read within bounds, and so that nothing in them is executed.

Weights are safetensors, or what `torch.save` writes, read by PyTorch's allow-listed unpickler. TorchScript is
refused: it is a program. Nothing of the size that a file claims is allocated before that size is checked.
"""

import importlib
import math
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import one_line

MAX_BYTES = 4_000_000_000
"""Of a file of weights, and of the float32 tensors that it declares."""
MAX_TENSORS = 20_000
MAX_SIDE = 512
"""Side in pixels of the largest input of a model that does not state one: memory grows with the area."""
WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "ema", "model", "net")
"""Names under which training programs store the weights beside other things, the better ones first."""

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def required(module: str, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import what an extra of the project installs.

    Raises:
        ValueError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'upscaler-harness[{extra}]'"
        raise ValueError(f"{module} is missing ({one_line(str(error), 100)}): {hint}") from error


def regular_file(text: str) -> Path:
    """The path of a file that exists and is not larger than `MAX_BYTES`.

    Raises:
        ValueError: it is missing, a folder, empty or too large.
    """
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"{named(path)}: {'is a folder, not a file' if path.is_dir() else 'there is no such file'}")
    if not 0 < path.stat().st_size <= MAX_BYTES:
        size = path.stat().st_size
        raise ValueError(f"{named(path)}: {size} bytes; 1 to {MAX_BYTES} are accepted")
    return path


def named(path: Path) -> str:
    """A path for a message: one bounded line."""
    return one_line(str(path), 160)


def read_tensors(path: Path) -> State:
    """The weights in a file, by name: floats as float32, other tensors as they are.

    Raises:
        ValueError: one line; it is neither safetensors nor a pickle of tensors, would run code, or holds or declares
            more than the bounds of this module.
    """
    try:
        state = _unwrapped(load_file(path) if path.suffix == ".safetensors" else _unpickle(path))
        _check_bounds(state)
    except UnpicklingError as error:
        reason = _cause(error.__context__ or error)
        raise ValueError(f"{named(path)}: refused, not a pickle of tensors alone: {reason}") from error
    except (OSError, EOFError, SafetensorError, zipfile.BadZipFile, *_MALFORMED) as error:
        raise ValueError(f"{named(path)}: not weights as safetensors or torch.save: {_cause(error)}") from error
    return {name: t.to(torch.float32, copy=True) if t.is_floating_point() else t.clone() for name, t in state.items()}


_MALFORMED = (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError, OverflowError)
"""What the unpickler raises on a file that is not what it seems."""


def _cause(error: BaseException) -> str:
    """The first sentence of an error: PyTorch's go on with advice to load the file without its protection."""
    return one_line(re.split(r"\n|\. |\.$", str(error))[0], 160) or type(error).__name__


def _unpickle(path: Path) -> object:
    """What `torch.save` wrote; since PyTorch 1.6 a zip, whose tensors stay in the file until they are copied."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about storage classes of PyTorch's own old formats
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_zip(path: Path) -> None:
    """Refuse archives that grow when they are read; `torch.save` compresses nothing."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(r.filename.endswith("/constants.pkl") for r in records):
        raise ValueError("TorchScript is a program: save the model's state_dict instead")
    if len(records) > 2 * MAX_TENSORS:
        raise ValueError(f"{len(records)} records")
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size > size for r in records):
        raise ValueError("a compressed archive")


def _unwrapped(raw: object) -> State:
    """The tensors of a state dict, out of the dictionary that a training program put around it."""
    if isinstance(raw, dict):
        raw = next((raw[name] for name in WRAPPERS if isinstance(raw.get(name), dict)), raw)
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise TypeError("no dictionary of tensors")
    state = {name: tensor.detach() for name, tensor in raw.items() if isinstance(tensor, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _check_bounds(state: State) -> None:
    """Refuse what would take more memory than the file: too many tensors, overlapping ones, a billionth layer."""
    if not 0 < len(state) <= MAX_TENSORS:
        raise ValueError(f"{len(state)} tensors; 1 to {MAX_TENSORS} are accepted")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise TypeError(f"{one_line(name, 80)} is not a plain tensor")
        if any(int(number) > 4 * len(state) for number in re.findall(r"(?:^|\.)([0-9]+)(?=\.)", name)):
            raise ValueError(f"{one_line(name, 80)}: a layer's number above that of the file's tensors")
    declared = sum(max(4, t.element_size()) * math.prod(t.shape) for t in state.values())
    if declared > MAX_BYTES:
        raise ValueError(f"its tensors declare {declared} bytes; at most {MAX_BYTES} are accepted")


def shapes_of(state: State) -> Shapes:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def count(names: Iterable[str], part: str) -> int:
    """How many numbered layers a part has: those of `downs.0.weight`, `downs.1.weight` ... are counted by `downs`.

    Raises:
        ValueError: their numbers have a gap.
    """
    starts = (name.removeprefix(f"{part}.").partition(".")[0] for name in names if name.startswith(f"{part}."))
    numbers = {int(start) for start in starts if start.isdecimal()}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{part}: layers are missing")
    return len(numbers)
