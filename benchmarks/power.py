"""How often the audit finds a bias that was planted, as Markdown: `python -m benchmarks.power DATASET`.

DATASET is one of `harness.datasets`, not a test split. Its photos are enlarged by bicubic, and the outputs of one group
are blurred (Gaussian) until their mean PSNR has fallen by d standard deviations of the unblurred. Groups are drawn from
all photos alike, so that nothing but the blur parts them. Exit status 1 when a bias of d = .5 is found and rightly
named in fewer than `ENOUGH` of the runs.
"""

import argparse
import gc
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq

from benchmarks.enlarged import Enlarged, Images, enlarge
from harness.datasets import limit, open_dataset
from harness.errors import ConfigError, HarnessError
from harness.fairness.inference import LEVEL, Contrast, any_difference, contrasts, holm
from harness.resize import to_uint8

Float = NDArray[np.float64]

PHOTOS = 3000
GROUPS, SIZE = ("a", "b", "c", "d", "e"), 200
PLANTED = "a"
EFFECTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RUNS = 200
REQUIRED, ENOUGH = 0.5, 0.9
SEED = 20260111


def blurred(outputs: Images, sigma: float) -> Images:
    """The outputs under a Gaussian blur of `sigma` pixels."""
    return to_uint8(np.stack([gaussian_filter(image.astype(np.float64), sigma, axes=(0, 1)) for image in outputs]))


def blur_for(photos: Enlarged, shift: float) -> float:
    """The sigma, in pixels, at which the mean PSNR has fallen by `shift` dB, by root finding."""
    clean = photos.psnr().mean()
    return float(brentq(lambda s: clean - photos.psnr(blurred(photos.outputs, s)).mean() - shift, 0.2, 10, xtol=0.005))


def runs(clean: Float, biased: Float) -> Iterator[tuple[bool, bool, bool]]:
    """For each run: whether the gap is found, whether a contrast is, and whether the strongest is the planted one."""
    rng = np.random.default_rng(SEED)
    groups = np.repeat(GROUPS, SIZE)
    for _ in range(RUNS):
        drawn = rng.choice(len(clean), len(groups), replace=False)
        values = np.where(groups == PLANTED, biased[drawn], clean[drawn])
        found = contrasts(values, list(groups))
        detected = bool(holm(np.array([contrast.p_value for contrast in found])).min() < LEVEL)
        yield any_difference(values, list(groups)) < LEVEL, detected, detected and rightly_named(found)


def rightly_named(found: list[Contrast]) -> bool:
    """Whether the strongest contrast is that of the planted group, and says worse."""
    strongest = max(found, key=lambda contrast: abs(contrast.statistic))
    return strongest.group == PLANTED and strongest.difference < 0


def main() -> int:
    """Print the curve; returns the exit status."""
    parser = argparse.ArgumentParser(description="Power of the audit against a planted blur, as Markdown.")
    parser.add_argument("dataset", help="KIND:PATH[#SPLIT]")
    try:
        photos = enlarge(limit(open_dataset(parser.parse_args().dataset), PHOTOS))
        if len(photos.outputs) < len(GROUPS) * SIZE:
            raise ConfigError(f"{len(photos.outputs)} photos are too few: {len(GROUPS) * SIZE} are drawn in each run")
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    gc.freeze()  # statsmodels collects garbage in every adjustment by Holm
    clean = photos.psnr()
    print(f"{len(clean)} photos, PSNR {clean.mean():.2f} dB, SD {clean.std():.2f}:\n")
    print("| d | blur, pixels | shift, SD | gap found | contrast found | and rightly named |")
    print("| --- | --- | --- | --- | --- | --- |")
    named = {}
    for effect in (0.0, *EFFECTS):
        sigma = blur_for(photos, effect * clean.std()) if effect else 0.0
        biased = photos.psnr(blurred(photos.outputs, sigma)) if effect else clean
        gap, contrast, named[effect] = np.mean(list(runs(clean, biased)), axis=0)
        shift = (biased.mean() - clean.mean()) / clean.std()
        print(
            f"| {effect} | {sigma:.2f} | {shift:.2f} | {gap:.3f} | {contrast:.3f} | {named[effect]:.3f} |", flush=True
        )
    return int(named[REQUIRED] < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
