"""Plans and backend specifications."""

import pytest

from harness.errors import ConfigError
from harness.plan import conditions, parse_backend
from harness.suite import parse_suite


def test_backend_text_is_read() -> None:
    """NAME, address, options and the label are told apart."""
    spec = parse_backend("sr3@localhost:50051,steps=4,name=sr3 fast")
    assert (spec.name, spec.address, spec.label, spec.options) == (
        "sr3",
        "localhost:50051",
        "sr3 fast",
        {"steps": "4"},
    )
    assert parse_backend("bicubic").label == "bicubic"


def test_a_backend_is_told_what_it_will_be_asked() -> None:
    """Settings go to the start alone, hints to the start and to every request; a remote one has requests only."""
    hinted = parse_backend("realesrgan,model=animevideov3,name=anime")
    assert (hinted.settings, hinted.options) == ({"model": "animevideov3"}, {"model": "animevideov3"})
    replay = parse_backend("replay,outputs=here")
    assert (replay.settings, replay.options) == ({"outputs": "here"}, {})
    remote = parse_backend("realesrgan@localhost:1,model=animevideov3")
    assert (remote.settings, remote.options) == ({}, {"model": "animevideov3"})


@pytest.mark.parametrize("text", ["sr3,steps", "sr3,steps=1,steps=2", "sr3,=1", ",", "sr3,name=<script>", "sr3,name="])
def test_wrong_backend_text_is_refused(text: str) -> None:
    """What is not NAME[@ADDRESS][,option=value]... is a ConfigError."""
    with pytest.raises(ConfigError, match="backend"):
        parse_backend(text)


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.1:65535", "[::1]:50051", "gpu-1.example.org:50051"])
def test_addresses_are_host_and_port(address: str) -> None:
    """Names, numbers and bracketed IPv6 with a port are addresses."""
    assert parse_backend(f"sr3@{address}").address == address


def test_replicas_have_an_address_each() -> None:
    """Addresses are joined by plus signs; a local backend has none, and no address may be there twice."""
    assert parse_backend("sr3@a:1+[::1]:2,steps=4").addresses == ["a:1", "[::1]:2"]
    assert parse_backend("sr3").addresses == []
    with pytest.raises(ConfigError, match="a:1 is there twice"):
        parse_backend("sr3@a:1+b:1+a:1")


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost", ":50051", "localhost:", "localhost:0", "localhost:65536", "localhost:x", "localhost:٣"),
        *("http://localhost:80", "::1:50051", "a/b:50051", "a b:50051", "localhost:50051/x", "local\nhost:50051"),
        *("a:1+", "a:1++b:1", "a:1+b"),
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    """What is not HOST:PORT with a port from 1 to 65535 is refused in one line."""
    with pytest.raises(ConfigError, match="an address is HOST:PORT") as caught:
        parse_backend(f"sr3@{address}")
    assert "\n" not in str(caught.value)


def test_what_moves_pixels_is_scored_by_consistency_alone() -> None:
    """Corruptions follow the clean condition, each at each severity; the ground truth judges only those in place."""
    text = "name: s\ntitle: s\nlow: 4\nhigh: 8\nmetrics: [psnr, lpips_alex, lr_mse, lr_psnr]\n"
    part = "corruptions: {names: [zoom_blur, fog], severities: [1, 3], images: 2, metrics: [psnr, lr_mse]}\n"
    found = [(c.folder, metrics) for c, metrics in conditions(parse_suite(text + part, "s.yaml"))[1:]]
    moved, still = ("lr_mse",), ("psnr", "lr_mse")
    assert found == [("zoom_blur-1", moved), ("zoom_blur-3", moved), ("fog-1", still), ("fog-3", still)]
    everything = parse_suite(text + "corruptions: {names: all, images: 2}\n", "s.yaml").corruptions
    assert everything is not None
    assert len(everything.names) == 23
