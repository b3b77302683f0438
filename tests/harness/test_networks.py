"""Networks: the shipped form, ONNX graphs and torchvision weights by description, and what is refused of them."""

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2, resnet34

from harness import networks
from harness.errors import ConfigError, HarnessError, WeightsError
from harness.networks import DATA, VALUE, open_network

Images = NDArray[np.uint8]
Write = Callable[..., Path]
WriteGraph = Callable[..., Path]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def images() -> Images:
    """Five pictures of 40 x 40 pixels."""
    return np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def describe(tmp_path: Path) -> Write:
    """Writes a description of colours.onnx; keyword arguments add or replace lines, None leaves one out."""

    def write(**lines: str | None) -> Path:
        settings = {"path": "colours.onnx", "size": "32", "resize": "box", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
        settings |= {"features": "features", "attributes": "{tint: [red, green, blue], light: 100}"}
        path = tmp_path / "net.yaml"
        given = {key: value for key, value in (settings | lines).items() if value is not None}
        path.write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
        open_network.cache_clear()
        return path

    return write


def refused(path: Path, error: type[HarnessError] = ConfigError) -> str:
    """What is said of a description that is refused: one line."""
    with pytest.raises(error) as caught:
        open_network("mine", str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch", [1, "n"])
def test_an_onnx_network_is_read_as_described(
    describe: Write, write_graph: WriteGraph, images: Images, tmp_path: Path, batch: int | str
) -> None:
    """Features are the named output, the other outputs become probabilities and a scaled number, at any batch size."""
    write_graph(tmp_path / "colours.onnx", batch=batch)
    network = open_network("mine", str(describe()))
    colours = images.mean(axis=(1, 2)) / 255
    assert network.features(images) == pytest.approx(colours, abs=2e-2)  # resized from 40 to 32 pixels first
    predicted = network.predictions(images)
    exponents = np.exp(network.features(images))
    assert predicted["tint"].to_numpy() == pytest.approx(exponents / exponents.sum(axis=1, keepdims=True), abs=1e-6)
    assert list(predicted["tint"]) == ["red", "green", "blue"]
    assert predicted["light"][VALUE].to_numpy() == pytest.approx(100 * network.features(images).sum(axis=1), rel=1e-5)
    assert (network.width, network.labels) == (3, {"tint": ("red", "green", "blue"), "light": ()})
    assert "output features" in network.recipe
    assert "32 x 32" in network.recipe


def test_probabilities_are_taken_as_they_are(
    describe: Write, write_graph: WriteGraph, images: Images, tmp_path: Path
) -> None:
    """Outputs declared as probabilities pass no second softmax."""
    write_graph(tmp_path / "colours.onnx")
    network = open_network("mine", str(describe(outputs="probabilities")))
    assert network.predictions(images)["tint"].to_numpy() == pytest.approx(network.features(images), abs=1e-6)


def test_failures_of_a_network_are_nan(
    describe: Write, write_graph: WriteGraph, images: Images, tmp_path: Path
) -> None:
    """Where a network gives no finite number, the whole row of predictions is NaN and the others stay."""
    write_graph(tmp_path / "colours.onnx", log=True)
    network = open_network("mine", str(describe()))
    images[2] = 0
    for table in network.predictions(images).values():
        assert table.isna().all(axis=1).tolist() == [False, False, True, False, False]
    assert not np.isfinite(network.features(images)[2]).any()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"attributes": "{tint: [red, green]}"}, "has 4 outputs, its attributes name 2"),
        ({"attributes": "{tint: [red, green, red], light: 1}"}, ":7: attributes: tint has a label twice"),
        ({"features": "featuers"}, "no output 'featuers'; there is features, scores"),
        ({"features": None, "attributes": None}, "nothing to measure with"),
        ({"layout": "nhwc"}, "cannot be run: .*INVALID_ARGUMENT"),
        ({"size": "40"}, "cannot be run: .*INVALID_ARGUMENT"),
        ({"std": "[0, 1, 1]"}, ":5: std.0: .*greater than 0"),
        ({"sise": "32"}, "unknown field; did you mean size"),
        ({"path": None}, ":1: path: Field required"),
        ({"architecture": "resnet34"}, "features: is for ONNX and TorchScript"),
        ({"architecture": "resnet3", "features": None}, "torchvision has no classifier 'resnet3'"),
        ({"architecture": "resnet34", "features": None}, "no plain weights"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(
    describe: Write, write_graph: WriteGraph, tmp_path: Path, lines: dict[str, str | None], words: str
) -> None:
    """A description that the network does not bear out is refused when it is opened, in one line with its file."""
    write_graph(tmp_path / "colours.onnx")
    path = describe(**lines)
    message = refused(path)
    assert message.startswith(str(path))
    assert re.search(words, message)


def test_files_that_are_not_networks_are_one_line(describe: Write, write_graph: WriteGraph, tmp_path: Path) -> None:
    """Missing, damaged, exchanged and huge files are refused before anything is read into a network."""
    assert "cannot be read" in refused(describe(), WeightsError)
    model = tmp_path / "colours.onnx"
    model.write_bytes(b"\x08nothing of the kind")
    assert "not an ONNX network" in refused(describe())
    write_graph(model)
    assert "SHA-256" in refused(describe(sha256="a" * 64), WeightsError)
    with model.open("ab") as file:
        file.truncate(networks.MAX_BYTES + 1)
    assert "larger than" in refused(describe(), WeightsError)


def test_programs_are_not_run(describe: Write, tmp_path: Path) -> None:
    """A .pt2 archive is refused by name, and a pickle that calls a function does not call it."""
    with zipfile.ZipFile(tmp_path / "colours.onnx", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
    assert ".pt2 files are not read" in refused(describe())

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/called",)

    torch.save({"weight": Evil()}, tmp_path / "colours.onnx")
    assert "no plain weights" in refused(describe(architecture="resnet34", features=None))
    (tmp_path / "colours.onnx").write_bytes(pickle.dumps(Evil()))
    assert "no plain weights" in refused(describe(architecture="resnet34", features=None))
    assert not (tmp_path / "called").exists()


def test_a_graph_cannot_reach_other_files(describe: Write, write_graph: WriteGraph, tmp_path: Path) -> None:
    """An ONNX graph whose weights lie in another file is refused."""
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    model = onnx.load(write_graph(tmp_path / "colours.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for location in (str(tmp_path / "secret.bin"), "../secret.bin"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        (tmp_path / "colours.onnx").write_bytes(model.SerializeToString())
        assert "not an ONNX network that can be run" in refused(describe())


def test_without_onnxruntime_it_is_said(
    describe: Write, write_graph: WriteGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where onnxruntime is not installed, the message says how to get it."""
    write_graph(tmp_path / "colours.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'upscaler-harness[onnx]'" in refused(describe())


def reference_input(images: Images, size: int, mode: str) -> torch.Tensor:
    """What a network of ImageNet's convention receives, by torch's own resize."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, (size, size), mode=mode, antialias=True).clamp(0, 1)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_the_attribute_network_is_mobilenet(images: Images, tmp_path: Path) -> None:
    """Weights of the shipped form give MobileNetV2's pooled features, its logits as probabilities, and years."""
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=8).eval()
    save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "attributes.safetensors")
    (tmp_path / "attributes.yaml").write_text((DATA / "attributes.yaml").read_text())
    network = open_network("attributes", str(tmp_path / "attributes.yaml"))
    with torch.inference_mode():
        model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
        x = reference_input(images, 128, "bicubic")
        expected, outputs = model.features(x).mean(dim=(2, 3)), model(x)
    assert network.features(images) == pytest.approx(expected.numpy(), abs=1e-4)
    predicted = network.predictions(images)
    assert predicted["race"].to_numpy() == pytest.approx(outputs[:, :5].softmax(1).numpy(), abs=1e-5)
    assert predicted["gender"].to_numpy() == pytest.approx(outputs[:, 5:7].softmax(1).numpy(), abs=1e-5)
    assert predicted["age"][VALUE].to_numpy() == pytest.approx(100 * outputs[:, 7].numpy(), abs=1e-3)
    assert "input of the last linear layer, 1280 features" in network.recipe


def test_fairface_needs_only_a_path(images: Images, tmp_path: Path) -> None:
    """With a path, the preset reads a ResNet-34 of 18 outputs as 7 races, 2 genders and 9 ages."""
    torch.manual_seed(1)
    model = resnet34(num_classes=18).eval()
    torch.save(model.state_dict(), tmp_path / "fairface.pt")
    preset = (resources.files("benchmarks") / "networks" / "fairface.yaml").read_text()
    lines = [line for line in preset.splitlines() if not line.startswith(("#", "sha256"))]
    (tmp_path / "fairface.yaml").write_text("\n".join(["path: fairface.pt", *lines]))
    network = open_network("fairface", str(tmp_path / "fairface.yaml"))
    with torch.inference_mode():
        outputs = model(reference_input(images, 224, "bilinear"))
    predicted = network.predictions(images)
    for name, part in zip(("race", "gender", "age"), outputs.split([7, 2, 9], dim=1), strict=True):
        assert predicted[name].to_numpy() == pytest.approx(part.softmax(1).numpy(), abs=1e-4)
    assert list(predicted["race"])[2:4] == ["latino_hispanic", "east asian"]
    assert network.width == 512


def test_the_preset_names_the_authors_file(tmp_path: Path) -> None:
    """A file other than FairFace's published weights is refused by its hash."""
    (tmp_path / "other.pt").write_bytes(b"PK")
    preset = (resources.files("benchmarks") / "networks" / "fairface.yaml").read_text()
    (tmp_path / "fairface.yaml").write_text(preset + "path: other.pt\n")
    assert "SHA-256" in refused(tmp_path / "fairface.yaml", WeightsError)
