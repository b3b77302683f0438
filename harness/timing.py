"""The timed pass: single requests, then full batches, one after another, no retries and no cache."""

from typing import Any

import numpy as np
import pandas as pd

from harness.client import Item
from harness.session import Session
from harness.statistics import ENOUGH
from harness.store import Row, RunFolder, read_table
from harness.suite import Speed

SECONDS = 1.0
"""A pass lasts at least so long, so that the load of others can be told."""

OTHER_LOAD_LIMIT = 0.15
"""A timed pass during which others used more than this many cores is invalid."""

TIMES = ("end_to_end_s", "compute_s", "transport_s")


def time_backend(session: Session, items: list[Item], speed: Speed) -> list[Row]:
    """Rows of a timed pass; the items repeat where there are too few.

    `speed.images` single requests or more give `end_to_end_s`, `compute_s` and `transport_s` for each image; full
    batches, at least as many as a median needs, give the same for each request, prefixed `batch_`. `other_load` is
    the processor time, in cores, that others used meanwhile. `warm_up_s` is the part of `cold_start_s` that trial
    images took, compilation included; `peak_device_memory_mb` is 0 on a CPU.

    Raises:
        BackendError: a call failed.
    """
    if not items:
        return []
    repeated = [items[i % len(items)] for i in range(speed.images)]
    requests = [_numbered(item, i // len(items)) for i, item in enumerate(repeated)]
    size = min(speed.batch, session.description.max_batch, len(requests))
    enough = max(len(requests), ENOUGH[50] * size)  # so that the median of the batches can be quoted
    many = [_numbered(items[i % len(items)], i // len(items)) for i in range(enough)]
    session.timed(requests[: speed.warm_up], 1)
    single = session.timed(requests, 1, SECONDS)
    session.timed(many[:size], size)
    batched = session.timed(many, size, SECONDS)
    rows: list[Row] = []
    for number, reply in enumerate(single.replies):
        sample, place = divmod(number, len(requests))
        where = {"image": repeated[place].id, "sample": sample * len(requests) + place // len(items), "unit": "s"}
        rows += [where | {"metric": metric, "value": getattr(reply, metric)} for metric in TIMES]
    for number, reply in enumerate(batched.replies):
        where = {"sample": number, "unit": "s"}
        rows += [where | {"metric": f"batch_{metric}", "value": getattr(reply, metric)} for metric in TIMES]
    rows.append({"metric": "cold_start_s", "value": session.cold_start_s, "unit": "s"})
    rows.append({"metric": "warm_up_s", "value": session.warm_up_s(), "unit": "s"})
    rows.append({"metric": "peak_memory_mb", "value": session.peak_memory_mb(), "unit": "MiB"})
    device_memory = max(reply.peak_device_memory_mb for reply in single.replies + batched.replies)
    rows.append({"metric": "peak_device_memory_mb", "value": device_memory, "unit": "MiB"})
    rows.append({"metric": "batch_size", "value": size})
    rows.append(
        {"metric": "other_load", "value": float(np.maximum(single.other_load, batched.other_load)), "unit": "cores"}
    )
    return rows


def _numbered(item: Item, repetition: int) -> Item:
    """The item under an id of its own: a request holds no id twice."""
    return Item(f"{item.id}#{repetition}", item.image, item.seed) if repetition else item


def is_timed(rows: pd.DataFrame, identity: dict[str, Any]) -> bool:
    """Whether the rows hold a timed pass of this backend."""
    if not len(rows):
        return False
    keys = ["backend", "digest", "options"]
    same = (rows[keys] == [identity[k] for k in keys]).all(axis=1)
    return bool((same & (rows["metric"] == "cold_start_s")).any())


def drop_disturbed(folder: RunFolder) -> None:
    """Forget the timed passes during which other programs used the processor: they are made again."""
    for part in folder.parts("timed"):
        rows = read_table(part)
        if (rows.loc[rows["metric"] == "other_load", "value"] > OTHER_LOAD_LIMIT).any():
            part.unlink()
