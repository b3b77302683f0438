"""Checks of `Generate`: what is asked for by class and seed is what comes back, alone and in a batch."""

from collections.abc import Iterator

import numpy as np

from harness.client import Draw, Pixels
from harness.compliance import NotJudged, unlike_alone
from harness.probe import FULL, MANY, Probe
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import Value


def generates(p: Probe) -> str:
    """The same seed gives the same bytes; another seed, and another class, give others; the batch rule holds.

    Raises:
        NotJudged: the backend has no Generate.
    """
    if pb.CAPABILITY_GENERATE not in p.d.capabilities:
        raise NotJudged("not offered")
    first, last = (0, len(p.d.classes) - 1) if p.d.classes else (None, None)
    image = _one(p, 7, first)
    if not np.array_equal(image, _one(p, 7, first)):
        return "two equal requests gave different bytes"
    if np.array_equal(image, _one(p, 8, first)):
        return "another seed gave the same image"
    if last and np.array_equal(image, _one(p, 7, last)):
        return "another class gave the same image"
    return _batches(p)


def _one(p: Probe, seed: int, class_index: int | None) -> Pixels:
    (image,) = p.generate([Draw(p.name(), seed, class_index)]).images
    return np.asarray(image)


def _batches(p: Probe) -> str:
    """The batch rule over several classes, and as many images as are listed in one request."""
    classes = range(len(p.d.classes)) if p.d.classes else [None]
    count = min(FULL, p.d.max_batch)
    draws = [Draw(p.name(), i, classes[i % len(classes)]) for i in range(count)]
    together = p.generate(draws).images
    few = draws[: min(4, count)]
    return unlike_alone(p, together[: len(few)], np.stack([_one(p, draw.seed, draw.class_index) for draw in few]))


def bad_generate_requests(p: Probe) -> Iterator[tuple[str, pb.GenerateRequest]]:
    """What is wrong with a request for generated images, and the request."""
    image = generate_input(p)
    yield "nothing to generate", generate_request(p)
    yield "an id twice to generate", generate_request(p, image, image)
    yield "an image without an id to generate", generate_request(p, generate_input(p, id=""))
    yield "an unknown option of Generate", generate_request(p, image, options={"no such option": 1})
    yield (
        "a class to generate that it does not have",
        generate_request(p, generate_input(p, class_index=len(p.d.classes))),
    )
    if p.d.max_batch < MANY:
        many = (generate_input(p) for _ in range(p.d.max_batch + 1))
        yield "more images to generate than it lists", generate_request(p, *many)


def generate_input(p: Probe, **changes: int | str) -> pb.GenerateInput:
    """An image to generate as its message, with fields changed; of the first class, if there are any."""
    fields = {"id": p.name(), "class_index": 0 if p.d.classes else None} | changes
    return pb.GenerateInput(**fields)  # type: ignore[arg-type]  # the stubs do not know the types of ** fields


def generate_request(
    p: Probe, *images: pb.GenerateInput, options: dict[str, Value] | None = None
) -> pb.GenerateRequest:
    """A request as its message; `options` are beside or instead of those of every request."""
    return pb.GenerateRequest(images=images, options=p.messages(options))
