"""Several replicas of a backend: even use, the same rows as one, nothing lost with one, never unequal twins."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import pytest
from rich.progress import Progress as Display

from backends.base import Progress
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness import session
from harness.client import Item
from harness.errors import BackendError, Incompatible, Unavailable
from harness.plan import BackendSpec, Job
from harness.processes import LocalServer
from harness.replicas import Replicas
from harness.runner import run
from harness.store import RunFolder
from harness.suite import Suite, load_suite
from protos.upscaler.v1 import upscaler_pb2 as pb

ITEMS = [Item(f"p{i}", np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8), i) for i in range(8)]
SUITE = Suite.model_validate({"name": "s", "title": "s", "low": 8, "high": 16, "metrics": ("psnr",), "deadline_s": 20})
KEY = ["backend", "digest", "options", "condition", "severity", "image", "sample", "stage", "metric"]


@pytest.fixture(autouse=True)
def short_reconnection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is gone is given up after a second."""
    monkeypatch.setattr(session, "RECONNECT_SECONDS", 1.0)


@contextmanager
def attached(*servicers: UpscalerServicer, dead: Sequence[str] = ()) -> Iterator[Replicas]:
    """Replicas of servers in this process, and of addresses where nothing answers; not opened."""
    with ExitStack() as stack:
        addresses = list(dead)
        for servicer in servicers:
            server, _, port = start(servicer, "127.0.0.1:0")
            stack.callback(server.stop, None)
            addresses.append(f"127.0.0.1:{port}")
        replicas = Replicas(BackendSpec("x", "+".join(addresses), "x", {}), SUITE, Path("unused"), {})
        stack.callback(replicas.close)
        yield replicas


def upscaled(replicas: Replicas, size: int) -> int:
    """How many of the items come back right, in batches sent by more threads than there are replicas."""
    batches = [ITEMS[i : i + size] for i in range(0, len(ITEMS), size)]
    with ThreadPoolExecutor(3) as pool:
        results = [output for outputs in pool.map(replicas.upscale, batches) for output in outputs]
    right = [item.image.repeat(2, axis=0).repeat(2, axis=1) for item in ITEMS]
    return sum(isinstance(r, np.ndarray) and np.array_equal(r, s) for r, s in zip(results, right, strict=True))


class Meeting(UpscalerServicer):
    """Answers a call when its twin has one as well."""

    def __init__(self, together: threading.Barrier) -> None:
        super().__init__(Nearest())
        self.together, self.calls = together, 0

    def compute(
        self, request: pb.UpscaleRequest, context: grpc.ServicerContext, progress: Progress
    ) -> pb.UpscaleResponse:
        """Wait for the twin."""
        self.calls += 1
        self.together.wait(20)
        return super().compute(request, context, progress)


def test_replicas_work_at_once_and_evenly() -> None:
    """Eight requests to two replicas are four for each, two at a time, and every image gets its own output."""
    together = threading.Barrier(2)
    twins = Meeting(together), Meeting(together)
    with attached(*twins) as replicas:
        replicas.open()
        assert upscaled(replicas, 1) == len(ITEMS)
    assert [twin.calls for twin in twins] == [4, 4]


class Dying(UpscalerServicer):
    """Does not know its callers any more from the second call on."""

    calls = 0

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Answer once."""
        self.calls += 1
        if self.calls > 1:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token has expired")
        return super().Upscale(request, context)


def test_what_a_lost_replica_has_not_done_goes_to_the_others() -> None:
    """A replica that is given up costs no image, is asked no more, and is named with the reason."""
    dying = Dying(Nearest())
    with attached(dying, UpscalerServicer(Nearest())) as replicas:
        replicas.open()
        address = replicas.sessions[0].spec.address
        while not replicas.notes:
            assert upscaled(replicas, 2) == len(ITEMS)
        assert upscaled(replicas, 2) == len(ITEMS)
        assert len(replicas.sessions) == 1
    assert dying.calls == 2
    (note,) = replicas.notes
    assert note.startswith(f"x: lost a replica, its work went to the others: {address}: ")
    assert "the token has expired" in note


def test_the_last_replica_fails_with_its_own_error() -> None:
    """When no replica is left, each image has the error of the last one, and no call hangs."""
    with attached(Dying(Nearest()), Dying(Nearest())) as replicas:
        replicas.open()
        for _ in range(3):
            upscaled(replicas, 2)
        results = replicas.upscale(ITEMS)
    assert all(isinstance(r, BackendError) and "the token has expired" in str(r) for r in results)


def test_a_replica_that_does_not_answer_at_the_start_is_left_out() -> None:
    """The others do the work, and the record says which one did not; without any other there is no backend."""
    with attached(UpscalerServicer(Nearest()), dead=["127.0.0.1:9"]) as replicas:
        replicas.open()
        assert upscaled(replicas, 4) == len(ITEMS)
        assert "127.0.0.1:9: no gRPC server answers" in replicas.notes[0]
        assert replicas.record["address"] == replicas.spec.address
    with (
        attached(dead=["127.0.0.1:9", "127.0.0.1:11"]) as replicas,
        pytest.raises(Unavailable, match=r"127\.0\.0\.1:11"),
    ):
        replicas.open()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"digest": "ab" * 32, "licence": "MIT"}, f"in digest: {{0}} has {Nearest.description.digest}, {{1}} has abab"),
        ({"device": "cuda:0 H100"}, "differ in device: {0} has cpu, {1} has cuda:0 H100"),
        ({"precision": "bfloat16"}, "differ in precision: {0} has float32, {1} has bfloat16"),
        ({"max_batch": 1}, "differ in max_batch: {0} has 64, {1} has 1"),
    ],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_unequal_twins_are_refused(says: dict[str, object], words: str) -> None:
    """Replicas that differ in anything they say are not one backend: both addresses and values are named."""
    other = UpscalerServicer(Nearest())
    other.description = replace(other.description, **says)  # type: ignore[arg-type]
    with attached(UpscalerServicer(Nearest()), other) as replicas:
        with pytest.raises(Incompatible) as caught:
            replicas.open()
        assert words.format(*replicas.spec.addresses) in str(caught.value)


def rows(output: Path) -> pd.DataFrame:
    """The scores of a run in a fixed order, each there once; no failures."""
    table = RunFolder(output).rows("part")
    assert not table.duplicated(KEY).any()
    assert (table["error"] == "").all()
    return table.sort_values(KEY, ignore_index=True)


def record_of(folder: RunFolder) -> dict[str, Any]:
    """The record of a run that was made."""
    record = folder.read_record()
    assert record is not None
    return record


def wait_for_outputs(folder: Path, count: int, thread: threading.Thread) -> None:
    """Wait until a run has written so many outputs."""
    limit = time.monotonic() + 60
    while len(list(folder.rglob("*.png"))) < count:
        assert thread.is_alive(), "the run ended before"
        assert time.monotonic() < limit


def test_a_killed_replica_costs_no_row(suite_file: Callable[..., Path], photos: Path, tmp_path: Path) -> None:
    """Two servers give the rows of one, byte for byte, though one of them is killed at work (SIGKILL)."""
    suite = load_suite(str(suite_file(batch="4")))

    def job(output: str, *servers: LocalServer) -> Job:
        where = "+".join(server.address for server in servers)
        return Job(suite, f"folder:{photos}", (f"mine@{where},fault=slow",), tmp_path / output, None, "")

    with (
        Display(disable=True) as display,
        LocalServer("faulty", tmp_path / "a.log") as one,
        LocalServer("faulty", tmp_path / "b.log") as two,
    ):
        thread = threading.Thread(target=run, args=(job("both", one, two), display))
        thread.start()
        wait_for_outputs(tmp_path / "both" / "outputs", 70 + 12, thread)
        assert one.process is not None
        one.process.kill()
        thread.join()
        run(job("single", two), display)
    pd.testing.assert_frame_equal(rows(tmp_path / "both"), rows(tmp_path / "single"))
    record = record_of(RunFolder(tmp_path / "both"))
    assert record["status"] == "finished"
    assert [one.address in text for text in record["warnings"]] == [True]
    names = [
        sorted(p.relative_to(tmp_path / run).as_posix() for p in (tmp_path / run).rglob("outputs/**/*.png"))
        for run in ("both", "single")
    ]
    assert names[0] == names[1]


def test_outputs_of_another_device_are_not_continued(
    suite_file: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """The same build on another device or precision is refused by a folder that holds its outputs, and says both."""
    servicer = UpscalerServicer(Nearest())
    servers = [start(servicer, "127.0.0.1:0") for _ in range(2)]
    suite = load_suite(str(suite_file(speed="{images: 1, batch: 1}")))
    where = "+".join(f"127.0.0.1:{port}" for _, _, port in servers)
    job = Job(suite, f"folder:{photos}", (f"mine@{where}",), tmp_path / "run", 4, "")
    with Display(disable=True) as display:
        folder = run(job, display)
        assert record_of(folder)["warnings"] == ["mine: its times are those of a single one of its replicas"]
        mine = folder.rows("part", "timed").query("backend == 'mine'")
        assert set(zip(mine["device"], mine["precision"], strict=True)) == {("cpu", "float32")}
        servicer.description = replace(servicer.description, device="cuda:0 H100", precision="bfloat16")
        for _ in range(2):
            assert record_of(run(job, display))["backends"][-1]["error"].startswith(
                "its outputs in this folder were made on cpu in float32; it now runs on cuda:0 H100 in bfloat16"
            )
        fresh = run(replace(job, output=tmp_path / "other"), display).rows("part", "timed").query("backend == 'mine'")
    assert set(zip(fresh["device"], fresh["precision"], strict=True)) == {("cuda:0 H100", "bfloat16")}
    for server, _, _ in servers:
        server.stop(None).wait()
