"""The replicas of one backend: one, or several at addresses of their own that share its work.

A batch goes to whichever replica is free. One that cannot be used any more (see `Session`: gone for longer than a
reconnection takes, out of patience, back with another digest, its token expired) leaves what it has not done to the
others, and gets no more work in this run. Replicas must describe themselves alike, so that it does not matter which of
them made an output.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from harness.chain import Chain
from harness.client import Differential, Draw, FloatItem, Item, Pixels
from harness.credentials import OPEN, Credentials
from harness.errors import BackendError, Incompatible, Unavailable, one_line
from harness.plan import BackendSpec
from harness.session import Passage, Session
from harness.suite import Suite
from protos.upscaler.v1 import upscaler_pb2 as pb

Asked = TypeVar("Asked", Item, FloatItem, Draw)
Made = TypeVar("Made", Item, Draw)
Got = TypeVar("Got")


class Replicas:
    """A backend in use; `open()` before anything else, `close()` at the end.

    `sessions` are the replicas still in use, at least one; `notes` says in one line each which were lost, and why.
    """

    def __init__(self, spec: BackendSpec, suite: Suite, log: Path, credentials: Mapping[str, Credentials]) -> None:
        self.spec = spec
        specs = [replace(spec, address=address) for address in spec.addresses] or [spec]
        self.sessions = [
            Chain(one, suite, log, credentials)
            if one.stages
            else Session(one, suite, log, credentials.get(one.address or "", OPEN))
            for one in specs
        ]
        self.notes: list[str] = []
        self._free: SimpleQueue[Session] = SimpleQueue()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Start or attach each replica, and check that all are the same; those that cannot be reached are left out.

        Raises:
            BackendError, ConfigError: the backend cannot be used.
        """
        for session in tuple(self.sessions):
            try:
                session.open()
            except Unavailable as error:
                if not self._dropped(session, error):
                    raise
        first, *others = self.sessions
        for other in others:
            _check_twins(first, other)
        for session in self.sessions:
            self._free.put(session)

    def upscale(self, items: Sequence[Item]) -> list[Pixels | BackendError]:
        """An output or an error for each item, from the replica that is free first.

        Threads may call it at once; it waits while all replicas work, and never raises a BackendError.
        """
        return self._answers(items, Session.upscale)

    def gradient(self, items: Sequence[FloatItem]) -> list[Differential | BackendError]:
        """A float output, and a gradient where a cotangent is given, or an error for each item; else as `upscale`."""
        return self._answers(items, Session.gradient)

    def staged(self, asked: Sequence[Made]) -> list[list[Passage] | BackendError]:
        """What each stage made of each, or an error: see `Session.staged`; else as `upscale`."""
        return self._answers(asked, Session.staged)

    def _answers(
        self, items: Sequence[Asked], ask: Callable[[Session, Sequence[Asked]], list[Got | BackendError]]
    ) -> list[Got | BackendError]:
        session = self._free.get()
        lost = False
        try:
            results = ask(session, items)
            lost = session.given_up is not None and self._dropped(session, session.given_up)
        finally:
            if not lost:
                self._free.put(session)
        if lost:
            undone = [i for i, result in enumerate(results) if isinstance(result, BackendError)]
            for i, result in zip(undone, self._answers([items[i] for i in undone], ask), strict=True):
                results[i] = result
        return results

    def _dropped(self, session: Session, error: BackendError) -> bool:
        """Take a replica out of use, unless it is the last."""
        with self._lock:
            if len(self.sessions) == 1:
                return False
            self.sessions.remove(session)
            self.notes.append(f"{self.spec.label}: lost a replica, its work went to the others: {error}")
        session.close()
        return True

    @property
    def batch(self) -> int:
        """Images a request."""
        return self.sessions[0].batch

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run record says of a backend, once it is open."""
        record = self.sessions[0].record
        return record | {"address": self.spec.address} if self.spec.address else record

    def close(self) -> None:
        """Disconnect, and end a local backend."""
        for session in self.sessions:
            session.close()


def sound(answers: Sequence[Got | BackendError]) -> list[Got]:
    """The answers.

    Raises:
        BackendError: the first that there is among them.
    """
    found: list[Got] = []
    for answer in answers:
        if isinstance(answer, BackendError):
            raise answer
        found.append(answer)
    return found


def _check_twins(one: Session, other: Session) -> None:
    a, b = one.description, other.description
    names = ["digest", *(f.name for f in pb.DescribeResponse.DESCRIPTOR.fields if f.name != "warm_up_time")]
    name = next((name for name in names if getattr(a, name) != getattr(b, name)), None)
    if name is None:
        return
    first, second = (
        f"{session.spec.address} has {one_line(str(getattr(d, name)), 64) or 'none'}"
        for session, d in ((one, a), (other, b))
    )
    raise Incompatible(f"replicas of {one.spec.label} differ in {name}: {first}, {second}; name them as two backends")
