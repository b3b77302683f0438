"""Cascades: the base and the stages as trained and served, classes and conditioning levels that reach the network."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backends.base import Batch, FloatBatch, Refused, SampleBatch
from backends.cdm.backend import CDMBase, CDMStage
from backends.pixels import to_model
from backends.sr3.backend import SR3
from backends.sr3.diffusion import cosine_gamma, diffuse
from backends.sr3.unet import UNet
from harness.client import Client, Draw, Item
from harness.contract import CHECKS, check_address
from harness.errors import BadRequest
from protos.values import Value

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["red", "green", "blue"]
TINY: dict[str, Any] = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "labels": len(NAMES)}
OPTIONS: dict[str, Value] = {"steps": 3, "sampler": "ddim", "schedule": 1.0}


def ignore(*_: object) -> None:
    """Progress that nobody watches."""


def write(path: Path, sizes: dict[str, Any], **metadata: str) -> str:
    """A network of random weights that answer to all that they are told."""
    torch.manual_seed(0)
    network = UNet(**sizes)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_file(network.state_dict(), path, {"network": json.dumps(sizes), "classes": json.dumps(NAMES), **metadata})
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a base, of a stage and of a stage without augmentation."""
    folder = tmp_path_factory.mktemp("weights")
    stage = TINY | {"c_in": 6, "patch": 2}
    usual = {"low": "16", "high": "32", "std": "1.0", "residual": "false"}
    write(folder / "cdm-base-16.safetensors", TINY | {"c_in": 3, "patch": 1}, size="16")
    write(folder / "cdm-16-32.safetensors", stage | {"levels": 1}, **usual, augmentation="0.5", level="0.2")
    write(folder / "plain.safetensors", stage | {"levels": 0}, **usual, augmentation="0.0", level="0.0")
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> CDMBase:
    """The base."""
    return CDMBase(str(folder / "cdm-base-16.safetensors"))


@pytest.fixture(scope="module")
def stage(folder: Path) -> CDMStage:
    """The stage with augmentation."""
    return CDMStage(str(folder / "cdm-16-32.safetensors"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> CDMStage:
    """The stage without."""
    return CDMStage(str(folder / "plain.safetensors"))


def wanted(*classes: int | None, seed: int = 5) -> SampleBatch:
    """One image of each class, of one seed."""
    n = len(classes)
    return SampleBatch(16, tuple(map(str, range(n))), (seed,) * n, OPTIONS, classes)


def batch(*classes: int | None, level: float | None = None, seed: int = 5) -> Batch:
    """One photo for each class, at one level."""
    n = len(classes)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8).repeat(n, axis=0)
    return Batch(image, 2, tuple(map(str, range(n))), (seed,) * n, OPTIONS, classes, (level,) * n)


# The network


def test_a_network_that_is_told_nothing_is_the_one_without_classes_and_levels() -> None:
    """What was added to the U-Net changes neither the names of other weights nor one bit of their outputs."""
    sizes = {k: v for k, v in TINY.items() if k != "labels"} | {"patch": 2}
    before, extended = UNet(**sizes), UNet(**sizes, labels=3, levels=1)
    missing, unexpected = extended.load_state_dict(before.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"label", "level"}
    assert not unexpected
    torch.nn.init.normal_(before.exit.weight, generator=torch.Generator().manual_seed(0))
    extended.exit.load_state_dict(before.exit.state_dict())
    x, gamma = torch.randn(2, 6, 16, 16), torch.tensor([0.3])
    assert torch.equal(extended(x, gamma), before(x, gamma))


# The base


def test_a_class_and_a_seed_make_the_image(base: CDMBase) -> None:
    """Another class or another seed makes another image; the same ones make the same bytes."""
    red, green = base.generate(wanted(0, 1), ignore)
    assert np.abs(red - green).mean() > 1
    np.testing.assert_array_equal(base.generate(wanted(0, 1), ignore), [red, green])
    assert np.abs(base.generate(wanted(0, seed=6), ignore) - red).mean() > 1


def test_the_base_needs_a_class(base: CDMBase) -> None:
    """The image without one is named."""
    with pytest.raises(Refused, match="is needed") as caught:
        base.generate(wanted(0, None), ignore)
    assert caught.value.field == "images[1].class_index"


# Stages


def test_a_stage_is_told_the_class(stage: CDMStage) -> None:
    """Each class gives another output, and so does none."""
    outputs = stage.upscale(batch(0, 1, 2, None), ignore)
    assert all(np.abs(outputs[i] - outputs[j]).mean() > 0.1 for i in range(4) for j in range(i))


def test_the_input_gets_the_noise_of_the_level_that_the_network_is_told(stage: CDMStage) -> None:
    """The network sees z_s ~ q(z_s | z), enlarged, beside y, and gamma of the same s, image by image."""
    given = batch(0, 0)
    generators = [torch.Generator().manual_seed(seed) for seed in given.seeds]
    gamma = cosine_gamma(torch.tensor([0.5, 0.2]))
    levels = Batch(given.images, 2, given.ids, given.seeds, OPTIONS, given.classes, (0.5, None))
    up, (_, told) = stage._inputs(given.images, levels, generators)
    torch.testing.assert_close(told, gamma)
    eps = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(5)).expand(2, -1, -1, -1)
    noisy = diffuse(to_model(given.images), eps, gamma)
    centres = torch.nn.functional.avg_pool2d(up, 2)  # of an enlargement by two, about the input
    assert float(torch.corrcoef(torch.stack([centres.flatten(), noisy.flatten()]))[0, 1]) > 0.9
    clean, _ = stage._inputs(given.images, batch(0, 0, level=0.0), generators)
    assert (up - clean)[0].std() > (up - clean)[1].std() > 0.1


def test_without_augmentation_the_input_stays_as_it_is(stage: CDMStage, plain: CDMStage) -> None:
    """At level 0 the enlarged input has no noise; a stage trained without refuses any level above."""
    generators = [torch.Generator().manual_seed(5)]
    at_zero, _ = stage._inputs(batch(0).images, batch(0, level=0.0), generators)
    without, _ = plain._inputs(batch(0).images, batch(0), generators)
    torch.testing.assert_close(at_zero, without, atol=1e-5, rtol=0)
    assert np.abs(stage.upscale(batch(0, level=0.0), ignore) - stage.upscale(batch(0), ignore)).mean() > 1
    with pytest.raises(Refused, match="is above 0"):
        plain.upscale(batch(0, level=0.1), ignore)


def test_the_default_level_is_that_of_the_weights(stage: CDMStage) -> None:
    """A request without a level is one with it, and one above the range of the training is refused."""
    np.testing.assert_array_equal(stage.upscale(batch(0), ignore), stage.upscale(batch(0, level=0.2), ignore))
    with pytest.raises(Refused, match=r"is above 0\.5") as caught:
        stage.upscale(batch(0, level=0.6), ignore)
    assert caught.value.field == "images[0].conditioning_level"


def test_a_stage_is_differentiated_through_its_augmentation(stage: CDMStage) -> None:
    """The gradient agrees with central differences of the float output."""
    plain = batch(1)
    rng = np.random.default_rng(1)
    images, weight = plain.images.astype(np.float32), rng.standard_normal((1, 32, 32, 3)).astype(np.float32)

    def outputs(x: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        return stage.gradient(FloatBatch(x, weight, 2, ("a",), (5,), OPTIONS, (1,), (None,)), ignore)

    _, gradient = outputs(images)
    direction = rng.choice([-1.0, 1.0], images.shape).astype(np.float32)
    up, down = (float((outputs(images + s * direction)[0] * weight).sum(dtype=np.float64)) for s in (1, -1))
    assert (up - down) / 2 == pytest.approx(float((gradient * direction).sum()), rel=0.02)


@pytest.mark.parametrize(
    ("make", "file"),
    [(SR3, "plain"), (SR3, "cdm-base-16"), (CDMStage, "cdm-base-16"), (CDMStage, "sr3-16-64"), (CDMBase, "plain")],
)
def test_weights_of_another_kind_are_refused(folder: Path, make: type[Any], file: str) -> None:
    """Each backend takes its own weights alone, and says whose the others are."""
    with pytest.raises(ValueError, match=r"not weights of .*; use the backend .*, or other weights"):
        make(file if file == "sr3-16-64" else str(folder / f"{file}.safetensors"))


# Over the wire


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """Clients of a base and a stage, each in a process of its own."""
    code = "import sys; from pathlib import Path; from functools import partial; from backends.server import serve; "
    code += "from backends.cdm import backend; kind, weights, file = sys.argv[1:]; "
    code += "serve(partial(getattr(backend, kind), weights), '127.0.0.1:0', Path(file))"
    kinds = {"CDMBase": "cdm-base-16", "CDMStage": "cdm-16-32"}
    processes, clients = [], {}
    for kind, file in kinds.items():
        command = [sys.executable, "-c", code, kind, str(folder / f"{file}.safetensors")]
        handshake = tmp_path_factory.mktemp("address") / kind
        process = subprocess.Popen([*command, str(handshake)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        clients[kind] = Client(process.stdout.readline().split()[-1])
        clients[kind].describe()
    yield clients
    for client, process in zip(clients.values(), processes, strict=True):
        client.close()
        process.terminate()
    for process in processes:
        process.communicate()


@pytest.mark.parametrize("kind", ["CDMBase", "CDMStage"])
def test_the_parts_of_a_cascade_keep_the_contract(served: dict[str, Client], kind: str) -> None:
    """Untrained, a stage does not return the picture it was sent; nothing else is wrong, the batch rule included."""
    results = check_address(served[kind].address, {"steps": "2"})
    assert len(results) == len(CHECKS)
    assert {r.name for r in results if not r.passed} <= {"returns the picture it was sent"}


def test_a_cascade_runs_over_the_wire(served: dict[str, Client], base: CDMBase, stage: CDMStage) -> None:
    """What the base generates is what the stage enlarges, with its class and level: the same as in one process."""
    made = served["CDMBase"].generate([Draw("a", 5, 2)], OPTIONS, 60).images
    difference = np.abs(made - base.generate(wanted(2), ignore).clip(0, 255))
    assert difference.max() < 0.51
    (image,) = made
    items = [Item("a", image, 7, 2, 0.4), Item("b", image, 7, 1, 0.4), Item("c", image, 7, 2, 0.1)]
    outputs = served["CDMStage"].upscale(items, 2, OPTIONS, 60).images
    ours = stage.upscale(Batch(made, 2, ("a",), (7,), OPTIONS, (2,), (float(np.float32(0.4)),)), ignore)
    assert np.abs(outputs[0] - ours[0].clip(0, 255)).max() < 1.01
    assert (outputs[0] != outputs[1]).any()
    assert (outputs[0] != outputs[2]).any()


def test_an_unknown_class_is_refused_by_field(served: dict[str, Client]) -> None:
    """The field and the number of classes are named, before anything is computed."""
    with pytest.raises(BadRequest, match=r"images\[1\]\.class_index 3 is not below 3"):
        served["CDMBase"].generate([Draw("a", 0, 0), Draw("b", 0, 3)], OPTIONS, 60)
