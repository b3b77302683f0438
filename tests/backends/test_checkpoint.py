"""Which backend the product's own weights are for: the right one takes them, any other refuses them by one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from backends.checkpoint import FOLDER
from backends.registry import ENTRIES
from backends.sr3.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread")

OF = {
    "regression": ("regression-16-64", "regression-16-128"),
    "srgan": ("srgan-16-64", "srgan-16-128"),
    "esrgan": ("esrgan-16-64",),
    "sr3": ("sr3-16-64", "sr3-64-128"),
    "sr3-fast": ("sr3-fast-16-64",),
    "sr3-x4": ("sr3-x4",),
    "cdm-base": ("cdm-base-16",),
    "cdm-32": ("cdm-16-32", "cdm-32-64"),
    "cdm-64": ("cdm-16-32", "cdm-32-64"),
    "biggan": ("biggan-64",),
}
"""The shipped weights that each backend serves."""
SHIPPED = sorted({name for names in OF.values() for name in names})


def test_every_weights_file_has_its_backend() -> None:
    """No shipped file and no backend with weights of its own is missing from these tests."""
    assert [path.stem for path in sorted(FOLDER.glob("*.safetensors"))] == SHIPPED
    assert {name for name, entry in ENTRIES.items() if "weights" in entry.optional} == OF.keys()


@pytest.mark.parametrize("name", OF)
def test_a_backend_takes_the_weights_that_are_for_it(name: str) -> None:
    """The default and its kin load by their names, and each is a model of its own."""
    make = ENTRIES[name].load()
    assert len({make(weights=weights).description.digest for weights in OF[name]}) == len(OF[name])


@pytest.mark.parametrize("name", OF)
def test_a_backend_refuses_the_weights_of_all_others(name: str) -> None:
    """One line names the file, both backends, and what to do."""
    make = ENTRIES[name].load()
    for weights in set(SHIPPED) - set(OF[name]):
        owner = next(other for other, own in OF.items() if weights in own)
        line = rf"^weights={weights}: not weights of .*{name}.*; use the backend {owner}.*, or other weights$"
        with pytest.raises(ValueError, match=line):
            make(weights=weights)


@pytest.mark.parametrize("sizes", [{"c_in": 3, "labels": 7}, {"c_in": 9, "labels": 0}])
def test_no_backend_is_named_where_there_is_none(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """A U-Net with labels that no metadata name, such as the portraits' generator, or of other channels."""
    small = sizes | {"channels": 8, "blocks": 1}
    path = tmp_path / "x.safetensors"
    save_file(UNet(**small).state_dict(), path, {"network": json.dumps(small)})
    with pytest.raises(ValueError, match=r"not weights of sr3; use other weights$"):
        ENTRIES["sr3"].load()(weights=str(path))


def test_a_network_of_no_backend_is_named() -> None:
    """The weights of the attribute network are no upscaler's."""
    path = FOLDER.parents[1] / "harness" / "data" / "attributes.safetensors"
    with pytest.raises(ValueError, match=r"^attributes\.safetensors: .*mobilenet: no network of a backend$"):
        ENTRIES["srgan"].load()(weights=str(path))
