"""SR3 by tiles: windows, one canvas for all tiles, fusion at every step, and the backend that does it."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.base import Batch, Cancelled, Refused
from backends.pixels import back_project, enlarge
from backends.sr3 import diffusion, tiles
from backends.sr3.backend import SR3
from backends.sr3.tiled import SR3Tiled
from backends.sr3.unet import UNet
from harness.client import Client, Item
from harness.contract import CHECKS, check_address
from harness.errors import BadRequest, DeadlineExceeded
from harness.metrics import score
from harness.processes import LocalServer
from harness.resize import resize, to_uint8

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"c_in": 6, "channels": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
TILE, MULTIPLE = 16, 4
OPTIONS: dict[str, Any] = {"steps": 2, "sampler": "ddim", "schedule": 1.0, "tile": TILE, "back_projections": 0}


def ignore(*_: object) -> None:
    """Progress that nobody watches."""


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, (height, width, 3)."""
    return to_uint8(resize(np.random.default_rng(seed).uniform(0, 255, (4, 4, 3)), height, width))


def batch(*images: NDArray[np.uint8], seed: int = 5, **options: object) -> Batch:
    """A request for images of one size."""
    n = len(images)
    ids, seeds = tuple(map(str, range(n))), tuple(range(seed, seed + n))
    return Batch(np.stack(images), 4, ids, seeds, OPTIONS | options, (None,) * n, (None,) * n)


# Tiles


@pytest.mark.parametrize("size", [1, 15, 16, 17, 24, 25, 60, 61, 200])
def test_weights_sum_to_one_everywhere(size: int) -> None:
    """Every place of an axis is answered for, with weights that sum to 1; tiles are as long as the network needs."""
    total = torch.zeros(size)
    spans = tiles.spans(size, TILE, MULTIPLE)
    for span in spans:
        total[span.on] += span.weights
        assert (span.places[span.within] == torch.arange(size)[span.on]).all()
        assert 0 <= int(span.places.min()) <= int(span.places.max()) < size
    torch.testing.assert_close(total, torch.ones(size), atol=1e-6, rtol=0)
    assert {len(span.places) for span in spans} == {TILE if size > TILE else MULTIPLE * math.ceil(size / MULTIPLE)}


def test_neighbours_count_the_same_at_the_borders() -> None:
    """`borders` are where the weights of two tiles cross, and near their ends tiles count for nothing."""
    first, second, *_ = tiles.spans(100, 64, 16)
    weights = torch.zeros(2, 100)
    weights[0, first.on], weights[1, second.on] = first.weights, second.weights
    assert tiles.borders(100, 64) == [48, 96]
    assert float(weights[0, 47]) > 0.5 > float(weights[0, 48])
    torch.testing.assert_close(weights[0, 47] + weights[1, 47], torch.tensor(1.0))
    assert 0 < float(first.weights[-1]) < 0.01
    assert tiles.borders(64, 64) == []


def test_beyond_the_image_a_tile_sees_its_mirror_image() -> None:
    """The first place outside is the last one inside, at both ends, also where a tile is longer than the image."""
    first, *_, last = tiles.spans(24, TILE, MULTIPLE)
    assert first.places[:4].tolist() == [1, 0, 0, 1]
    assert last.places[-3:].tolist() == [23, 23, 22]
    (only,) = tiles.spans(3, TILE, MULTIPLE)
    assert only.places.tolist() == [0, 1, 2, 2]


def fused(predict: Any, *canvases: Tensor, tile: int = TILE) -> Tensor:
    """The fused predictions for canvases."""
    height, width = canvases[-1].shape[2:]
    return tiles.fuse(predict, canvases, grid=tiles.grid(height, width, tile, MULTIPLE), report=ignore)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 8), (4, 16)])
def test_one_tile_is_the_network_itself(height: int, width: int) -> None:
    """Where one tile covers the image, its prediction is taken bit for bit."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(6, 3, 3, padding=1).requires_grad_(requires_grad=False)
    up, y = normal(0, 1, 3, height, width), normal(1, 1, 3, height, width)
    assert torch.equal(fused(network, up, y), network(torch.cat([up, y], dim=1)))


@pytest.mark.parametrize("tile", [16, 32, 48])
def test_tiles_are_cut_from_one_canvas(tile: int) -> None:
    """A denoiser that looks at each pixel alone draws the image that it draws without tiles, whatever the tiles."""

    def pointwise(x: Tensor) -> Tensor:
        return torch.tanh(x[:, 3:] + x[:, :3])

    up = normal(0, 1, 3, 50, 71)

    def draw(*, tiled: bool) -> Tensor:
        def denoise(y: Tensor, _gamma: Tensor) -> Tensor:
            return fused(pointwise, up, y, tile=tile) if tiled else pointwise(torch.cat([up, y], dim=1))

        noise = torch.Generator().manual_seed(3)
        levels = diffusion.gammas(4)
        return diffusion.ancestral(
            denoise, normal(2, *up.shape), levels, ignore, lambda: torch.randn(up.shape, generator=noise)
        )

    torch.testing.assert_close(draw(tiled=True), draw(tiled=False), atol=1e-5, rtol=0)


# The backend


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a tiny network."""
    torch.manual_seed(0)
    network = UNet(**SIZES)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    metadata = {"network": json.dumps(SIZES), "std": "0.1", "low": "4", "high": "16", "tile": "16"}
    save_file(network.state_dict(), path, metadata)
    return path


@pytest.fixture(scope="module")
def backend(weights: Path) -> SR3Tiled:
    """The backend with them."""
    return SR3Tiled(str(weights))


def test_an_image_of_one_tile_is_drawn_as_by_the_model_for_faces(backend: SR3Tiled, weights: Path) -> None:
    """Without the last correction, the output is that of the untiled backend on the same network and seed."""
    metadata = {"network": json.dumps(SIZES), "std": "0.1", "low": "4", "high": "16"}
    whole = weights.with_name("whole.safetensors")
    save_file(load_file(weights), whole, metadata)
    given = batch(photo(4, 4), photo(4, 4, 1))
    expected = SR3(str(whole)).upscale(given, ignore)
    np.testing.assert_allclose(backend.upscale(given, ignore), expected, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_an_image_is_the_same_alone_and_in_a_batch(backend: SR3Tiled, sampler: str) -> None:
    """Bit for bit, over many tiles; another seed gives another image."""
    images = [photo(9, 13, i) for i in range(3)]
    together = backend.upscale(batch(*images, sampler=sampler), ignore)
    for i, image in enumerate(images):
        alone = backend.upscale(batch(image, seed=5 + i, sampler=sampler), ignore)
        np.testing.assert_array_equal(together[i], alone[0])
    assert np.abs(backend.upscale(batch(images[0], seed=9, sampler=sampler), ignore) - together[0]).mean() > 0.1
    assert together.shape == (3, 36, 52, 3)


def test_progress_counts_groups_of_tiles_and_may_cancel(backend: SR3Tiled) -> None:
    """Between two evaluations of a few tiles the caller hears of it; one that has gone ends the work there."""
    calls: list[tuple[int, int]] = []

    def leave(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        backend.upscale(batch(photo(9, 9)), leave)
    assert calls == [(done, 2 * 3) for done in (1, 2, 3, 4)]


def test_a_tile_must_suit_the_network(backend: SR3Tiled) -> None:
    """A side between two possible ones is refused by field; a tile larger than the image is one tile."""
    with pytest.raises(Refused, match="20 is no multiple of 16") as caught:
        backend.upscale(batch(photo(9, 9), tile=20), ignore)
    assert caught.value.field == "options.tile"
    done: list[int] = []
    backend.upscale(batch(photo(9, 9), tile=64), lambda count, _total: done.append(count))
    assert done == [1, 2]


def test_back_projection_brings_the_output_nearer_to_its_input(backend: SR3Tiled) -> None:
    """Each correction raises the PSNR of the output made small again, against the input."""
    image = photo(12, 12)

    def consistency(count: int) -> float:
        output = to_uint8(backend.upscale(batch(image, back_projections=count), ignore))
        return float(score("lr_psnr", output, None, image[None], 4)[0])

    none, once, often = (consistency(count) for count in (0, 1, 5))
    assert none + 3 < once < often
    x = enlarge(image[None], 4)
    assert float((back_project(x.clone(), image[None]) - x).abs().max()) < 0.2


def test_weights_for_whole_images_are_refused(weights: Path, backend: SR3Tiled) -> None:
    """The backend needs weights that know their tile, and that for faces refuses them."""
    with pytest.raises(ValueError, match="not weights of sr3-x4; use the backend sr3, or other weights"):
        SR3Tiled("sr3-16-64")
    with pytest.raises(ValueError, match="not weights of sr3; use the backend sr3-x4, or other weights"):
        SR3(str(weights))
    assert backend.description.options[3].default == TILE


# Over the wire


@pytest.fixture(scope="module")
def server(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """The backend in a process of its own."""
    settings = {"weights": str(weights)}
    with LocalServer("sr3-x4", tmp_path_factory.mktemp("logs") / "log", settings) as server:
        yield server


@pytest.fixture(scope="module")
def served(server: LocalServer) -> Iterator[Client]:
    """A client of it."""
    client = Client(server.address)
    client.describe()
    yield client
    client.close()


def test_it_keeps_the_contract(served: Client) -> None:
    """No check of the contract kit finds anything wrong, with weights that are not trained."""
    results = check_address(served.address, {"steps": "2"})
    assert len(results) == len(CHECKS)
    assert [r for r in results if not r.passed] == []


def test_a_bad_tile_is_refused_by_field(served: Client) -> None:
    """The refusal names the option over the wire."""
    with pytest.raises(BadRequest, match=r"options\.tile"):
        served.upscale([Item("a", photo(9, 9), 0)], 4, {"tile": 20}, 60)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is forgotten, and freed memory returned, on Linux")
def test_memory_is_bounded_and_goes_back_when_the_client_leaves(server: LocalServer, served: Client) -> None:
    """In the middle of 2048 pixels there are up to ten canvases of 48 MiB each; none of them stays."""
    served.upscale([Item("a", photo(16, 16), 0)], 4, {"steps": 1}, 60)
    server.forget_peak_memory()
    idle = server.peak_memory_mb()
    with pytest.raises(DeadlineExceeded):
        served.upscale([Item("a", photo(512, 512), 0)], 4, {"steps": 1000, "tile": 64}, 4)
    assert idle + 100 < server.peak_memory_mb() < idle + 600
    served.upscale([Item("a", photo(16, 16), 0)], 4, {"steps": 1}, 60)
    server.forget_peak_memory()
    assert server.peak_memory_mb() < idle + 120  # three canvases, which an error held, are more
