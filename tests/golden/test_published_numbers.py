"""Published figures come out of our metrics and our resize.

LPIPS: the authors' example pair. Bicubic: the baseline of the super-resolution literature (MATLAB's figures are
33.66 / 28.42 on Set5, 30.24 / 26.00 on Set14, 25.96 on BSD100; Pillow's border handling, ours too, gives those
below). SSIM: scikit-image and torchmetrics as independent implementations. Sharpness: Lasz et al. 2024, per image.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from harness import metrics, weights
from harness.errors import WeightsError
from harness.images import decode
from harness.resize import resize, to_uint8

DATA = Path(__file__).parents[2] / os.environ.get("HARNESS_DATA", "../shared/data")
R = metrics.WINDOW // 2
Float = NDArray[np.float64]

needs_sr = pytest.mark.skipif(not (DATA / "sr").is_dir(), reason="no super-resolution sets: set HARNESS_DATA")
needs_published = pytest.mark.skipif(
    not (DATA / "upsampled_published").is_dir(), reason="no published outputs: set HARNESS_DATA"
)
needs_pair = pytest.mark.skipif(not (DATA / "lpips_reference").is_dir(), reason="no LPIPS images: set HARNESS_DATA")


def read(path: Path, multiple: int = 1) -> NDArray[np.uint8]:
    """An image as RGB, cropped to a multiple."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = (side // multiple * multiple for side in image.shape[:2])
    return image[:height, :width]


def bicubic(image: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The image reduced and enlarged again, 8 bit both times, and the reduced one."""
    height, width, _ = image.shape
    low = to_uint8(resize(image.astype(float), height // scale, width // scale))
    return to_uint8(resize(low.astype(float), height, width)), low


def score(name: str, image: NDArray[np.uint8], scale: int) -> float:
    """Score of bicubic on one image."""
    output, low = bicubic(image, scale)
    return float(metrics.score(name, output[None], image[None], low[None], scale)[0])


@needs_sr
@pytest.mark.parametrize(
    ("folder", "scale", "expected"),
    [("set5", 2, 33.68), ("set5", 4, 28.43), ("set14", 2, 30.33), ("set14", 4, 26.09), ("bsd100", 4, 25.96)],
)
def test_bicubic_has_the_published_psnr(folder: str, scale: int, expected: float) -> None:
    """PSNR on luma of bicubic is what the literature prints, to 0.02 dB."""
    paths = sorted((DATA / "sr" / folder).glob("*.png"))
    assert np.mean([score("psnr_y", read(path, scale), scale) for path in paths]) == pytest.approx(expected, abs=0.02)


@needs_published
@pytest.mark.parametrize("name", ["psp-fairface", "ddrm-unfairface"])
def test_sharpness_is_the_published_one(name: str) -> None:
    """Our sharpness of published outputs is, its sign apart, the authors' "blur" of each of them."""
    folder = DATA / "upsampled_published"
    theirs = pd.read_csv(folder / f"{name}.csv").set_index("file")["blur"]
    table = pq.ParquetFile(folder / f"{name}.parquet").read_row_group(0, columns=["image"])
    rows = table.column("image").to_pylist()[:50]
    outputs = np.stack([decode(row["bytes"], name=row["path"]) for row in rows])
    ours = metrics.score("sharpness", outputs, None, outputs, 1)
    expected = [-theirs[f"val/{Path(row['path']).stem}.jpg"] for row in rows]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@needs_pair
@pytest.mark.parametrize(("file", "expected"), [("ex_p0.png", 0.722), ("ex_p1.png", 0.138)])
def test_lpips_is_the_authors(file: str, expected: float) -> None:
    """LPIPS-Alex of the authors' example pair is what they print."""
    try:
        weights.resolve("alexnet.ckpt", fetch=False)
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    reference, output = (read(DATA / "lpips_reference" / name)[None] for name in ("ex_ref.png", file))
    assert metrics.score("lpips_alex", output, reference, reference, 1)[0] == pytest.approx(expected, abs=0.001)


def skimage_ssim(a: Float, b: Float) -> float:
    """SSIM of (H, W, C) images by scikit-image, where the window lies inside."""
    _, full = structural_similarity(  # type: ignore[no-untyped-call] # scikit-image has no types
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2, full=True
    )
    return float(full[R:-R, R:-R].mean())


def torchmetrics_ssim(a: Float, b: Float) -> float:
    """SSIM of (H, W, C) images by torchmetrics, where the window lies inside."""
    x, y = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (a, b))
    _, full = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    return float(full[..., R:-R, R:-R].mean())


@needs_sr
@pytest.mark.parametrize("theirs", [skimage_ssim, torchmetrics_ssim])
@pytest.mark.parametrize("file", ["set5/img_001.png", "set5/img_003.png", "set14/img_001.png", "bsd100/img_001.png"])
def test_ssim_agrees_with_independent_code(file: str, theirs: Callable[[Float, Float], float]) -> None:
    """SSIM on RGB and on luma is that of scikit-image and of torchmetrics on the valid region, to 1e-4."""
    image = read(DATA / "sr" / file, 4)[:160, :200]
    output, _ = bicubic(image, 4)
    assert score("ssim", image, 4) == pytest.approx(theirs(output.astype(float), image.astype(float)), abs=1e-4)
    luma = [metrics.luma(x)[4:-4, 4:-4, None] for x in (output, image)]
    assert score("ssim_y", image, 4) == pytest.approx(theirs(*luma), abs=1e-4)
