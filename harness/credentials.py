"""How addresses are spoken to: TLS, client certificates and tokens, named in one file beside the commands.

The file maps addresses to the names of other files, relative to itself; an address that it leaves out is spoken to in
the clear, without a token:

    gpu-1.example.org:50051:
      ca: ca.pem           # the authorities that may have issued the server's certificate: turns TLS on
      cert: client.pem     # our own certificate and its key, where the server asks for one
      key: client.key
      token_file: token    # one line: the bearer token
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from harness.errors import ConfigError, one_line
from harness.plan import check_address
from protos.access import HEADER, SCHEME, check_pem, is_loopback, read_tokens


@dataclass(frozen=True)
class Credentials:
    """How one address is spoken to; `ca`, `cert` and `key` are PEM, without `ca` nothing is encrypted."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.Channel:
        """A channel to `host:port`."""
        if self.ca is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(self.ca, self.key, self.cert), options)
        return grpc.intercept_channel(channel, _WithToken(self.token)) if self.token else channel


OPEN = Credentials()
"""In the clear, without a token."""


class _WithToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call: gRPC's own call credentials refuse loopback without TLS."""

    def __init__(self, token: str) -> None:
        self.header = (HEADER, SCHEME + token)

    def _add(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:  # noqa: ANN401 - gRPC's signature
        return continuation(details._replace(metadata=[*(details.metadata or ()), self.header]), request)

    intercept_unary_unary = intercept_unary_stream = _add  # type: ignore[assignment] # its types name the arguments
    intercept_stream_unary = intercept_stream_stream = _add  # type: ignore[assignment] # as above


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None


def load_credentials(path: Path | None) -> dict[str, Credentials]:
    """The credentials of each address that a file names; none without a file.

    Raises:
        ConfigError: the file, or one that it names, cannot be used; the message never quotes a secret.
    """
    if path is None:
        return {}
    entries = _entries(path)
    for address in entries:
        try:
            check_address(address)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return {address: _credentials(path, address, entry) for address, entry in entries.items()}


def _entries(path: Path) -> dict[str, _Entry]:
    try:
        data = yaml.safe_load(path.read_text())
        return TypeAdapter(dict[str, _Entry]).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ": ".join(one_line(str(part), 60) for part in (path, *first["loc"]))
        problem = "unknown field" if first["type"] == "extra_forbidden" else one_line(first["msg"])
        raise ConfigError(f"{where}: {problem}; an address has ca, cert, key and token_file, all files") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML") from error


def _credentials(path: Path, address: str, entry: _Entry) -> Credentials:
    where = f"{path}: {address}"
    files = {name: path.parent / file for name, file in entry if file is not None}
    if "ca" not in files and "cert" in files:
        raise ConfigError(f"{where}: a client certificate needs TLS: name the server's ca")
    if "ca" not in files and "token_file" in files and not is_loopback(address):
        raise ConfigError(f"{where}: the token would travel in the clear: name the server's ca, or use localhost")
    data = {name: _read(f"{where}: {name}", file) for name, file in files.items()}
    try:
        check_pem(files.get("ca"), files.get("cert"), files.get("key"))
        token = _one_token(files["token_file"]) if "token_file" in files else ""
    except ValueError as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from error
    return Credentials(data.get("ca"), data.get("cert"), data.get("key"), token)


def _read(where: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:  # the name of the file stays unsaid: somebody may have put the token in its place
        raise ConfigError(f"{where}: no file that can be read: {error.strerror}") from error


def _one_token(path: Path) -> str:
    token, *others = read_tokens(path)
    if others:
        raise ValueError(f"{path}: holds several tokens; a client sends one")
    return token.value
