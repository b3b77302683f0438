"""Real-ESRGAN through ncnn: plausible, deterministic, whatever the size."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backends import realesrgan
from backends.base import Batch, Cancelled
from backends.realesrgan import STEMS, RealESRGAN
from backends.server import warm_up
from harness import weights
from harness.errors import WeightsError
from harness.resize import resize, to_uint8


@pytest.fixture(scope="module")
def backend() -> RealESRGAN:
    """The backend with its published weights."""
    try:
        for stem in STEMS.values():
            weights.resolve(f"{stem}.bin", fetch=False)
            weights.resolve(f"{stem}.param", fetch=False)
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    return RealESRGAN()


def test_only_the_chosen_network_is_loaded(backend: RealESRGAN) -> None:
    """A backend loads the model that it is started for; the other one is there when asked, under the same digest."""
    anime = RealESRGAN("animevideov3")
    assert not anime._nets
    warm_up(anime)
    assert set(anime._nets) == {"animevideov3"}
    images = picture(1, 12, 12)
    np.testing.assert_array_equal(
        anime.upscale(batch(images, "x4plus"), ignore), backend.upscale(batch(images, "x4plus"), ignore)
    )
    assert anime.description.digest == backend.description.digest
    with pytest.raises(ValueError, match="no model 'x2plus'; choose one of x4plus, animevideov3"):
        RealESRGAN("x2plus")


def batch(images: NDArray[np.uint8], model: str) -> Batch:
    """A request."""
    n = len(images)
    return Batch(images, 4, ids=("x",) * n, seeds=(0,) * n, options={"model": model})


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


def picture(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours."""
    coarse = np.random.default_rng(0).uniform(40, 215, (n, 3, 3, 3))
    return to_uint8(resize(coarse, height, width))


@pytest.mark.parametrize("model", STEMS)
def test_the_output_shows_the_input(backend: RealESRGAN, model: str) -> None:
    """Reduced again, the output has the input's colours and shapes."""
    images = picture(1, 24, 32)
    output = backend.upscale(batch(images, model), ignore)
    assert output.shape == (1, 96, 128, 3)
    reduced = resize(output, 24, 32)
    assert np.corrcoef(reduced.ravel(), images.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("model", STEMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (1, 9)])
def test_tiny_images_pass(backend: RealESRGAN, model: str, height: int, width: int) -> None:
    """One pixel is an image, too."""
    output = backend.upscale(batch(picture(1, height, width), model), ignore)
    assert output.shape == (1, 4 * height, 4 * width, 3)
    assert np.isfinite(output).all()


@pytest.mark.parametrize("model", STEMS)
def test_an_image_gives_the_same_bytes_alone_and_in_a_batch(backend: RealESRGAN, model: str) -> None:
    """The backend is as exact as its description claims."""
    images = picture(3, 12, 10)
    together = backend.upscale(batch(images, model), ignore)
    alone = [backend.upscale(batch(images[i : i + 1], model), ignore)[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)
    assert backend.description.batch_exact
    assert backend.description.deterministic


def test_the_models_differ(backend: RealESRGAN) -> None:
    """The option chooses the network, and photos are the default."""
    images = picture(1, 16, 16)
    photo, anime = (backend.upscale(batch(images, model), ignore) for model in ("x4plus", "animevideov3"))
    default = backend.upscale(Batch(images, 4, ids=("x",), seeds=(0,)), ignore)
    assert not np.array_equal(photo, anime)
    np.testing.assert_array_equal(default, photo)


def test_progress_counts_images_and_may_cancel(backend: RealESRGAN) -> None:
    """After each image the caller hears of it, and a caller that has gone ends the work."""
    calls = []

    def leave(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        backend.upscale(batch(picture(3, 4, 4), "animevideov3"), leave)
    assert calls == [(1, 3), (2, 3)]


# Tiles


@pytest.mark.parametrize("size", [1, 256, 257, 300, 1024])
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(size: int) -> None:
    """No tile sees more than the network gets at once, and what they answer for leaves neither gap nor overlap."""
    parts = realesrgan.cores(size)
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert (parts[0].start, parts[-1].stop) == (0, size)
    total = np.zeros(4 * size)
    for part in parts:
        seen = slice(max(0, part.start - realesrgan.PADDING), min(size, part.stop + realesrgan.PADDING))
        assert seen.stop - seen.start <= realesrgan.WHOLE
        total[4 * seen.start : 4 * seen.stop] += realesrgan._weights(part, seen, size)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_give_nearly_the_whole_image(backend: RealESRGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one level, with tiles that see 16 pixels beyond what they answer for."""
    images = picture(2, 40, 70)
    whole = backend.upscale(batch(images, "animevideov3"), ignore)
    monkeypatch.setattr(realesrgan, "WHOLE", 64)
    monkeypatch.setattr(realesrgan, "PADDING", 16)
    calls = []
    tiled = backend.upscale(batch(images, "animevideov3"), lambda *counts: calls.append(counts))
    assert calls == [(i, 2 * 3) for i in range(1, 7)]
    difference = np.abs(tiled - whole)
    assert difference.max() < 1
    assert difference.mean() < 0.05
    alone = backend.upscale(batch(images[1:], "animevideov3"), ignore)
    np.testing.assert_array_equal(tiled[1], alone[0])
