"""How figures are written: as many digits as their intervals carry, a real minus sign, powers of ten in the header."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

NOTHING = "–"
NBSP = "\u00a0"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
TINY = 1e-12  # rounding of a zero
SIGNIFICANT = 4


@dataclass(frozen=True)
class Format:
    """How the numbers of one column are written: divided by 10**exponent, with so many decimals."""

    decimals: int
    exponent: int = 0

    @property
    def power(self) -> str:
        """What the column's header says of the exponent: "× 10⁻⁶", or nothing."""
        return f"× 10{str(self.exponent).translate(SUPERSCRIPT)}" if self.exponent else ""

    def number(self, value: float, *, signed: bool = False) -> str:
        """One number; NaN is a dash, +inf (a PSNR of equal pictures) is "identical"."""
        if math.isnan(value):
            return NOTHING
        if math.isinf(value):
            return "identical" if value > 0 else "−∞"
        text = f"{value / 10**self.exponent:{'+' if signed else ''},.{self.decimals}f}"
        if not text.strip("+-0."):
            text = text.lstrip("+-")
        return text.replace("-", "−").replace(",", " ")

    def range(self, low: float, high: float, *, signed: bool = False) -> str:
        """An interval in brackets; nothing when it is unknown or not finite."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        return f"[{self.number(low, signed=signed)}, {self.number(high, signed=signed)}]"

    def interval(self, mean: float, low: float, high: float, *, signed: bool = False) -> str:
        """A mean with its interval: "0.048 [0.047, 0.049]"."""
        return f"{self.number(mean, signed=signed)} {self.range(low, high, signed=signed)}".strip()


def fit(means: Iterable[float], widths: Iterable[float] = ()) -> Format:
    """The format for numbers whose intervals are so wide: the narrowest interval's first digit shows.

    The smallest number has four digits at most; where it is under 1e-3, all are written with a power of ten.
    """
    sizes = [abs(m) for m in means if math.isfinite(m) and abs(m) > TINY] or [1.0]
    top = math.floor(math.log10(max(sizes)))
    bottom = max(math.floor(math.log10(min(sizes))), top - 3)  # a near tie does not set the format of all
    half = [w / 2 for w in widths if math.isfinite(w) and w > TINY]
    wanted = math.ceil(-math.log10(min(half))) if half else SIGNIFICANT - 2 - top
    exponent = 3 * (bottom // 3) if bottom < -3 else 0
    decimals = min(max(wanted, 1 - top), SIGNIFICANT - 1 - bottom) + exponent
    return Format(max(decimals, 0), exponent)


def significant(value: float, digits: int = 3) -> str:
    """A number alone, to so many significant digits, never in scientific notation."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else Format(0).number(value)
    return Format(max(digits - 1 - math.floor(math.log10(abs(value))), 0)).number(value)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "42.1 ms", "1.23 s"."""
    if not math.isfinite(seconds):
        return NOTHING
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{significant(seconds * factor)}{NBSP}{unit}"
    return f"{significant(seconds * 1e6)}{NBSP}µs"


def times(ratio: float) -> str:
    """A ratio as a multiple: "3.42 ×"."""
    return f"{significant(ratio)}{NBSP}×" if math.isfinite(ratio) else NOTHING


def multiple(ratio: float, low: float, high: float) -> str:
    """A ratio with its interval, to three digits each, or alone where it has none: "5.48 [5.31, 5.66]"."""
    interval = f" [{significant(low)}, {significant(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{significant(ratio)}{interval}"


def p_value(p: float) -> str:
    """A p-value to three decimals, bounded below."""
    if not math.isfinite(p):
        return NOTHING
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.3f}"


def count(n: float) -> str:
    """A whole number with thin thousands."""
    return Format(0).number(n)


def names(items: Iterable[str]) -> str:
    """A list in a sentence: "a", "a and b", "a, b and c"."""
    *first, last = list(items) or [NOTHING]
    return f"{', '.join(first)} and {last}" if first else last
