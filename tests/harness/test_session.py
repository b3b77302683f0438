"""A backend in use over real gRPC: recovery after kills and hangs, patience, poison images, changed digests."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from backends.base import Progress
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness.client import Item, Pixels
from harness.errors import BackendError, BackendFailed, BadRequest, DeadlineExceeded, Incompatible, Unavailable
from harness.plan import BackendSpec
from harness.session import PATIENCE, Session
from harness.suite import Suite
from protos.upscaler.v1 import upscaler_pb2 as pb

ITEMS = [
    Item(f"p{i}", np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8), i) for i in range(2 * PATIENCE)
]
Open = Callable[..., Session]


def suite(**changes: object) -> Suite:
    """A small suite, 8 to 16 pixels."""
    settings = {"name": "small", "title": "small", "low": 8, "high": 16, "metrics": ("psnr",), "deadline_s": 20}
    return Suite.model_validate(settings | changes)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Open]:
    """Opens a session on a local `faulty` with options, in a process of its own."""
    opened: list[Session] = []

    def make(deadline_s: float = 20, **options: str) -> Session:
        session = Session(
            BackendSpec("faulty", None, "faulty", options), suite(deadline_s=deadline_s), tmp_path / "log"
        )
        opened.append(session)
        session.open()
        return session

    yield make
    for session in opened:
        session.close()


@contextmanager
def attached(servicer: UpscalerServicer, **changes: object) -> Iterator[Session]:
    """A session on a server in this process, attached by its address; not opened."""
    server, _, port = start(servicer, "127.0.0.1:0")
    session = Session(BackendSpec("x", f"127.0.0.1:{port}", "x", {}), suite(**changes), Path("unused"))
    try:
        yield session
    finally:
        session.close()
        server.stop(None).wait()


def is_upscaled(output: Pixels | BackendError, item: Item) -> bool:
    """Whether the output is the item with repeated pixels."""
    return isinstance(output, np.ndarray) and np.array_equal(output, item.image.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("count", [1, 4])
def test_a_killed_backend_comes_back_and_nothing_is_lost(count: int, faulty: Open) -> None:
    """After SIGKILL between two calls the backend is started again, and the second call is answered in full."""
    session = faulty()
    assert session.server is not None
    assert session.server.process is not None
    killed = session.server.process
    assert all(map(is_upscaled, session.upscale(ITEMS[:4]), ITEMS[:4]))
    killed.kill()
    killed.wait()
    after = ITEMS[-count:]
    assert all(map(is_upscaled, session.upscale(after), after))
    assert session.server.process.pid != killed.pid
    assert session.given_up is None
    assert session.failures_in_a_row == 0


def test_an_image_that_kills_the_backend_costs_itself(faulty: Open) -> None:
    """The batch of a deadly image is tried again one by one, and only that image fails."""
    results = faulty(fault="die", only="p2").upscale(ITEMS)
    assert [i for i, result in enumerate(results) if isinstance(result, BackendError)] == [2]
    assert isinstance(results[2], Unavailable)
    assert all(is_upscaled(results[i], ITEMS[i]) for i in range(len(ITEMS)) if i != 2)


def test_a_hang_costs_its_image_and_two_restarts(faulty: Open) -> None:
    """A hanging image fails alone at its deadline; the others of its batch come from a restarted backend."""
    session = faulty(deadline_s=0.5, fault="hang", only="p1")
    results = session.upscale(ITEMS[:4])
    assert isinstance(results[1], DeadlineExceeded)
    assert all(is_upscaled(results[i], ITEMS[i]) for i in (0, 2, 3))
    assert session.given_up is None


def test_refusals_do_not_end_patience(faulty: Open) -> None:
    """A backend may refuse image after image: the one that it takes is still asked for."""
    session = faulty()
    session.options = {"no such option": 1}
    assert all(isinstance(result, BadRequest) for result in session.upscale(ITEMS))
    session.options = {}
    assert is_upscaled(session.upscale(ITEMS[:1])[0], ITEMS[0])


def test_patience_ends(faulty: Open) -> None:
    """After PATIENCE failed calls in a row the remaining items fail without a call, and say so."""
    session = faulty(fault="crash")
    results = session.upscale(ITEMS)
    tried = PATIENCE  # the batch is not counted: its images are tried alone
    assert all("crashed on purpose" in str(result) for result in results)
    assert all("not tried" not in str(result) for result in results[:tried])
    for result in results[tried:] + session.upscale(ITEMS[:2]):
        assert isinstance(result, BackendFailed)
        assert f"not tried: given up after {PATIENCE}" in str(result)
    assert session.failures_in_a_row == PATIENCE


def test_a_success_restores_patience(faulty: Open) -> None:
    """Failures count in a row: a backend that fails on one image of every batch is never given up."""
    session = faulty(fault="crash", only="p0")
    for _ in range(PATIENCE):
        results = session.upscale(ITEMS[:2])
        assert isinstance(results[0], BackendFailed)
        assert is_upscaled(results[1], ITEMS[1])
    assert session.given_up is None


class Swapped(UpscalerServicer):
    """Goes away in the first call, and comes back with another digest."""

    def compute(
        self, request: pb.UpscaleRequest, context: grpc.ServicerContext, progress: Progress
    ) -> pb.UpscaleResponse:
        """Fail as a dying server does, once."""
        if self.description.digest != "other":
            self.description = replace(self.description, digest="other")
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return super().compute(request, context, progress)


def test_another_build_does_not_finish_the_work_of_the_first() -> None:
    """A backend that comes back with another digest is given up: its outputs would be somebody else's."""
    with attached(Swapped(Nearest())) as session:
        session.open()
        results = session.upscale(ITEMS[:3])
    assert all(isinstance(result, Incompatible) for result in results)
    assert all("another digest" in str(result) for result in results)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"scales": (3,)}, r"no scale 2; it has \[3\]"),
        ({"minimum": 9}, "inputs of at least 9 pixels, not 8 x 8"),
        ({"maximum": 7}, "inputs of 1 to 7 pixels, not 8 x 8"),
        ({"multiple_of": 3}, "in steps of 3, not 8 x 8"),
    ],
)
def test_a_backend_that_does_not_fit_the_suite_is_not_opened(says: dict[str, object], words: str) -> None:
    """A missing scale or a size that it does not take is said before any image is sent."""
    servicer = UpscalerServicer(Nearest())
    servicer.description = replace(servicer.description, **says)  # type: ignore[arg-type]
    with attached(servicer) as session, pytest.raises(Incompatible, match=words):
        session.open()


def test_photos_of_a_size_that_is_not_taken_fail_unsent() -> None:
    """Where inputs have sizes of their own, the backend is opened, and those it does not take are its failures."""
    servicer = UpscalerServicer(Nearest())
    servicer.description = replace(servicer.description, minimum=4, maximum=16)
    changes = {"low": 0, "high": 0, "photos": {"scale": 2, "max_pixels": 900}, "metrics": ("lr_mse",)}
    with attached(servicer, **changes) as session:
        session.open()
        fits, wide = np.zeros((6, 16, 3), np.uint8), np.zeros((6, 17, 3), np.uint8)
        (output,) = session.upscale([Item("fits", fits, 0)])
        refused = session.upscale([Item("wide", wide, 0), Item("as wide", wide, 0)])
    assert isinstance(output, np.ndarray)
    assert output.shape == (12, 32, 3)
    assert [str(error) for error in refused] == ["x takes inputs of 4 to 16 pixels, not 17 x 6"] * 2
    assert session.failures_in_a_row == 0


def test_the_record_of_a_backend_is_bounded() -> None:
    """Whatever a backend says of itself, the run record takes a part of it."""
    servicer = UpscalerServicer(Nearest())
    servicer.description = replace(
        servicer.description,
        name="n" * 5000,
        licence="l" * 5000,
        domain="d" * 5000,
        device="c" * 5000,
    )
    with attached(servicer) as session:
        session.open()
        record = session.record
    assert max(len(str(value)) for value in record.values()) <= 300
    assert (record["label"], record["family"], record["status"]) == ("x", "interpolation", "ok")
    assert math.isnan(session.cold_start_s)


def test_requests_are_no_larger_than_the_backend_takes() -> None:
    """The size of a request is the suite's, or what the backend lists if that is less."""
    servicer = UpscalerServicer(Nearest())
    servicer.description = replace(servicer.description, max_batch=3)
    with attached(servicer, batch=8) as session:
        session.open()
        assert session.batch == 3
    with attached(UpscalerServicer(Nearest()), batch=8) as session:
        session.open()
        assert session.batch == 8
