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
    assert {"quick", "faces", "faces-ood", "photos"} <= set(names)
    for name in names:
        assert load_suite(name).name == name


def test_the_timed_passes_are_read() -> None:
    """One batch may stand alone, several and the sizes rise; without a word the suite's own size and 16 are timed."""
    speed = parse_suite(GOOD + "speed: {images: 3, batch: 4, sizes: [64, 256]}\n", "s.yaml").speed
    assert speed is not None
    assert (speed.batch, speed.sizes, speed.server_rates, speed.offline) == ((4,), (64, 256), (), False)
    plain = parse_suite(GOOD + "speed: {images: 3}\n", "s.yaml").speed
    assert plain is not None
    assert (plain.batch, plain.sizes) == ((16,), ())


def test_the_suite_out_of_distribution_measures_as_faces_does() -> None:
    """`faces-ood` differs from `faces` in its name, title and note alone, so that the two can be compared."""
    same = {"name": "", "title": "", "note": ""}
    faces, other = (load_suite(name).model_copy(update=same) for name in ("faces", "faces-ood"))
    assert faces == other
    assert "Out of distribution" in load_suite("faces-ood").note


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
        (GOOD, GOOD + "speed: {images: 3, sizes: [64, 66]}", "s.yaml:9: speed: sizes: 66 is not a whole multiple"),
        (GOOD, GOOD + "speed: {images: 3, batch: [4, 2]}", "s.yaml:9: speed.batch: .*rise"),
        (GOOD, GOOD + "speed: {images: 3, batch: many}", "s.yaml:9: speed.batch: "),
        (GOOD, GOOD + "speed: {images: 3, server_rates: [0]}", "s.yaml:9: speed.server_rates: .*rise"),
        (GOOD, GOOD + "speed: {images: 3, rates: [1]}", "s.yaml:9: speed.rates: unknown field"),
        (GOOD, GOOD + "speed: {images: 3, budget_s: .inf}", "s.yaml:9: speed.budget_s: .*finite"),
        (
            GOOD,
            GOOD + "corruptions: {names: [motion_blurr], images: 3}",
            "s.yaml:9: corruptions.names: .*did you mean moti",
        ),
        (GOOD, GOOD + "corruptions: {names: most, images: 3}", "s.yaml:9: corruptions.names: "),
        (GOOD, GOOD + "corruptions: {names: [fog, fog], images: 3}", "s.yaml:9: corruptions.names: fog is there twice"),
        (GOOD, GOOD + "corruptions: {names: [fog], images: 3, severities: [0, 1]}", "s.yaml:9: .*lie in 1 to 5"),
        (
            GOOD,
            GOOD + "corruptions: {names: [fog], images: 3, severity: [1]}",
            "corruptions.severity: .*mean severities",
        ),
        (GOOD, GOOD + "corruptions: {names: all, images: 3}", "s.yaml:9: corruptions: gaussian_noise is there twice"),
        (
            GOOD,
            GOOD + "corruptions: {names: [glass_blur], images: 3, metrics: [psnr]}",
            "s.yaml:9: corruptions: glass_blur moves pixels: only lr_mse and lr_psnr fit it",
        ),
        (GOOD, GOOD + "hallucination: {distances: [l1]}", "s.yaml:9: hallucination: needs lr_psnr among the metrics"),
        (GOOD, GOOD + "hallucination: {distances: [lpipz]}", "hallucination.distances: .*did you mean lpips"),
        (GOOD, GOOD + "uncertainty: {images: 9, coverage: 90}", "s.yaml:9: uncertainty.coverage: "),
        (
            "high: 64\nmetrics: [psnr",
            "high: 16\nhallucination: {distances: [lpips]}\nmetrics: [lr_psnr",
            "s.yaml:5: hallucination: lpips needs images of 32 or more",
        ),
        (GOOD, GOOD + "corruptions: {names: [fog], images: 3}", "s.yaml:9: corruptions: lr_psnr is compared with its"),
        (
            GOOD,
            GOOD + "corruptions: {names: [fog], images: 3, seeds: {names: [snow], severity: 3, images: 2}}",
            "s.yaml:9: corruptions: unknown corruption 'snow'; known: fog",
        ),
        (
            GOOD,
            GOOD + "corruptions: {names: [fog], images: 3, seeds: {names: [fog], severity: 2, images: 2}}",
            "s.yaml:9: corruptions: seeds: severity 2 is none of the severities .1, 3, 5",
        ),
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


PHOTOS = """name: album
title: An album
photos:
  scale: 4
  max_pixels: 10000
metrics: [lr_psnr, sharpness]
"""


def test_a_suite_of_photos_has_no_reference() -> None:
    """Without low and high the photos are the inputs: the scale is theirs, and there is no ground truth."""
    suite = parse_suite(PHOTOS, "p.yaml")
    assert (suite.reference, suite.scale) == (False, 4)
    assert parse_suite(GOOD, "s.yaml").reference
    assert parse_suite(PHOTOS + "diversity: {images: 3}\n", "p.yaml").used_metrics == {
        "lr_psnr",
        "sharpness",
        "lpips_alex",
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[lr_psnr, ", "[lr_psnr, psnr, ", "p.yaml:6: metrics: psnr needs the ground truth"),
        ("metrics:", "set_metrics: [kid_alexnet]\nmetrics:", "p.yaml:6: set_metrics: kid_alexnet needs the ground"),
        ("metrics:", "noise: {sigmas: [0.1], images: 4}\nmetrics:", "p.yaml:6: noise: psnr needs the ground truth"),
        (
            "metrics:",
            "corruptions: {names: [fog], images: 4}\nmetrics:",
            "p.yaml:6: corruptions: psnr needs the ground",
        ),
        ("photos:", "low: 16\nphotos:", "p.yaml:1: the suite: give low and high.* or photos, or generation"),
        ("photos:", "low: 16\nhigh: 64\nphotos:", "p.yaml:1: the suite: give low and high.* or photos, or generation"),
        ("photos:\n  scale: 4\n  max_pixels: 10000\n", "", "p.yaml:1: the suite: give low and high"),
        ("max_pixels: 10000", "max_pixels: 9000000", "p.yaml:5: photos.max_pixels: 9000000 are more than 4000000"),
        ("max_pixels: 10000", "max_pixel: 10000", "p.yaml:.*max_pixel"),
        ("metrics:", "diversity: {images: 4, samples: 1}\nmetrics:", "p.yaml:6: diversity.samples: "),
        ("metrics:", "hallucination: {distances: [l1]}\nmetrics:", "p.yaml:6: hallucination: compares with the ground"),
        ("metrics:", "uncertainty: {images: 40}\nmetrics:", "p.yaml:6: uncertainty: compares with the ground truth"),
    ],
)
def test_a_suite_of_photos_cannot_ask_for_what_needs_the_truth(old: str, new: str, words: str) -> None:
    """What needs a ground truth is refused when the suite is read, and so are two kinds of input or none."""
    with pytest.raises(ConfigError, match=words) as caught:
        parse_suite(PHOTOS.replace(old, new), "p.yaml")
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


GENERATION = """name: made
title: Made of nothing
generation:
  size: 64
  networks: [attributes]
"""


def test_a_generation_suite_stands_alone() -> None:
    """It has a side and no scale or ground truth, and names no metric of enlarged images."""
    suite = parse_suite(GENERATION, "g.yaml")
    assert suite.generation is not None
    assert (suite.side, suite.scale, suite.reference, suite.metrics) == (64, 1, False, ())
    assert (suite.generation.samples, suite.generation.attributes) == (200, ("race", "gender"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("size: 64", "size: 16", "g.yaml:4: generation.size: "),
        (
            "[attributes]",
            "[attribute]",
            "g.yaml:5: generation: unknown network 'attribute'; did you mean attributes|g.y",
        ),
        ("title:", "metrics: [psnr]\ntitle:", "g.yaml:1: the suite: metrics is about upscaling"),
        ("title:", "low: 16\nhigh: 64\ntitle:", "g.yaml:1: the suite: give low and high.* or generation: one of them"),
        ("size: 64", "size: 64\n  classes: [a, a]", "g.yaml:5: generation.classes: a is there twice"),
        (GENERATION[GENERATION.index("generation") :], "low: 4\nhigh: 8\n", "the suite: metrics: name one at least"),
    ],
)
def test_a_bad_generation_suite_is_refused(old: str, new: str, words: str) -> None:
    """What is about upscaling, what is unknown and what is there twice are named with their line."""
    with pytest.raises(ConfigError, match=words):
        parse_suite(GENERATION.replace(old, new), "g.yaml")
