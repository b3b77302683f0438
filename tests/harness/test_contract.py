"""The contract kit finds what is wrong with bad backends, and nothing else: each is served over real gRPC."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from backends.base import Batch, Description, Option, Progress, Refused
from backends.faulty import WIRE_FAULTS, Faulty, FaultyServicer
from backends.registry import ENTRIES, Entry
from backends.server import UpscalerServicer, start
from backends.validation import violations
from harness import contract
from harness.client import Client
from harness.contract import Result, check_address
from harness.errors import ConfigError, Incompatible, Unavailable
from protos.upscaler.v1 import upscaler_pb2 as pb

CONSISTENT = "describes itself without contradiction"
HEALTH = "answers health checks"
SAME_BYTES = "gives the same bytes for the same request"
PICTURE = "returns the picture it was sent"
SIZES = "returns every size it lists"
OTHER_SIZES = "refuses sizes it does not list"
FULL = "takes as many images as it lists"
MESSAGE = "takes messages as large as it lists"
BATCH = "keeps the batch rule"
SEEDS = "is as deterministic as it says"
STREAM = "streams as it says"
DERIVATIVE = "differentiates as it says"
REFUSALS = "refuses bad requests with field violations"
ID = "answers the image, whatever its id"
PIXELS = "answers a change of any pixel"
MATES = "computes each of nearly equal images in a batch"
REPEATED = "computes a repeated image again"
OPTIONS = "takes the options and classes it lists, and no others"
CANCEL = "answers again after a client has left"
LATER = "gives the same bytes after other work"
SAME_DESCRIPTION = "describes itself the same way after the work"

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
    assert [r.name for r in results] == list(contract.CHECKS)
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
        {"maximum": 1},
        {"maximum": 2**31},
        {"classes": ("cat", "dog")},
        {"progress": True},
        {"options": (Option("steps", 8, "steps", minimum=1, maximum=9), Option("mode", "a", "mode", choices=("a",)))},
        {"options": (Option("fast", False, "fast"), Option("scale", 0.5, "strength", minimum=-1e300, maximum=0.5))},
    ],
)
def test_an_honest_backend_passes(says: dict[str, Any]) -> None:
    """Nothing is found in a good backend, whatever sizes, batches and options it lists."""
    assert failing(UpscalerServicer(Model(**says))) == set()


CHANCE = np.random.default_rng(0)


def random(batch: Batch) -> NDArray[np.uint8]:
    """Other bytes in every call."""
    return CHANCE.integers(0, 256, repeat(batch).shape, dtype=np.uint8)


def noisy(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """An image with noise from a seed."""
    return image // 2 + np.random.default_rng(seed).integers(0, 64, image.shape, dtype=np.uint8)


def seeded(batch: Batch) -> NDArray[np.uint8]:
    """Noise from each image's own seed."""
    return np.stack([noisy(image, seed) for image, seed in zip(repeat(batch), batch.seeds, strict=True)])


def batch_seeded(batch: Batch) -> NDArray[np.uint8]:
    """Noise for the whole batch from the seed of its first image."""
    return noisy(repeat(batch), batch.seeds[0])


def one_seeded(batch: Batch) -> NDArray[np.uint8]:
    """Equal images of a batch share the noise of the first of them."""
    first = [batch.images.tolist().index(image.tolist()) for image in batch.images]
    return seeded(batch)[first]


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


EVERYTHING_CHANGES = {SAME_BYTES, PICTURE, BATCH, STREAM, ID, MATES, CANCEL, LATER}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(repeat, deterministic=False), {SEEDS}),
        (Model(seeded, deterministic=True), {SEEDS}),
        (Model(seeded, deterministic=False), set()),
        (Model(random, deterministic=False), EVERYTHING_CHANGES),
        (Model(batch_seeded, deterministic=False), {BATCH, MATES}),
        (Model(one_seeded, deterministic=False), {MATES}),
        (Model(normalised), {BATCH}),
        (Model(flipped), set()),
        (Model(flipped, batch_exact=True), {BATCH, MATES}),
        (Model(tinted), {BATCH, MATES}),
        (Model(refuses_four), {SIZES}),
        (Model(at_most(8)), {FULL, CANCEL}),
        (Model(at_most(3)), {FULL, BATCH, MATES, CANCEL}),
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


class Silent(UpscalerServicer):
    """Its stream reports no progress."""

    def UpscaleStream(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[pb.UpscaleStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.UpscaleStreamResponse]:
        """Leave out what is asked for."""
        messages = super().UpscaleStream(request_iterator, context)
        return (message for message in messages if not message.HasField("progress"))


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


class Says(UpscalerServicer):
    """Describes another backend than it is."""

    def __init__(self, change: Callable[[pb.DescribeResponse], object], **says: Any) -> None:
        super().__init__(Model(**says))
        self.change = change

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: N802 - gRPC's name
        """Change the description on its way out."""
        answer = super().Describe(request, context)
        self.change(answer)
        return answer


@pytest.mark.parametrize(
    ("servicer", "expected"),
    [(Unstable, SAME_DESCRIPTION), (OtherStream, STREAM), (Silent, STREAM), (Curt, REFUSALS), (Vague, REFUSALS)],
)
def test_a_bad_server_fails_its_check(servicer: type[UpscalerServicer], expected: str) -> None:
    """Faults of the server around a good model are found as precisely as those of the model."""
    assert failing(servicer(Model(progress=True))) == {expected}


STEPS = (Option("steps", 8, "steps", minimum=1, maximum=9),)
SAMPLER = (Option("sampler", "a", "sampler", choices=("a", "b")),)


def at(change: str, value: object) -> Callable[[pb.DescribeResponse], None]:
    """Set a field, named by its path, of a description."""

    def apply(d: pb.DescribeResponse) -> None:
        *path, field = change.split(".")
        target: Any = d
        for name in path:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        setattr(target, field, value)

    return apply


@pytest.mark.parametrize(
    ("change", "says", "expected"),
    [
        (at("max_batch", 4), {}, {REFUSALS}),
        (at("sizes.minimum", 8), {}, {OTHER_SIZES}),
        (at("sizes.maximum", 64), {}, {OTHER_SIZES}),
        (at("sizes.multiple_of", 4), {}, {OTHER_SIZES}),
        (at("sizes.minimum", 8), {"minimum": 12}, {SIZES, FULL, CANCEL}),
        (at("sizes.maximum", 64), {"maximum": 32}, {SIZES}),
        (at("options.0.maximum", 99), {"options": STEPS}, {OPTIONS}),
        (at("options.0.maximum", 8), {"options": STEPS}, {OPTIONS}),
        (at("options.0.minimum", 2), {"options": STEPS}, {OPTIONS}),
        (lambda d: d.options[0].choices.append("c"), {"options": SAMPLER}, {OPTIONS}),
        (lambda d: d.options[0].ClearField("choices"), {"options": SAMPLER}, set()),
        (lambda d: d.classes.append("cat"), {}, {OPTIONS}),
    ],
)
def test_a_false_description_is_found(
    change: Callable[[pb.DescribeResponse], object], says: dict[str, Any], expected: set[str]
) -> None:
    """Sizes, limits, choices and classes that are listed but not kept, or kept but not listed, fail their check."""
    assert failing(Says(change, **says)) == expected


@pytest.mark.parametrize(
    ("change", "says", "words"),
    [
        (at("digest", "v2"), {}, "the digest is not 64 hexadecimal digits"),
        (at("family", 0), {}, "the family is not stated"),
        (at("licence", ""), {}, "licence not stated"),
        (at("max_message_bytes", 100), {}, "too small for an image"),
        (at("sizes.maximum", 4), {"minimum": 8}, "the minimum size is above the maximum"),
        (at("sizes.multiple_of", 8), {"minimum": 9, "maximum": 15}, "no multiple"),
        (at("sizes.domain_minimum", 99), {"maximum": 64}, "domain_minimum is above"),
        (at("options.0.default_value.integer", 10), {"options": STEPS}, "option steps: the default lies outside"),
        (at("options.0.default_value.text", "c"), {"options": SAMPLER}, "option sampler: the default is not one"),
        (at("options.0.maximum", 9), {"options": SAMPLER}, "limits to numbers"),
        (lambda d: d.options.append(d.options[0]), {"options": SAMPLER}, "option sampler is listed twice"),
        (lambda d: d.scales.append(4), {}, "a scale is listed twice"),
        (lambda d: d.classes.extend(["cat", "cat"]), {}, "a class has no name or is listed twice"),
        (lambda d: d.capabilities.remove(pb.CAPABILITY_STREAM), {"progress": True}, "progress is claimed without"),
    ],
)
def test_a_contradiction_is_named(
    change: Callable[[pb.DescribeResponse], object], says: dict[str, Any], words: str
) -> None:
    """A description that cannot be true is said to be wrong, and where."""
    result = next(r for r in checked(Says(change, **says)) if r.name == CONSISTENT)
    assert not result.passed
    assert words in result.detail


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("by_id", {ID, DERIVATIVE}),
        ("cache_id", {ID, PIXELS}),
        ("cache_part", {PIXELS}),
        ("cache", {REPEATED}),
        ("one_in_batch", {MATES}),
        ("drift", {LATER}),
        ("stuck", {CANCEL}),
        ("stale", {CANCEL}),
        ("flat", {PICTURE, ID, PIXELS, DERIVATIVE}),
        ("bgr", {PICTURE, DERIVATIVE}),
        ("other_gradient", {DERIVATIVE}),
        ("steep_gradient", {DERIVATIVE}),
        ("other_output", {DERIVATIVE}),
    ],
)
def test_a_cheat_is_caught_by_name(serve: Callable[[str], Client], fault: str, expected: set[str]) -> None:
    """Each way of not computing the answer, served by another process, fails the audit that is meant for it."""
    found = {r.name for r in check_address(serve("faulty").address, {"fault": fault}) if not r.passed}
    assert found == expected or (fault == "drift" and found > expected)


class Swapped(UpscalerServicer):
    """Its weights, and so its digest, are replaced while it serves."""

    calls = 0

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Answer; from the tenth call on as another model."""
        self.calls += 1
        if self.calls == 10:
            self.description = replace(self.description, digest="cd" * 32)
        return super().Upscale(request, context)


def test_another_digest_after_the_work_is_found() -> None:
    """A digest that changes is found in the first answer that carries it, and in the description at the end."""
    results = {r.name: r for r in checked(Swapped(Model()))}
    assert not results[SAME_DESCRIPTION].passed
    assert any("digest" in r.detail for r in results.values())


def test_grpcs_own_message_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lists 64 MiB, but reads no more than gRPC's usual 4 MiB, fails the check of message sizes."""
    monkeypatch.setattr("backends.server.MESSAGE_OPTIONS", [])
    assert failing(UpscalerServicer(Model())) == {MESSAGE}


def test_a_server_that_is_not_healthy_fails() -> None:
    """The server as a whole must be SERVING too, which is what load balancers ask for."""
    server, state, port = start(UpscalerServicer(Model()), "127.0.0.1:0")
    state.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        assert [r.name for r in check_address(f"127.0.0.1:{port}") if not r.passed] == [HEALTH]
    finally:
        server.stop(None).wait()


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
    with pytest.raises(ConfigError, match="only a run can try it"):
        checked(UpscalerServicer(Model(family="replay")))


def test_a_backend_that_cannot_start_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of its log is in the message, and the log that it names can be read."""
    monkeypatch.setitem(ENTRIES, "ghost", Entry("ghost", "none:None", "known here, not to the child"))
    with pytest.raises(Unavailable, match=r"invalid choice: 'ghost'.*its log is ") as caught:
        contract.check("ghost")
    assert "ghost" in Path(str(caught.value).rpartition("its log is ")[2]).read_text()
