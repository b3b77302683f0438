"""Checks of `Gradient`: an output is that of `Upscale` before rounding, a gradient is the derivative of the output."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from harness.client import FloatItem, Floats, Pixels
from harness.compliance import SHARE, NotJudged
from harness.probe import Probe
from protos.upscaler.v1 import upscaler_pb2 as pb

Float = NDArray[np.float64]

HALF = 0.51
"""Levels by which a value may differ from what it is rounded to: one near a half may go either way."""
STEPS = (0.1, 1.0, 8.0)
"""Levels by which the input is moved to either side: little for exact arithmetic, more for coarse, such as bfloat16."""
TOLERANCE = 0.05
"""Largest error of a slope, as a share of the norm of the gradient or of the slope, whichever is larger."""


def gradients(p: Probe) -> str:
    """Outputs are those of Upscale, and slopes along some directions are what the gradient says.

    The slope is the central difference (f(x + h v) - f(x - h v)) / 2 h for f = sum(output * cotangent).

    Raises:
        NotJudged: the backend has no Gradient.
    """
    if pb.CAPABILITY_GRADIENT not in p.d.capabilities:
        raise NotJudged("not offered")
    item, (pixels,) = p.reference
    image, weight = item.image.astype(np.float32), p.rng.standard_normal(pixels.shape).astype(np.float32)
    (answer,) = p.differentiate([FloatItem(item.id, image, item.seed, weight)])
    if problem := unlike(answer.output, pixels):
        return problem
    gradient = np.asarray(answer.gradient, np.float64)
    for name, direction in _directions(p, gradient):
        expected = float((gradient * direction).sum())
        allowed = TOLERANCE * max(float(np.linalg.norm(gradient)), abs(expected))
        slopes = [_slope(p, item.seed, image, step * direction, weight) / step for step in STEPS]
        if all(abs(slope - expected) > allowed for slope in slopes):
            return f"along {name} the output rises by {slopes[0]:.4g} a level, by the gradient {expected:.4g}"
    return ""


def unlike(output: Floats, pixels: Pixels) -> str:
    """How an output, rounded and clipped, differs from the pixels of Upscale; "" by the rule for batches."""
    difference = np.abs(np.clip(output, 0, 255) - pixels)
    share = float((difference > HALF).mean())
    if share <= SHARE and difference.max() <= 1 + HALF:
        return ""
    return (
        f"rounded, {share:.2%} of the output are not the pixels of Upscale; they differ by up to {difference.max():.3g}"
    )


def _directions(p: Probe, gradient: Float) -> Iterator[tuple[str, Float]]:
    for i in (1, 2):
        yield f"random direction {i}", p.rng.choice([-1.0, 1.0], gradient.shape)
    yield "the gradient's signs", np.sign(gradient)


def _slope(p: Probe, seed: int, image: Floats, move: Float, weight: Floats) -> float:
    sums = []
    for moved in (image + move, image - move):
        (answer,) = p.differentiate([FloatItem(p.name(), moved.astype(np.float32), seed)])
        sums.append(float((answer.output.astype(np.float64) * weight).sum()))
    return (sums[0] - sums[1]) / 2


def bad_gradient_requests(p: Probe) -> Iterator[tuple[str, pb.GradientRequest]]:
    """What is wrong with a request for gradients, and the request."""
    image = p.image().astype("<f4")
    data, weight = image.tobytes(), bytes(len(image.tobytes()) * p.scale**2)
    holes = image.copy()
    holes[0, 0, 0] = np.nan
    yield "a value that is not finite", _request(p, _input(p, holes.tobytes()))
    yield "pixels of a byte each", _request(p, _input(p, p.image().tobytes()))
    yield "too small a cotangent", _request(p, _input(p, data, weight[:-4]))
    yield "a cotangent that is not finite", _request(p, _input(p, data, b"\xff" * len(weight)))
    yield "a gradient at a scale it does not have", _request(p, _input(p, data), scale=p.foreign_scale)
    if p.d.max_batch > 1:
        yield "a cotangent for one image of two", _request(p, _input(p, data, weight), _input(p, data))


def _input(p: Probe, data: bytes, cotangent: bytes = b"") -> pb.GradientInput:
    return pb.GradientInput(id=p.name(), height=p.side, width=p.side, data=data, cotangent=cotangent)


def _request(p: Probe, *images: pb.GradientInput, scale: int | None = None) -> pb.GradientRequest:
    usual = p.request(scale=scale)
    return pb.GradientRequest(images=images, scale=usual.scale, options=dict(usual.options))
