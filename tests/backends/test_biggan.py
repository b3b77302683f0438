"""BigGAN: classes and seeds of the generator, evaluated image by image, and its weights files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backends.base import Refused, SampleBatch
from backends.biggan.backend import BigGAN
from backends.biggan.networks import Generator
from backends.server import UpscalerServicer, start
from harness.contract import check_address

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"classes": 2, "channels": 8, "multipliers": [2, 1], "latent": 4, "embedding": 8, "patch": 2}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> BigGAN:
    """A generator whose normalisation has statistics of its own."""
    torch.manual_seed(0)
    network = Generator(**SIZES)
    network(torch.randn(64, network.latents), torch.arange(64) % 2)
    path = tmp_path_factory.mktemp("weights") / "biggan.safetensors"
    metadata = {"network": json.dumps(SIZES | {"kind": "biggan"}), "classes": '["one", "two"]'}
    save_file(network.state_dict(), path, metadata)
    return BigGAN(str(path))


def images(generator: BigGAN, *pairs: tuple[int, int | None]) -> Any:
    """The images of (seed, class), made as one batch."""
    seeds, classes = zip(*pairs, strict=True)
    return generator.generate(SampleBatch(32, tuple(map(str, range(len(pairs)))), seeds, {}, classes), lambda *_: None)


def test_an_image_is_that_of_its_seed_and_class(generator: BigGAN) -> None:
    """Both change it, and what else is in the batch does not."""
    first, other_seed, other_class = images(generator, (1, 0), (2, 0), (1, 1))
    assert np.abs(first - other_seed).mean() > 0.1
    assert np.abs(first - other_class).mean() > 0.1
    np.testing.assert_allclose(images(generator, (1, 0))[0], first, atol=1e-3)


def test_a_class_is_needed(generator: BigGAN) -> None:
    """The image without one is named."""
    with pytest.raises(Refused, match="is needed"):
        images(generator, (1, None))


def test_a_generator_keeps_the_contract(generator: BigGAN) -> None:
    """Over gRPC, no check that applies to it finds anything wrong."""
    server, _, port = start(UpscalerServicer(generator), "127.0.0.1:0")
    try:
        results = check_address(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert [r for r in results if not r.passed] == []
    assert {r.name for r in results if r.detail == ""} >= {"generates as it says", "answers health checks"}


@pytest.mark.parametrize("classes", ["[]", '["one"]', '["one", 2]', '"one"', "no JSON", '["one", "two\\u0000"]'])
def test_weights_that_do_not_name_their_classes_are_refused(tmp_path: Path, classes: str) -> None:
    """One line says so, whatever the metadata hold."""
    path = tmp_path / "biggan.safetensors"
    network = json.dumps(SIZES | {"kind": "biggan"})
    save_file(Generator(**SIZES).state_dict(), path, {"network": network, "classes": classes})
    with pytest.raises(ValueError, match=r"do not name the 2 classes|Expecting value"):
        BigGAN(str(path))
