"""Corruptions: equal to other implementations on the same draws, reproducible, of any size, stronger by severity."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import color, filters, util

from harness import realworld
from harness.corruptions import CORRUPTIONS, IN_MCE, MOVES_PIXELS, SEVERITIES, Float, Parameters, column_of
from harness.degrade import EFFECTS, corrupt, make_input, make_target, parameters_of, seed_of

RNG = np.random.default_rng
Pixels = NDArray[np.uint8]
GREY = np.full((64, 64, 3), 0.5)
UNORDERED = {"glass_blur", "snow", "frost", "elastic_transform", "spatter", "saturate"}
"""Their published parameters do not raise the distance from severity to severity (the direction of saturate changes,
spatter goes from water to mud, elastic bends less and displaces more, ...)."""


@pytest.fixture(scope="session")
def faces(data_root: Path) -> list[Pixels]:
    """Twelve real faces of 64 x 64 pixels, none of a test split."""
    table = pd.read_parquet(next((data_root / "utkface").rglob("*validation*.parquet")), columns=["image"])
    pictures = (Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in table["image"][:12])
    return [make_target(np.asarray(picture), 64) for picture in pictures]


def at(image: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    """An image corrupted with the parameters of its size."""
    parameters = parameters_of(name, severity, max(image.shape))
    return corrupt(image, name, parameters=parameters, seed=seed_of(seed, name, severity))


def direct(name: str, image: Float, parameters: Parameters, seed: int = 0) -> Float:
    """A corruption on floats, clipped and not rounded, on the scale of 0 to 255."""
    return 255 * np.clip(CORRUPTIONS[name](image, parameters, RNG(seed)), 0, 1)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Float]:
    """A function of imagecorruptions by its name, on 0 to 255, with its draws taken from our generator in our order."""
    module: Any = _imagecorruptions()
    unjitted = module._shuffle_pixels_njit_glass_blur.py_func
    monkeypatch.setattr(module, "_shuffle_pixels_njit_glass_blur", unjitted)
    monkeypatch.setattr(np.random, "seed", lambda _: None)

    def call(name: str, image: Pixels, severity: int, rng: np.random.Generator, **extra: Any) -> Float:
        names = {"normal": rng.normal, "uniform": rng.uniform, "poisson": rng.poisson, "randint": rng.integers}
        for draw, ours in names.items():
            monkeypatch.setattr(np.random, draw, ours)
        return np.asarray(getattr(module, name)(Image.fromarray(image), severity, **extra), np.float64)

    return call


def _imagecorruptions() -> ModuleType:
    reason = "needs imagecorruptions-imaug, the oracle: nox -s oracles"
    module: ModuleType = pytest.importorskip("imagecorruptions.corruptions", reason=reason)
    return module


ROUNDING, TRUNCATED, FLAKES = 1e-3, 0.55, 0.2
EXACT = [name for name in CORRUPTIONS if name not in {"glass_blur", "snow", "frost", "spatter", "pixelate"}]
TOLERANCES = {
    **{(name, severity): ROUNDING for name in EXACT for severity in range(1, 6)},
    **{("glass_blur", severity): TRUNCATED for severity in range(1, 6)},
    **{("pixelate", severity): TRUNCATED for severity in range(1, 6)},
    **{("snow", severity): FLAKES for severity in (2, 3)},
    **{("spatter", severity): ROUNDING for severity in (4, 5)},
    **{("defocus_blur", severity): 3.0 for severity in (4, 5)},
}
"""Mean absolute difference in levels of 255 to imagecorruptions at 64 pixels with the parameters of 224, which it has.

ROUNDING, single precision: the same numbers. TRUNCATED: it drops fractions after glass's first blur and rounds
pixelate's small image, half a level on average. FLAKES: it rounds the layer of snow. Snow 1, 4 and 5 is cut to size
elsewhere, water (spatter 1 to 3) and frost are drawn otherwise and have tests of their own. Defocus at radii of 8 and
10: its kernels sum to 1.013 and 1.011, which we do not repeat.
"""


@pytest.mark.parametrize(("name", "severity"), TOLERANCES)
def test_corruptions_equal_imagecorruptions_on_the_same_draws(
    name: str, severity: int, theirs: Callable[..., Float], faces: list[Pixels]
) -> None:
    """With equal parameters and equal random numbers both give the same picture, within the stated tolerance."""
    parameters = SEVERITIES[224][name][severity - 1]
    rng, extra = RNG(5), {}
    if name == "elastic_transform":  # it has parameters of its own, in pixels, and no bending
        strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
        parameters = (0.005 * strength, 0.01, 0.0)
        rng.uniform(size=(3, 2))
    if name in {"impulse_noise", "glass_blur"}:
        extra["seed"] = rng if name == "impulse_noise" else 1
    expected = theirs(name, faces[0], severity, rng, **extra)
    assert np.abs(direct(name, faces[0] / 255, parameters, 5) - expected).mean() < TOLERANCES[name, severity]


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_is_like_that_of_imagecorruptions(
    severity: int, theirs: Callable[..., Float], faces: list[Pixels]
) -> None:
    """The drops are the same and their rims are found otherwise: 0.9 of correlation, means within a level of 255."""
    water = SEVERITIES[224]["spatter"][severity - 1]
    pairs = [
        (direct("spatter", face / 255, water, seed) - face, theirs("spatter", face, severity, RNG(seed)) - face)
        for seed, face in enumerate(faces)
    ]
    ours, other = (np.array(side).ravel() for side in zip(*pairs, strict=True))
    assert abs(ours.mean() - other.mean()) < 1
    assert np.corrcoef(ours, other)[0, 1] > 0.9


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_frost_is_as_bright_and_rough_as_that_of_imagecorruptions(
    severity: int, theirs: Callable[..., Float], faces: list[Pixels]
) -> None:
    """Of drawn ice, the mean over 48 is within 15 levels (3 standard errors) and the roughness within 20 %."""
    ice = SEVERITIES[224]["frost"][severity - 1]
    pairs = [
        (direct("frost", face / 255, ice, seed), theirs("frost", face, severity, RNG(seed)))
        for seed, face in enumerate(faces * 4)
    ]
    ours, other = (np.array(side) - ice[0] * np.array(faces * 4) for side in zip(*pairs, strict=True))
    assert abs(ours.mean() - other.mean()) < 15
    roughness = [layer.std(axis=(1, 2)).mean() for layer in (ours, other)]
    assert roughness[0] == pytest.approx(roughness[1], rel=0.2)


def test_colour_corruptions_equal_those_made_in_hsv(faces: list[Pixels]) -> None:
    """Brightness and saturate, computed without the hue, equal scikit-image's way through HSV and back to 1e-9."""
    for image in (faces[0] / 255, GREY, np.zeros((4, 4, 3))):
        for parameters in SEVERITIES[32]["saturate"]:
            hsv = color.rgb2hsv(image)
            hsv[..., 1] = np.clip(hsv[..., 1] * parameters[0] + parameters[1], 0, 1)
            assert np.abs(direct("saturate", image, parameters) / 255 - color.hsv2rgb(hsv)).max() < 1e-9
        hsv = color.rgb2hsv(image)
        hsv[..., 2] = np.clip(hsv[..., 2] + 0.2, 0, 1)
        assert np.abs(direct("brightness", image, (0.2,)) / 255 - color.hsv2rgb(hsv)).max() < 1e-9


def test_blur_boxes_and_jpeg_equal_those_of_libraries(faces: list[Pixels]) -> None:
    """Blur equals scikit-image's and JPEG Pillow's exactly; boxes differ from Pillow's by its two roundings at most."""
    face, picture = faces[1], Image.fromarray(faces[1])
    blurred = 255 * filters.gaussian(face / 255, 1.5, channel_axis=-1)  # type: ignore[no-untyped-call]
    assert np.abs(direct("gaussian_blur", face / 255, (1.5,)) - blurred).max() < 1e-9
    small = picture.resize((38, 38), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(direct("pixelate", face / 255, (0.6,)) - np.asarray(small, float)).max() < 1.001
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=25)
    assert np.array_equal(corrupt(face, "jpeg_compression", parameters=(25,), seed=0), np.asarray(Image.open(file)))


def test_noise_has_the_stated_statistics() -> None:
    """On mid-grey, sigma, photons, share and speckle come out as asked, within four standard errors of 12288 values."""
    noise = {name: CORRUPTIONS[name](GREY, p, RNG(3)) for name, p in NOISES.items()}
    expected = {"gaussian_noise": 0.06, "shot_noise": math.sqrt(0.5 / 100), "speckle_noise": 0.5 * 0.2}
    for name, deviation in expected.items():
        assert noise[name].std() == pytest.approx(deviation, rel=4 / math.sqrt(2 * GREY.size)), name
        assert noise[name].mean() == pytest.approx(0.5, abs=4 * deviation / math.sqrt(GREY.size)), name
    black, white = ((noise["impulse_noise"] == level).mean() for level in (0, 1))
    error = 4 * math.sqrt(0.05 / GREY.size)
    assert (black, white) == (pytest.approx(0.05, abs=error), pytest.approx(0.05, abs=error))
    other = util.random_noise(GREY, "s&p", RNG(3), amount=0.1)  # type: ignore[no-untyped-call]
    assert np.array_equal(noise["impulse_noise"], other)


NOISES: dict[str, Parameters] = {
    "gaussian_noise": (0.06,),
    "shot_noise": (100,),
    "speckle_noise": (0.2,),
    "impulse_noise": (0.1,),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_every_corruption_takes_every_size_and_repeats(name: str) -> None:
    """At 16, 32, 64, non-square and tiny sizes the shape and type stay; a seed fixes each byte, whatever ran before."""
    for height, width in ((16, 16), (32, 32), (64, 64), (24, 41), (3, 2)):
        image = RNG(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        before = image.copy()
        for severity in (1, 5):
            result = at(image, name, severity, 7)
            assert result.shape == image.shape
            assert result.dtype == np.uint8
            np.random.seed(height)  # noqa: NPY002 - the global generator must not matter
            assert np.array_equal(result, at(image, name, severity, 7))
        assert np.array_equal(image, before)


RANDOM = set(EFFECTS) - {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
    *("gaussian_blur", "saturate"),
}


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_seeds_differ(name: str, faces: list[Pixels]) -> None:
    """What draws at random gives another picture for another seed."""
    assert not np.array_equal(at(faces[0], name, 5, 1), at(faces[0], name, 5, 2))


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("name", EFFECTS)
def test_distance_grows_with_severity(name: str, side: int, faces: list[Pixels]) -> None:
    """Real faces are farther from their clean selves at each severity, but for those that are not made so."""
    inputs = [make_input(face, side) if side < 64 else face for face in faces]
    distance = [
        np.mean([np.abs(at(image, name, severity, seed) / 1.0 - image).mean() for seed, image in enumerate(inputs)])
        for severity in range(1, 6)
    ]
    assert min(distance) > 0.5
    if name not in UNORDERED:
        assert distance == sorted(distance)


def test_sizes_choose_the_column_and_tables_are_whole() -> None:
    """Inputs of up to 32 pixels have CIFAR's parameters, up to 64 Tiny ImageNet's, larger ones ImageNet's."""
    assert [column_of(side) for side in (1, 16, 32, 33, 64, 65, 1000)] == [32, 32, 32, 64, 64, 224, 224]
    for column in SEVERITIES.values():
        assert list(column) == list(CORRUPTIONS)
        assert {len(levels) for levels in column.values()} == {5}
    assert (len(IN_MCE), set(IN_MCE) & MOVES_PIXELS) == (12, set())
    assert parameters_of("gaussian_noise", 5, 16) == (0.10,)


@pytest.mark.parametrize("name", realworld.DEGRADATIONS)
def test_degradations_vanish_with_their_strength(name: str, faces: list[Pixels]) -> None:
    """Next to no strength leaves next to nothing but JPEG's halved colours: less than 3 levels on average."""
    change = [np.abs(corrupt(f, name, parameters=(1e-6,), seed=s) / 1.0 - f).mean() for s, f in enumerate(faces)]
    assert max(change) < 3


def test_kernels_of_the_degradations_are_what_they_are_called() -> None:
    """A bell equals scikit-image's blur of a point, a ring passes what is below its cutoff, the others sum to one."""
    point = np.zeros((21, 21))
    point[10, 10] = 1
    blurred = filters.gaussian(point, 2, truncate=5)  # type: ignore[no-untyped-call]
    assert np.abs(realworld._bell(21, (2, 2)) - blurred).max() < 1e-6
    response = np.abs(np.fft.fft(realworld._ring(101, np.pi / 2).sum(axis=0)))
    assert np.abs(response[:20] - 1).max() < 0.1  # of 25 that pass
    assert response[32:51].max() < 0.1
    for points in (realworld._line(4, 0.7), realworld._disk(2.5)):
        kernel = realworld._splat(points)
        assert kernel.sum() == pytest.approx(1)
        assert np.allclose(kernel, kernel[::-1, ::-1])  # centred: nothing moves


def test_bsrgan_draws_from_the_published_ranges() -> None:
    """Blurs reach 12 pixels and variances of 5, no more; noise of a random covariance has the level of 25 of 255."""
    point = np.zeros((51, 51, 3))
    point[25, 25] = 1
    axis, reach, widest = np.arange(51) - 25, [], []
    for seed in range(300):
        seen = realworld._bsrgan_blur(point, 1.0, RNG(seed))[..., 0]
        reach.append(np.abs(axis[seen.max(axis=0) > 0]).max())
        rows, columns = (seen.sum(axis=side) @ axis**2 for side in (1, 0))
        mixed = axis @ seen @ axis
        widest.append(np.linalg.eigvalsh([[rows, mixed], [mixed, columns]])[1])
    assert max(reach) == 12
    assert 4.5 < max(widest) <= 5
    noises = [realworld._bsrgan_noise(GREY, 1.0, RNG(seed)) - GREY for seed in range(200)]
    mixtures = [n for n in noises if 0.2 < np.abs(np.corrcoef(n.reshape(-1, 3).T)[0, 1:]).max() < 0.999]
    assert len(mixtures) > 10
    assert np.mean([n.var() for n in mixtures]) * 255**2 == pytest.approx(25**2 / 2, rel=0.25)


def test_sensors_count_electrons() -> None:
    """At full strength the variance of sensor noise is light / 500 + 0.0001, within four standard errors."""
    noisy = realworld._sensor(GREY, 1.0, RNG(2))
    assert noisy.var() == pytest.approx(0.5 / 500 + 1e-4, rel=4 * math.sqrt(2 / GREY.size))
