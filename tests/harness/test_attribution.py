"""Attribution maps: LAM against the kernel and against autograd, black-box maps on a planted upscaler, Gini."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.gan.backend import srgan
from harness.attribution import (
    BLUR_RADIUS,
    BLUR_SIGMA,
    FLAT,
    SIDE,
    Case,
    Gradient,
    Interventions,
    Pixels,
    Single,
    Window,
    blurred,
    cem,
    choose_window,
    diffusion_index,
    gini,
    lam,
    occlusion,
)
from harness.client import Client, FloatItem
from harness.resize import resize, resize_matrix, to_uint8

SCALE = 4


def picture(seed: int, side: int = 16) -> Pixels:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (5, 5, 3))
    return to_uint8(resize(coarse, side, side))


def case_of(image: Pixels) -> Case:
    """An input whose output and truth are its bicubic enlargement."""
    output = to_uint8(resize(image.astype(np.float64), SCALE * len(image), SCALE * len(image)))
    return Case(image, output, output, seed=7)


def bicubic(images: Single, cotangents: Single | None, _seeds: Sequence[int]) -> tuple[Single, Single | None]:
    """The gradient of the bicubic enlargement: its transpose."""
    matrix = resize_matrix(images.shape[1], SCALE * images.shape[1])
    outputs = np.einsum("ai,nijc,bj->nabc", matrix, images, matrix).astype(np.float32)
    if cotangents is None:
        return outputs, None
    return outputs, np.einsum("ai,nabc,bj->nijc", matrix, cotangents, matrix).astype(np.float32)


def test_lam_of_bicubic_stays_inside_the_kernel() -> None:
    """No input pixel beyond the bicubic kernel of the window, and of the pixel next to it, has any attribution."""
    case = case_of(picture(1))
    attribution = lam(bicubic, case, 50)
    used = resize_matrix(16, 64) != 0
    reach = [used[start : start + SIDE + 1].any(axis=0) * 1 for start in (case.window.top, case.window.left)]
    inside = np.outer(*reach) > 0
    assert 0 < inside.sum() < inside.size
    assert not attribution[~inside].any()
    assert attribution[inside].all()


def network() -> nn.Module:
    """A small network with smooth units."""
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE)
    return nn.Sequential(*layers).requires_grad_(requires_grad=False)


def gradient_of(model: nn.Module) -> Gradient:
    """The gradient of a network of (N, 3, H, W) as a backend gives it."""

    def gradient(images: Single, cotangents: Single | None, _seeds: Sequence[int]) -> tuple[Single, Single | None]:
        x = torch.from_numpy(images).requires_grad_()
        y = model(x.permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1) * 255
        if cotangents is None:
            return y.detach().numpy(), None
        (slopes,) = torch.autograd.grad(y, x, torch.from_numpy(cotangents))
        return y.detach().numpy(), slopes.numpy()

    return gradient


def direct(enlarge: Callable[[Tensor], Tensor], case: Case, steps: int) -> NDArray[np.float64]:
    """Integrated gradients by autograd alone, through network and objective, one step of the path after the other.

    `enlarge` takes and gives (3, H, W) on the 0..255 scale.
    """
    total = torch.zeros(3, *case.image.shape[:2], dtype=torch.float64)
    top, left = case.window.top, case.window.left
    for step in range(steps):
        sigmas = (BLUR_SIGMA * (1 - (step + part) / steps) for part in (0, 0.5, 1))
        images = (torch.from_numpy(blurred(case.image, sigma, BLUR_RADIUS)) for sigma in sigmas)
        before, middle, after = (image.permute(2, 0, 1) for image in images)
        x = middle.clone().requires_grad_()
        y = enlarge(x)
        down, right = y[:, 1:, :-1] - y[:, :-1, :-1], y[:, :-1, 1:] - y[:, :-1, :-1]
        objective = (down**2 + right**2 + FLAT).sqrt()[:, top : top + SIDE, left : left + SIDE].sum()
        (slope,) = torch.autograd.grad(objective, x)
        total += slope * (after - before)
    found: NDArray[np.float64] = (total / total.sum(dim=0).abs().max()).sum(dim=0).abs().numpy()
    return found


def test_lam_equals_integrated_gradients() -> None:
    """The map of a network is, to 1e-4, that of autograd run directly through network and objective."""
    model, case = network(), case_of(picture(2))
    attribution = lam(gradient_of(model), case, 50)
    assert attribution.max() == 1
    model.double()
    expected = direct(lambda x: model(x[None] / 255)[0] * 255, case, 50)
    np.testing.assert_allclose(attribution, expected, atol=1e-4)


def test_lam_through_the_wire_equals_integrated_gradients(serve: Callable[[str], Client]) -> None:
    """The map of SRGAN behind a server is, to 1e-4, that of its network in this process by autograd alone."""
    case, client, model = case_of(picture(3)), serve("srgan"), srgan()

    def gradient(images: Single, cotangents: Single | None, seeds: Sequence[int]) -> tuple[Single, Single | None]:
        weights = [None] * len(images) if cotangents is None else [*cotangents]
        asked = enumerate(zip(images, seeds, weights, strict=True))
        answers = client.gradient([FloatItem(str(n), *what) for n, what in asked], SCALE, {}, 60)
        slopes = None if cotangents is None else np.stack([np.asarray(answer.gradient) for answer in answers])
        return np.stack([answer.output for answer in answers]), slopes

    def enlarge(x: Tensor) -> Tensor:
        return (model._output(x.permute(1, 2, 0)[None], SCALE)[0] + 1) * 127.5

    np.testing.assert_allclose(lam(gradient, case, 10), direct(enlarge, case, 10), atol=1e-4)


def test_the_index_is_known_for_known_maps() -> None:
    """An even map has Gini 0 and index 100, one pixel of n has Gini (n - 1) / n, and 1, 2, 3 have 2 / 9."""
    single = np.zeros((16, 16))
    single[3, 5] = 2.0
    assert gini(np.ones((4, 4))) == 0
    assert gini(single) == pytest.approx(255 / 256)
    assert gini(np.array([3.0, 1.0, 2.0])) == pytest.approx(2 / 9)
    assert diffusion_index(np.ones((4, 4))) == 100
    assert np.isnan(diffusion_index(np.zeros((4, 4))))


def test_the_window_is_where_the_detail_is() -> None:
    """On a flat picture with one textured corner, the window lies over that corner, inside the output."""
    image = np.full((16, 16, 3), 120, np.uint8)
    image[11:, 11:] = np.indices((5, 5)).sum(axis=0)[..., None] % 2 * 200
    window = choose_window(image, SCALE)
    assert 40 <= window.top <= 47
    assert 40 <= window.left <= 47
    assert choose_window(np.zeros((16, 16, 3), np.uint8), SCALE) == Window(0, 0)


BLOCK = (slice(4, 6), slice(10, 12))


def looks_at_one_block(images: Pixels) -> Pixels:
    """An upscaler all of whose output is the mean of one block of the input."""
    means = images[:, *BLOCK].mean(axis=(1, 2), keepdims=True)
    return np.broadcast_to(to_uint8(means), (len(images), 64, 64, 3))


def planted(seed: int) -> Case:
    """A noisy input and its output by the planted upscaler, which is also the truth."""
    image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    output = looks_at_one_block(image[None])[0]
    return Case(image, output, output, seed)


def test_occlusion_and_cem_find_the_only_block() -> None:
    """Both black-box maps are positive in the block that a planted upscaler looks at, and zero everywhere else."""
    case, others = planted(1), np.stack([planted(seed).image for seed in (2, 3, 4)])
    for found in (
        occlusion(looks_at_one_block, case, 2),
        cem(looks_at_one_block, case, Interventions(others, side=2, coarse=2, fine=3)),
    ):
        assert (found[BLOCK] > 0).all()
        found[BLOCK] = 0
        assert not found.any()


def test_cem_says_what_hurts() -> None:
    """A block that holds nonsense, against the truth of the whole picture, has a negative effect."""
    case = planted(1)
    truth = np.broadcast_to(to_uint8(np.full(3, 128.0)), case.output.shape)
    image = case.image.copy()
    image[BLOCK] = 255
    wrong = Case(image, looks_at_one_block(image[None])[0], truth, seed=1)
    others = np.full((1, 16, 16, 3), 130, np.uint8)
    assert cem(looks_at_one_block, wrong, Interventions(others, side=2, coarse=1, fine=0))[BLOCK].max() < 0
