"""Suites: what is accepted, and errors that name the file, the line and the field."""

from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.suite import built_in_suites, load_suite, parse_suite

GOOD = """\
name: small
title: A small suite
low: 16
high: 64
metrics: [psnr, lpips_alex]
noise:
  sigmas: [0.04, 0.1]
  images: 10
"""


def test_a_good_suite_is_read() -> None:
    """Fields, defaults and the scale factor come out as written."""
    suite = parse_suite(GOOD, "small.yaml")
    assert (suite.scale, suite.batch, suite.used_metrics) == (4, 16, {"psnr", "lpips_alex"})


def test_built_in_suites_are_valid() -> None:
    """Every suite that ships with the product passes its own check."""
    names = built_in_suites()
    assert {"quick", "faces"} <= set(names)
    for name in names:
        assert load_suite(name).name == name


def test_the_hash_follows_the_content() -> None:
    """The hash is the same for the same suite and another one for another seed."""
    one, same, other = (parse_suite(text, "x") for text in (GOOD, GOOD, GOOD + "seed: 1\n"))
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("metrics: [psnr, lpips_alex]", "metrics: [psnr, lpips_alexx]", "s.yaml:5: metrics: .*did you mean lpips_alex"),
        ("title:", "tittle:", "s.yaml:.*title"),
        ("  images: 10", "  image: 10", "s.yaml:8: noise.image: .*did you mean images|s.yaml:6: noise.images"),
        ("high: 64", "high: 60", "s.yaml:4: high: 60 is not a whole multiple"),
        ("low: 16", "low: sixteen", "s.yaml:3: low: "),
        ("sigmas: [0.04, 0.1]", "sigmas: [0.1, 0.04]", "s.yaml:7: noise.sigmas: sigmas must ascend"),
        ("name: small", "name: ../../etc", "s.yaml:1: name: "),
        ("low: 16", "low: [", r"s.yaml:\d+: not YAML"),
        ("low: 16", "low: 2026-13-45", "s.yaml: not YAML: .*month"),
        ("low: 16", f"low: {'[' * 5000}", "s.yaml: nested too deeply"),
        ("low: 16", "low: 16\nlow: 8", "s.yaml:4: low: is there twice"),
        ("  images: 10", "  images: 10\n  images: 20", "s.yaml:9: images: is there twice"),
        ("low: 16", "low: 16\ndeadline_s: .inf", "s.yaml:4: deadline_s: .*finite"),
        ("low: 16", "low: 16\ndeadline_s: .nan", "s.yaml:4: deadline_s: "),
        ("[psnr, lpips_alex]", "[psnr, lpips_alex, psnr]", "s.yaml:5: metrics: psnr is there twice"),
        ("  images: 10", "  images: 10\n  metrics: [psnr, psnr]", "s.yaml:9: noise.metrics: psnr is there twice"),
        ("high: 64", "high: 8016", "s.yaml:4: high: .*8000"),
        ("high: 64", "high: 16\nset_metrics: [kid_alexnet]", "s.yaml:5: set_metrics: .*32"),
        (
            "high: 64",
            "high: 64\nset_metrics: [kid_mine]",
            "s.yaml:5: set_metrics: unknown set metric .kid_mine",
        ),
        ("high: 64", "high: 64\nnetworks: {alexnet: mine.yaml}", "s.yaml:5: networks: 'alexnet': .*none of"),
        (GOOD, "- a\n- b\n", "s.yaml:1: a suite is a mapping"),
        (GOOD, "", "s.yaml:1: a suite is a mapping"),
    ],
)
def test_errors_name_line_and_field(old: str, new: str, words: str) -> None:
    """A mistake in a suite is one line: file, line, field, what is wrong."""
    with pytest.raises(ConfigError, match=words) as caught:
        parse_suite(GOOD.replace(old, new), "s.yaml")
    assert "\n" not in str(caught.value)


def test_aliases_are_looked_at_once() -> None:
    """A file that repeats an alias of an alias many times over is refused at once, and so is one that holds itself."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    for text in ("\n".join(lines), "name: &a [*a]"):
        with pytest.raises(ConfigError, match=r"^s\.yaml:"):
            parse_suite(text, "s.yaml")


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    """A name that is neither a file nor built in is refused with the nearest one."""
    with pytest.raises(ConfigError, match="did you mean quick"):
        load_suite("quik")
    with pytest.raises(ConfigError, match="neither a file nor"):
        load_suite(str(tmp_path / "none.yaml"))
