"""A timed pass over a real backend: one row per request and time, the load of others, found again on resumption."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import timing
from harness.client import Item
from harness.errors import BadRequest
from harness.plan import BackendSpec
from harness.score import identity
from harness.session import Session
from harness.store import RunFolder
from harness.suite import Speed, Suite
from harness.timing import drop_disturbed, is_timed, time_backend

SUITE = Suite(name="small", title="small", low=8, high=16, metrics=("psnr",), deadline_s=20)
ITEMS = [Item(f"p{i}", np.full((8, 8, 3), i, np.uint8), i) for i in range(5)]


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


def test_a_timed_pass_has_a_row_for_every_request(session: Session) -> None:
    """12 requests and 3 batches of 4 have three times each; the images repeat, and the pass is described once."""
    rows = pd.DataFrame(time_backend(session, ITEMS, Speed(images=12, batch=4, warm_up=2)))
    counts = rows["metric"].value_counts().to_dict()
    single = dict.fromkeys(("end_to_end_s", "compute_s", "transport_s"), 12)
    batches = {f"batch_{name}": 11 for name in single}
    once = ("cold_start_s", "warm_up_s", "peak_memory_mb", "peak_device_memory_mb", "batch_size", "other_load")
    assert counts == single | batches | dict.fromkeys(once, 1)
    requests = rows[rows["metric"] == "end_to_end_s"]
    assert requests["image"].tolist() == [f"p{i % 5}" for i in range(12)]
    assert requests["sample"].tolist() == [i // 5 for i in range(12)]
    values = rows.set_index("metric")["value"]
    assert np.isfinite(values.astype(float)).all()
    assert (values.astype(float) >= 0).all()
    assert values["batch_size"] == 4
    assert values["cold_start_s"] > 0
    assert values["peak_memory_mb"] > 10


def test_the_parts_of_a_request_do_not_exceed_the_whole(session: Session) -> None:
    """Compute and transport time add up to at most the time that the client saw."""
    rows = pd.DataFrame(time_backend(session, ITEMS, Speed(images=12, batch=4)))
    times = {name: rows.loc[rows["metric"] == name, "value"].to_numpy(float) for name in rows["metric"].unique()}
    for prefix in ("", "batch_"):
        parts = times[f"{prefix}compute_s"] + times[f"{prefix}transport_s"]
        assert (parts <= times[f"{prefix}end_to_end_s"] + 1e-9).all()


@pytest.mark.parametrize(("images", "batch", "size"), [(3, 16, 3), (200, 100, 64), (5, 2, 2)])
def test_a_batch_is_no_larger_than_can_be_sent(session: Session, images: int, batch: int, size: int) -> None:
    """The timed batch is the suite's, limited by the number of requests and by what the backend takes."""
    rows = pd.DataFrame(time_backend(session, ITEMS, Speed(images=images, batch=batch, warm_up=0)))
    assert rows.loc[rows["metric"] == "batch_size", "value"].tolist() == [size]
    assert (rows["metric"] == "batch_end_to_end_s").sum() == max(images // size, 11)


def test_without_images_there_is_nothing_to_time(session: Session) -> None:
    """If none of the images chosen for the timed pass can be used, there are no rows."""
    assert time_backend(session, [], Speed(images=12)) == []


def test_a_timed_pass_has_no_second_attempts(session: Session) -> None:
    """An error in a timed pass ends it instead of being tried again."""
    nameless = Item("", ITEMS[0].image, 0)
    with pytest.raises(BadRequest):
        time_backend(session, [ITEMS[0], nameless], Speed(images=2, batch=1))


def test_a_timed_backend_is_found_again(tmp_path: Path) -> None:
    """Only the same label, digest and options count as timed, and scores alone do not."""
    about: dict[str, Any] = {"label": "sr3", "digest": "d", "options": {"steps": 8}, "device": "", "precision": ""}
    who = identity(about, "folder:x")
    folder = RunFolder(tmp_path)
    assert not is_timed(folder.rows(), who)
    folder.append([who | {"metric": "psnr", "image": "a", "value": 30.0}])
    assert not is_timed(folder.rows(), who)
    folder.append([who | {"metric": "cold_start_s", "value": math.nan}])
    assert is_timed(folder.rows(), who)
    for change in ({"digest": "e"}, {"options": json.dumps({"steps": 4})}, {"backend": "sr3-b"}):
        assert not is_timed(folder.rows(), who | change)


def test_disturbed_passes_are_forgotten(tmp_path: Path) -> None:
    """A pass during which others used the processor is dropped, so that the same command makes it again."""
    folder = RunFolder(tmp_path)
    for label, load in (("calm", 0.01), ("disturbed", 1.2)):
        folder.append([{"backend": label, "metric": "other_load", "value": load}], "timed")
    drop_disturbed(folder)
    assert list(folder.rows("timed")["backend"]) == ["calm"]


def test_a_short_pass_is_repeated(session: Session) -> None:
    """A pass of few quick requests goes on until its minimum time is over, from the start of the list again."""
    result = session.timed(ITEMS[:2], 1, 0.2)
    assert len(result.replies) > 2
    assert np.isfinite(result.other_load)
