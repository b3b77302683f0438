"""Modes that a generator has lost: a few images again and again, or a class or group that is not among them.

Each finding is a row of the table `modes` with what it is found by, beside the same figures of the control arm, photos
of the training split.
"""

import math

import numpy as np
from numpy.typing import NDArray

from harness.fairness.inference import wilson
from harness.store import Row

COLLAPSE, DROPPING = "collapse", "dropping"
FOUND, NOT_FOUND, INSUFFICIENT = "found", "not found", "insufficient"
UNJUDGED = "not judged"
"""The verdict where a figure is there and does not tell.

Of the accuracy in one class, since training once more moves it further than other test images do; of a class or group
that the instrument does not read in real photos either.
"""
HALF = 0.5
"""Vendi and recall below this part of the control's are signs of collapse."""
REPEATED = 0.1
"""A share of near-duplicates from which they are one."""
SIGNS = 2
"""Signs of three from which collapse is found: one alone may have another cause."""
NEAR_ZERO = 0.2
"""A share that is surely below this part of the control's is near zero."""
READABLE = 0.5
"""The share of a class's real images that must be read as it, for readings of generated ones to say anything."""
Estimate = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


def named(name: str, estimate: tuple[float, ...]) -> Row:
    """An estimate as columns NAME, NAME_low and NAME_high; of the name "value", low and high."""
    value, low, high = estimate
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return {name: value, ends[0]: low, ends[1]: high}


def share(hits: NDArray[np.bool_]) -> Estimate:
    """The share of hits with its interval (Wilson); NaN for none."""
    return float(hits.mean()) if len(hits) else math.nan, *wilson(int(hits.sum()), len(hits))


def collapse(own: dict[str, Row], real: dict[str, Row]) -> Row:
    """Signs of three: many near-duplicates, a small Vendi score, little recall, each beside the control's."""
    if not own or not real:
        return {"n": 0, "verdict": INSUFFICIENT, "evidence": "too few images"}
    dup, rec, ven = ((own[name], real[name]) for name in ("duplicates", "recall", "vendi"))
    signs = (
        dup[0]["low"] > dup[1]["high"] and dup[0]["value"] >= REPEATED,
        ven[0]["value"] < HALF * ven[1]["value"],
        rec[0]["high"] < HALF * rec[1]["low"],
    )
    figures = {"n": dup[0]["n"], "vendi": ven[0]["value"], "vendi_real": ven[1]["value"]}
    for name, pair in (("duplicates", dup), ("recall", rec)):
        figures |= named(name, _estimate(pair[0])) | {f"{name}_real": pair[1]["value"]}
    evidence = (
        f"{_percent(dup[0])} of the images nearly repeat another ({_percent(dup[1])} of real ones); they are worth "
        f"{ven[0]['value']:.3g} different images ({ven[1]['value']:.3g}); recall {_percent(rec[0])} "
        f"({_percent(rec[1])})"
    )
    return figures | {"verdict": FOUND if sum(signs) >= SIGNS else NOT_FOUND, "evidence": evidence}


def _estimate(row: Row) -> Estimate:
    return row["value"], row["low"], row["high"]


def _percent(row: Row) -> str:
    return f"{100 * row['value']:.0f} %"


def dropping(own: dict[str, Row], real: dict[str, Row], shares: tuple[Estimate, Estimate] | None) -> Row:
    """By how many images of a class are read as such; where it cannot be read, by the coverage of its real images.

    Coverage finds a class that is missing, and clears none: images of another class may be near to its own.
    """
    if not own or not real:
        return {"n": 0, "verdict": INSUFFICIENT, "evidence": "too few images"}
    cover, base = own["coverage"], real["coverage"]
    figures = {"n": cover["n"], **named("coverage", _estimate(cover)), "coverage_real": base["value"]}
    evidence = f"a sample is near {_percent(cover)} of its real images ({_percent(base)} for real ones)"
    if shares:
        figures |= named("share", shares[0]) | {"share_real": shares[1][0]}
        read = f"{100 * shares[0][0]:.0f} % of the images asked for are read as it ({100 * shares[1][0]:.0f} %)"
        evidence = f"{read}; {evidence}"
    readable = shares is not None and shares[1][0] >= READABLE
    missing = _near_zero(*shares) if shares and readable else _near_zero(_estimate(cover), _estimate(base))
    return figures | {"verdict": _found(missing=missing, certain=missing or readable), "evidence": evidence}


def missing(own: Estimate, real: Estimate, in_photos: float) -> Row:
    """By how many images are read as a group; not judged where photos of it (`in_photos`) are seldom read so."""
    evidence = f"{100 * own[0]:.1f} % of all images are read as it ({100 * real[0]:.1f} % of as many real ones)"
    if not math.isnan(in_photos):
        evidence += f"; of real photos of it, {100 * in_photos:.0f} % are"
    said = _found(missing=_near_zero(own, real), certain=in_photos >= READABLE)
    return named("share", own) | {"share_real": real[0], "verdict": said, "evidence": evidence}


def _found(*, missing: bool, certain: bool) -> str:
    if not certain:
        return UNJUDGED
    return FOUND if missing else NOT_FOUND


def _near_zero(own: Estimate, real: Estimate) -> bool:
    return own[2] < NEAR_ZERO * real[0]
