"""The fuzz check: a few hundred calls in CI, and what it would find."""

from collections.abc import Callable

import grpc
import pytest

from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from benchmarks.fuzz import Fuzzer, fuzz
from harness.client import Client
from harness.errors import ConfigError
from protos.upscaler.v1 import upscaler_pb2 as pb


def test_fuzzed_calls_are_answered_or_refused(serve: Callable[[str], Client]) -> None:
    """Every valid call is answered correctly, every other one with a typed error, and the server lives on."""
    outcome = fuzz(serve("bicubic").address, 600)
    assert outcome.failures == []
    assert {status for _, status in outcome.counts} >= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert outcome.counts.total() == 600


def test_a_number_makes_the_same_call_again(serve: Callable[[str], Client]) -> None:
    """A failure can be looked at by its number: the call depends on nothing else."""
    first, second = (Fuzzer(serve("nearest").address) for _ in range(2))
    assert [first.shot(i).messages for i in range(60)] == [second.shot(i).messages for i in reversed(range(60))][::-1]
    first.close()
    second.close()


def test_a_generator_is_refused(serve: Callable[[str], Client]) -> None:
    """A backend without scales gets one line that says so."""
    with pytest.raises(ConfigError, match="cdm-base enlarges nothing"):
        Fuzzer(serve("cdm-base").address)


class Careless(UpscalerServicer):
    """Computes whatever comes."""

    def Upscale(self, request: pb.UpscaleRequest, context: grpc.ServicerContext) -> pb.UpscaleResponse:  # noqa: N802 - gRPC's name
        """Answer without a look at the request."""
        return self.compute(request, context, lambda _done, _total: None)


def test_a_careless_server_is_found() -> None:
    """A server that accepts bad requests, or fails on them with an untyped error, is reported for both."""
    server, _, port = start(Careless(Nearest()), "127.0.0.1:0")
    try:
        failures = " ".join(fuzz(f"127.0.0.1:{port}", 300).failures)
    finally:
        server.stop(None).wait()
    assert "was accepted" in failures
    assert "was answered with UNKNOWN" in failures
