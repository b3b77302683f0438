"""Per-image scores: exact cases, symmetry with independent implementations, and what is refused."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from harness import metrics, weights
from harness.errors import ConfigError, ImageError, WeightsError
from harness.resize import resize, to_uint8

SCALE = 4
CLASSIC = ["psnr", "psnr_y", "ssim", "ssim_y"]
LEARNED = ["lpips_alex", "lpips_vgg"]
NET: dict[str, metrics.Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}

Images = NDArray[np.uint8]


def smooth(n: int, side: int, seed: int = 0) -> Images:
    """Random images with structure at several scales."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (n, max(1, side // 8), max(1, side // 8), 3))
    return to_uint8(resize(coarse, side, side))


def noisy(images: Images, sigma: float) -> Images:
    """The images with Gaussian noise."""
    return to_uint8(images + np.random.default_rng(9).normal(0, sigma, images.shape))


def low(images: Images) -> Images:
    """What a backend would receive."""
    return to_uint8(resize(images.astype(float), images.shape[1] // SCALE, images.shape[2] // SCALE))


def score(name: str, outputs: Images, targets: Images) -> NDArray[np.float64]:
    """Score against the targets and their low-resolution images; skip where the weights cannot be had."""
    try:
        if name in LEARNED:
            metrics.lpips_network(NET[name])
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    return metrics.score(name, outputs, targets, low(targets), SCALE)


@pytest.fixture(autouse=True)
def no_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use the weights that are there."""

    def refuse(*_: object) -> None:
        raise WeightsError("tests do not download")

    monkeypatch.setattr("harness.weights._download", refuse)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_each_metric_scores_each_image(name: str) -> None:
    """A score is one float64 per image, and a worse image scores worse if the metric knows better and worse."""
    targets = smooth(3, 64)
    slight, strong = (score(name, noisy(targets, sigma), targets) for sigma in (4, 40))
    assert slight.shape == strong.shape == (3,)
    assert slight.dtype == np.float64
    direction = metrics.METRICS[name].higher_is_better
    assert np.all((slight > strong) == direction) or direction is None


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_score_does_not_depend_on_the_batch(name: str) -> None:
    """Images score alone as they do in a batch."""
    targets = smooth(3, 48)
    outputs = noisy(targets, 10)
    together = score(name, outputs, targets)
    alone = [score(name, outputs[i : i + 1], targets[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_large_images_go_through_the_network_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on a forward pass changes no score."""
    targets = smooth(3, 48)
    outputs = noisy(targets, 10)
    whole = score("lpips_alex", outputs, targets)
    monkeypatch.setattr(metrics, "LPIPS_PIXELS", 48 * 48)
    np.testing.assert_allclose(score("lpips_alex", outputs, targets), whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "perfect"),
    [("psnr", math.inf), ("psnr_y", math.inf), ("ssim", 1), ("ssim_y", 1), ("lpips_alex", 0), ("lpips_vgg", 0)],
)
def test_identical_images_score_perfectly(name: str, perfect: float) -> None:
    """The ground truth against itself is infinite, one, or nought."""
    targets = smooth(2, 40)
    np.testing.assert_allclose(score(name, targets, targets), perfect, atol=1e-12)


def test_psnr_is_its_formula() -> None:
    """An error of ten levels everywhere is 10 log10(255² / 100)."""
    targets = np.full((1, 16, 16, 3), 100, np.uint8)
    expected = 10 * math.log10(255**2 / 100)
    np.testing.assert_allclose(score("psnr", targets + np.uint8(10), targets), expected)
    np.testing.assert_allclose(
        score("psnr_y", targets + np.uint8(10), targets), expected + 20 * math.log10(255 / 219), atol=1e-9
    )


def test_luma_is_matlabs() -> None:
    """Black is 16, white 235, and the primaries have BT.601's weights."""
    primaries = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    np.testing.assert_allclose(metrics.luma(primaries), [16, 235, 81.481, 144.553, 40.966])


@pytest.mark.parametrize("name", ["psnr_y", "ssim_y"])
def test_the_border_does_not_count_on_luma(name: str) -> None:
    """Errors in the outermost `scale` pixels leave the luma metrics as they are."""
    targets = smooth(1, 40)
    outputs = targets.copy()
    outputs[:, :SCALE] = 0
    outputs[:, :, -SCALE:] = 255
    np.testing.assert_array_equal(score(name, outputs, targets), score(name, targets, targets))


def test_lr_metrics_are_their_formula() -> None:
    """Consistency is the error of the reduced output in units of the full range, and needs no ground truth."""
    outputs = np.full((2, 16, 16, 3), 102, np.uint8)
    inputs = np.full((2, 4, 4, 3), 51, np.uint8)
    inputs[1] = 102
    np.testing.assert_allclose(metrics.score("lr_mse", outputs, None, inputs, SCALE), [0.04, 0], atol=1e-12)
    np.testing.assert_allclose(
        metrics.score("lr_psnr", outputs, None, inputs, SCALE)[0], -10 * math.log10(0.04), atol=1e-9
    )


def test_perfect_consistency_is_infinite() -> None:
    """Black that stays black has no error at all."""
    outputs, inputs = np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)
    assert metrics.score("lr_psnr", outputs, None, inputs, SCALE)[0] == math.inf


@pytest.mark.parametrize(
    ("name", "side", "measured"),
    [
        ("psnr", 1, True),
        ("psnr_y", 2 * SCALE, False),
        ("psnr_y", 2 * SCALE + 4, True),
        ("ssim", 8, False),
        ("ssim", 12, True),
        ("ssim_y", 16, False),
        ("ssim_y", 20, True),
        ("lpips_alex", 28, False),
        ("lpips_alex", 32, True),
        ("lpips_vgg", 28, False),
        ("lpips_vgg", 32, True),
    ],
)
def test_images_too_small_for_a_metric_are_not_measured(name: str, side: int, *, measured: bool) -> None:
    """Where the crop, the window or the network leaves nothing, the score is NaN, and one size up it is a number."""
    targets = smooth(2, side)
    outputs = targets // 2
    try:
        scores = metrics.score(name, outputs, targets, targets, SCALE)
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    assert np.all(np.isfinite(scores) == measured)


def test_sharpness_is_fine_contrast_not_quality() -> None:
    """A flat image has none, blur lowers it, noise raises it, and the ground truth does not enter."""
    targets = smooth(2, 32)
    blurred = to_uint8(resize(resize(targets.astype(float), 8, 8), 32, 32))
    sharp, blurry, grainy = (score("sharpness", images, targets) for images in (targets, blurred, noisy(targets, 8)))
    assert (blurry < sharp).all()
    assert (sharp < grainy).all()
    assert (metrics.score("sharpness", targets, None, low(targets), SCALE) == sharp).all()
    assert score("sharpness", np.full_like(targets, 77), targets) == pytest.approx(0, abs=1e-20)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """One white pixel on black gives eight neighbours of 1 and a centre of -8, as the formula says."""
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, 4, 4] = 255
    expected = np.var([1.0] * 8 + [-8.0] + [0.0] * 55, ddof=1)
    assert score("sharpness", image, image) == pytest.approx(expected)
    assert np.isnan(metrics.score("sharpness", image[:, :2, :4], None, image[:, :1, :2], 2))


@pytest.mark.parametrize("name", CLASSIC)
def test_metrics_are_symmetric(name: str) -> None:
    """Which of two images is called the truth does not matter."""
    a, b = smooth(2, 32, seed=1), smooth(2, 32, seed=2)
    np.testing.assert_allclose(score(name, a, b), score(name, b, a))


def test_unknown_metrics_are_refused() -> None:
    """An unknown name lists the known ones."""
    images = smooth(1, 16)
    with pytest.raises(ConfigError, match="known: psnr, psnr_y"):
        metrics.score("fid", images, images, low(images), SCALE)


def test_a_missing_ground_truth_is_told() -> None:
    """A metric that needs the truth says so."""
    images = smooth(1, 16)
    with pytest.raises(ImageError, match="psnr needs the ground truth"):
        metrics.score("psnr", images, None, low(images), SCALE)


@pytest.mark.parametrize(
    "outputs",
    [np.zeros((1, 15, 16, 3), np.uint8), np.zeros((1, 16, 16, 3)), np.zeros((16, 16, 3), np.uint8)],
    ids=["size", "dtype", "batch"],
)
@pytest.mark.parametrize("name", ["psnr", "lr_mse"])
def test_images_that_do_not_fit_are_refused(name: str, outputs: Images) -> None:
    """Another size, type or rank is one line instead of a broadcast."""
    targets = smooth(1, 16)
    with pytest.raises(ImageError, match="cannot compare"):
        metrics.score(name, outputs, targets, low(targets), SCALE)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_recipes_carry_the_weights_hash(name: str) -> None:
    """Figures of a network can be traced to its weights."""
    file, _ = metrics.BACKBONES[NET[name]]
    assert f"sha256 {weights.WEIGHTS[file].sha256[:12]}" in metrics.METRICS[name].recipe


def test_loading_the_network_leaves_torchs_random_state() -> None:
    """Building LPIPS draws throw-away weights, which must not shift anybody's seed."""
    import torch

    score("lpips_alex", smooth(1, 32), smooth(1, 32))
    torch.manual_seed(7)
    expected = torch.random.get_rng_state()
    metrics.lpips_network.__wrapped__("alex")
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_importing_metrics_stays_light() -> None:
    """The module can be imported without torch, pandas or scipy."""
    code = "import sys, harness.metrics; sys.exit(bool({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
