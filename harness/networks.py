"""Measuring networks: their features are what KID and FID compare, their predictions are race, gender and age.

NAME         what
attributes   MobileNetV2 trained on UTKFace, described by harness/data/attributes.yaml, its card beside it
alexnet      the AlexNet trunk of LPIPS (ImageNet): 256 features, no predictions
any other    what a YAML file describes (`Description`): an ONNX graph, a TorchScript program, or the weights of a
             torchvision model; benchmarks/networks holds descriptions to start from

A described file is checked when it is opened, and nothing in it is executed but numeric operators. Weights are read as
safetensors or through torch's allow-listed unpickler; an ONNX graph is read from memory, from where it cannot name
files elsewhere; TorchScript is read by `harness.torchscript`, which refuses what does more than compute. Files of .pt2
are refused, because their loader falls back to a bare unpickler. PyTorch deprecates TorchScript, and one that is
refused but that you trust becomes ONNX by

    torch.onnx.export(torch.jit.load("net.pt"), torch.zeros(1, 3, 224, 224), "net.onnx", dynamo=False)
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness import torchscript, weights
from harness.errors import ConfigError, HarnessError, WeightsError, one_line
from harness.label_tables import listing
from harness.metrics import BACKBONES, lpips_network
from harness.resize import resize
from harness.suite import parse_yaml

if TYPE_CHECKING:
    import torch

Images = NDArray[np.uint8]
Float = NDArray[np.float64]
Labels = Annotated[tuple[str, ...], Field(min_length=2, max_length=1000)]
Positive = Annotated[float, Field(gt=0)]

DATA = Path(__file__).parent / "data"
TITLES = {"attributes": "attribute", "alexnet": "AlexNet"}
BATCH = 64  # images in one forward pass
PIXELS = 1 << 20  # of them together: bounds memory
MAX_BYTES = 2**30  # of a network's file
MAX_FEATURES = 8192
VALUE = "value"
"""The name of the only column of an attribute that is a number."""


class Outputs(NamedTuple):
    """What a network says of N images: (N, D) features and (N, K) outputs, one of them perhaps of no width."""

    features: Float
    outputs: Float


Forward = Callable[[Images], Outputs]
Run = Callable[[NDArray[np.float32]], dict[str, Float]]
"""One image, prepared and with a batch axis, to the outputs of a network by their names."""


class Description(BaseModel):
    """Somebody's network, as YAML; `path` is seen from the folder of the YAML file.

    The network receives RGB images of `size` x `size`, resized by the antialiased kernel `resize`, as
    (x / 255 - mean) / std. `attributes` name its outputs in their order: a list of labels for a classifier's, or one
    number for an output that is a quantity, by which it is multiplied. `outputs` says whether a classifier's are
    logits or probabilities.

    With `architecture`, a classifier of torchvision.models by its name, the file holds its weights, and the features
    are what enters its last linear layer. Without, it is an ONNX graph or a TorchScript program with one input;
    `features` names the output that holds them (averaged over positions if it has any), all other outputs are read one
    after another. TorchScript's outputs, a tensor or a tuple of tensors, are called by their place: "0", "1", ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    architecture: str | None = None
    size: int = Field(ge=8, le=1024)
    layout: Literal["nchw", "nhwc"] = "nchw"
    resize: Literal["bicubic", "bilinear", "box"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    attributes: dict[str, Labels | float] = {}
    outputs: Literal["logits", "probabilities"] = "logits"
    features: str | None = None

    @field_validator("attributes")
    @classmethod
    def _distinct(cls, attributes: dict[str, Labels | float]) -> dict[str, Labels | float]:
        for attribute, labels in attributes.items():
            if isinstance(labels, tuple) and len(set(labels)) < len(labels):
                raise ValueError(f"{attribute} has a label twice")
        return attributes

    @field_validator("features")
    @classmethod
    def _of_a_graph(cls, features: str | None, info: Any) -> str | None:  # noqa: ANN401 - pydantic's type varies
        if features and info.data.get("architecture"):
            raise ValueError(
                "is for ONNX and TorchScript; with an architecture, the last linear layer's input is taken"
            )
        return features


@dataclass(frozen=True)
class Network:
    """A network that measures images: (N, H, W, 3) uint8 RGB, of any size.

    `recipe` is all that must agree for two of its figures to be comparable, `attributes` is as in `Description`.
    """

    name: str
    recipe: str
    width: int
    attributes: dict[str, tuple[str, ...] | float]
    logits: bool
    forward: Forward

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels that it tells apart, by attribute; none for an attribute that is a number."""
        return {name: labels if isinstance(labels, tuple) else () for name, labels in self.attributes.items()}

    def features(self, images: Images) -> Float:
        """(N, width) features of N > 0 images; not finite where the network fails."""
        return np.concatenate([self.forward(part).features for part in _batches(images)])

    def predictions(self, images: Images) -> dict[str, pd.DataFrame]:
        """What it says of N > 0 images: for each attribute N rows of probabilities, a column a label.

        An attribute that is a number, such as age in years, has the only column `VALUE`. Where the network fails, all
        its rows are NaN.
        """
        outputs = np.concatenate([self.forward(part).outputs for part in _batches(images)])
        outputs[~np.isfinite(outputs).all(axis=1)] = np.nan
        tables = {}
        for attribute, meaning in self.attributes.items():
            names = meaning if isinstance(meaning, tuple) else (VALUE,)
            part, outputs = np.split(outputs, [len(names)], axis=1)
            tables[attribute] = pd.DataFrame(self._read(part, meaning), columns=list(names))
        return tables

    def _read(self, outputs: Float, meaning: tuple[str, ...] | float) -> Float:
        from scipy.special import softmax

        if isinstance(meaning, float):
            return outputs * meaning
        probabilities: Float = softmax(outputs, axis=1) if self.logits else outputs
        return probabilities


def _batches(images: Images) -> Iterator[Images]:
    size = min(BATCH, max(1, PIXELS // (images.shape[1] * images.shape[2])))
    return (images[start : start + size] for start in range(0, len(images), size))


@lru_cache(maxsize=8)
def open_network(name: str, file: str = "") -> Network:
    """The network of `harness.suite.NETWORKS` called `name`, or the one that the YAML file `file` describes.

    It has been tried on one image; kept for the process.

    Raises:
        ConfigError: the description is wrong, or does not fit what the network does.
        WeightsError: a file is missing, too large or another one than described.
    """
    if name == "alexnet" and not file:
        return _alexnet()
    return _described(name, Path(file) if file else DATA / f"{name}.yaml")


def title(name: str) -> str:
    """How reports call a network's features."""
    return f"{TITLES.get(name, name)} features"


# AlexNet


def _alexnet() -> Network:
    file, _ = BACKBONES["alex"]
    sha256 = weights.WEIGHTS[file].sha256[:12]
    recipe = f"alexnet-relu5, mean over positions, RGB -1..1, weights {file} sha256 {sha256}"
    weights.resolve(file)
    return Network("alexnet", recipe, 256, {}, logits=True, forward=_alexnet_forward)


def _alexnet_forward(images: Images) -> Outputs:
    """The last convolution after ReLU, mean over positions: 256 features. Images of 32 pixels or more."""
    import torch

    lpips = lpips_network("alex")
    with torch.inference_mode():
        x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = lpips.net(lpips.scaling_layer(x)).relu5.mean(dim=(2, 3))  # type: ignore[operator]
    return Outputs(features.double().numpy(), np.empty((len(images), 0)))


# Described networks


def _described(name: str, file: Path) -> Network:
    where = one_line(str(file), 160)
    try:
        description = parse_yaml(file.read_text(encoding="utf-8"), where, Description)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read: {one_line(str(error))}") from error
    path = file.parent / description.path
    data = _read(path, description.sha256)
    forward = _guarded((_torchvision if description.architecture else _program)(description, data, where), where)
    tried = forward(np.full((1, 64, 64, 3), 128, np.uint8))
    _check(description, tried, where)
    width = tried.features.shape[1]
    recipe = _recipe(description, data, width)
    return Network(name, recipe, width, description.attributes, description.outputs == "logits", forward)


def _guarded(forward: Forward, where: str) -> Forward:
    def guarded(images: Images) -> Outputs:
        try:
            return forward(images)
        except HarnessError:
            raise
        except Exception as error:  # torch and onnxruntime raise any type where a network and its input do not fit
            raise ConfigError(f"{where}: the network cannot be run: {one_line(str(error), 160)}") from error

    return guarded


def _read(path: Path, sha256: str | None) -> bytes:
    """The bytes of a network's file."""
    where = one_line(str(path), 160)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{where}: larger than {MAX_BYTES >> 20} MiB; give a smaller network")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{where}: cannot be read ({error.strerror}); check the path of the network") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise WeightsError(f"{where}: its SHA-256 is not the one that its description names; get the right file")
    return data


def _check(description: Description, tried: Outputs, where: str) -> None:
    """Refuse a network whose outputs, for one grey image, are not what its description says."""
    declared = sum(len(m) if isinstance(m, tuple) else 1 for m in description.attributes.values())
    found, width = tried.outputs.shape[1], tried.features.shape[1]
    if declared and found != declared:
        raise ConfigError(
            f"{where}: the network has {found} outputs, its attributes name {declared}: name each output, in order"
        )
    if not declared and not width:
        raise ConfigError(f"{where}: names neither attributes nor features, so there is nothing to measure with")
    if width > MAX_FEATURES:
        raise ConfigError(f"{where}: {width} features are more than {MAX_FEATURES}; name the output of a pooled layer")
    if not all(np.isfinite(values).all() for values in tried):
        raise ConfigError(f"{where}: the network gives NaN or infinity for a grey image; check mean, std and the file")


def _recipe(description: Description, data: bytes, width: int) -> str:
    d = description
    sha256 = hashlib.sha256(data).hexdigest()
    kind = "TorchScript" if torchscript.is_torchscript(data) else "ONNX"
    layer = "input of the last linear layer" if d.architecture else f"output {d.features or 'of labels only'}"
    numbers = ["/".join(f"{v:g}" for v in values) for values in (d.mean, d.std)]
    network = f"{d.architecture or kind} {Path(d.path).name} sha256 {sha256[:12]}"
    pixels = f"RGB {d.size} x {d.size} by antialiased {d.resize}, mean {numbers[0]}, std {numbers[1]}"
    return one_line(f"{network}, {layer}, {width} features, {pixels}")


def _prepared(description: Description, images: Images) -> NDArray[np.float32]:
    """(N, H, W, 3) uint8 to what the network receives, as (N, size, size, 3)."""
    d = description
    resized = np.clip(resize(images / 255, d.size, d.size, d.resize), 0, 1)
    prepared: NDArray[np.float32] = ((resized - d.mean) / d.std).astype(np.float32)
    return prepared


# Weights of a torchvision model


def _torchvision(description: Description, data: bytes, where: str) -> Forward:
    import torch

    trunk, last = _model(description, data, where)

    def forward(images: Images) -> Outputs:
        x = torch.from_numpy(_prepared(description, images)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = trunk(x.contiguous(memory_format=torch.channels_last))
            return Outputs(features.double().numpy(), last(features).double().numpy())

    return forward


def _model(description: Description, data: bytes, where: str) -> tuple["torch.nn.Module", "torch.nn.Module"]:
    """The model up to its last linear layer, and that layer, in evaluation mode."""
    import torch
    from torch.fx.experimental.optimization import fuse
    from torchvision import models

    architecture = str(description.architecture)
    if architecture not in models.list_models(module=models):
        raise ConfigError(f"{where}: architecture: torchvision has no classifier {one_line(architecture, 60)!r}")
    state = _state(data, f"{where}: {Path(description.path).name}")
    with torch.device("meta"):  # shapes only; the weights come from the file
        network = models.get_model(architecture, weights=None)
        name = [name for name, part in network.named_modules() if isinstance(part, torch.nn.Linear)][-1:]
        rows = state.get(f"{name[0]}.weight", torch.empty(0)).shape[0] if name else 0
        network = models.get_model(architecture, weights=None, num_classes=max(1, rows))
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{where}: the file is not of a {architecture}: {one_line(str(error), 160)}") from error
    last = network.get_submodule(name[0])
    network.set_submodule(name[0], torch.nn.Identity())
    return fuse(network.eval()), last.eval()  # normalisation folded into convolutions: the same, in half the time


def _state(data: bytes, where: str) -> dict[str, "torch.Tensor"]:
    """The float32 tensors of a file of weights, safetensors or PyTorch's own."""
    import torch
    from safetensors.torch import load

    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if _is_pytorch(data) else load(data)
        return {str(key): tensor.float() for key, tensor in state.items()}
    except Exception as error:  # readers of foreign files raise any type on damaged ones
        reason = one_line(str(error), 120)
        raise ConfigError(f"{where}: no plain weights as safetensors or a PyTorch state dict ({reason})") from error


def _is_pytorch(data: bytes) -> bool:
    """Whether a file is PyTorch's: a zip archive, or a pickle as before PyTorch 1.6."""
    return data.startswith((b"PK", b"\x80"))


# ONNX and TorchScript


def _program(description: Description, data: bytes, where: str) -> Forward:
    """A graph or a program, called with one image at a time, because many are exported for just one."""
    run = _reader(data)(data, where)

    def forward(images: Images) -> Outputs:
        rows = [_one(run, image, description, where) for image in _prepared(description, images)]
        return Outputs(np.stack([features for features, _ in rows]), np.stack([outputs for _, outputs in rows]))

    return forward


def _reader(data: bytes) -> Callable[[bytes, str], Run]:
    if torchscript.is_torchscript(data):
        return _torchscript
    return _no_program if _is_pytorch(data) else _onnx


def _one(run: Run, image: NDArray[np.float32], description: Description, where: str) -> tuple[Float, Float]:
    """The features of one image, and all other outputs one after another."""
    first = description.layout == "nchw"
    named = run(np.ascontiguousarray(image.transpose(2, 0, 1) if first else image)[None])
    if description.features and description.features not in named:
        wanted = one_line(description.features, 60)
        raise ConfigError(f"{where}: features: there is no output {wanted!r}; there is {listing(list(named))}")
    features = named.pop(description.features or "", np.empty(0))
    if features.ndim == 4:
        features = features.mean(axis=(2, 3) if first else (1, 2))
    return features.ravel(), np.concatenate([np.empty(0), *(v.ravel() for v in named.values())])


def _no_program(data: bytes, where: str) -> Run:
    del data
    raise ConfigError(
        f"{where}: path: a PyTorch file without TorchScript: if it holds weights, name their torchvision architecture; "
        ".pt2 files are not read, because their loader may unpickle anything: export the network as ONNX"
    )


def _torchscript(data: bytes, where: str) -> Run:
    import torch

    network = torchscript.load(data, where)

    def run(x: NDArray[np.float32]) -> dict[str, Float]:
        with torch.inference_mode():
            values = network.forward(torch.from_numpy(x))
        values = values if isinstance(values, tuple | list) else (values,)
        return {str(place): value.double().numpy() for place, value in enumerate(values)}

    return run


def _onnx(data: bytes, where: str) -> Run:
    session = _session(data, where)
    names = [output.name for output in session.get_outputs()]

    def run(x: NDArray[np.float32]) -> dict[str, Float]:
        values = session.run(None, {entry.name: x for entry in session.get_inputs()})
        return {name: np.asarray(value, np.float64) for name, value in zip(names, values, strict=True)}

    return run


def _session(data: bytes, where: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            f"{where}: ONNX needs onnxruntime, which is not installed: pip install 'upscaler-harness[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base
        raise ConfigError(f"{where}: not an ONNX network that can be run: {one_line(str(error), 160)}") from error
