"""Audits of a backend that does not compute what it answers: caches, look-ups, dependence on order or time.

They follow MLPerf's compliance tests: answers under measurement must be those given otherwise (TEST01), and repeating
one sample must not be faster than asking for different ones (TEST04).
"""

from collections.abc import Iterator

import numpy as np

from harness.client import Item, Pixels
from harness.probe import Probe

SHARE = 1e-4
"""Share of values that may differ by one level between an image alone and in a batch."""
JUDGED = 0.01
"""Seconds that a call must take before its time can tell a cache from transport."""
CACHED = 0.25
"""A repeated image that takes less than this share of the time of a new one was not computed."""


class NotJudged(Exception):
    """The check does not apply to this backend, or it cannot tell; the message says why."""


def in_a_batch(p: Probe, items: list[Item]) -> str:
    """How the outputs of a batch differ from those of its images alone; "" within the batch rule."""
    alone = np.concatenate([p.ask([item]).images for item in items])
    return unlike_alone(p, p.ask(items).images, alone)


def unlike_alone(p: Probe, together: Pixels, alone: Pixels) -> str:
    """How images of a batch differ from the same ones made alone, both (N, H, W, 3); "" within the batch rule."""
    difference = np.abs(together.astype(int) - alone)
    share = float((difference > 0).mean())
    if p.d.batch_exact and share:
        return f"batch_exact is claimed, but {share:.2%} of the values differ in a batch"
    if difference.max() > 1 or share > SHARE:
        return f"in a batch {share:.3%} of the values differ, by up to {difference.max()} levels"
    return ""


def by_id(p: Probe) -> str:
    """Two images under one id give two outputs, and those of the same images under other ids."""
    image = p.image()
    name = p.item(image).id
    first, second = p.one(image, name=name), p.one(255 - image, name=name)
    if np.array_equal(first, second):
        return "another image under an id that was used before gave the earlier output"
    return "" if np.array_equal(second, p.one(255 - image)) else "the same image under another id gave another output"


def every_pixel(p: Probe) -> str:
    """An image that differs in one pixel gives another output, wherever the pixel is."""
    image = p.image()
    name = p.item(image).id
    output = p.one(image, name=name)
    for row, column, changed in _one_pixel(image):
        if np.array_equal(p.one(changed, name=name), output):
            return f"a change of the pixel at row {row}, column {column} changed nothing"
    return ""


def _one_pixel(image: Pixels) -> Iterator[tuple[int, int, Pixels]]:
    last = len(image) - 1
    for row, column in dict.fromkeys([(0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)]):
        changed = image.copy()
        changed[row, column] += 128
        yield row, column, changed


def batch_mates(p: Probe) -> str:
    """Each of several equal and nearly equal images in a batch gets the output that it gets alone."""
    image = p.image()
    *_, (_, _, changed) = _one_pixel(image)
    items = [p.item(image, 1), p.item(image, 2), p.item(changed, 1), p.item(image, 3)]
    return in_a_batch(p, items[: p.d.max_batch])


def repeated(p: Probe) -> str:
    """An image that was asked for before, under another id, takes as long as a new one.

    Raises:
        NotJudged: a call is too short to tell.
    """
    known, new, again = p.image(), [], []
    p.one(known)
    for _ in range(3):  # in turns, so that other load on the machine slows both
        new.append(p.ask([p.item(p.image())]).end_to_end_s)
        again.append(p.ask([p.item(known)]).end_to_end_s)
    fastest, usual = min(again), min(new)
    if usual < JUDGED:
        raise NotJudged(f"not judged: a call takes only {1000 * usual:.1f} ms")
    if fastest >= CACHED * usual:
        return ""
    return f"a repeated image took {1000 * fastest:.1f} ms, a new one {1000 * usual:.1f} ms or more"


def later(p: Probe) -> str:
    """A request that was made early gives the same bytes now, after all the others."""
    item, output = p.reference
    return "" if np.array_equal(p.ask([item]).images, output) else "an early request now gives other bytes"
