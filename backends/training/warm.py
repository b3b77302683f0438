"""Starting a network from a trained one: what fits both is copied."""

from collections.abc import Iterator

from torch import Tensor, nn

from backends.checkpoint import FOLDER, load_network
from backends.sr3.unet import UNet
from backends.training.config import ConfigError
from harness.errors import one_line


def start_from(network: nn.Module, source: nn.Module) -> set[str]:
    """Copy the parameters that the source has under the same name and in the same shape; returns the others' names.

    A U-Net of fewer blocks takes from each level of its source the first and the last ones, whose widths are its own.
    """
    state = source.state_dict()
    if isinstance(network, UNet) and isinstance(source, UNet):
        state = _fewer_blocks(state, source, network)
    own = network.state_dict()
    taken = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(taken, strict=False)
    return own.keys() - taken.keys()


def start(network: nn.Module, name: str) -> None:
    """Start from weights of `backends/weights`.

    Raises:
        ConfigError: they are not there, or nothing of them fits.
    """
    try:
        source, _ = load_network(FOLDER / f"{name}.safetensors", nn.Module)
    except ValueError as error:
        raise ConfigError(f"start: {one_line(str(error))}") from error
    if len(start_from(network, source)) == len(network.state_dict()):
        raise ConfigError(f"start: nothing of {name} fits this network")


def _fewer_blocks(state: dict[str, Tensor], source: UNet, network: UNet) -> dict[str, Tensor]:
    """A U-Net's state, its blocks under the names that they have in the other one; blocks left out are not there."""
    names: dict[str, str] = {}
    for part in ("down", "up"):
        pairs = _pairs(getattr(source, part), getattr(network, part))
        names |= {f"{part}.{theirs}": f"{part}.{ours}" for theirs, ours in pairs}
    found = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        index, _, leaf = rest.partition(".")
        if head not in ("down", "up"):
            found[key] = value
        elif f"{head}.{index}" in names:
            found[f"{names[f'{head}.{index}']}.{leaf}"] = value
    return found


def _pairs(source: nn.ModuleList, network: nn.ModuleList) -> Iterator[tuple[int, int]]:
    """Indices of blocks that belong together, level by level: the first, and the last ones."""
    for theirs, ours in zip(_levels(source), _levels(network), strict=False):
        count = min(len(theirs), len(ours))
        yield from zip([*theirs[:1], *theirs[len(theirs) - count + 1 :]], ours, strict=False)


def _levels(blocks: nn.ModuleList) -> list[list[int]]:
    """Indices of the blocks of one size each; one that changes the size stands alone."""
    levels: list[list[int]] = [[]]
    for i, block in enumerate(blocks):
        if block.resample == "same":
            levels[-1].append(i)
        else:
            levels += [[i], []]
    return levels
