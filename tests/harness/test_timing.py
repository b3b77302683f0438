"""Timed passes over a real backend: rows of every request, arrivals that count from when they were due."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness import timing
from harness.client import Item, Reply
from harness.errors import BadRequest
from harness.plan import BackendSpec
from harness.session import Session
from harness.store import RunFolder
from harness.suite import Speed, Suite
from harness.timing import (
    TIMES,
    drop_disturbed,
    poisson_arrivals,
    requests_of,
    time_arrivals,
    time_in_turns,
    time_requests,
)

SUITE = Suite(name="small", title="small", low=8, high=16, metrics=("psnr",), deadline_s=20)
ITEMS = [Item(f"p{i}", np.full((8, 8, 3), i, np.uint8), i) for i in range(5)]
ONCE = {"output_px", "batch_size", "wall_s", "cpu_s", "package_j", "cold_start_s", "other_load"}
ONCE |= {"warm_up_s", "peak_device_memory_mb"}


@pytest.fixture(autouse=True)
def no_longer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes end with their last request, so that rows can be counted."""
    monkeypatch.setattr(timing, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session on `nearest` in a process of its own."""
    log = tmp_path_factory.mktemp("timing") / "log"
    opened = Session(BackendSpec("nearest", None, "nearest", {}), SUITE, log)
    opened.open()
    yield opened
    opened.close()


def values(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """The values of each metric."""
    return {str(metric): found["value"].to_numpy(float) for metric, found in rows.groupby("metric")}


@pytest.mark.parametrize(("size", "requests"), [(1, 12), (4, 11), (64, 11)])
def test_a_timed_pass_has_a_row_for_every_request(session: Session, size: int, requests: int) -> None:
    """Each request has three times, batches as many as a median needs; what the pass was and used is there once."""
    rows = pd.DataFrame(time_requests(session, ITEMS, size, Speed(images=12, warm_up=2)))
    counts = rows["metric"].value_counts().to_dict()
    memory = {str(m) for m in counts if str(m).startswith("peak_memory")}
    assert len(memory) == 1
    assert counts == dict.fromkeys(TIMES, requests) | dict.fromkeys(ONCE | memory, 1)
    found = values(rows)
    assert (found["batch_size"][0], found["output_px"][0]) == (size, 16)
    assert found[memory.pop()][0] > 10
    assert all((v >= 0).all() for name, v in found.items() if name != "package_j")
    assert (found["compute_s"] + found["transport_s"] <= found["end_to_end_s"] + 1e-9).all()
    images = rows.loc[rows["metric"] == "end_to_end_s", "image"].tolist() if size == 1 else []
    assert images == [f"p{i % 5}" for i in range(len(images))]


def test_in_turns_each_request_goes_to_both(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends answer every request before the next is sent, and each turn has the compute time of both."""
    other = Session(BackendSpec("bicubic", None, "bicubic", {}), SUITE, tmp_path / "log")
    other.open()
    asked, call = [], Session.timed_call

    def noted(self: Session, items: Sequence[Item], deadline: float) -> Reply:
        asked.append((self.spec.label, items[0].id))
        return call(self, items, deadline)

    monkeypatch.setattr(Session, "timed_call", noted)
    try:
        rows = pd.DataFrame(time_in_turns(session, other, ITEMS, 1, Speed(images=7, warm_up=2)))
    finally:
        other.close()
    turns = [*range(2), *range(7)]  # those of the warm-up first
    assert asked == [(label, f"p{i % 5}") for i in turns for label in ("nearest", "bicubic")]
    assert rows["metric"].value_counts().to_dict() == {"compute_s": 7, "reference_compute_s": 7} | dict.fromkeys(
        ("output_px", "batch_size", "wall_s", "other_load"), 1
    )
    found = values(rows)
    assert found["compute_s"].sum() + found["reference_compute_s"].sum() <= found["wall_s"][0]


def test_a_request_holds_no_id_twice() -> None:
    """Images go round from request to request; where one request needs an image again, the copy has its own id."""
    first, second = requests_of(ITEMS, 7, 2)
    assert [item.id for item in first] == ["p0", "p1", "p2", "p3", "p4", "p0#1", "p1#1"]
    assert [item.id for item in second] == ["p2", "p3", "p4", "p0", "p1", "p2#1", "p3#1"]
    assert [[item.id for item in request] for request in requests_of(ITEMS[:2], 1, 3)] == [["p0"], ["p1"], ["p0"]]


def test_the_budget_ends_a_pass_but_not_before_a_request(session: Session) -> None:
    """A budget that nothing fits leaves one request; without one all are made."""
    rows = pd.DataFrame(time_requests(session, ITEMS, 1, Speed(images=12, budget_s=1e-9)))
    assert (rows["metric"] == "end_to_end_s").sum() == 1


def test_a_timed_pass_has_no_second_attempts(session: Session) -> None:
    """An error in a timed pass ends it instead of being tried again, also where others are still open."""
    nameless = Item("", ITEMS[0].image, 0)
    with pytest.raises(BadRequest):
        time_requests(session, [ITEMS[0], nameless], 1, Speed(images=2))
    with pytest.raises(BadRequest):
        time_arrivals(session, [[ITEMS[0]], [nameless], [ITEMS[1]]], [0.0, 0.0, 0.0], 5)


def test_a_short_pass_is_repeated(session: Session) -> None:
    """A pass of few quick requests goes on until its minimum time is over, from the start of the list again."""
    result = session.timed([[ITEMS[0]], [ITEMS[1]]], seconds=0.2)
    assert len(result.replies) == len(result.latencies) > 2
    assert np.isfinite(result.usage.other_load)


def test_latency_counts_from_when_a_request_was_due(session: Session) -> None:
    """Requests that were due before they could be sent carry their delay, which their own times do not show."""
    rows = pd.DataFrame(time_arrivals(session, [[item] for item in ITEMS], [-7.0, -7.0, -7.0, 0.0, 0.0], 5))
    found = values(rows)
    own = found["end_to_end_s"]
    assert (found["latency_s"][:3] >= 7 + own[:3]).all()
    assert (own < 7).all()
    assert (found["latency_s"] >= own).all()


def test_arrivals_do_not_wait_for_answers(tmp_path: Path) -> None:
    """A slow server that answers one at a time makes later arrivals wait, and the waiting is in their latency."""
    slow = Session(BackendSpec("faulty", None, "faulty", {"fault": "slow"}), SUITE, tmp_path / "log")
    slow.open()
    try:
        found = values(pd.DataFrame(time_arrivals(slow, [[item] for item in ITEMS[:3]], [0.0, 0.0, 0.0], 5)))
    finally:
        slow.close()
    assert np.sort(found["latency_s"])[-1] >= found["compute_s"].sum()


def test_arrivals_are_poisson_and_seeded() -> None:
    """Gaps are exponential with the rate's mean, counts a second vary as Poisson's do, the seed fixes the pattern."""
    times = np.array(poisson_arrivals(20, 10_000, 1))
    gaps = np.diff(times, prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 20)).pvalue > 0.01
    assert abs(gaps.mean() * 20 - 1) < 0.03
    counts = np.histogram(times, np.arange(int(times[-1])))[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)
    assert poisson_arrivals(20, 50, 1) == poisson_arrivals(20, 50, 1) != poisson_arrivals(20, 50, 2)
    np.testing.assert_allclose(np.array(poisson_arrivals(40, 50, 1)) * 2, poisson_arrivals(20, 50, 1))


def test_disturbed_passes_are_forgotten(tmp_path: Path) -> None:
    """Passes during which others used the processor, and those left out, are dropped; quiet and unknown ones stay."""
    folder = RunFolder(tmp_path)
    for label, load in (("calm", 0.01), ("disturbed", 1.2), ("remote", math.nan)):
        folder.append([{"backend": label, "metric": "other_load", "value": load}], "timed")
    folder.append([{"backend": "left out", "metric": "not_tried", "error": "too slow"}], "timed")
    drop_disturbed(folder)
    assert list(folder.rows("timed")["backend"]) == ["calm", "remote"]
