"""A chain of backends: each enlarges what the one before it made, and together they are one backend like any other.

What a stage gives, 8 bit and clipped as every output, is the input of the next. Its digest is a hash over the stages'
digests and scales, its scale their product, its family the one that all stages share (else "other"). It is
deterministic if all stages are, and offers `Generate` if its first stage does; `Gradient` it has none, since outputs
are rounded between stages. Classes go to the stages that have them, which must all have the same.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.client import Draw, Item, Reply
from harness.credentials import OPEN, Credentials
from harness.degrade import seed_of
from harness.errors import BackendError, ConfigError, Incompatible, Unavailable, one_line
from harness.plan import BackendSpec
from harness.processes import LocalServer
from harness.session import Session
from harness.suite import Suite
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value


def stage_seed(seed: int, place: int) -> int:
    """The seed that a stage, counted from 0, has for an image whose own seed is `seed`; the first has the image's."""
    return seed_of(seed, "stage", place) if place else seed


class Chain(Session):
    """Stages in use as one backend; each has the suite's deadline of its own, and errors say which stage failed."""

    def __init__(self, spec: BackendSpec, suite: Suite, log: Path, credentials: Mapping[str, Credentials]) -> None:
        super().__init__(spec, suite, log)
        self.stages = [
            Session(stage, suite, log.with_name(f"{log.stem}.{n}.log"), credentials.get(stage.address or "", OPEN))
            for n, stage in enumerate(spec.stages, 1)
        ]
        self.last_failed = 0
        self._description: pb.DescribeResponse | None = None

    def attach(self) -> pb.DescribeResponse:
        """Start or attach every stage, and check that they fit together; errors as of `open`."""
        for place, stage in enumerate(self.stages):
            with self._naming(place):
                stage.attach()
                _check_stage(stage, first=place == 0)
                stage.scale = _scale_of(stage)
        self._description = d = _joined(self.spec.label, self.stages)
        for place, stage in enumerate(self.stages):
            if list(stage.description.classes) not in ([], list(d.classes)):
                raise Incompatible(f"{self._name(place)}: its classes are not those of the stages before it")
        side = self.stages[0].description.generated_size
        if self.generative and (reason := self._misfit(1, side, side)):
            raise Incompatible(f"{self.spec.label} {reason}")
        self.cold_start_s = sum(stage.cold_start_s for stage in self.stages)
        return d

    @property
    def description(self) -> pb.DescribeResponse:
        """What the stages said of themselves, as of one backend."""
        if self._description is None:
            raise Unavailable(f"{self.spec.label} is not connected")
        return self._description

    @property
    def servers(self) -> list[LocalServer]:
        """The processes of all stages; none where one of them runs elsewhere."""
        return [s for stage in self.stages for s in stage.servers] if all(s.server for s in self.stages) else []

    @property
    def choices(self) -> dict[str, Value]:
        """What was chosen for each stage: `2.steps` are the steps of the second."""
        return {f"{n}.{k}": value for n, stage in enumerate(self.stages, 1) for k, value in stage.choices.items()}

    def refusal(self, height: int, width: int) -> str:
        """Why a stage does not take what would reach it from inputs of a size in pixels; "" if all do."""
        return self._misfit(0, height, width)

    def once(self, asked: Sequence[Item] | Sequence[Draw], deadline: float) -> Reply:
        """All stages in turn, each called once; errors as of `Session.once`, with the stage's number and name."""
        started, replies = time.perf_counter(), list[Reply]()
        for place in range(len(self.stages)):
            sent = self._inputs(place, asked, replies)
            with self._naming(place):
                replies.append(self.stages[place].once(sent, deadline))
        return Reply(
            replies[-1].images,
            time.perf_counter() - started,
            sum(reply.queue_s for reply in replies),
            sum(reply.compute_s for reply in replies),
            sum(reply.peak_device_memory_mb for reply in replies),
            tuple(replies),
        )

    def restart(self) -> None:
        """Start or attach again the stage that failed last; errors as of `Session.restart`."""
        with self._naming(self.last_failed):
            self.stages[self.last_failed].restart()

    def kill(self) -> None:
        """End every stage that runs on this machine, whether or not others run elsewhere."""
        for stage in self.stages:
            stage.kill()

    def close(self) -> None:
        """Disconnect from every stage, and end the local ones."""
        for stage in self.stages:
            stage.close()

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run record says of a chain: as of a backend, and of each of its stages."""
        stages = [_stage_record(n, stage) for n, stage in enumerate(self.stages, 1)]
        remote = ", ".join(stage.address for stage in self.spec.stages if stage.address)
        return super().record | {"address": remote or None, "stages": stages}

    def _inputs(self, place: int, asked: Sequence[Item | Draw], replies: list[Reply]) -> list[Any]:
        """What a stage is asked for: at first what the chain was, then to enlarge what the stage before it made."""
        classes = self.stages[place].description.classes
        if place == 0:
            return [*asked] if classes else [replace(one, class_index=None) for one in asked]
        return [
            Item(one.id, image, stage_seed(one.seed, place), one.class_index if classes else None)
            for one, image in zip(asked, replies[-1].images, strict=True)
        ]

    def _misfit(self, place: int, height: int, width: int) -> str:
        """Why a stage from this place on does not take what would reach it, if a size in pixels reaches this place."""
        for n in range(place, len(self.stages)):
            if reason := self.stages[n].refusal(height, width):
                return f"does not fit: {self._name(n)}, {reason}"
            height, width = height * self.stages[n].scale, width * self.stages[n].scale
        return ""

    def _name(self, place: int) -> str:
        return f"stage {place + 1}, {self.stages[place].spec.label}"

    @contextmanager
    def _naming(self, place: int) -> Iterator[None]:
        """Say of errors in which stage they are."""
        try:
            yield
        except (BackendError, ConfigError) as error:
            self.last_failed = place
            raise type(error)(f"{self._name(place)}: {error}") from error


def _check_stage(stage: Session, *, first: bool) -> None:
    d = stage.description
    if d.family == pb.FAMILY_REPLAY:
        raise Incompatible("stored outputs are no stage of a chain: they answer to an image's name alone")
    if not (d.scales or first):
        raise Incompatible("only generates images, it does not upscale; it can be a first stage only")


def _scale_of(stage: Session) -> int:
    """The scale that a stage was given, or the only one that it has; 1 of one that only generates."""
    scales, wanted = sorted(stage.description.scales), stage.spec.scale
    if wanted and wanted not in scales:
        raise Incompatible(f"has no scale {wanted}; it has {scales}")
    if len(scales) > 1 and not wanted:
        raise Incompatible(f"has the scales {scales}; choose one with scale=")
    return wanted or (scales[0] if scales else 1)


def _stage_record(number: int, stage: Session) -> dict[str, Any]:
    made = {"scale": stage.scale, "generated_size": stage.description.generated_size}
    return stage.record | made | {"stage": f"{number} {stage.spec.label}"}


def _joined(label: str, stages: Sequence[Session]) -> pb.DescribeResponse:
    """The description of a chain."""
    ds, factor = [stage.description for stage in stages], math.prod(stage.scale for stage in stages)
    generates = stages[0].generative
    later = factor // stages[0].scale
    d = pb.DescribeResponse(
        name=label,
        family=ds[0].family if len({d.family for d in ds}) == 1 else pb.FAMILY_OTHER,
        digest=_digest(stages),
        scales=[factor] if ds[0].scales else [],
        sizes=ds[0].sizes,
        channels=3,
        deterministic=all(d.deterministic for d in ds),
        batch_exact=all(d.batch_exact for d in ds),
        classes=next((d.classes for d in ds if d.classes), []),
        capabilities=[pb.CAPABILITY_GENERATE] if generates else [],
        max_batch=min(d.max_batch for d in ds),
        domain=ds[0].domain,
        generated_size=ds[0].generated_size * later if generates else 0,
        device=_several(d.device for d in ds),
        precision=_several(d.precision for d in ds),
        licence=_several(d.licence for d in ds),
    )
    warm_ups = [stage.warm_up_s() for stage in stages]
    if not math.isnan(sum(warm_ups)):
        d.warm_up_time.FromMilliseconds(round(1000 * sum(warm_ups)))
    return d


def _digest(stages: Sequence[Session]) -> str:
    text = json.dumps([[stage.description.digest, stage.scale] for stage in stages])
    return hashlib.sha256(text.encode()).hexdigest()


def _several(texts: Iterator[str]) -> str:
    """Different texts, each once."""
    return "; ".join(dict.fromkeys(one_line(text, 200) for text in texts))
