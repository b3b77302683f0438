"""`Gradient` through real servers: the derivative of linear maps, and typed refusals."""

from collections.abc import Callable

import numpy as np
import pytest

from backends.server import UpscalerServicer, start
from harness.client import Client, FloatItem, Floats
from harness.errors import BackendFailed, BadRequest, Incompatible
from harness.resize import resize
from protos.upscaler.v1 import upscaler_pb2 as pb
from tests.harness.test_contract import Model

Serve = Callable[[str], Client]
RNG = np.random.default_rng(0)


def floats(*shape: int) -> Floats:
    """Values on the 0..255 scale that are no whole levels."""
    return RNG.uniform(0, 255, shape).astype(np.float32)


@pytest.mark.parametrize("name", ["bicubic", "lanczos", "nearest"])
def test_the_gradient_of_a_linear_map_is_its_transpose(serve: Serve, name: str) -> None:
    """<B x, c> = <x, B' c> for images of any shape: B' c is what comes back, whatever x is."""
    images, weights = floats(2, 6, 9, 3), RNG.standard_normal((2, 24, 36, 3)).astype(np.float32)
    items = [FloatItem(str(i), image, 0, w) for i, (image, w) in enumerate(zip(images, weights, strict=True))]
    for item, answer in zip(items, serve(name).gradient(items, 4, {}, 20), strict=True):
        assert answer.gradient is not None
        left, right = (
            np.vdot(a.astype(np.float64), b)
            for a, b in ((answer.output, item.cotangent), (item.image, answer.gradient))
        )
        assert left == pytest.approx(right, rel=1e-6)


def test_outputs_are_neither_clipped_nor_rounded(serve: Serve) -> None:
    """Bicubic overshoots at an edge beyond 255, and what comes back is the resize in floats."""
    image = np.zeros((8, 8, 3), np.float32)
    image[:, 4:] = 254.6
    (answer,) = serve("bicubic").gradient([FloatItem("edge", image, 0)], 4, {}, 20)
    assert answer.output.max() > 255
    assert answer.gradient is None
    np.testing.assert_allclose(answer.output, resize(image, 32, 32), atol=1e-4)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (FloatItem("a", np.full((16, 16, 3), np.nan, np.float32), 0), r"images\[0\]\.data holds values that are not"),
        (FloatItem("a", floats(16, 16, 3), 0, np.zeros((16, 16, 3), np.float32)), r"images\[0\]\.cotangent has 3072"),
        (FloatItem("a", floats(15, 16, 3), 0), "at least 16 x 16"),
    ],
)
def test_bad_requests_are_refused_by_field(serve: Serve, item: FloatItem, words: str) -> None:
    """Values that are not finite, a cotangent of the input's size, and a size not taken are each named."""
    with pytest.raises(BadRequest, match=words):
        serve("srgan").gradient([item], 4, {}, 20)


def test_a_request_too_large_for_its_answer_is_refused(serve: Serve) -> None:
    """What would not fit in a message is refused before anything is computed."""
    with pytest.raises(BadRequest, match="send fewer or smaller"):
        serve("bicubic").gradient([FloatItem("a", np.zeros((200, 200, 3), np.float32), 0)], 16, {}, 20)


def test_an_overflow_is_an_error_of_the_model(serve: Serve) -> None:
    """Where finite values become infinite on the way, the answer is an error and not an infinity."""
    huge = np.full((4, 4, 3), np.finfo(np.float32).max)
    huge[:, 2:] = 0
    with pytest.raises(BackendFailed, match="not finite"):
        serve("bicubic").gradient([FloatItem("a", huge, 0)], 4, {}, 20)


def test_a_backend_without_the_capability_is_incompatible() -> None:
    """The client says so without a call, and the server refuses one that is made nevertheless."""
    server, _, port = start(UpscalerServicer(Model()), "127.0.0.1:0")
    client, item = Client(f"127.0.0.1:{port}"), FloatItem("a", floats(4, 4, 3), 0)
    try:
        with pytest.raises(Incompatible, match="model does not offer Gradient"):
            client.gradient([item], 4, {}, 20)
        client.description = None
        client.describe().capabilities.append(pb.CAPABILITY_GRADIENT)
        with pytest.raises(Incompatible, match="model has no gradient"):
            client.gradient([item], 4, {}, 20)
    finally:
        client.close()
        server.stop(None).wait()
