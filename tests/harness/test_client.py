"""The client turns every way in which a backend can fail into one typed error."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.client import Client, Item, typed_options
from harness.errors import (
    BackendError,
    BackendFailed,
    ConfigError,
    ContractBroken,
    DeadlineExceeded,
    Unavailable,
)
from harness.processes import LocalServer
from protos.upscaler.v1 import upscaler_pb2 as pb

PIXELS = np.zeros((8, 8, 3), np.uint8)
ITEMS = [Item("a", PIXELS, 0), Item("b", PIXELS, 0)]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("nan", BackendFailed, "not finite"),
        ("wrong_shape", BackendFailed, "shape"),
        ("crash", BackendFailed, "crashed on purpose"),
        ("out_of_memory", BackendFailed, "out of memory"),
        ("hang", DeadlineExceeded, "deadline"),
        ("lie_size", ContractBroken, "33 x 32"),
        ("lie_digest", ContractBroken, "digest"),
        ("lie_time", ContractBroken, "claims"),
        ("missing", ContractBroken, "1 images came back"),
        ("wrong_id", ContractBroken, "in their order"),
        ("short_data", ContractBroken, "bytes"),
        ("oversized", ContractBroken, "larger than a message"),
    ],
)
def test_faults_become_typed_errors(
    serve: Callable[[str], Client], fault: str, error: type[BackendError], words: str
) -> None:
    """Each misbehaviour is reported as its own error, in one line that says what happened."""
    deadline = 0.5 if fault == "hang" else 20
    with pytest.raises(error, match=words) as caught:
        serve("faulty").upscale(ITEMS, 4, {"fault": fault}, deadline)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_backend_that_dies_is_unavailable(tmp_path: Path) -> None:
    """A process that ends during a call gives Unavailable, and restarting the server brings it back."""
    with LocalServer("faulty", tmp_path / "log") as server:
        client = Client(server.address)
        with pytest.raises(Unavailable):
            client.upscale(ITEMS, 4, {"fault": "die"}, 20)
        client.close()
        server.start()
        again = Client(server.address)
        assert again.upscale(ITEMS, 4, {}, 20).images.shape == (2, 32, 32, 3)
        again.close()


def test_nothing_at_the_address() -> None:
    """An address where nothing listens is said to be unreachable within the time given."""
    client = Client("127.0.0.1:9")
    with pytest.raises(Unavailable, match="no gRPC server"):
        client.wait_ready(1)
    client.close()


def test_a_backend_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The last line of the log is part of the error."""
    with pytest.raises(Unavailable, match="ended while starting"):
        LocalServer("no-such-backend", tmp_path / "log").start()


def test_options_are_typed_by_the_description() -> None:
    """Text from a command line becomes the type that the backend lists; what does not fit is refused."""
    description = pb.DescribeResponse(
        name="x",
        options=[
            pb.OptionSpec(name="steps", default_value=pb.OptionValue(integer=8), minimum=1, maximum=100),
            pb.OptionSpec(name="eta", default_value=pb.OptionValue(number=0.5)),
            pb.OptionSpec(name="fast", default_value=pb.OptionValue(boolean=False)),
            pb.OptionSpec(name="sampler", default_value=pb.OptionValue(text="ddim"), choices=["ddim", "ddpm"]),
        ],
    )
    typed = typed_options({"steps": "4", "fast": "true"}, description)
    assert typed == {"steps": 4, "eta": 0.5, "fast": True, "sampler": "ddim"}
    for name, text in {"steps": "four", "eta": "x", "fast": "maybe", "sampler": "magic", "colour": "red"}.items():
        with pytest.raises(ConfigError, match=name):
            typed_options({name: text}, description)
    with pytest.raises(ConfigError, match="between 1 and 100"):
        typed_options({"steps": "101"}, description)
