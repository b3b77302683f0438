"""Attacks: the algorithms on functions of which the answer is known, PGD through the wire, and a run that resumes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backends.base import Batch, Description, Progress
from backends.gan.backend import srgan
from backends.server import UpscalerServicer, start
from harness.attack_effects import FEW
from harness.attacks import GRADIENT_ATTACKS, Ball, Floats, Generators, Pixels, height, ifgsm, mse, pgd, search, slope
from harness.audit import write_tables
from harness.client import Client, FloatItem
from harness.plan import Job
from harness.resize import resize, to_uint8
from harness.runner import new_progress, run
from harness.suite import load_suite

Serve = Callable[[str], Client]
SHAPE = (2, 16, 16, 3)


def images() -> Pixels:
    """Inputs with values at both ends of the range."""
    return np.random.default_rng(5).integers(0, 256, SHAPE, dtype=np.uint8)


def rngs() -> Generators:
    """Fresh generators, the same in every call."""
    return [np.random.default_rng(i) for i in range(len(images()))]


def wired(client: Client, seeds: tuple[int, ...] = (0,), **options: int) -> Callable[..., tuple[Floats, Floats | None]]:
    """`Differentiate` through a client."""

    def call(batch: Floats, cotangents: Floats | None, seed: int) -> tuple[Floats, Floats | None]:
        weights = [None] * len(batch) if cotangents is None else [*cotangents]
        items = [FloatItem(str(i), x, seeds[seed], w) for i, (x, w) in enumerate(zip(batch, weights, strict=True))]
        answers = client.gradient(items, 4, dict(options), 60)
        gradients = [answer.gradient for answer in answers if answer.gradient is not None]
        return np.stack([answer.output for answer in answers]), np.stack(gradients) if gradients else None

    return call


def pgd_in_process(epsilon: int, steps: int) -> Floats:
    """PGD on SRGAN written with PyTorch alone: its loss, its gradient, its projection."""
    model = srgan()
    centre = torch.from_numpy(images().astype(np.float32))
    low, high = (centre - epsilon).clamp(min=0), (centre + epsilon).clamp(max=255)
    with torch.no_grad():
        clean = 127.5 * (model._output(centre, 4) + 1)
    x = torch.from_numpy(Ball(images(), epsilon).within(epsilon, rngs()))
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = (127.5 * (model._output(x, 4) + 1) - clean).square().mean(dim=(1, 2, 3)).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x + 2 * epsilon * gradient.sign()).clamp(low, high)
    return x.detach().numpy()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of PyTorch in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_pgd_through_the_wire_is_pgd_in_process(serve: Serve) -> None:
    """Inputs attacked over gRPC are, to 1e-5 levels, those of PGD written in PyTorch beside the model."""
    ours = pgd(Ball(images(), 4), slope(images(), wired(serve("srgan")), 1), 3, rngs())
    np.testing.assert_allclose(ours, pgd_in_process(4, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("epsilon", [1, 8])
def test_an_attack_stays_in_its_ball_and_beats_random_signs(serve: Serve, name: str, epsilon: int) -> None:
    """Rounded, it differs by epsilon at most; it moves each output of SRGAN further than random signs that large."""
    ball, client = Ball(images(), epsilon), serve("srgan")
    moved = to_uint8(GRADIENT_ATTACKS[name](ball, slope(images(), wired(client), 1), 5, rngs()))
    assert np.abs(moved.astype(int) - images()).max() == epsilon
    outputs = [
        client.gradient([FloatItem(str(i), x.astype(np.float32), 0) for i, x in enumerate(batch)], 4, {}, 60)
        for batch in (images(), moved, ball.corners(rngs()))
    ]
    clean, attacked, control = (np.stack([answer.output for answer in answers]) for answers in outputs)
    assert (mse(attacked, clean) > 1.2 * mse(control, clean)).all()


def bicubic(batch: Pixels, _seed: int) -> Pixels:
    """An upscaler without a gradient."""
    return to_uint8(resize(batch.astype(np.float64), 64, 64))


def test_random_search_climbs_within_the_ball() -> None:
    """Without a gradient, random squares move bicubic's output more than the random signs that it begins with."""
    ball, objective = Ball(images(), 8), height(images(), bicubic, 1)
    found = search(ball, objective, 40, rngs())
    assert np.abs(found.astype(int) - images()).max() <= 8
    assert (objective(found) > 1.3 * objective(ball.corners(rngs()))).all()


def test_the_gradient_is_the_mean_over_the_seeds(serve: Serve) -> None:
    """Expectation over transformation: two seeds of SR3 give half the sum of what each gives alone."""
    client, x = serve("sr3"), images().astype(np.float32)
    moved = x + 2 * np.sign(np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
    both = slope(images(), wired(client, (3, 4), steps=1), 2)(moved)
    alone = [slope(images(), wired(client, (seed,), steps=1), 1)(moved) for seed in (3, 4)]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-6 * np.abs(both).max())
    assert not np.allclose(alone[0], alone[1], rtol=0.1)


def test_ifgsm_does_not_stall_where_it_begins() -> None:
    """At the clean input the objective has no slope; after a random first step it climbs a linear map to the corner."""

    def double(batch: Floats, cotangents: Floats | None, _seed: int) -> tuple[Floats, Floats | None]:
        return 2 * batch, None if cotangents is None else 2 * cotangents

    inside = np.clip(images(), 8, 247)
    moved = ifgsm(Ball(inside, 4), slope(inside, double, 1), 5, rngs())
    np.testing.assert_allclose(np.abs(moved - inside), 4, atol=1e-4)


@pytest.fixture
def suite(suite_file: Callable[..., Path]) -> Path:
    """Attacks of two sizes on a few images."""
    return suite_file(attacks="{images: 32, names: [ifgsm, pgd], epsilons: [2, 8], steps: 3, queries: 4}")


def test_a_run_attacks_judges_and_resumes(suite: Path, photos: Path, tmp_path: Path) -> None:
    """A run attacks every backend, bicubic's own amplification is 1, and the same command does nothing again."""
    chosen, where = load_suite(str(suite)), tmp_path / "run"
    job = Job(chosen, f"folder:{photos}", ("nearest", "faulty"), where, limit=33, command="")
    folder = run(job, new_progress())
    made = {path: path.stat().st_mtime_ns for path in (folder.path / "attacks").rglob("*.png")}
    table = write_tables(folder)["attacks"]
    own = table[table["backend"] == "bicubic"]
    assert len(own) == len(table) / 3 == 2 * 3
    assert (own[["amplification", "amplification_low", "amplification_high", "versus_bicubic"]] == 1).all(axis=None)
    assert (own.loc[own["attack"] != "signs", "versus_signs_low"] > 1.2).all()
    assert set(table.loc[table["backend"] == "nearest", "verdict"]) == {"amplifies"}
    assert set(table.columns[table.isna().all()]) == {"lpips", "lpips_low", "lpips_high"}, "the suite has no LPIPS"

    lost = next(path for path in made if path.name.endswith(".input.png"))
    lost.unlink()
    rows = len(folder.rows())
    run(job, new_progress())
    again = {path for path in made if path.stat().st_mtime_ns != made[path]}
    assert again == {lost, lost.with_name(lost.name.replace(".input", ".output"))}
    assert len(folder.rows()) == rows


def test_without_a_gradient_it_is_random_search_and_the_table_says_so(
    suite_file: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """The gradient attack is "not run: no Gradient"; random search is. Halved changes amplify by 1/4."""
    server, _, port = start(UpscalerServicer(Muted()), "127.0.0.1:0")
    chosen = load_suite(str(suite_file(attacks="{images: 4, epsilons: [8], queries: 20}")))
    job = Job(chosen, f"folder:{photos}", (f"mine@127.0.0.1:{port}",), tmp_path / "run", limit=4, command="")
    try:
        table = write_tables(run(job, new_progress()))["attacks"]
    finally:
        server.stop(None).wait()
    mine = table[table["backend"] == "mine"].set_index("attack")
    assert list(mine.index) == ["pgd", "signs", "search"]
    assert mine["verdict"].to_dict() == {"pgd": "not run: no Gradient", "signs": FEW, "search": FEW}
    assert mine["amplification"].to_list() == pytest.approx([np.nan, 1 / 4, 1 / 4], rel=0.05, nan_ok=True)
    assert mine["versus_signs_low"].to_list()[2] > 1


class Muted:
    """Bicubic pressed together around mid-grey, so that its changes are halved; without a gradient."""

    description = Description("muted", "other", "ef" * 32, (4,), "none", "tests")

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """128 + (b(x) - 128) / 2."""
        progress(1, 1)
        _, height, width, _ = batch.images.shape
        return 64 + resize(batch.images.astype(np.float64), 4 * height, 4 * width) / 2
