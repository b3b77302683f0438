"""Upscalers in ONNX files: scale and sizes found by trials, conventions from a YAML file, served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.base import Batch
from backends.foreign.files import MAX_SIDE
from backends.foreign.onnx import ONNX
from harness.contract import check

onnx = pytest.importorskip("onnx", reason="builds the files")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after it is known to be there

Dims = tuple[int | str, ...]
NCHW: Dims = ("n", 3, "h", "w")


def ignore(_done: int, _total: int) -> None:
    """Nobody waits for progress."""


def node(kind: str, *names: str, **attributes: Any) -> Any:
    """A node that maps the names but the last to the last."""
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


def save(path: Path, nodes: list[Any], shape: Dims = NCHW, **constants: NDArray[np.generic]) -> Path:
    """A network from `x` of a shape to `y`, whose nodes may use the constants."""
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None)))
    graph = helper.make_graph(nodes, "network", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def enlarge(source: str) -> Any:
    """A node that repeats the pixels of `source` by the constant `factors`."""
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return node("Resize", source, "", "factors", "y", **how)


def repeating(path: Path, factors: tuple[float, ...] = (1, 1, 3, 3), shape: Dims = NCHW) -> Path:
    """A network that repeats pixels."""
    return save(path, [enlarge("x")], shape, factors=np.array(factors, np.float32))


def in_blocks(path: Path) -> Path:
    """A network that needs sides that are multiples of 4: it folds blocks of pixels into channels and back, twofold."""
    fold, unfold = node("SpaceToDepth", "x", "d", blocksize=4), node("DepthToSpace", "d", "u", blocksize=4)
    return save(path, [fold, unfold, enlarge("u")], factors=np.array((1, 1, 2, 2), np.float32))


def upscaled(backend: ONNX, side: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Two images of noise and what becomes of them."""
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    scale = backend.description.scales[0]
    return images, backend.upscale(Batch(images, scale, ("a", "b"), (0, 1)), ignore)


def repeated(images: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Pixels repeated."""
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def test_scale_and_sizes_are_found(tmp_path: Path) -> None:
    """The scale is that of the output; any size, multiples of a block, and the one size of a fixed network."""
    any_size = ONNX(str(repeating(tmp_path / "any.onnx"))).description
    assert (any_size.scales, any_size.minimum, any_size.multiple_of) == ((3,), 1, 1)
    blocks = ONNX(str(in_blocks(tmp_path / "blocks.onnx"))).description
    assert (blocks.scales, blocks.minimum, blocks.multiple_of) == ((2,), 4, 4)
    fixed = ONNX(str(repeating(tmp_path / "fixed.onnx", shape=(1, 3, 24, 24)))).description
    assert (fixed.scales, fixed.minimum, fixed.maximum) == ((3,), 24, 24)
    assert len({any_size.digest, blocks.digest, fixed.digest}) == 3


def test_pixels_go_through_as_they_are(tmp_path: Path) -> None:
    """By default images are RGB, channels first, from 0 to 1."""
    images, output = upscaled(ONNX(str(repeating(tmp_path / "x.onnx"))))
    np.testing.assert_allclose(output, repeated(images, 3), atol=1e-3)


def test_conventions_stand_beside_the_file(tmp_path: Path) -> None:
    """Other channels, places, range and licence come from the YAML; it is part of the digest."""
    path = repeating(tmp_path / "x.onnx", (1, 2, 2, 1), ("n", "h", "w", 3))
    (tmp_path / "x.yaml").write_text("{layout: nhwc, order: bgr, low: -1, high: 1, licence: CC0-1.0}")
    backend = ONNX(str(path))
    images, output = upscaled(backend)
    np.testing.assert_allclose(output, repeated(images, 2), atol=1e-3)
    assert backend.description.licence == "CC0-1.0"
    (tmp_path / "x.yaml").write_text("{layout: nhwc, low: -1, high: 1, licence: CC0-1.0}")
    assert ONNX(str(path)).description.digest != backend.description.digest


def test_the_network_sees_the_range_and_the_order_it_was_made_for(tmp_path: Path) -> None:
    """What is handed over are values from low to high, blue first where the YAML says so."""
    nodes = [node("Mul", "x", "mask", "m"), node("Add", "m", "half", "y")]
    mask = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    path = save(tmp_path / "x.onnx", nodes, mask=mask, half=np.array(127.5, np.float32))
    (tmp_path / "x.yaml").write_text("{order: bgr, low: -127.5, high: 127.5}")
    images, output = upscaled(ONNX(str(path)))
    np.testing.assert_allclose(output[..., 2], images[..., 2] + 127.5, atol=1e-3)  # the first channel is blue
    np.testing.assert_allclose(output[..., :2], 255, atol=1e-3)  # 0 + 127.5 is white


def test_a_served_network_keeps_the_contract(tmp_path: Path) -> None:
    """`onnx:PATH` names it; no check of the contract kit finds anything wrong."""
    assert [r for r in check(f"onnx:{in_blocks(tmp_path / 'x.onnx')}") if not r.passed] == []


def outside(path: Path) -> None:
    """Weights in another file, wherever that is."""
    repeating(path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    path.write_bytes(model.SerializeToString())


def outside_reversed(path: Path) -> None:
    """The same, the place written before the word that says what it is."""
    outside(path)
    key, value = b"\x0a\x08location", b"\x12\x0b/etc/passwd"
    data = path.read_bytes()
    assert key + value in data
    path.write_bytes(data.replace(key + value, value + key))


def two_inputs(path: Path) -> None:
    """A second input."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, NCHW) for name in ("x", "z", "y")]
    graph = helper.make_graph([node("Add", "x", "z", "y")], "network", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def grey(path: Path) -> None:
    """An input of one channel."""
    repeating(path, shape=("n", 1, "h", "w"))


def oblong(path: Path) -> None:
    """A fixed input that is not square."""
    repeating(path, shape=(1, 3, 16, 32))


def shrinking(path: Path) -> None:
    """An output that is smaller than the input."""
    repeating(path, factors=(1, 1, 0.5, 0.5))


def uneven(path: Path) -> None:
    """An output that is larger in one direction."""
    repeating(path, factors=(1, 1, 2, 1))


def pickled(path: Path) -> None:
    """Something else."""
    path.write_bytes(b"\x80\x04not a network")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (outside, "keeps weights in other files"),
        (outside_reversed, "keeps weights in other files"),
        (two_inputs, "one input of four dimensions"),
        (grey, "not one square RGB image"),
        (oblong, "not one square RGB image"),
        (shrinking, "not an enlarged RGB image"),
        (uneven, "not an enlarged RGB image"),
        (pickled, "not a network in ONNX"),
    ],
)
def test_what_is_no_upscaler_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    """A file that is no network from one RGB image to a larger one is refused by one line, as are hidden weights."""
    make(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=rf"x\.onnx: .*{message}") as caught:
        ONNX(str(tmp_path / "x.onnx"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [0, MAX_SIDE + 1, 60_000])
def test_a_fixed_side_out_of_bounds_is_refused(tmp_path: Path, side: int) -> None:
    """What the file says of its input is checked before an image of that size is made."""
    path = repeating(tmp_path / "x.onnx", shape=(1, 3, side, side))
    with pytest.raises(ValueError, match=rf"x\.onnx: takes images of {side} pixels; 1 to {MAX_SIDE} are accepted$"):
        ONNX(str(path))


def test_the_largest_fixed_side_is_taken(tmp_path: Path) -> None:
    """The bound itself is within."""
    path = repeating(tmp_path / "x.onnx", (1, 1, 1, 1), (1, 3, MAX_SIDE, MAX_SIDE))
    assert ONNX(str(path)).description.maximum == MAX_SIDE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{layout: hwc}", "layout"),
        ("{scale: 4}", "scale"),
        ("{low: 1, high: 0}", "low must be below high"),
        ("{high: .inf}", "high"),
        ("[1, 2]", "valid dictionary"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_wrong_conventions_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """A YAML file with something unknown or impossible in it is refused by one line that names it."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.yaml: .*{message}") as caught:
        ONNX(str(repeating(tmp_path / "x.onnx")))
    assert "\n" not in str(caught.value)
