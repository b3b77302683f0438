"""The robustness section says first, in words, where each backend is no longer better than bicubic."""

from collections.abc import Callable
from pathlib import Path

from reports.load import load
from reports.robustness import section, sentences

Build = Callable[..., Path]


def test_each_backend_has_a_sentence(make_run: Build) -> None:
    """Where it is better, at what severity it is first worse, its mCE by its full name, and its amplification."""
    gan, sr3 = sentences(load(make_run()))
    assert sr3 == (
        "sr3: in LPIPS (AlexNet) better than bicubic at every severity of 1 of 2 corruptions, first worse at severity "
        "3 under fog; in PSNR (dB) better than bicubic at every severity of 1 of 2 corruptions, first worse at "
        "severity 3 under fog; mCE over 2 of 12 corruptions 0.970 [0.900, 1.10] in LPIPS (AlexNet) (bicubic is 1, less "
        "is better); "
        "corruption moves its outputs 0.970 [0.900, 1.10] times as far as bicubic's (MSE)."
    )
    assert gan.startswith("realesrgan: in LPIPS")


def test_groups_and_severities_are_told(make_run: Build) -> None:
    """Whose scores fall faster, whom there are too few of, and which column of ImageNet-C's severities was used."""
    lead = " ".join(section(load(make_run())).lead)
    assert "Female (gender) lose faster than the other groups; too few images to judge by race" in lead
    assert "images of 32 pixels (CIFAR-10-C), for inputs of 16 x 16 pixels" in lead


def test_what_is_not_divisible_is_not_given(make_run: Build) -> None:
    """A relative error that abstains says so in its cell, and a run without corruptions names what is missing."""
    tables = {table.source: table for table in section(load(make_run())).tables}
    fog = next(row for row in tables["corruption_errors"].rows if row[0].text == "fog")
    assert fog[1].sub == "no relative CE: too little is added"
    names = ("corruptions", "amplification")
    missing = section(load(make_run(name="bare", changed=dict.fromkeys(names))))
    assert not missing.tables
    assert "the suite asks for no corruptions" in missing.gaps[0]
