"""The contract kit finds what is wrong with bad backends, and nothing else: each is served over real gRPC."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from backends.base import Batch, Description, Option, Progress, Refused
from backends.faulty import WIRE_FAULTS, Faulty, FaultyServicer
from backends.registry import ENTRIES, Entry
from backends.server import UpscalerServicer, start
from backends.validation import violations
from harness import contract
from harness.contract import Result, check_address
from harness.errors import ConfigError, Incompatible, Unavailable
from protos.upscaler.v1 import upscaler_pb2 as pb

SAME_DESCRIPTION = "describes itself the same way twice"
SIZES = "returns every size it lists"
FULL = "takes as many images as it lists"
SAME_BYTES = "gives the same bytes for the same request"
BATCH = "keeps the batch rule"
SEEDS = "is as deterministic as it says"
STREAM = "streams the same bytes"
REFUSALS = "refuses bad requests with field violations"
CANCEL = "answers again after a client has left"
CHECKS = [SAME_DESCRIPTION, SIZES, FULL, SAME_BYTES, BATCH, SEEDS, STREAM, REFUSALS, CANCEL]

Answer = Callable[[Batch], NDArray[Any]]


def repeat(batch: Batch) -> NDArray[np.uint8]:
    """Nearest neighbour: a backend without faults."""
    return batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2)


class Model:
    """A backend that answers as it is told, whatever it says of itself."""

    def __init__(self, answer: Answer = repeat, **says: Any) -> None:
        base = Description("model", "other", "ab" * 32, (2, 4), "none", "tests")
        self.answer, self.description = answer, replace(base, **says)

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[Any]:
        """See `Backend.upscale`."""
        progress(1, 1)
        return self.answer(batch)


def checked(servicer: UpscalerServicer) -> list[Result]:
    """The results of the kit for a server in this process."""
    server, _, port = start(servicer, "127.0.0.1:0")
    try:
        return check_address(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def failing(servicer: UpscalerServicer) -> set[str]:
    """Names of the checks that fail."""
    results = checked(servicer)
    assert [r.name for r in results] == CHECKS
    assert all(r.detail for r in results if not r.passed)
    return {r.name for r in results if not r.passed}


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"batch_exact": True},
        {"scales": (1,)},
        {"minimum": 5, "maximum": 5},
        {"minimum": 20, "multiple_of": 8},
        {"max_batch": 1},
        {"max_batch": 1000},
        {"options": (Option("steps", 8, "steps", minimum=1, maximum=9), Option("mode", "a", "mode", choices=("a",)))},
    ],
)
def test_an_honest_backend_passes(says: dict[str, Any]) -> None:
    """Nothing is found in a good backend, whatever sizes, batches and options it lists."""
    assert failing(UpscalerServicer(Model(**says))) == set()


def random(batch: Batch) -> NDArray[np.uint8]:
    """Other bytes in every call."""
    return np.random.default_rng().integers(0, 256, repeat(batch).shape, dtype=np.uint8)


def seeded(batch: Batch) -> NDArray[np.uint8]:
    """Noise from each image's own seed."""
    shape = repeat(batch).shape[1:]
    return np.stack([np.random.default_rng(s).integers(0, 256, shape, dtype=np.uint8) for s in batch.seeds])


def batch_seeded(batch: Batch) -> NDArray[np.uint8]:
    """Noise for the whole batch from the seed of its first image."""
    return np.random.default_rng(batch.seeds[0]).integers(0, 256, repeat(batch).shape, dtype=np.uint8)


def normalised(batch: Batch) -> NDArray[np.floating]:
    """Every image is shifted by the mean of its batch."""
    shift = 128 - float(batch.images.mean())
    return np.clip(repeat(batch).astype(float) + shift, 0, 255)


def flipped(batch: Batch) -> NDArray[np.uint8]:
    """One value of a batch is a level off: within the rule, but not exact."""
    output = repeat(batch)
    if len(batch.images) > 1:
        output[0, 0, 0, 0] ^= 1
    return output


def tinted(batch: Batch) -> NDArray[np.uint8]:
    """In a batch a whole channel is a level off."""
    output = repeat(batch)
    if len(batch.images) > 1:
        output[..., 0] ^= 1
    return output


def refuses_four(batch: Batch) -> NDArray[np.uint8]:
    """Scale 4 is listed and refused."""
    if batch.scale == 4:
        raise Refused("scale", "4 is not supported after all")
    return repeat(batch)


def at_most(count: int) -> Answer:
    """A model that takes fewer images than it lists."""

    def answer(batch: Batch) -> NDArray[np.uint8]:
        if len(batch.images) > count:
            raise Refused("images", f"more than {count}")
        return repeat(batch)

    return answer


def no_second_chance(batch: Batch) -> NDArray[np.uint8]:
    """The image of the request that a client leaves is never answered."""
    if "cancel" in batch.ids:
        raise RuntimeError("stuck")
    return repeat(batch)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(repeat, deterministic=False), {SEEDS}),
        (Model(seeded, deterministic=True), {SEEDS}),
        (Model(seeded, deterministic=False), set()),
        (Model(random, deterministic=False), {SAME_BYTES, BATCH, STREAM}),
        (Model(batch_seeded, deterministic=False), {BATCH}),
        (Model(normalised), {BATCH}),
        (Model(flipped), set()),
        (Model(flipped, batch_exact=True), {BATCH}),
        (Model(tinted), {BATCH}),
        (Model(refuses_four), {SIZES}),
        (Model(at_most(8)), {FULL}),
        (Model(at_most(3)), {FULL, BATCH}),
        (Model(no_second_chance), {CANCEL}),
    ],
    ids=lambda value: f"{value.answer.__name__}" if isinstance(value, Model) else "",
)
def test_a_bad_model_fails_its_check(model: Model, expected: set[str]) -> None:
    """Ignored seeds, chance, dependence on batch mates and false claims each fail the check of that name."""
    assert failing(UpscalerServicer(model)) == expected


class Unstable(UpscalerServicer):
    """Names another device in every description."""

    calls = 0

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: N802 - gRPC's name
        """Answer differently each time."""
        self.calls += 1
        answer = super().Describe(request, context)
        answer.device = f"device {self.calls}"
        return answer


class OtherStream(UpscalerServicer):
    """Its stream carries other pixels than its single message."""

    def UpscaleStream(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[pb.UpscaleStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.UpscaleStreamResponse]:
        """Spoil each chunk."""
        for message in super().UpscaleStream(request_iterator, context):
            if message.WhichOneof("message") == "chunk":
                message.chunk = message.chunk[::-1]
            yield message


class Curt(UpscalerServicer):
    """Refuses what it should, without saying which field is wrong."""

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Abort with a bare status."""
        if violations(request, self.description):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return super().Upscale(request, context)


class Vague(UpscalerServicer):
    """Answers bad requests with INTERNAL."""

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Abort with the wrong status."""
        if violations(request, self.description):
            context.abort(grpc.StatusCode.INTERNAL, "no")
        return super().Upscale(request, context)


class Modest(UpscalerServicer):
    """Takes more images than it lists."""

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: N802 - gRPC's name
        """List fewer images than are taken."""
        answer = super().Describe(request, context)
        answer.max_batch = 4
        return answer


@pytest.mark.parametrize(
    ("servicer", "expected"),
    [(Unstable, SAME_DESCRIPTION), (OtherStream, STREAM), (Curt, REFUSALS), (Vague, REFUSALS), (Modest, REFUSALS)],
)
def test_a_bad_server_fails_its_check(servicer: type[UpscalerServicer], expected: str) -> None:
    """Faults of the server around a good model are found as precisely as those of the model."""
    assert failing(servicer(Model())) == {expected}


@pytest.mark.parametrize("fault", [fault for fault in WIRE_FAULTS if fault != "oversized"])
def test_lies_on_the_wire_are_broken_contracts(fault: str) -> None:
    """A wrong size, digest, time, count, id or length of data is found in the first answer with pixels."""
    backend = Faulty()
    first, *others = backend.description.options
    backend.description = replace(backend.description, options=(replace(first, default=fault), *others))
    results = {r.name: r for r in checked(FaultyServicer(backend))}
    assert not results[SIZES].passed
    assert results[SIZES].detail.startswith("ContractBroken: ")
    assert results[SAME_DESCRIPTION].passed


def test_a_gigantic_minimum_is_not_tried() -> None:
    """A backend that says it takes no image below a gigapixel is refused before an image is made."""
    with pytest.raises(Incompatible, match="can be tried"):
        checked(UpscalerServicer(Model(minimum=2**31)))


def test_a_backend_is_checked_by_its_name() -> None:
    """A registered name is started and passes; an unknown one is refused with the known ones."""
    assert all(result.passed for result in contract.check("nearest"))
    with pytest.raises(ConfigError, match="no backend 'no such'; known: nearest"):
        contract.check("no such")
    with pytest.raises(ConfigError, match="steps"):
        contract.check("nearest,steps=4")


def test_a_backend_is_checked_by_its_address() -> None:
    """HOST:PORT and NAME@HOST:PORT reach a running server, and options go with every request."""
    server, _, port = start(UpscalerServicer(Model(options=(Option("steps", 8, "steps"),))), "127.0.0.1:0")
    try:
        for text in (f"127.0.0.1:{port}", f"mine@127.0.0.1:{port},steps=4"):
            assert all(result.passed for result in contract.check(text))
        with pytest.raises(ConfigError, match="type integer"):
            contract.check(f"127.0.0.1:{port},steps=x")
    finally:
        server.stop(None).wait()
    with pytest.raises(ConfigError, match="HOST:PORT"):
        contract.check("127.0.0.1:")


def test_replay_is_not_checked() -> None:
    """Replay has no outputs for the images of the checks: the refusal says how it is tried instead."""
    for text in ("replay", "replay,outputs=/a:b@c"):
        with pytest.raises(ConfigError, match="only a run can try it"):
            contract.check(text)


def test_a_backend_that_cannot_start_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of its log is in the message, and the log that it names can be read."""
    monkeypatch.setitem(ENTRIES, "ghost", Entry("ghost", "none:None", "known here, not to the child"))
    with pytest.raises(Unavailable, match=r"invalid choice: 'ghost'.*its log is ") as caught:
        contract.check("ghost")
    assert "ghost" in Path(str(caught.value).rpartition("its log is ")[2]).read_text()
