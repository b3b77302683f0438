"""Diffusion checkpoints of others: their layouts, what their networks compute, the samplers, the server.

`layouts/` lists names and shapes of weights; each file names the module and the configuration of the authors that it
is taken from.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backends.base import Batch
from backends.foreign.guided import Guided
from backends.foreign.janspiry import PREFIX, Janspiry
from backends.foreign.sampling import Source, Step, _deviation, ancestral, ddim, linear_gammas, strided
from backends.foreign.sr3_checkpoint import Family, SR3Checkpoint, check, family_of
from harness import contract
from protos.values import Value

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = Path(__file__).parent / "layouts"
State = dict[str, Tensor]


def layout(name: str) -> State:
    """The tensors of a layout: weights by a formula, each its own."""
    lines = [line.split() for line in (LAYOUTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    return {line[0]: formula(i, tuple(map(int, line[1:]))) for i, line in enumerate(lines)}


def formula(index: int, shape: tuple[int, ...]) -> Tensor:
    """sin(0.37 j + index) / sqrt(fan in), j counting the values; on the meta device no values."""
    values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.37 + index)
    return (values / math.sqrt(max(1, math.prod(shape[1:])))).reshape(shape)


def wave(channels: int, side: int) -> Tensor:
    """Two images: sin(0.11 j), j counting the values."""
    values = torch.sin(torch.arange(2 * channels * side**2, dtype=torch.float64) * 0.11)
    return values.reshape(2, channels, side, side).float()


def loaded(state: State, **settings: int) -> Family:
    """The family of weights, its network holding them."""
    family = family_of(state, **settings)
    family.network.load_state_dict(family.state)
    family.network.eval()
    return family


@pytest.mark.parametrize(
    ("name", "weights", "groups", "heads"),
    [
        ("janspiry-16-128", 97_807_491, {32}, set()),
        ("janspiry-64-512", 155_334_339, {16}, set()),
        ("guided-64-256", 311_795_910, {32}, {4}),
        ("guided-128-512", 308_835_270, {32}, {768 // 64}),
    ],
)
def test_a_published_layout_is_rebuilt(name: str, weights: int, groups: set[int], heads: set[int]) -> None:
    """The network has exactly the published weights, and what the file does not hold is the published configuration."""
    with torch.device("meta"):
        family = family_of(layout(name))
        check(family)
    family.network.load_state_dict(family.state, assign=True)  # strict: no name or shape differs
    modules = list(family.network.modules())
    assert sum(p.numel() for p in family.network.parameters()) == weights
    assert {m.num_groups for m in modules if isinstance(m, nn.GroupNorm)} == groups
    assert {m.heads for m in modules if hasattr(m, "heads")} == heads


CORNERS = ((0, 0, 0, 0), (0, 1, 7, 3), (0, 2, 15, 15), (1, 0, 4, 9), (1, 2, 15, 0))


@torch.no_grad()
def test_janspiry_computes_what_the_authors_module_does() -> None:
    """With weights by formula the network gives the numbers that the authors' module gave (see the layout's head)."""
    output = loaded(layout("janspiry-tiny"), groups=8).network(wave(6, 16), torch.tensor([0.3, 0.9]))
    expected = [-0.7130, -1.2423, -1.0031, -0.9626, -1.1362]
    assert [float(output[i]) for i in CORNERS] == pytest.approx(expected, abs=2e-4)
    assert (float(output.mean()), float(output.std())) == pytest.approx((-1.16330, 0.18657), abs=5e-5)


@torch.no_grad()
def test_guided_computes_what_the_authors_module_does() -> None:
    """With weights by formula the family gives the numbers that the authors' module gave (see the layout's head)."""
    family = loaded(layout("guided-tiny"), heads=4)
    low = wave(3, 4).flip(0)
    up = nn.functional.interpolate(low, scale_factor=4.0, mode="bilinear")  # theirs enlarges within
    output = family.network(torch.cat([wave(3, 16), up], 1), torch.tensor([7.0, 612.0]), torch.tensor([4, 1]))
    expected = [-0.3928, -0.2017, 0.1393, -0.2383, 0.1783]
    assert [float(output[i]) for i in CORNERS] == pytest.approx(expected, abs=2e-4)
    assert (float(output.mean()), float(output.std())) == pytest.approx((0.35662, 0.56255), abs=5e-5)


def test_each_family_has_its_order_and_its_time() -> None:
    """Janspiry: enlarged before noisy, sqrt(gamma); guided-diffusion: noisy before enlarged, the step's number."""
    y, up = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    x, level = Janspiry(layout("janspiry-tiny"), 8).inputs(y, up, 1999)
    assert x[0, :, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert float(level) == pytest.approx(math.sqrt(np.prod(1 - np.linspace(1e-6, 1e-2, 2000))), rel=1e-5)
    x, step = Guided(layout("guided-tiny"), 4).inputs(y, up, 999)
    assert x[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert float(step) == 999


@pytest.mark.parametrize("family", [Janspiry, Guided])
@pytest.mark.parametrize("count", [1, 2, 20, 1000])
def test_any_number_of_steps_starts_in_noise(family: type[Family], count: int) -> None:
    """Fewer steps are some of the training's: the first at almost no signal, each the next one's start, the last 1."""
    steps = strided(family.gammas, count)
    assert len(steps) == count
    assert steps[0].gamma == family.gammas[-1] < 1e-4
    assert [s.after for s in steps[:-1]] == [s.gamma for s in steps[1:]]
    assert steps[-1].after == 1
    assert count == 1 or steps[-1].t == 0


def test_a_schedule_that_keeps_the_signal_is_refused() -> None:
    """SR3's range of betas over 100 steps keeps 61 % of the signal: such a schedule cannot be built."""
    with pytest.raises(ValueError, match=r"100 steps still holds 0\.61 of the signal"):
        linear_gammas(1e-6, 1e-2, 100)


@pytest.mark.parametrize("sampler", [ddim, ancestral])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_sampler_with_a_perfect_network_finds_the_image(sampler: Callable[..., Tensor], count: int) -> None:
    """Where the network names the true noise at every step, the sample is the image."""
    image, generator = wave(3, 4), torch.Generator().manual_seed(0)
    told: list[int] = []

    def perfect(y: Tensor, t: int) -> tuple[Tensor, None]:
        gamma = Guided.gammas[t]
        return (y - math.sqrt(gamma) * image) / math.sqrt(1 - gamma), None

    source = Source(lambda: torch.randn(image.shape, generator=generator), told.append)
    sample = sampler(perfect, strided(Guided.gammas, count), source)
    assert torch.allclose(sample, image, atol=2e-3)
    assert told == list(range(1, count + 1))


def test_the_predicted_variance_lies_between_its_bounds() -> None:
    """At 1 it is beta, at -1 the posterior's, between them the geometric mean; without a prediction the posterior's."""
    step = Step(t=500, gamma=0.2, after=0.3)
    beta, posterior = 1 - 0.2 / 0.3, (1 - 0.2 / 0.3) * 0.7 / 0.8
    variances = [float(_deviation(step, torch.tensor(place))) ** 2 for place in (1.0, -1.0, 0.0)]
    assert variances == pytest.approx([beta, posterior, math.sqrt(beta * posterior)])
    assert float(_deviation(step, None)) ** 2 == pytest.approx(posterior)


def saved(path: Path, state: State) -> str:
    """The checkpoint of a state, as the authors' training writes it: in float32."""
    torch.save({name: tensor.float() for name, tensor in state.items()}, path)
    return str(path)


def janspiry(path: Path) -> str:
    """A tiny checkpoint with a schedule of its own in it, which is not to be used."""
    buffers = {"betas": torch.ones(7), "alphas_cumprod": torch.zeros(7)}
    return saved(path, layout("janspiry-tiny") | buffers)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (janspiry, "groups=8,scale=2,steps=2,sampler=ancestral"),
        (lambda path: saved(path, layout("guided-tiny")), "heads=4,label=3,scale=2,steps=2,sampler=ancestral"),
    ],
    ids=["janspiry", "guided"],
)
def test_a_served_checkpoint_keeps_the_contract(tmp_path: Path, make: Callable[[Path], str], settings: str) -> None:
    """`sr3-checkpoint:PATH` names it; the kit finds nothing but that weights by formula make no pictures."""
    results = contract.check(f"sr3-checkpoint:{make(tmp_path / 'I1_E1_gen.pth')},{settings}")
    assert len(results) == len(contract.CHECKS)
    assert {r.name for r in results if not r.passed} <= {"returns the picture it was sent"}


def batch(*classes: int | None, **options: Value) -> Batch:
    """Black images of 8 x 8 pixels, all with one seed."""
    n = len(classes)
    chosen: dict[str, Value] = {"steps": 2, "sampler": "ddim", **options}
    return Batch(np.zeros((n, 8, 8, 3), np.uint8), 4, tuple("abcd"[:n]), (5,) * n, chosen, classes, (None,) * n)


def test_images_without_a_class_get_the_label(tmp_path: Path) -> None:
    """The setting `label` stands for a missing class; another class makes another image."""
    backend = SR3Checkpoint(saved(tmp_path / "g.pt", layout("guided-tiny")), label="3", heads="4")
    assert backend.description.classes == ("0", "1", "2", "3", "4")
    other = SR3Checkpoint(str(tmp_path / "g.pt"), label="4", heads="4")
    assert backend.description.digest != other.description.digest
    output = backend.upscale(batch(None, 3, 0), lambda _done, _total: None)
    np.testing.assert_array_equal(output[0], output[1])
    assert np.abs(output[0] - output[2]).max() > 1


def test_half_precision_gives_pictures_too(tmp_path: Path) -> None:
    """In bfloat16 the sampler's state stays float32 and finite, and what is said of precision changes the digest."""
    file = janspiry(tmp_path / "I1_E1_gen.pth")
    exact, rounded = (SR3Checkpoint(file, groups="8", scale="4", precision=name) for name in ("float32", "bfloat16"))
    assert exact.description.digest != rounded.description.digest
    output = rounded.upscale(batch(None, sampler="ancestral"), lambda _done, _total: None)
    assert output.dtype == np.float32
    assert np.isfinite(output).all()


def test_a_checkpoint_is_described(tmp_path: Path) -> None:
    """Scale and sizes fit the network: its sides halve a number of times; settings change what the file cannot say."""
    file = janspiry(tmp_path / "I1_E1_gen.pth")
    d = SR3Checkpoint(file, groups="8").description
    assert (d.scales, d.minimum, d.multiple_of, d.deterministic, d.classes) == ((8,), 1, 1, False, ())
    d = SR3Checkpoint(file, groups="8", scale="3").description
    assert (d.minimum, d.multiple_of) == (2, 2)  # 3 n is to be even, and 4 at least
    assert "FFHQ" in d.licence


def without(name: str) -> Callable[[State], State]:
    """Leave out one tensor."""
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def reshaped(name: str, *shape: int) -> Callable[[State], State]:
    """Give one tensor another shape."""
    return lambda state: state | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{PREFIX}downs.1.res_block.block1.block.3.bias"), "downs.1.res_block.block1.block.3.bias"),
        (without(f"{PREFIX}final_conv.block.3.weight"), "final_conv.block.3.weight' is missing"),
        (without(f"{PREFIX}mid.0.attn.qkv.weight"), "mid.0.attn.qkv.weight"),
        (reshaped(f"{PREFIX}downs.0.weight", 32, 3, 3, 3), "it takes 3 channels"),
        (reshaped(f"{PREFIX}final_conv.block.3.weight", 6, 32, 3, 3), "not to an image's eps"),
        (reshaped(f"{PREFIX}mid.0.res_block.block1.block.0.weight", 7), "divisible"),
        (lambda _state: {"x": torch.zeros(1)}, "neither SR3 in Janspiry's layout"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change: Callable[[State], State], message: str) -> None:
    """Weights that are missing, of another shape, for other images or of no known layout: one line each."""
    file = saved(tmp_path / "x.pth", change(layout("janspiry-tiny")))
    with pytest.raises(ValueError, match=rf"x\.pth: not an upscaler that can be rebuilt: .*{message}") as caught:
        SR3Checkpoint(file, groups="8")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", ["none", "output_blocks.1."])
def test_a_way_up_without_its_stages_is_refused(tmp_path: Path, kept: str) -> None:
    """A guided-diffusion file that lacks the stages of the way up, or all but one that doubles: one line names them."""
    whole = layout("guided-tiny")
    state = {name: tensor for name, tensor in whole.items() if not name.startswith("output_blocks.")}
    state |= {name.replace(kept, "output_blocks.0."): tensor for name, tensor in whole.items() if kept in name}
    file = saved(tmp_path / "g.pt", state)
    with pytest.raises(ValueError, match=r"g\.pt: not an upscaler that can be rebuilt: output_blocks: ") as caught:
        SR3Checkpoint(file, heads="4", label="1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "write heads=N"),
        ({"heads": "4"}, "knows 5 classes; write label=N"),
        ({"heads": "4", "label": "5"}, "knows 5 classes"),
        ({"heads": "none", "label": "1"}, "heads='none': a number"),
        ({"heads": "4", "label": "1", "scale": "0"}, "scale='0': a number"),
        ({"heads": "4", "label": "1", "groups": "8"}, "neither"),
        ({"heads": "5", "label": "1"}, "not an upscaler that can be rebuilt"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    """What the file does not hold has to be said, and a setting that cannot be is refused by one line."""
    file = saved(tmp_path / "g.pt", layout("guided-tiny"))
    with pytest.raises(ValueError, match=message) as caught:
        SR3Checkpoint(file, **settings)
    assert "\n" not in str(caught.value)
