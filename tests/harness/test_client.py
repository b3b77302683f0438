"""The client turns every way in which a backend can fail into one typed error."""

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness.client import Client, Item, typed_options
from harness.errors import (
    BackendError,
    BackendFailed,
    ConfigError,
    ContractBroken,
    DeadlineExceeded,
    Incompatible,
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


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("steps", str(2**63), "type integer"),
        ("steps", str(-(2**63) - 1), "type integer"),
        ("steps", "9" * 5000, "type integer"),
        ("sampler", "magic", "choose one of ddim"),
        ("evil\nname\x1b[31m" + "x" * 5000, "magic", "choose one of"),
    ],
)
def test_option_errors_are_bounded_lines(name: str, text: str, words: str) -> None:
    """Integers beyond 64 bits are refused, and what a backend lists can neither break nor fill the message."""
    choices = ["ddim", "dd\x1b[31m\npm", "y" * 100_000]
    description = pb.DescribeResponse(
        name="x",
        options=[
            pb.OptionSpec(name="steps", default_value=pb.OptionValue(integer=8)),
            pb.OptionSpec(name="sampler", default_value=pb.OptionValue(text="ddim"), choices=choices),
            pb.OptionSpec(
                name="evil\nname\x1b[31m" + "x" * 5000, default_value=pb.OptionValue(text="a"), choices=["a"]
            ),
        ],
    )
    with pytest.raises(ConfigError, match=words) as caught:
        typed_options({name: text}, description)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_unknown_options_are_bounded_lines() -> None:
    """The name of an option that a backend lacks is cut in the message."""
    with pytest.raises(ConfigError, match="has no option") as caught:
        typed_options({"z" * 5000: "1"}, pb.DescribeResponse(name="x"))
    assert len(str(caught.value)) < 600


class Describes(UpscalerServicer):
    """Describes itself with one more option."""

    option = pb.OptionSpec()

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: N802 - gRPC's name
        """Add the option."""
        answer = super().Describe(request, context)
        answer.options.append(self.option)
        return answer


@pytest.mark.parametrize(
    "option", [pb.OptionSpec(name="steps"), pb.OptionSpec(default_value=pb.OptionValue(integer=1))]
)
def test_options_without_name_or_default_are_incompatible(option: pb.OptionSpec) -> None:
    """A description whose options cannot be set is refused before anything is sent."""
    servicer = Describes(Nearest())
    servicer.option = option
    server, _, port = start(servicer, "127.0.0.1:0")
    client = Client(f"127.0.0.1:{port}")
    with pytest.raises(Incompatible, match="option without a name or a default"):
        client.describe()
    client.close()
    server.stop(None).wait()


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Where the log's folder is a file, the backend is unavailable and the message says what stands there."""
    (tmp_path / "logs").write_text("a file")
    server = LocalServer("nearest", tmp_path / "logs" / "nearest.log")
    with pytest.raises(Unavailable, match=r"nearest cannot be started: .*logs") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert not server.alive()
