"""Checks a request against a backend's description, and gives the batch that the model sees."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import Batch, Description, FloatBatch, Option, SampleBatch
from protos import MAX_MESSAGE_BYTES
from protos.upscaler.v1 import upscaler_pb2 as pb
from protos.values import option_value

MAX_PIXELS = 64 * 2**20
"""Largest number of output pixels of one request."""

FLOAT = np.dtype("<f4")
"""A value of `Gradient` on the wire."""
FLOAT_PIXEL = 3 * FLOAT.itemsize
MAX_FLOAT_PIXELS = (MAX_MESSAGE_BYTES - 2**20) // FLOAT_PIXEL
"""Largest number of pixels of the outputs and gradients of one answer: a message holds little else."""

Request = pb.UpscaleRequest | pb.GradientRequest
Image = pb.InputImage | pb.GradientInput | pb.GenerateInput
Violation = tuple[str, str]
"""(field of the request, what is wrong with it)."""


def violations(request: pb.UpscaleRequest, description: Description) -> list[Violation]:
    """Everything that is wrong with a request whose pixels have arrived; empty if nothing is."""
    found = header_violations(request, description)
    for i, image in enumerate(request.images):
        if len(image.data) != image.height * image.width * 3:
            expected = f"{image.height} x {image.width} x 3 = {image.height * image.width * 3}"
            found.append((f"images[{i}].data", f"has {len(image.data)} bytes; {expected} are needed"))
    return found


def gradient_violations(request: pb.GradientRequest, description: Description) -> list[Violation]:
    """Everything that is wrong with a request for gradients; empty if nothing is."""
    found = header_violations(request, description)
    wanted = any(image.cotangent for image in request.images)
    for i, image in enumerate(request.images):
        pixels = image.height * image.width
        parts = (("data", image.data, pixels), ("cotangent", image.cotangent, wanted * pixels * request.scale**2))
        for name, data, needed in parts:
            found += [(f"images[{i}].{name}", text) for text in _float_violations(data, needed)]
    if sum(image.height * image.width for image in request.images) * (request.scale**2 + 1) > MAX_FLOAT_PIXELS:
        found.append(("images", f"would make an answer of more than {MAX_MESSAGE_BYTES} bytes; send fewer or smaller"))
    return found


def _float_violations(data: bytes, pixels: int) -> list[str]:
    if len(data) != pixels * FLOAT_PIXEL:
        return [f"has {len(data)} bytes; {pixels} pixels x {FLOAT_PIXEL} = {pixels * FLOAT_PIXEL} are needed"]
    finite = np.isfinite(np.frombuffer(data, FLOAT)).all()
    return [] if finite else ["holds values that are not finite (NaN or infinity)"]


def generate_violations(request: pb.GenerateRequest, description: Description) -> list[Violation]:
    """Everything that is wrong with a request for generated images; empty if nothing is."""
    found = _count_violations(request.images, description)
    if len(request.images) * description.generated_size**2 > MAX_PIXELS:
        found.append(("images", f"would make more than {MAX_PIXELS} pixels; send fewer"))
    return found or _shared_violations(request.images, request.options, description)


def header_violations(request: Request, description: Description) -> list[Violation]:
    """Everything that is wrong with a request, its pixels left aside."""
    found: list[Violation] = []
    if request.scale not in description.scales:
        found.append(("scale", f"{request.scale} is not one of {list(description.scales)}"))
    if count := _count_violations(request.images, description):
        return found + count
    return (
        found
        + _size_violations(request, description)
        + _shared_violations(request.images, request.options, description)
    )


def _count_violations(images: Sequence[Image], d: Description) -> list[Violation]:
    if 1 <= len(images) <= d.max_batch:
        return []
    return [("images", f"holds {len(images)} images; 1 to {d.max_batch} are accepted")]


def _shared_violations(
    images: Sequence[Image], options: Mapping[str, pb.OptionValue], d: Description
) -> list[Violation]:
    """What may be wrong with ids, classes, levels and options, whatever is asked for."""
    found = [("images", "holds an id twice")] if len({image.id for image in images}) != len(images) else []
    for i, image in enumerate(images):
        found += [(f"images[{i}].{name}", text) for name, text in _image_violations(image, d)]
    known = {option.name: option for option in d.options}
    for name, value in options.items():
        found += [(f"options.{name[:40]}", text) for text in _option_violations(known.get(name), value)]
    return found


def _size_violations(request: Request, d: Description) -> list[Violation]:
    sizes = {(image.height, image.width) for image in request.images}
    if len(sizes) > 1:
        return [("images", "are not all of one size")]
    height, width = sizes.pop()
    small, large = min(height, width), max(height, width)
    found = []
    if small < d.minimum:
        found.append(("images[0]", f"is {height} x {width}; at least {d.minimum} x {d.minimum} is needed"))
    if d.maximum and large > d.maximum:
        found.append(("images[0]", f"is {height} x {width}; at most {d.maximum} x {d.maximum} is accepted"))
    if height % d.multiple_of or width % d.multiple_of:
        found.append(("images[0]", f"is {height} x {width}; multiples of {d.multiple_of} are needed"))
    if height * width * len(request.images) * max(1, request.scale) ** 2 > MAX_PIXELS:
        found.append(("images", f"would make more than {MAX_PIXELS} pixels; send fewer or smaller images"))
    return found


def _image_violations(image: Image, d: Description) -> list[Violation]:
    found = []
    if not 1 <= len(image.id) <= 256:
        found.append(("id", f"has {len(image.id)} characters; 1 to 256 are accepted"))
    if image.HasField("class_index") and image.class_index >= len(d.classes):
        found.append(("class_index", f"{image.class_index} is not below {len(d.classes)}, the number of classes"))
    if isinstance(image, pb.GenerateInput) or not image.HasField("conditioning_level"):
        return found
    level = image.conditioning_level
    if not (math.isfinite(level) and 0 <= level <= 1):
        found.append(("conditioning_level", f"{level} is not in [0, 1]"))
    return found


def _option_violations(option: Option | None, message: pb.OptionValue) -> list[str]:
    if option is None:
        return ["is not an option of this backend"]
    value = option_value(message)
    if type(value) is not type(option.default):
        return [f"must be of type {type(option.default).__name__}"]
    if isinstance(value, str):
        return [f"must be one of {list(option.choices)}"] if option.choices and value not in option.choices else []
    number = float(value or 0)
    if not math.isfinite(number):
        return ["must be finite"]
    if option.minimum is not None and number < option.minimum:
        return [f"must be at least {option.minimum:g}"]
    if option.maximum is not None and number > option.maximum:
        return [f"must be at most {option.maximum:g}"]
    return []


def to_batch(request: pb.UpscaleRequest, description: Description) -> Batch:
    """The batch of a request without violations, its options completed by the defaults."""
    first = request.images[0]
    shape = (first.height, first.width, 3)
    images = np.stack([np.frombuffer(image.data, np.uint8).reshape(shape) for image in request.images])
    return Batch(images=images, scale=request.scale, levels=_levels(request), **_shared(request, description))


def to_float_batch(request: pb.GradientRequest, description: Description) -> FloatBatch:
    """The same of a request for gradients."""
    first, scale = request.images[0], request.scale
    images = _floats([image.data for image in request.images], first.height, first.width)
    weights = [image.cotangent for image in request.images]
    cotangents = _floats(weights, first.height * scale, first.width * scale) if first.cotangent else None
    shared = _shared(request, description)
    return FloatBatch(images=images, cotangents=cotangents, scale=scale, levels=_levels(request), **shared)


def to_sample_batch(request: pb.GenerateRequest, description: Description) -> SampleBatch:
    """The same of a request for generated images."""
    return SampleBatch(size=description.generated_size, **_shared(request, description))


def _levels(request: Request) -> tuple[float | None, ...]:
    images: Sequence[pb.InputImage | pb.GradientInput] = request.images
    return tuple(image.conditioning_level if image.HasField("conditioning_level") else None for image in images)


def _floats(parts: list[bytes], height: int, width: int) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(data, FLOAT).reshape(height, width, 3) for data in parts]).astype(np.float32)


def _shared(request: Request | pb.GenerateRequest, description: Description) -> dict[str, Any]:
    """What all batches have in common."""
    options = {option.name: option.default for option in description.options}
    options |= {name: value for name, m in request.options.items() if (value := option_value(m)) is not None}
    images: Sequence[Image] = request.images
    return {
        "ids": tuple(image.id for image in images),
        "seeds": tuple(image.seed for image in images),
        "options": options,
        "classes": tuple(image.class_index if image.HasField("class_index") else None for image in images),
    }
