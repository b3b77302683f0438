"""The one resize agrees with torch and Pillow, and its matrices are what their users rely on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from harness.resize import resize, resize_matrix, to_uint8

SIZES = [((64, 64), (16, 16)), ((16, 16), (64, 64)), ((37, 50), (13, 17)), ((13, 9), (31, 64)), ((5, 7), (1, 1))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bicubic_is_torchs_antialiased_bicubic(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Up and down, at whole and broken factors, the result is that of torch's antialiased interpolation."""
    image = np.random.default_rng(0).uniform(0, 255, (2, *before, 3))
    tensor = torch.from_numpy(image).permute(0, 3, 1, 2)
    theirs = F.interpolate(tensor, size=after, mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(resize(image, *after), theirs.permute(0, 2, 3, 1).numpy(), atol=1e-3)


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize(
    ("kernel", "theirs"), [("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)]
)
def test_kernels_are_pillows(
    before: tuple[int, int], after: tuple[int, int], kernel: str, theirs: Image.Resampling
) -> None:
    """Bicubic and Lanczos are Pillow's filters on float images."""
    image = np.random.default_rng(1).uniform(0, 255, (*before, 1)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image[..., 0]).resize(after[::-1], theirs))
    np.testing.assert_allclose(resize(image, *after, kernel)[..., 0], expected, atol=1e-3)


def test_box_is_the_mean_of_the_covered_pixels() -> None:
    """Shrinking with the box kernel at a whole factor averages blocks."""
    image = np.random.default_rng(2).uniform(0, 255, (8, 12, 3))
    blocks = image.reshape(2, 4, 3, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, 2, 3, "box"), blocks)


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos", "box"])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 16), (16, 64), (37, 11), (1, 8), (8, 1), (5, 5)])
def test_rows_sum_to_one(n_in: int, n_out: int, kernel: str) -> None:
    """A constant stays constant, borders included."""
    matrix = resize_matrix(n_in, n_out, kernel)
    assert matrix.shape == (n_out, n_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_the_transpose_is_the_adjoint() -> None:
    """<A x B', y> = <x, A' y B>, which back-projection and gradients rely on."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 30, 3)), rng.normal(size=(5, 6, 3))
    back = np.einsum("ai,abc,bj->ijc", resize_matrix(20, 5), y, resize_matrix(30, 6))
    np.testing.assert_allclose(np.vdot(resize(x, 5, 6), y), np.vdot(x, back))


def test_the_same_size_is_the_identity() -> None:
    """Resizing to the same size changes nothing."""
    image = np.random.default_rng(4).uniform(0, 255, (9, 7, 3))
    np.testing.assert_allclose(resize(image, 9, 7), image)


def test_a_batch_is_its_images() -> None:
    """Images in a batch are resized as they are alone."""
    images = np.random.default_rng(5).uniform(0, 255, (3, 12, 12, 3))
    np.testing.assert_allclose(resize(images, 3, 3), np.stack([resize(image, 3, 3) for image in images]))


def test_shared_matrices_cannot_be_changed() -> None:
    """The cached matrix is read-only."""
    with pytest.raises(ValueError, match="read-only"):
        resize_matrix(4, 2)[0, 0] = 1


def test_rounding_is_half_up_and_clipped() -> None:
    """Float images become 8 bit by rounding half up and clipping."""
    rounded = to_uint8(np.array([-3.0, 0.49, 0.5, 2.5, 254.6, 300.0]))
    np.testing.assert_array_equal(rounded, [0, 0, 1, 3, 255, 255])
    assert rounded.dtype == np.uint8
