"""Concurrent requests to a real server: computed together where they fit, each answered as if it were alone."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backends.base import Backend, Batch, Progress
from backends.batching import model_thread
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from backends.sr3.backend import SR3
from harness.client import Client, Item, Reply
from harness.compliance import SHARE
from harness.errors import BackendFailed
from harness.resize import to_uint8
from protos.upscaler.v1 import upscaler_pb2 as pb

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
LONG = 60.0


@dataclass
class Held:
    """A backend that starts a batch only when the test says so, and fails where an image is called `bad`."""

    inner: Backend
    started: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.description = self.inner.description

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
        """Say how many images there are, wait, and compute."""
        self.started.put(len(batch.images))
        assert self.go.acquire(timeout=LONG)
        if "bad" in batch.ids:
            raise RuntimeError("a bad image")
        return self.inner.upscale(batch, progress)


@dataclass
class Served:
    """A held backend behind a server in this process, and callers in threads of their own."""

    backend: Held
    servicer: UpscalerServicer
    client: Client
    pool: ThreadPoolExecutor

    def call(self, number: int, name: str = "", options: dict[str, Any] | None = None) -> "Future[Reply]":
        """Ask for image `number` in a request of its own, in another thread."""
        item = Item(name or f"image {number}", PIXELS[number], number)
        return self.pool.submit(self.client.upscale, [item], 4, options or {}, LONG)

    def wait_for(self, count: int) -> None:
        """Return once so many requests wait for the model."""
        batcher = self.servicer.batcher
        with batcher.changed:
            while len(batcher.waiting) != count:
                batcher.changed.wait(0.01)

    def hold_first(self) -> "Future[Reply]":
        """A request that keeps the model busy until `go`."""
        first = self.call(0)
        assert self.backend.started.get(timeout=LONG) == 1
        return first

    def finish(self, batches: Sequence[int]) -> None:
        """Let everything go; the batches that follow have these numbers of images."""
        self.backend.go.release(1 + len(batches))
        assert [self.backend.started.get(timeout=LONG) for _ in batches] == list(batches)


@pytest.fixture(scope="module")
def model() -> Iterator[SR3]:
    """SR3 on one thread: on tensors this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SR3()
    torch.set_num_threads(before)


@pytest.fixture
def held() -> Iterator[Callable[[Backend], Served]]:
    """Serves a backend that is held."""
    with ExitStack() as stack:

        def serve(inner: Backend) -> Served:
            backend = Held(inner)
            servicer = UpscalerServicer(backend)
            server, _, port = start(servicer, "127.0.0.1:0")
            stack.callback(lambda: server.stop(None).wait())
            client = Client(f"127.0.0.1:{port}")
            stack.callback(client.close)
            client.describe()
            return Served(backend, servicer, client, stack.enter_context(ThreadPoolExecutor(8)))

        yield serve


def alone(model: SR3, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """What the model makes of images one by one, with its default options."""
    options = {option.name: option.default for option in model.description.options}
    batches = [Batch(PIXELS[i : i + 1], 4, ("x",), (i,), options, (None,), (None,)) for i in numbers]
    outputs = [model.upscale(batch, lambda _done, _total: None) for batch in batches]
    return to_uint8(np.concatenate(outputs).astype(np.float64))


def test_requests_that_wait_together_are_one_batch(held: Callable[[Backend], Served], model: SR3) -> None:
    """Three waiting requests make one batch; each gets its own image, within the batch rule of being alone."""
    served = held(model)
    first = served.hold_first()
    calls = [served.call(number) for number in (1, 2, 3)]
    served.wait_for(3)
    served.finish([3])
    replies = [call.result(LONG) for call in (first, *calls)]
    together = np.concatenate([reply.images for reply in replies])
    difference = np.abs(together.astype(int) - alone(model, range(4)))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= SHARE
    assert len({reply.compute_s for reply in replies[1:]}) == 1
    assert all(reply.queue_s > 0 for reply in replies)


def test_one_that_leaves_does_not_stop_the_others(held: Callable[[Backend], Served], model: SR3) -> None:
    """A call that is cancelled while its batch is computed ends; the others of the batch get their images."""
    served = held(model)
    first = served.hold_first()
    image = pb.InputImage(id="leaves", height=16, width=16, data=PIXELS[1].tobytes())
    leaving = served.client.stub.Upscale.future(pb.UpscaleRequest(images=[image], scale=4), timeout=LONG)
    served.wait_for(1)
    stays = served.call(2)
    served.wait_for(2)
    served.backend.go.release()
    assert served.backend.started.get(timeout=LONG) == 2
    leaving.cancel()
    served.backend.go.release()
    assert leaving.code() == grpc.StatusCode.CANCELLED
    assert stays.result(LONG).images.shape == first.result(LONG).images.shape == (1, 64, 64, 3)


def test_a_waiting_request_whose_client_leaves_is_forgotten(held: Callable[[Backend], Served], model: SR3) -> None:
    """A call that is cancelled while it waits is not computed."""
    served = held(model)
    first = served.hold_first()
    image = pb.InputImage(id="leaves", height=16, width=16, data=PIXELS[1].tobytes())
    leaving = served.client.stub.Upscale.future(pb.UpscaleRequest(images=[image], scale=4), timeout=LONG)
    served.wait_for(1)
    leaving.cancel()
    served.wait_for(0)
    served.finish([])
    assert first.result(LONG).images.shape == (1, 64, 64, 3)
    assert served.backend.started.empty()


def test_only_requests_of_one_kind_are_put_together(held: Callable[[Backend], Served], model: SR3) -> None:
    """Other options make another batch; the oldest request goes first and takes those like it along."""
    served = held(model)
    calls = [served.hold_first()]
    for number, options in enumerate([{"steps": 2}, {"steps": 3}, {"steps": 2}], 1):
        calls.append(served.call(number, options=options))
        served.wait_for(number)
    served.finish([2, 1])
    assert all(call.result(LONG) for call in calls)


@pytest.mark.parametrize(("change", "batches"), [({"max_batch": 2}, [2, 1]), ({"merge": False}, [1, 1, 1])])
def test_what_the_backend_takes_is_kept(
    held: Callable[[Backend], Served], change: dict[str, Any], batches: list[int]
) -> None:
    """No batch is larger than the backend's limit; one that gains nothing by batches gets each request by itself."""
    backend = Nearest()
    backend.description = replace(backend.description, **{"merge": True} | change)
    served = held(backend)
    calls = [served.hold_first(), *(served.call(number) for number in (1, 2, 3))]
    served.wait_for(3)
    served.finish(batches)
    for number, call in enumerate(calls):
        assert np.array_equal(call.result(LONG).images[0, ::4, ::4], PIXELS[number])


def test_one_that_fails_does_not_fail_the_others(held: Callable[[Backend], Served]) -> None:
    """An error in a batch is traced to its request by computing each alone."""
    backend = Nearest()
    backend.description = replace(backend.description, merge=True)
    served = held(backend)
    first = served.hold_first()
    good, bad = served.call(1), served.call(2, "bad")
    served.wait_for(2)
    served.finish([2, 1, 1])
    assert np.array_equal(good.result(LONG).images[0, ::4, ::4], PIXELS[1])
    with pytest.raises(BackendFailed, match="a bad image"):
        bad.result(LONG)
    first.result(LONG)


class Where:
    """Nearest neighbour that notes in which thread it computes."""

    def __init__(self) -> None:
        self.inner, self.threads = Nearest(), {threading.get_ident()}
        self.description = self.inner.description

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8] | NDArray[np.floating]:
        """Note the thread."""
        self.threads.add(threading.get_ident())
        return self.inner.upscale(batch, progress)


def test_a_model_is_loaded_and_computes_in_one_thread() -> None:
    """Calls of both kinds, from several clients, compute in the thread that the server was given."""
    thread = model_thread()
    backend = thread.submit(Where).result()
    server, _, port = start(UpscalerServicer(backend, thread=thread), "127.0.0.1:0")
    items = [Item("a", PIXELS[0], 0)]
    try:
        for stream in (False, True, False):
            client = Client(f"127.0.0.1:{port}")
            client.describe()
            client.upscale(items, 2, {}, LONG, stream=stream)
            client.close()
    finally:
        server.stop(None).wait()
    assert len(backend.threads) == 1
