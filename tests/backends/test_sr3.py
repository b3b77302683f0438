"""SR3: the diffusion's equations and samplers, the network, weights files, and what the shipped model is worth."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.base import Batch, Cancelled, FloatBatch
from backends.checkpoint import FOLDER, MAX_BYTES, load_network
from backends.interpolation import Bicubic
from backends.pixels import enlarge
from backends.sr3 import diffusion
from backends.sr3.backend import SAMPLERS, SR3
from backends.sr3.unet import NoiseLevel, UNet, at_level
from harness.datasets import limit, open_dataset
from harness.degrade import make_input, make_target
from harness.metrics import score
from harness.resize import resize, to_uint8
from protos.values import Value

Images = NDArray[np.uint8]
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"c_in": 6, "channels": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
MEAN, STD = 0.3, 0.5


def ignore(*_: object) -> None:
    """Progress that nobody watches."""


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Equations


@pytest.mark.parametrize("gamma", [0.0, 1e-4, 0.3, 0.999, 1.0])
def test_v_gives_back_the_image_and_the_noise(gamma: float) -> None:
    """(y_0, eps) -> (y_t, v) and `from_v` are inverse of each other at every noise level, the ends included."""
    y0, eps = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    level = torch.full((2,), gamma)
    y_t, v = diffusion.diffuse(y0, eps, level), diffusion.v_target(y0, eps, level)
    again = diffusion.from_v(y_t, v, level)
    torch.testing.assert_close(again, (y0, eps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(diffusion.diffuse(*again, level), y_t, atol=1e-5, rtol=1e-5)


def test_each_image_has_its_own_noise_level() -> None:
    """Eq. 4 with gamma = 1 is the image, with gamma = 0 the noise, side by side in one batch."""
    y0, eps = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    y_t = diffusion.diffuse(y0, eps, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(y_t, torch.stack([y0[0], eps[1]]))


@pytest.mark.parametrize("power", [0.25, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 1000])
def test_gammas_ascend_from_exactly_0_to_exactly_1(steps: int, power: float) -> None:
    """The schedule has no signal at its start and no noise at its end, whatever the number of steps and their power."""
    levels = diffusion.gammas(steps, power=power)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (0.0, 1.0)
    assert all(np.diff(levels) > 0)


def test_training_and_sampling_use_the_same_schedule() -> None:
    """`gammas` are the values of `cosine_gamma` at equally spaced times."""
    expected = diffusion.cosine_gamma(torch.linspace(1, 0, 9, dtype=torch.float64))
    np.testing.assert_allclose(diffusion.gammas(8), expected, atol=1e-12)
    squared = diffusion.cosine_gamma(torch.linspace(1, 0, 9, dtype=torch.float64) ** 2)
    np.testing.assert_allclose(diffusion.gammas(8, power=2), squared, atol=1e-12)


# Samplers, with the exact denoiser of pixels from N(MEAN, STD^2)


def exact(y: Tensor, gamma: Tensor) -> Tensor:
    """E[v | y_t]: the v that a perfect network predicts."""
    g = gamma[:, None, None, None]
    surprise = (y - g.sqrt() * MEAN) / (g * STD**2 + 1 - g)
    return diffusion.v_target(MEAN + g.sqrt() * STD**2 * surprise, (1 - g).sqrt() * surprise, gamma)


SOLVERS = {"ddim": diffusion.ddim, "dpm++2m": diffusion.dpm_solver}


def sample(sampler: str, steps: int, power: float = 1.0) -> Tensor:
    """24 576 values drawn by a sampler."""
    y = normal(0, 2, 3, 64, 64)
    levels = diffusion.gammas(steps, power=power)
    if sampler == "ancestral":
        rng = torch.Generator().manual_seed(1)
        return diffusion.ancestral(exact, y, levels, ignore, lambda: torch.randn(y.shape, generator=rng))
    return SOLVERS[sampler](exact, y, levels, ignore)


@pytest.mark.parametrize("power", [0.5, 1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_steps_draw_from_the_data_distribution(sampler: str, power: float) -> None:
    """Mean and standard deviation are the data's by any schedule, and more steps come nearer than few."""
    many, few = sample(sampler, 400, power), sample(sampler, 4, power)
    assert float(many.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(many.std()) == pytest.approx(STD, rel=0.015 if power >= 1 else 0.025)
    assert abs(float(many.std()) - STD) < abs(float(few.std()) - STD)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_gives_the_posterior_mean(sampler: str) -> None:
    """From pure noise, which tells nothing, a single step answers the mean of the data."""
    torch.testing.assert_close(sample(sampler, 1), torch.full((2, 3, 64, 64), MEAN))


def test_the_multistep_solver_converges_faster_than_ddim() -> None:
    """Against the exact flow, which maps noise z to MEAN + STD z: less than half of DDIM's error, falling faster."""
    z = normal(0, 1, 3, 32, 32).double()

    def error(sampler: str, steps: int) -> float:
        y0 = SOLVERS[sampler](exact, z, diffusion.gammas(steps), ignore)
        return float((y0 - MEAN - STD * z).abs().mean())

    for steps in (8, 16, 32):
        assert error("dpm++2m", steps) < 0.5 * error("ddim", steps)
    orders = {name: math.log2(error(name, 256) / error(name, 512)) for name in SOLVERS}
    assert orders["ddim"] == pytest.approx(1, abs=0.05)
    assert orders["dpm++2m"] > 1.6


def test_ancestral_noise_has_variance_one_minus_alpha() -> None:
    """Eq. 11 step by step, against its written form, for a network that predicts v = 0."""
    seen: list[Tensor] = []

    def nothing(y: Tensor, _: Tensor) -> Tensor:
        seen.append(y)
        return torch.zeros_like(y)

    draws = [normal(seed, 1, 1, 2, 2) for seed in (1, 2)]
    diffusion.ancestral(nothing, normal(0, 1, 1, 2, 2), diffusion.gammas(3), ignore, iter(draws).__next__)
    _, g1, g2, _ = diffusion.gammas(3)
    alpha, eps = g1 / g2, math.sqrt(1 - g1) * seen[1]
    mean = (seen[1] - (1 - alpha) / math.sqrt(1 - g1) * eps) / math.sqrt(alpha)
    torch.testing.assert_close(seen[1], math.sqrt(1 - g1) * draws[0])
    torch.testing.assert_close(seen[2], mean + math.sqrt(1 - alpha) * draws[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_reported_and_may_cancel(sampler: str) -> None:
    """A sampler counts its steps and stops where the caller raises."""
    done = []

    def leave(count: int) -> None:
        done.append(count)
        if count == 2:
            raise Cancelled

    y = normal(0, 1, 3, 4, 4)
    draw = SOLVERS.get(sampler) or partial(diffusion.ancestral, noise=lambda: y)
    with pytest.raises(Cancelled):
        draw(exact, y, diffusion.gammas(5), leave)
    assert done == [1, 2]


# What a network predicts


@pytest.mark.parametrize("target", ["v", "eps"])
@pytest.mark.parametrize("residual", [True, False])
def test_a_right_prediction_leads_back_to_the_image(target: Literal["v", "eps"], residual: bool) -> None:  # noqa: FBT001 - a parameter
    """Whatever is predicted of whatever, the samplers' v and the image follow from it."""
    formulation = diffusion.Formulation(target, residual, 0.1)
    image, up, eps = normal(0, 2, 3, 4, 4).clamp(-1, 1), normal(1, 2, 3, 4, 4), normal(2, 2, 3, 4, 4)
    y0 = formulation.y0(image, up)
    for gamma in (torch.tensor([g]) for g in (0.01, 0.5, 0.99)):
        y_t = diffusion.diffuse(y0, eps, gamma)
        v = formulation.v(formulation.wanted(y0, eps, gamma), y_t, gamma)
        torch.testing.assert_close(v, diffusion.v_target(y0, eps, gamma), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(formulation.image(y0, up), image)


def test_eps_is_trained_at_the_papers_levels_only() -> None:
    """Its levels span (4.4e-5, 1), where eps still says something of y_0; sampling begins at the last of them."""
    formulation = diffusion.Formulation("eps")
    gamma = formulation.gamma(torch.linspace(0.001, 0.999, 999))
    assert (gamma.diff() < 0).all()
    assert float(gamma.min()) > formulation.first
    assert formulation.first == pytest.approx(4.4e-5, rel=0.01)
    assert diffusion.gammas(4, formulation.first)[0] == formulation.first
    assert float(gamma[499]) == pytest.approx(math.exp(-(1e-2 * 500 / 2)), rel=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_eps_network_draws_from_the_data_distribution(sampler: str) -> None:
    """As a perfect v-network does, from the noise level where its schedule begins."""
    formulation = diffusion.Formulation("eps", residual=True)

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        _, eps = diffusion.from_v(y, exact(y, gamma), gamma)
        return formulation.v(eps, y, gamma)

    y, levels = normal(0, 2, 3, 64, 64).double(), diffusion.gammas(200, formulation.first)
    solve = SOLVERS.get(sampler) or partial(diffusion.ancestral, noise=lambda: torch.randn_like(y))
    torch.manual_seed(0)
    y0 = solve(denoise, y, levels, ignore)
    assert float(y0.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(y0.std()) == pytest.approx(STD, rel=0.03)


# Network


@torch.inference_mode()
def test_the_embedding_tells_noise_levels_apart() -> None:
    """Different gammas give different embeddings, finite at both ends."""
    torch.manual_seed(0)
    gamma = torch.tensor([0.0, 0.001, 0.2, 0.21, 0.5, 0.999, 1.0])
    embedded = NoiseLevel(16)(gamma)
    assert embedded.isfinite().all()
    distances = torch.cdist(embedded, embedded) + torch.eye(len(gamma))
    assert float(distances.min()) > 1e-3


@torch.inference_mode()
def test_a_network_for_one_noise_level_is_the_network_at_it() -> None:
    """What `at_level` puts into the weights changes nothing at that level."""
    torch.manual_seed(0)
    network = UNet(channels=16, multipliers=(1, 2), blocks=1, patch=2)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, fixed = normal(0, 2, 6, 16, 16), at_level(network, 0.3)
    torch.testing.assert_close(fixed(x, torch.zeros(1)), network(x, torch.tensor([0.3])), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fixed(x, torch.zeros(1)), network(x, torch.tensor([0.6])), atol=1e-2)


def test_a_network_with_an_input_skip_is_not_fixed_to_one_level() -> None:
    """Its factors depend on the noise level: it is refused by one line, before any image."""
    network = UNet(channels=16, multipliers=(1,), blocks=1, input_skip=1)
    with pytest.raises(ValueError, match="no input_skip: use other weights"):
        at_level(network, 0.3)


@torch.inference_mode()
def test_an_input_skip_adds_each_image_of_the_input_times_its_factor() -> None:
    """The conditioning image and y_t reach the output whole, by a factor each, that the noise level may change."""
    network = UNet(channels=16, multipliers=(1,), blocks=1, patch=4, input_skip=1)
    assert network.factors is not None
    x, gamma = normal(0, 2, 6, 16, 16), torch.tensor([0.2, 0.9])
    network.factors.bias.zero_()
    before = network(x, gamma)
    network.factors.bias.copy_(torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(network(x, gamma) - before, 0.5 * x[:, :3] - 2 * x[:, 3:])
    network.factors.weight.fill_(0.1)
    by_image = (network(x, gamma) - before)[:, 0] / x[:, :3].sum(dim=1)
    assert not torch.allclose(by_image[0], by_image[1])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_multiple_is_what_the_network_needs(levels: int) -> None:
    """Height and width may be any multiples of `UNet.multiple`; between two of them no size passes."""
    network = UNet(channels=16, multipliers=(1,) * levels, blocks=1, patch=2)
    step = network.multiple
    assert step == 2**levels
    gamma = torch.tensor([0.5])
    for height, width in [(step, step), (2 * step, 3 * step)]:
        assert network(torch.zeros(1, 6, height, width), gamma).shape == (1, 3, height, width)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 6, 3 * step // 2, step), gamma)


@pytest.mark.parametrize(("height", "width", "scale"), [(16, 16, 4), (5, 9, 2), (1, 1, 4)])
def test_enlarge_is_the_one_resize(height: int, width: int, scale: int) -> None:
    """The network's condition is `harness.resize.resize` of the input, on -1..1 instead of 0..255."""
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = resize(images.astype(np.float64), height * scale, width * scale) / 127.5 - 1
    np.testing.assert_allclose(enlarge(images, scale).permute(0, 2, 3, 1), expected, atol=1e-6)


# Weights files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights for a tiny network, half precision as shipped."""
    torch.manual_seed(0)
    network = UNet(c_in=6, channels=8, multipliers=(1, 2), blocks=1, patch=2)
    path = tmp_path / "tiny.safetensors"
    save_file({k: v.half() for k, v in network.state_dict().items()}, path, {"network": json.dumps(SIZES), "std": "1"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object], network: str = json.dumps(SIZES)) -> None:
    """Write a weights file anew with its tensors changed, or other sizes."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"network": network})


def refusal(path: Path) -> str:
    """The message of the ValueError that loading raises: one line that begins with the file's name."""
    with pytest.raises(ValueError, match=f"^{path.name}: ") as caught:
        load_network(path, UNet)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def test_a_weights_file_loads_as_float32(weights: Path) -> None:
    """The network is complete, in float32, ready to run, and its metadata come with it."""
    network, metadata = load_network(weights, UNet)
    assert metadata["std"] == "1"
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training
    stored = load_file(weights)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, stored[name].float(), atol=0, rtol=0)
    assert network(torch.zeros(1, 6, 8, 8), torch.tensor([0.5])).isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("exit.weight"), "exit.weight"),
        (lambda t: t.update({"more": torch.zeros(1)}), "more"),
        (lambda t: t.update({"exit.bias": torch.zeros(13)}), "exit.bias"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_are_refused(
    weights: Path, change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    """A missing, unexpected or misshapen tensor is named."""
    rewrite(weights, change)
    assert named in refusal(weights)


@pytest.mark.parametrize(
    "network",
    [
        "",
        "[1, 2",
        "[]",
        "null",
        "[" * 100_000,
        '{"channels": "8"}',
        '{"channels": true}',
        '{"channels": 9}',
        '{"channels": 0}',
        '{"channels": 1e999}',
        '{"channels": [8]}',
        '{"channels": 800000000}',
        '{"blocks": 1000000000}',
        '{"multipliers": [1, -1]}',
        '{"multipliers": []}',
        '{"patch": -2}',
        '{"labels": -1}',
        '{"colour\\n\\u001b[31m": 1}',
        '{"blocks": 16, "multipliers": [64, 64, 64, 64, 64, 64, 64, 64], "channels": 1024}',
    ],
)
def test_hostile_sizes_are_refused(weights: Path, network: str) -> None:
    """Whatever the metadata say, the answer is one line, and no memory is taken for networks the file does not hold."""
    rewrite(weights, ignore, network)
    refusal(weights)


def test_a_file_without_metadata_is_refused(weights: Path) -> None:
    """Tensors alone do not say which network they are for."""
    save_file(load_file(weights), weights)
    assert "network" in refusal(weights)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"low": ""}, "low"),
        ({"low": "0"}, "low"),
        ({"low": "64", "high": "16"}, "high"),
        ({"std": "nan"}, "std"),
        ({"std": "-1"}, "std"),
        ({"std": "much\n"}, "std"),
        ({"level": "nan"}, "level=nan"),
        ({"augmentation": "1.5"}, "augmentation=1.5"),
        ({"gamma": "-0.1"}, "gamma=-0.1"),
    ],
)
def test_metadata_that_cannot_be_are_refused(weights: Path, changes: dict[str, str], named: str) -> None:
    """Sizes and scale that no training writes are named."""
    metadata = {"network": json.dumps(SIZES), "std": "1", "low": "16", "high": "64"}
    save_file(load_file(weights), weights, metadata | changes)
    assert named in refusal(weights)


def test_metadata_that_are_missing_are_named(weights: Path) -> None:
    """A backend whose weights file does not say its sizes is refused by one line."""
    with pytest.raises(ValueError, match="the weights' metadata do not say low"):
        SR3(str(weights))


@pytest.mark.parametrize("gamma", ["0.0", "1.0", "0.2730047501302266", "3.749399456654644e-33"])
def test_any_noise_level_that_a_training_writes_is_read(weights: Path, gamma: str) -> None:
    """From 0 to 1, in digits or, as Python writes the smallest, with an exponent."""
    metadata = {"network": json.dumps(SIZES), "gamma": gamma}
    save_file(load_file(weights), weights, metadata)
    assert load_network(weights, UNet)[1]["gamma"] == gamma


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is not safetensors gets one line."""
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    refusal(path)


def test_a_truncated_file_is_refused(weights: Path) -> None:
    """Half a download is no set of weights."""
    weights.write_bytes(weights.read_bytes()[:-1000])
    refusal(weights)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """What cannot be opened gets one line as well."""
    refusal(tmp_path / "absent.safetensors")
    refusal(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """The limit holds before anything is read."""
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "200 MB" in refusal(path)


# The shipped model


@pytest.fixture(scope="module")
def model() -> SR3:
    """The backend with its shipped weights."""
    return SR3()


@pytest.fixture(scope="module")
def faces(data_root: Path) -> Images:
    """24 validation faces of 64 x 64 pixels, balanced over race and gender; the model was not trained on them."""
    dataset = limit(open_dataset(f"utkface:{data_root / 'utkface'}#validation"), 24)
    return np.stack([make_target(dataset.image(record), 64) for record in dataset.records])


def request(images: Images, seeds: range | None = None, **options: Value) -> Batch:
    """A request of eight equal steps, if the options do not say otherwise."""
    n = len(images)
    settings: dict[str, Value] = {"steps": 8, "sampler": "ddim", "schedule": 1.0, **options}
    return Batch(images, 4, ids=("x",) * n, seeds=tuple(seeds or range(n)), options=settings)


def test_the_schedule_is_that_chosen_for_the_weights(model: SR3) -> None:
    """By name or by path, weights have the schedule chosen on validation; without such a choice equal steps."""
    models = (model, SR3(str(FOLDER / "sr3-16-64.safetensors")), SR3("sr3-64-128"))
    schedules = [{o.name: o.default for o in each.description.options}["schedule"] for each in models]
    assert schedules == [0.7, 0.7, 1.0]


def noise_images(n: int) -> Images:
    """Inputs of no meaning."""
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def test_faces_come_out_better_than_bicubic(model: SR3, faces: Images) -> None:
    """With its default options the model beats bicubic in mean PSNR and keeps to the input as the paper's does."""
    inputs = np.stack([make_input(face, 16) for face in faces])
    asked = replace(request(inputs), options={option.name: option.default for option in model.description.options})
    ours, theirs = (
        to_uint8(np.asarray(backend.upscale(asked, ignore), dtype=np.float64)) for backend in (model, Bicubic())
    )
    gain = score("psnr", ours, faces, inputs, 4) - score("psnr", theirs, faces, inputs, 4)
    assert gain.mean() > 0.3
    assert score("lr_mse", ours, None, inputs, 4).mean() < 5e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(model: SR3, sampler: str) -> None:
    """All randomness comes from the request's seeds."""
    images = noise_images(2)
    first, again, other = (
        model.upscale(request(images, seeds, steps=3, sampler=sampler), ignore)
        for seeds in (range(2), range(2), range(7, 9))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.5


def test_an_image_is_the_same_alone_and_in_a_batch(model: SR3) -> None:
    """The neighbours in a batch do not matter, beyond rounding."""
    images = noise_images(3)
    together = model.upscale(request(images, steps=3), ignore)
    alone = [model.upscale(request(images[i : i + 1], range(i, i + 1), steps=3), ignore)[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=0.1)


def test_progress_counts_network_evaluations(model: SR3) -> None:
    """The caller hears of each step."""
    calls: list[tuple[int, int]] = []
    model.upscale(request(noise_images(1), steps=2), lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_gradient_goes_through_all_steps(model: SR3, sampler: str) -> None:
    """With its steps computed again on the way back it is that of the plain computation with everything kept."""
    asked = differentiated(model, steps=3, sampler=sampler)
    outputs, gradients = model.gradient(asked, ignore)
    images = torch.from_numpy(asked.images).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.sr3.backend.checkpoint", lambda evaluate, *rest, **_how: evaluate(*rest))
        output = 127.5 * (model._output(images, asked, ignore) + 1).permute(0, 2, 3, 1)
    (expected,) = torch.autograd.grad(output, images, torch.from_numpy(np.asarray(asked.cotangents)))
    np.testing.assert_allclose(outputs, output.detach(), atol=1e-3)
    np.testing.assert_allclose(np.asarray(gradients), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_client_that_leaves_ends_the_way_back(model: SR3) -> None:
    """While the gradient is computed backwards, each step asks whether the client is still there."""
    calls: list[int] = []

    def leave(_done: int, _total: int) -> None:
        calls.append(1)
        if len(calls) == 8:  # three steps forward ask twice each
            raise Cancelled

    with pytest.raises(Cancelled):
        model.gradient(differentiated(model, steps=3), leave)
    assert len(calls) == 8


def differentiated(model: SR3, **options: Value) -> FloatBatch:
    """Two faces of noise at which to differentiate."""
    rng = np.random.default_rng(1)
    images = rng.uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    weights = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)
    defaults = {option.name: option.default for option in model.description.options}
    return FloatBatch(images, weights, 4, ("a", "b"), (3, 4), defaults | options)


def test_every_size_that_the_description_allows_passes(model: SR3) -> None:
    """Larger inputs need only be multiples of what the description says."""
    low, step = model.description.minimum, model.description.multiple_of
    images = np.zeros((1, low + step, low + 2 * step, 3), dtype=np.uint8)
    assert model.upscale(request(images, steps=1), ignore).shape == (1, 4 * (low + step), 4 * (low + 2 * step), 3)


@torch.inference_mode()
def test_the_shipped_network_looks_at_the_noise_level(model: SR3) -> None:
    """The same pixels at another gamma give another prediction."""
    x = normal(0, 1, 6, 64, 64)
    low, high = (model.network(x, torch.tensor([gamma])) for gamma in (0.1, 0.9))
    assert float((low - high).abs().mean()) > 0.05
