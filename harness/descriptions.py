"""Checks of what a backend says of itself: nothing contradicts itself, and what is listed, and only that, is taken."""

import math
import re
from collections import Counter
from collections.abc import Iterator

import grpc

from harness.errors import BackendError, DeadlineExceeded
from harness.generation import generate_input, generate_request
from harness.probe import LARGEST_SIDE, Message, Probe
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value, option_value

LARGEST_MESSAGE = 8 * 2**20
"""Largest message that is tried: twice what gRPC takes by itself."""
PATIENCE = 2.0
"""Seconds after which a request that was not refused counts as accepted: the largest number of steps takes long."""
CHOICES = 16
"""Most choices of an option that are tried."""
WHOLE = 2.0**62
"""Whole numbers from here on are not tried: they come near the limits of the wire."""


def consistent(p: Probe) -> str:
    """Digest, sizes, limits, capabilities and options make sense."""
    d, largest = p.d, p.d.sizes.maximum or math.inf
    empty = [name for name in ("device", "precision", "licence", "domain") if not getattr(d, name)]
    optional = (pb.CAPABILITY_STREAM, pb.CAPABILITY_PROGRESS, pb.CAPABILITY_GENERATE)
    stream, progress, generates = (capability in d.capabilities for capability in optional)
    facts = (
        (not re.fullmatch("[0-9a-fA-F]{64}", d.digest), "the digest is not 64 hexadecimal digits"),
        (d.family not in pb.Family.values()[1:], "the family is not stated"),
        (empty, f"{' and '.join(empty)} not stated"),
        (len(set(d.scales)) < len(d.scales), "a scale is listed twice"),
        (d.sizes.minimum > largest, "the minimum size is above the maximum"),
        (p.smallest > largest, "no multiple of multiple_of lies between the minimum and the maximum size"),
        (d.sizes.domain_minimum > largest, "domain_minimum is above the maximum size"),
        (d.max_message_bytes < 3 * (p.side * p.scale) ** 2, "max_message_bytes is too small for an image"),
        (pb.CAPABILITY_UNSPECIFIED in d.capabilities, "a capability is unspecified"),
        (progress and not stream, "progress is claimed without the stream that carries it"),
        (stream and not d.scales, "the stream is claimed without a scale to upscale by"),
        (d.generated_size and not generates, "a size of generated images is given, but Generate is not offered"),
        ("" in d.classes or len(set(d.classes)) < len(d.classes), "a class has no name or is listed twice"),
    )
    return "; ".join([text for bad, text in facts if bad] + list(_option_faults(d)))


def _option_faults(d: pb.DescribeResponse) -> Iterator[str]:
    yield from (f"option {name} is listed twice" for name, n in Counter(o.name for o in d.options).items() if n > 1)
    for spec in d.options:
        default = option_value(spec.default_value)
        text, limited = isinstance(default, str), spec.HasField("minimum") or spec.HasField("maximum")
        if limited if text else spec.choices:
            yield f"option {spec.name}: choices belong to text and limits to numbers"
        elif spec.choices and default not in spec.choices:
            yield f"option {spec.name}: the default is not one of the choices"
        elif not text and not _low(spec) <= float(default or 0) <= _high(spec):
            yield f"option {spec.name}: the default lies outside its limits"


def _low(spec: pb.OptionSpec) -> float:
    return spec.minimum if spec.HasField("minimum") else -math.inf


def _high(spec: pb.OptionSpec) -> float:
    return spec.maximum if spec.HasField("maximum") else math.inf


def sizes(p: Probe) -> str:
    """Every scale, squares and rectangles, the smallest and the largest side are taken."""
    side, larger = p.smallest, p.smallest + p.step
    largest = p.d.sizes.maximum // p.step * p.step
    shapes = [(side, larger), (larger, side), (side, largest), (largest, side)]
    possible = [s for s in shapes if _can_be_tried(*s) and max(s) <= (p.d.sizes.maximum or math.inf)]
    for scale in p.d.scales:
        p.ask([p.item(p.image(side))], scale)
    for height, width in dict.fromkeys(possible):
        p.ask([p.item(p.image(height, width))])
    return ""


def other_sizes(p: Probe) -> str:
    """A side just under the minimum, just over the maximum or not a multiple is refused."""
    outside = [p.smallest - p.step] if p.smallest > p.step else []
    outside += [(p.d.sizes.maximum // p.step + 1) * p.step] if p.d.sizes.maximum else []
    outside += [p.smallest + 1] if p.step > 1 else []
    for side in outside:
        for height, width in ((side, p.smallest), (p.smallest, side)):
            if _can_be_tried(height, width) and (problem := p.refused(p.request(p.input(p.image(height, width))))):
                return f"{height} x {width}: {problem}"
    return ""


def _can_be_tried(height: int, width: int) -> bool:
    return 0 < height * width <= LARGEST_SIDE**2


def full_batch(p: Probe) -> str:
    """As many images as are listed are taken in one request."""
    p.ask(p.full())
    return ""


def large_message(p: Probe) -> str:
    """A large message is read; what it asks for cannot be had, so nothing is computed."""
    size = min(p.d.max_message_bytes, LARGEST_MESSAGE)
    try:
        p.send(p.request(p.input(data=bytes(max(0, size - 2**16))), scale=p.foreign_scale))
    except BackendError as error:
        if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return f"max_message_bytes is {p.d.max_message_bytes}, but {size} bytes are too many"
    return ""


def options(p: Probe) -> str:
    """Choices, limits and classes are taken; another choice, type, or number beyond a limit is refused."""
    for spec in p.d.options:
        for value in _inside(spec):
            _accept(p, {spec.name: value})
        for value in _outside(spec):
            if problem := p.refused(_small(p, {spec.name: value})):
                return f"{spec.name}={value!r}: {problem}"
    if p.d.classes:
        p.send(_small(p, {}, class_index=len(p.d.classes) - 1))
    return ""


def _small(p: Probe, options: dict[str, Value], **fields: int) -> Message:
    """The least that can be asked for: the smallest image enlarged, or one image generated."""
    if p.d.scales:
        return p.request(p.input(p.image(p.smallest), **fields), options=options)
    return generate_request(p, generate_input(p, **fields), options=options)


def _accept(p: Probe, option: dict[str, Value]) -> None:
    try:
        p.send(_small(p, option), PATIENCE)
    except DeadlineExceeded:
        return


def _inside(spec: pb.OptionSpec) -> list[Value]:
    default = option_value(spec.default_value)
    if isinstance(default, str):
        return list(spec.choices[:CHOICES])
    if isinstance(default, bool):
        return [True, False]
    limits = (_low(spec), _high(spec))
    if isinstance(default, int):
        return [round_(v) for round_, v in zip((math.ceil, math.floor), limits, strict=True) if abs(v) < WHOLE]
    return [v for v in limits if math.isfinite(v)]


def _outside(spec: pb.OptionSpec) -> list[Value]:
    default = option_value(spec.default_value)
    if isinstance(default, str):
        return [1, *(["no such choice"] if spec.choices else [])]
    if isinstance(default, bool):
        return ["text"]
    low, high = _low(spec), _high(spec)
    if isinstance(default, int):
        limits = [(math.ceil, low, -1), (math.floor, high, 1)]
        return ["text", *(round_(v) + one for round_, v, one in limits if abs(v) < WHOLE)]
    beyond = [v for v in (low - max(1, abs(low)) / 100, high + max(1, abs(high)) / 100) if math.isfinite(v)]
    return ["text", *beyond, *([math.nan] if beyond else [])]
