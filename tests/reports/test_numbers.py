"""How figures are written."""

import pytest

from reports.numbers import NBSP, Format, duration, fit, multiple, names, p_value, significant, times

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.0481, 0.0470, 0.0492, "0.048 [0.047, 0.049]"),
        (27.083, 26.87, 27.29, "27.1 [26.9, 27.3]"),
        (612.4, 600.0, 625.0, "612 [600, 625]"),
        (-0.0142, -0.0153, -0.0131, "−0.014 [−0.015, −0.013]"),
        (INF, INF, INF, "identical"),
        (NAN, NAN, NAN, "–"),
    ],
)
def test_digits_follow_the_interval(mean: float, low: float, high: float, text: str) -> None:
    """A mean has the digits that its interval carries."""
    assert fit([mean], [high - low]).interval(mean, low, high) == text


def test_small_numbers_share_a_power_of_ten() -> None:
    """Very small figures are written in a power of ten that the column's header states."""
    how = fit([2.61e-4, 0.9e-5], [8e-7])
    assert how.power == "× 10⁻⁶"
    assert how.interval(0.9e-5, 0.86e-5, 0.94e-5) == "9.0 [8.6, 9.4]"


def test_zero_has_no_sign() -> None:
    """What rounds to zero is written without a sign, also in a column of differences."""
    assert Format(2).number(-0.001) == "0.00"
    assert Format(2).number(0.001, signed=True) == "0.00"
    assert Format(2).number(0.1, signed=True) == "+0.10"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0421, "42.1 ms"), (1.234, "1.23 s"), (4e-5, "40.0 µs"), (269.4, "269 s"), (NAN, "–")]
)
def test_durations_have_a_fitting_unit(seconds: float, text: str) -> None:
    """A time is written in the unit that suits it."""
    assert duration(seconds).replace(NBSP, " ") == text


def test_single_figures() -> None:
    """Ratios, p-values and lists are written as people write them."""
    assert times(3.4227).replace(NBSP, " ") == "3.42 ×"
    assert multiple(0.000862, 0.000841, 0.000882) == "0.000862 [0.000841, 0.000882]"
    assert (multiple(11.23, NAN, NAN), multiple(NAN, NAN, NAN)) == ("11.2", "–")
    assert p_value(0.0004).replace(NBSP, " ") == "< 0.001"
    assert significant(0.0) == "0"
    assert significant(INF) == "identical"
    assert (names(["a"]), names(["a", "b", "c"]), names([])) == ("a", "a, b and c", "–")
