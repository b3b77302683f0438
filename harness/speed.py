"""Which timed passes a suite asks for: at each size single images and batches, then random arrivals, then all at once.

In the end single images and batches once more, in turns with the backend that times are told as multiples of.
Each pass is a part of rows of its own, its size in `condition` and its kind in `stage`, so that an interrupted or
disturbed measurement goes on where it stopped. What is not measured leaves a row with the reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.client import Item
from harness.degrade import seed_of
from harness.errors import BackendError, BadRequest, DeadlineExceeded, Unavailable
from harness.session import Session
from harness.statistics import ENOUGH
from harness.store import Row, RunFolder
from harness.suite import Speed
from harness.timing import SECONDS, poisson_arrivals, requests_of, time_arrivals, time_in_turns, time_requests

IDENTITY = ["backend", "digest", "options"]
SIZE = "size-"
"""What the condition of a timed row begins with; the side of the output in pixels follows."""
BATCH, OFFLINE = "batch-", "offline"
"""Kinds of passes; the number of images in a request follows the first."""
MISSED = "a lower rate already missed the bound"
LEFT_OUT = {"not_supported": "not supported", "not_tried": "not tried", "timed": "failed"}
"""Metrics of the rows that stand for a pass that is not there, and how the tables call them."""


@dataclass
class Bench:
    """The timed passes of one backend: `inputs` gives the items of a side in pixels, `who` the identity of its rows."""

    session: Session
    speed: Speed
    folder: RunFolder
    inputs: Callable[[int], list[Item]]
    who: Row

    def __post_init__(self) -> None:
        rows = self.folder.rows("timed")
        mine = rows[(rows[IDENTITY] == [self.who[k] for k in IDENTITY]).all(axis=1)]
        self.made = {(str(c), str(s)): found for (c, s), found in mine.groupby(["condition", "stage"])}

    def measure(self, size: int) -> None:
        """Make every pass of a size, the longer side of the output in pixels, that the folder does not hold yet."""
        items = self.inputs(size // self.session.suite.scale)
        if items and (reason := self.session.refusal(*items[0].image.shape[:2])):
            self._leave_out(size, "", "not_supported", reason)
        elif items and self._batch(size, items, 1):
            self._batches(size, items)
            self._server(size, items)
            if self.speed.offline:
                self._offline(size, items)

    def compare(self, reference: "Bench", size: int) -> None:
        """Make the passes of a size in turns with the reference, in requests in which both were timed alone."""
        items = self.inputs(size // self.session.suite.scale)
        for batch in (1, *self._larger()):
            if self.timed_alone(size, batch) and reference.timed_alone(size, batch):
                self._turns(reference.session, size, items, batch)

    def timed_alone(self, size: int, batch: int) -> bool:
        """Whether the folder holds this backend's own pass of requests of `batch` images."""
        return len(self._values(size, f"{BATCH}{batch}", "other_load")) > 0

    def _turns(self, reference: Session, size: int, items: list[Item], batch: int) -> None:
        measure = partial(time_in_turns, self.session, reference, items, batch, self.speed)
        self._pass(size, in_turns_with(reference.spec.label, batch), measure, self.session, reference)

    def _larger(self) -> list[int]:
        """The batches to try, as far as the backend takes them."""
        most = self.session.description.max_batch
        return sorted({min(b, most) for b in self.speed.batch} - {1})

    def _batches(self, size: int, items: list[Item]) -> None:
        """Larger and larger batches, as far as a warm-up and a request fit the budget."""
        alone = self._image_seconds(size, 1)
        for batch in self._larger():
            expected = 2 * batch * alone
            if expected > self.speed.budget_s:
                reason = self._too_long("a warm-up and a request", expected)
                self._leave_out(size, f"{BATCH}{batch}", "not_tried", reason)
            elif not self._batch(size, items, batch):
                break

    def _batch(self, size: int, items: list[Item], batch: int) -> bool:
        measure = partial(time_requests, self.session, items, batch, self.speed)
        return self._pass(size, f"{BATCH}{batch}", measure, self.session)

    def _server(self, size: int, items: list[Item]) -> None:
        """Requests at random times, at rising rates until one misses the bound."""
        alone, missed = self._image_seconds(size, 1), ""
        for fraction in self.speed.server_rates:
            rate, stage = fraction / alone, f"server-{fraction:g}"
            if reason := missed or self._why_not(alone, rate):
                self._leave_out(size, stage, "not_tried", reason)
            elif not self._arrivals(size, stage, items, rate):
                break
            elif np.percentile(self._values(size, stage, "latency_s"), 90) > self.speed.server_p90_s:
                missed = MISSED

    def _why_not(self, alone: float, rate: float) -> str:
        if alone > self.speed.server_p90_s:
            return f"one image alone takes {alone:.3g} s, more than the bound of {self.speed.server_p90_s:g} s"
        needed = ENOUGH[90] / rate
        return self._too_long(f"{ENOUGH[90]} requests, for a p90,", needed) if needed > self.speed.budget_s else ""

    def _arrivals(self, size: int, stage: str, items: list[Item], rate: float) -> bool:
        """A pass at `rate` requests a second: `images` of them, more to fill a second, fewer to keep the budget."""
        most = math.floor(rate * self.speed.budget_s)
        count = min(max(self.speed.images, ENOUGH[90], math.ceil(rate * SECONDS)), most)
        arrivals = poisson_arrivals(rate, count, seed_of(self.session.suite.seed, "arrivals"))
        requests = requests_of(items, 1, count)

        def measure() -> list[Row]:
            rows = time_arrivals(self.session, requests, arrivals, self.speed.budget_s)
            return [*rows, {"metric": "rate", "value": rate, "unit": "1/s"}]

        return self._pass(size, stage, measure, self.session)

    def _offline(self, size: int, items: list[Item]) -> None:
        """Everything at once, in the requests that were fastest an image."""
        tried = (1, *(min(b, self.session.description.max_batch) for b in self.speed.batch))
        each = {b: s for b in tried if (s := self._image_seconds(size, b)) > 0}
        batch = min(each, key=lambda b: each[b])
        images = min(max(self.speed.images, SECONDS / each[batch]), self.speed.budget_s / each[batch])
        requests = requests_of(items, batch, max(1, math.floor(images / batch)))
        at_once = [0.0] * len(requests)
        measure = partial(time_arrivals, self.session, requests, at_once, self.speed.budget_s)
        self._pass(size, OFFLINE, measure, self.session)

    def _too_long(self, what: str, expected: float) -> str:
        return f"{what} would take about {expected:.3g} s; a pass has {self.speed.budget_s:g} s"

    def _pass(self, size: int, stage: str, measure: Callable[[], list[Row]], *used: Session) -> bool:
        """Make a pass by the backends `used` unless the folder holds it; whether it is there now."""
        if len(self._values(size, stage, "other_load")):
            return True
        try:
            for given_up in (session.given_up for session in used if session.given_up is not None):
                raise given_up
            rows = measure()
        except BadRequest as error:
            self._leave_out(size, stage, "not_supported", str(error))
            return False
        except BackendError as error:
            failure = {"metric": "timed", "error": f"{type(error).__name__}: {stage}: {error}"}
            self.folder.append([self._where(size, stage) | failure], "failed")
            if isinstance(error, Unavailable | DeadlineExceeded):
                _recover(used)
            return False
        self.folder.append([self._where(size, stage) | row for row in rows], "timed")
        self.made[f"{SIZE}{size}", stage] = pd.DataFrame(rows)
        return True

    def _leave_out(self, size: int, stage: str, metric: str, reason: str) -> None:
        self.folder.append([self._where(size, stage) | {"metric": metric, "error": reason}], "timed")

    def _where(self, size: int, stage: str) -> Row:
        return self.who | {"condition": f"{SIZE}{size}", "scale": self.session.suite.scale, "stage": stage}

    def _image_seconds(self, size: int, batch: int) -> float:
        """Mean seconds an image in requests of `batch`; NaN where that was not measured."""
        seconds = self._values(size, f"{BATCH}{batch}", "end_to_end_s")
        return float(seconds.mean()) / batch if len(seconds) else math.nan

    def _values(self, size: int, stage: str, metric: str) -> NDArray[np.float64]:
        rows = self.made.get((f"{SIZE}{size}", stage))
        return np.empty(0) if rows is None else rows.loc[rows["metric"] == metric, "value"].to_numpy(float)


def _recover(used: Sequence[Session]) -> None:
    """Start or attach again, whichever of them it was that was lost."""
    for session in used:
        if session.given_up is None:
            session.recover()


def in_turns_with(reference: str, batch: int) -> str:
    """The kind of a pass of requests of `batch` images in turns with the backend of a label."""
    return f"turns-{batch}-{reference}"


def reference_of(speed: Mapping[str, Any], backends: Sequence[Mapping[str, Any]]) -> str:
    """The label of the backend that times are told as multiples of; "" where there is none.

    `speed` is the suite's part, `backends` are those of the run record: the first GAN where the suite names none.
    """
    gans = (str(backend["label"]) for backend in backends if backend["family"] == "gan")
    return speed.get("reference") or next(gans, "")
