"""`Generate` through real servers: what the contract kit finds in bad generators, typed refusals, sessions."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.base import Description, Progress, SampleBatch
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness.client import Client, Draw, Item
from harness.contract import check_address
from harness.errors import BadRequest, ContractBroken, Incompatible
from harness.plan import BackendSpec
from harness.session import Session
from harness.suite import Suite
from protos.upscaler.v1 import upscaler_pb2 as pb

Make = Callable[[SampleBatch], NDArray[np.uint8]]


def honest(batch: SampleBatch) -> NDArray[np.uint8]:
    """Noise of each seed around the colour of its class."""
    return np.stack(
        [_noise(seed, place or 0, batch.size) for seed, place in zip(batch.seeds, batch.classes, strict=True)]
    )


def _noise(seed: int, place: int, size: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(60 * place, 60 * place + 60, (size, size, 3), dtype=np.uint8)


class Model:
    """A generator that does as it is told, whatever it says of itself."""

    def __init__(self, make: Make = honest, **says: Any) -> None:
        base = Description("model", "other", "ab" * 32, (), "none", "tests", generated_size=8, max_batch=8)
        settings: dict[str, Any] = {"deterministic": False, "classes": ("a", "b", "c")} | says
        self.make, self.description = make, replace(base, **settings)

    def generate(self, batch: SampleBatch, progress: Progress) -> NDArray[np.uint8]:
        """See `Generative.generate`."""
        progress(1, 1)
        return self.make(batch)


@contextmanager
def client(model: Any) -> Iterator[Client]:
    """A client of a server in this process."""
    server, _, port = start(UpscalerServicer(model), "127.0.0.1:0")
    client = Client(f"127.0.0.1:{port}")
    try:
        client.describe()
        yield client
    finally:
        client.close()
        server.stop(None).wait()


def failing(model: Model) -> dict[str, str]:
    """What each check that fails has found."""
    with client(model) as asked:
        return {r.name: r.detail for r in check_address(asked.address) if not r.passed}


def test_a_good_generator_passes_all_checks() -> None:
    """Without classes too."""
    assert failing(Model()) == {}
    assert failing(Model(classes=())) == {}


CALLS = itertools.count()


def forgetful(batch: SampleBatch) -> NDArray[np.uint8]:
    """Other images at each call, whatever the seeds."""
    return honest(replace(batch, seeds=(next(CALLS),) * len(batch.seeds)))


def of_its_place(batch: SampleBatch) -> NDArray[np.uint8]:
    """An image that depends on its place in the batch."""
    return honest(batch) + np.arange(len(batch.ids), dtype=np.uint8)[:, None, None, None]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (forgetful, "two equal requests"),
        (lambda batch: honest(replace(batch, seeds=(1,) * len(batch.seeds))), "another seed"),
        (lambda batch: honest(replace(batch, classes=(0,) * len(batch.classes))), "another class"),
        (of_its_place, "in a batch"),
        (lambda batch: honest(batch)[:, 1:], "model returned shape"),
    ],
)
def test_a_bad_generator_is_found(make: Make, words: str) -> None:
    """One that forgets its seed, its class or the batch rule, or makes other sizes, fails this check."""
    assert words in failing(Model(make))["generates as it says"]


@pytest.mark.parametrize(
    ("draws", "words"),
    [
        ([Draw("a", 0, 3)], r"images\[0\]\.class_index 3 is not below 3"),
        ([Draw("a", 0), Draw("a", 1)], "an id twice"),
        ([Draw(str(i), 0) for i in range(9)], "9 images; 1 to 8 are accepted"),
        ([], "0 images"),
        ([Draw("", 0)], r"images\[0\]\.id has 0 characters"),
    ],
)
def test_bad_requests_are_refused_by_field(draws: list[Draw], words: str) -> None:
    """An unknown class, too many images and wrong ids are each named."""
    with client(Model()) as asked, pytest.raises(BadRequest, match=words):
        asked.generate(draws, {}, 20)


def test_one_that_only_generates_refuses_to_upscale() -> None:
    """By the field `scale`, whatever scale is asked for."""
    item = Item("a", np.zeros((8, 8, 3), np.uint8), 0)
    with client(Model()) as asked, pytest.raises(BadRequest, match="scale 2 is not one of"):
        asked.upscale([item], 2, {}, 20)


def test_a_backend_without_the_capability_is_incompatible() -> None:
    """The client says so without a call, and the server refuses one that is made nevertheless."""
    with client(Nearest()) as asked:
        with pytest.raises(Incompatible, match="nearest does not offer Generate"):
            asked.generate([Draw("a", 0)], {}, 20)
        asked.describe().capabilities.append(pb.CAPABILITY_GENERATE)
        with pytest.raises(Incompatible, match="nearest does not generate"):
            asked.generate([Draw("a", 0)], {}, 20)


def test_an_image_of_another_size_breaks_the_contract() -> None:
    """What comes back is measured against the description."""
    with client(Model()) as asked:
        asked.describe().generated_size = 16
        with pytest.raises(ContractBroken, match="16 x 16 was asked for"):
            asked.generate([Draw("a", 0)], {}, 20)


def test_a_session_generates_and_keeps_errors_with_their_images() -> None:
    """A refused image costs only itself, and one to enlarge is told that nothing here does that."""
    settings = {"name": "s", "title": "s", "photos": {"scale": 2, "max_pixels": 4096}, "metrics": ("sharpness",)}
    suite = Suite.model_validate(settings)
    with client(Model()) as asked:
        session = Session(BackendSpec("x", asked.address, "x", {}), suite, Path("unused"))
        session.open()
        assert session.generative
        first, unknown, last = session.staged([Draw("a", 1, 0), Draw("b", 1, 9), Draw("c", 1, 2)])
        assert isinstance(first, list)
        assert isinstance(last, list)
        np.testing.assert_array_equal(first[0].image, _noise(1, 0, 8))
        np.testing.assert_array_equal(last[0].image, _noise(1, 2, 8))
        assert isinstance(unknown, BadRequest)
        (answer,) = session.upscale([Item("a", np.zeros((8, 8, 3), np.uint8), 0)])
        assert isinstance(answer, Incompatible)
        assert "only generates" in str(answer)
        session.close()
