"""Backends at other addresses: TLS, client certificates, tokens, what is no backend, and secrets that stay secret."""

import datetime as dt
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from typer.testing import CliRunner

from backends.access import OPEN, Access, read_access
from backends.base import Batch, Progress, Refused
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness.cli import app
from harness.client import Client, Item
from harness.credentials import Credentials, load_credentials
from harness.errors import BackendError, BadRequest, ConfigError, Incompatible, Unauthenticated, Unavailable
from harness.plan import BackendSpec
from harness.processes import LocalServer
from harness.session import Session
from harness.suite import Suite
from protos import SERVICE
from protos.access import read_tokens

TOKEN = "correct-horse-battery"  # noqa: S105 - of these tests alone
EXPIRED = "expired-horse-battery"
ITEMS = [Item(f"p{i}", np.full((8, 8, 3), i, np.uint8), i) for i in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates, keys and tokens: good ones, and one of each kind of bad ones."""
    folder = tmp_path_factory.mktemp("files")
    ours, others = trustme.CA(), trustme.CA()
    now = dt.datetime.now(dt.UTC)
    past = now - dt.timedelta(days=9), now - dt.timedelta(days=1)
    pairs = {
        "server": ours.issue_cert("localhost", "127.0.0.1"),
        "elsewhere": ours.issue_cert("gpu.example.org"),
        "expired": ours.issue_cert("localhost", "127.0.0.1", not_before=past[0], not_after=past[1]),
        "client": ours.issue_cert("client"),
        "stranger": others.issue_cert("client"),
    }
    for name, pair in pairs.items():
        pair.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        pair.private_key_pem.write_to_path(folder / f"{name}.key")
    ours.cert_pem.write_to_path(folder / "ca.pem")
    others.cert_pem.write_to_path(folder / "other.pem")
    (folder / "tokens").write_text(f"{TOKEN} 2999-01-31T00:00:00Z\n{EXPIRED} 2001-01-31T00:00:00+01:00\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    return folder


def demands(files: Path, cert: str = "", client_ca: str = "", token_file: str = "") -> Access:
    """What a server asks, by the names of its files."""
    return read_access(
        "127.0.0.1:0",
        cert=files / f"{cert}.pem" if cert else None,
        key=files / f"{cert}.key" if cert else None,
        client_ca=files / client_ca if client_ca else None,
        token_file=files / token_file if token_file else None,
    )


def shows(files: Path, ca: str = "", cert: str = "", token: str = "") -> Credentials:
    """What a client shows, by the names of its files."""
    pair = (
        (files / f"{cert}.pem").read_bytes() if cert else None,
        (files / f"{cert}.key").read_bytes() if cert else None,
    )
    return Credentials((files / ca).read_bytes() if ca else None, *pair, token)


@contextmanager
def served(access: Access, servicer: UpscalerServicer | None = None) -> Iterator[str]:
    """The address of a server in this process."""
    server, _, port = start(servicer or UpscalerServicer(Nearest()), "127.0.0.1:0", access)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@contextmanager
def connected(address: str, credentials: Credentials) -> Iterator[Client]:
    """A client of an address."""
    client = Client(address, credentials)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ({"cert": "server"}, {"ca": "ca.pem"}),
        ({"cert": "server", "client_ca": "ca.pem"}, {"ca": "ca.pem", "cert": "client"}),
        ({"token_file": "tokens"}, {"token": TOKEN}),
        (
            {"cert": "server", "client_ca": "ca.pem", "token_file": "tokens"},
            {"ca": "ca.pem", "cert": "client", "token": TOKEN},
        ),
    ],
    ids=["tls", "mutual", "token", "all"],
)
def test_who_shows_what_is_asked_is_served(server: dict[str, str], client: dict[str, str], files: Path) -> None:
    """With the right certificates and token, unary and streamed calls give what an open server gives."""
    with served(demands(files, **server)) as address, connected(address, shows(files, **client)) as one:
        one.wait_ready(10)
        for stream in (False, True):
            images = one.upscale(ITEMS, 2, {}, 20, stream=stream).images
            assert np.array_equal(images[:, ::2, ::2], [item.image for item in ITEMS])


@pytest.mark.parametrize(
    ("server", "client", "error", "words"),
    [
        ({"cert": "server"}, {"ca": "other.pem"}, Unauthenticated, "its certificate is not one of the ca"),
        ({"cert": "elsewhere"}, {"ca": "ca.pem"}, Unauthenticated, "belongs to another host name"),
        ({"cert": "expired"}, {"ca": "ca.pem"}, Unauthenticated, "its certificate has expired"),
        ({"cert": "server", "client_ca": "ca.pem"}, {"ca": "ca.pem"}, Unavailable, "asks for a client certificate"),
        (
            {"cert": "server", "client_ca": "ca.pem"},
            {"ca": "ca.pem", "cert": "stranger"},
            Unavailable,
            "may not accept the client certificate",
        ),
        ({"cert": "server"}, {}, Unavailable, "if it speaks TLS, name its ca"),
        ({}, {"ca": "ca.pem"}, Incompatible, "does not speak TLS"),
        ({"token_file": "tokens"}, {}, Unauthenticated, "needs a token: name a token_file in the credentials"),
        ({"token_file": "tokens"}, {"token": "wrong-horse-battery"}, Unauthenticated, "a valid token is needed"),
        ({"token_file": "tokens"}, {"token": EXPIRED}, Unauthenticated, "the token has expired"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(
    server: dict[str, str], client: dict[str, str], error: type[BackendError], words: str, files: Path
) -> None:
    """A wrong certificate or token on either side ends with one line that names the address and what to change."""
    with served(demands(files, **server)) as address, connected(address, shows(files, **client)) as one:
        with pytest.raises(error, match=words) as caught:
            one.wait_ready(1)
        text = str(caught.value)
        assert text.startswith(f"{address}: ")
        assert text.isprintable()
        assert not any(token in text for token in (TOKEN, EXPIRED, "wrong-horse-battery"))


class WebPage(http.server.BaseHTTPRequestHandler):
    """Answers whatever comes with a page of HTTP/1."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Answer without reading."""
        self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that is no backend: of HTTP, or of gRPC without our services."""
    if request.param == "HTTP":
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebPage)
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        web.server_close()
    else:
        other = grpc.server(ThreadPoolExecutor(1))
        port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        yield f"127.0.0.1:{port}"
        other.stop(None).wait()


@pytest.mark.parametrize(
    ("stranger", "ca", "words"),
    [
        ("HTTP", "", "not a gRPC server"),
        ("HTTP", "ca.pem", "does not speak TLS"),
        ("gRPC", "", "a gRPC server, but not an upscaler"),
    ],
    indirect=["stranger"],
)
def test_what_is_not_a_backend_is_one_sentence(stranger: str, ca: str, words: str, files: Path) -> None:
    """An address where something else answers is refused with one line that says what it seems to be."""
    with connected(stranger, shows(files, ca=ca)) as one, pytest.raises(Incompatible, match=words):
        one.wait_ready(1)


class Untouched:
    """Says who it is, and fails the test that makes it work."""

    description = Nearest.description

    def upscale(self, batch: Batch, progress: Progress) -> np.typing.NDArray[np.uint8]:
        """See `Backend.upscale`."""
        progress(0, 1)
        raise AssertionError(batch)


@pytest.mark.parametrize("token", ["", f"Bearer {EXPIRED}", "Bearer wrong-horse-battery", TOKEN, "Basic eA=="])
def test_an_unauthenticated_call_learns_nothing(token: str, files: Path) -> None:
    """Every method, there or not, read or not, gives the same refusal and no other metadata."""
    methods = {
        f"/{SERVICE}/Describe": b"",
        f"/{SERVICE}/Upscale": b"not even a message",
        f"/{SERVICE}/UpscaleStream": b"",
        f"/{SERVICE}/NoSuchMethod": b"",
        "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString(),
        "/grpc.health.v1.Health/Watch": b"",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
            list_services=""
        ).SerializeToString(),
    }
    answers = set()
    access, header = demands(files, token_file="tokens"), (("authorization", token),) if token else ()  # noqa: S106 - a file
    with served(access, UpscalerServicer(Untouched())) as address, grpc.insecure_channel(address) as channel:
        for method, message in methods.items():
            ask: Any = channel.stream_stream(method)
            call = ask(iter([message]), metadata=header)
            with pytest.raises(grpc.RpcError):
                next(call)
            assert not call.initial_metadata()
            answers.add((call.code(), call.details(), call.trailing_metadata()))
    words = "the token has expired" if EXPIRED in token else "a valid token is needed"
    assert answers == {(grpc.StatusCode.UNAUTHENTICATED, words, ())}


class Revoking(UpscalerServicer):
    """Describes itself to anybody, and then no longer knows its callers."""

    calls = 0

    def Upscale(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802 - gRPC's signature
        """Refuse the caller."""
        self.calls += 1
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token has expired")


def test_a_token_that_expires_ends_the_backends_work(tmp_path: Path) -> None:
    """When its credentials are no longer accepted, a backend is given up after one call, with that sentence."""
    suite = Suite.model_validate({"name": "s", "title": "s", "low": 8, "high": 16, "metrics": ("psnr",)})
    servicer = Revoking(Nearest())
    with served(OPEN, servicer) as address:
        session = Session(BackendSpec("x", address, "x", {}), suite, tmp_path, Credentials(token=TOKEN))
        session.open()
        results = session.upscale(ITEMS)
        session.close()
    assert all(isinstance(r, Unauthenticated) and "the token has expired" in str(r) for r in results)
    assert servicer.calls == 1


class Echo:
    """Repeats what it should keep to itself."""

    description = Nearest.description

    def __init__(self, error: Exception) -> None:
        self.error = error

    def upscale(self, batch: Batch, progress: Progress) -> np.typing.NDArray[np.uint8]:
        """See `Backend.upscale`."""
        progress(0, len(batch.ids))
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("x" * 290 + TOKEN), Refused("token", TOKEN)])
def test_a_server_that_repeats_the_token_is_not_quoted(error: Exception) -> None:
    """The token is cut out of a server's words, also where it would be cut in two, before anybody sees them."""
    with served(OPEN, UpscalerServicer(Echo(error))) as address, connected(address, Credentials(token=TOKEN)) as one:
        with pytest.raises(BackendError) as caught:
            one.upscale(ITEMS, 2, {}, 20)
        assert TOKEN[:6] not in str(caught.value)
        assert isinstance(caught.value, BadRequest) == isinstance(error, Refused)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu:1: {ca: ca.pem, token_file: nosuchfile}", "gpu:1: token_file: no file that can be read"),
        ("gpu:1: {token_file: token}", "gpu:1: the token would travel in the clear"),
        ("gpu:1: {cert: client.pem, key: client.key}", "gpu:1: a client certificate needs TLS"),
        ("gpu:1: {ca: ca.pem, cert: client.pem}", "give both"),
        ("gpu:1: {ca: ca.pem, cert: client.pem, key: server.key}", "not a PEM certificate whose unencrypted key"),
        ("gpu:1: {ca: token}", "holds no certificate in PEM form"),
        ("gpu:1: {ca: ca.pem, token_file: tokens}", "holds several tokens"),
        ("gpu:1: {ca: ca.pem, token_file: ca.pem}", "ca.pem:1: a line is TOKEN"),
        (f"gpu:1: {{token: {TOKEN}}}", "gpu:1: token: unknown field"),
        (f"gpu:1: {TOKEN}", "gpu:1: Input should be"),
        ("gpu: {ca: ca.pem}", "an address is HOST:PORT"),
        ("- gpu:1", "an address has ca, cert, key and token_file"),
        (f"{TOKEN}: [", "credentials.yaml:2: not YAML"),
    ],
)
def test_wrong_credentials_are_one_line(text: str, words: str, files: Path) -> None:
    """The file and the address are named, a secret that stands in the wrong place is not."""
    path = files / "credentials.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_credentials(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert message.isprintable()
    assert TOKEN not in message


def test_an_unreadable_credentials_file_is_one_line(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigError, match=r"nosuch\.yaml: cannot be read"):
        load_credentials(tmp_path / "nosuch.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("short", "tokens:1: a line is TOKEN"),
        ("\n" + "t" * 16 + " never ever", "tokens:2: a line is TOKEN"),
        ("t" * 16 + " tomorrow", "tokens:1: an expiry is a time with its zone"),
        ("t" * 16 + " 2030-01-31", "tokens:1: an expiry is a time with its zone"),
    ],
)
def test_wrong_token_files_are_one_line(text: str, words: str, tmp_path: Path) -> None:
    """The line is named, its content is not."""
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_tokens(tmp_path / "tokens")
    assert "tttt" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--address", "0.0.0.0:0", "--token-file", "tokens"], "tokens would reach 0.0.0.0:0 in the clear"),
        (["--tls-cert", "server.pem"], "give both"),
        (["--tls-client-ca", "ca.pem"], "client certificates need TLS"),
        (["--tls-cert", "server.pem", "--tls-key", "client.key"], "whose unencrypted key is"),
        (["--token-file", "nosuchfile"], "nosuchfile"),
    ],
)
def test_a_server_whose_files_do_not_fit_does_not_start(
    options: list[str], words: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is served with half a protection: one line says what is missing."""
    monkeypatch.chdir(files)
    done = CliRunner().invoke(app, ["backends", "serve", "nearest", "--address", "127.0.0.1:0", *options])
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_over_tls_leaves_no_secret_behind(
    files: Path, suite_file: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """`run` and `backends check` reach a protected server, and its token is in no file, output or command line."""
    protection = ["--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "ca.pem"]
    server = LocalServer("lanczos", tmp_path / "log")
    server.settings = [
        str(files / t) if "." in t or t == "tokens" else t for t in (*protection, "--token-file", "tokens")
    ]
    with server:
        credentials = files / "run.yaml"
        entry = "{ca: ca.pem, cert: client.pem, key: client.key, token_file: token}"
        credentials.write_text(f"{server.address}: {entry}\n")
        out = tmp_path / "run"
        command = [
            *(sys.executable, "-m", "harness", "run", suite_file(speed="{images: 2, batch: 1}"), "--limit", "4"),
            *("--dataset", f"folder:{photos}", "--output", out, "--backend", f"mine@{server.address}"),
            *("--credentials", credentials),
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        check = ["backends", "check", server.address]
        assert CliRunner().invoke(app, [*check, "--credentials", str(credentials)]).exit_code == 0
        assert server.process is not None
        assert TOKEN not in " ".join(psutil.Process(server.process.pid).cmdline())
    texts = [done.stdout, done.stderr, *(path.read_bytes() for path in out.rglob("*") if path.is_file())]
    secret = (files / "client.key").read_bytes().splitlines()[1]
    assert not any(word in text for text in [*texts, server.log.read_bytes()] for word in (TOKEN.encode(), secret))
