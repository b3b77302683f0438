"""Timed passes as rows: requests one after another, or at times of their own; no retries and no cache."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np

from harness.client import Item
from harness.session import Session, TimedPass, in_turns
from harness.statistics import ENOUGH
from harness.store import Row, RunFolder, read_table
from harness.suite import Speed

SECONDS = 1.0
"""A pass lasts at least so long, so that the load of others can be told."""

OTHER_LOAD_LIMIT = 0.15
"""A timed pass during which others used more than this many cores is invalid."""

TIMES = ("end_to_end_s", "compute_s", "transport_s")
WARM_UP_SHARE = 0.25
"""Most of a pass's budget that its warm-up takes, unless a single request takes longer."""


def time_requests(session: Session, items: Sequence[Item], size: int, speed: Speed) -> list[Row]:
    """Rows of a pass of requests of `size` images, one after another; the items repeat where there are too few.

    `speed.images` images or more, in at least as many requests as a median needs, unless the budget ends first.

    Raises:
        BackendError: a call failed.
    """
    requests = _enough(items, size, speed)
    (made,) = _warmed([session], requests, speed)
    return pass_rows(session, requests, made)


def time_in_turns(session: Session, reference: Session, items: Sequence[Item], size: int, speed: Speed) -> list[Row]:
    """Rows of a pass of requests of `size` images, each sent to both backends, one call at a time.

    The load of the machine, its clock and its caches are then the same for both. `compute_s` and
    `reference_compute_s`, in seconds, of the same turn have the same `sample`. As many turns as `time_requests` makes.

    Raises:
        BackendError: a call failed.
    """
    requests = _enough(items, size, speed)
    mine, other = _warmed([session, reference], requests, speed)
    rows: list[Row] = [
        {"sample": turn, "metric": metric, "value": reply.compute_s, "unit": "s"}
        for metric, made in (("compute_s", mine), ("reference_compute_s", other))
        for turn, reply in enumerate(made.replies)
    ]
    return rows + _once(session, requests, mine)


def _enough(items: Sequence[Item], size: int, speed: Speed) -> list[list[Item]]:
    return requests_of(items, size, max(-(-speed.images // size), ENOUGH[50] if size > 1 else 1))


def _warmed(sessions: Sequence[Session], requests: list[list[Item]], speed: Speed) -> list[TimedPass]:
    """A pass of the requests after one of the first of them, which counts for the budget only."""
    spent = 0.0
    if speed.warm_up:
        warm_up = in_turns(sessions, requests[: speed.warm_up], limit=WARM_UP_SHARE * speed.budget_s)
        spent = warm_up[0].usage.wall_s
    return in_turns(sessions, requests, seconds=SECONDS, limit=speed.budget_s - spent)


def time_arrivals(session: Session, requests: list[list[Item]], arrivals: Sequence[float], budget: float) -> list[Row]:
    """Rows of a pass whose requests are due at `arrivals`, in seconds; `latency_s` counts from these times.

    Raises:
        BackendError: a call failed.
    """
    made = session.arriving(requests, arrivals, budget)
    late = [{"sample": i, "metric": "latency_s", "value": x, "unit": "s"} for i, x in enumerate(made.latencies)]
    return late + pass_rows(session, requests, made)


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Times in seconds of `count` arrivals of a Poisson process of `rate` arrivals a second.

    The gaps are exponential, and the same seed gives the same pattern at every rate, only denser.
    """
    return [float(t) for t in np.random.default_rng(seed).exponential(1.0, count).cumsum() / rate]


def requests_of(items: Sequence[Item], size: int, count: int) -> list[list[Item]]:
    """`count` requests of `size` images, going round the items; within a request an id is there once."""
    source = cycle(items)
    return [[_numbered(item, i // len(items)) for i, item in enumerate(islice(source, size))] for _ in range(count)]


def _numbered(item: Item, repetition: int) -> Item:
    return Item(f"{item.id}#{repetition}", item.image, item.seed) if repetition else item


def pass_rows(session: Session, requests: list[list[Item]], made: TimedPass) -> list[Row]:
    """Rows of a pass: `TIMES` of each request, and once what the whole pass was and used.

    `warm_up_s` is the part of `cold_start_s` that trial images took, compilation included; device memory is 0 on a CPU.
    """
    rows: list[Row] = []
    for number, reply in enumerate(made.replies):
        sent = requests[number % len(requests)]
        which = {"image": sent[0].id, "seed": sent[0].seed} if len(sent) == 1 else {}
        where = which | {"sample": number, "unit": "s"}
        rows += [where | {"metric": metric, "value": getattr(reply, metric)} for metric in TIMES]
    once = {
        "cpu_s": (made.usage.cpu_s, "s"),
        "package_j": (made.usage.package_j, "J"),
        f"peak_memory{'_since_start' if made.usage.since_start else ''}_mb": (made.usage.peak_memory_mb, "MiB"),
        "peak_device_memory_mb": (max(reply.peak_device_memory_mb for reply in made.replies), "MiB"),
        "cold_start_s": (session.cold_start_s, "s"),
        "warm_up_s": (session.warm_up_s(), "s"),
    }
    return rows + _rows(once) + _once(session, requests, made)


def _once(session: Session, requests: list[list[Item]], made: TimedPass) -> list[Row]:
    """What every pass has once."""
    side = max(requests[0][0].image.shape[:2])
    once = {
        "output_px": (side * session.suite.scale, "px"),
        "batch_size": (len(requests[0]), ""),
        "wall_s": (made.usage.wall_s, "s"),
        "other_load": (made.usage.other_load, "cores"),
    }
    return _rows(once)


def _rows(values: dict[str, tuple[float, str]]) -> list[Row]:
    return [{"metric": name, "value": value, "unit": unit} for name, (value, unit) in values.items()]


def drop_disturbed(folder: RunFolder) -> None:
    """Forget the passes during which others used the processor, and those not made: both are decided again."""
    for part in folder.parts("timed"):
        rows = read_table(part)
        load = rows.loc[rows["metric"] == "other_load", "value"]
        if load.empty or (load > OTHER_LOAD_LIMIT).any():
            part.unlink()
