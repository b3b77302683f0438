"""Who may call a server: TLS, client certificates and bearer tokens, all from files."""

import datetime as dt
import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from protos.access import HEADER, SCHEME, Token, check_pem, is_loopback, read_tokens

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(frozen=True)
class Access:
    """What a server asks of its callers; nothing by default."""

    credentials: grpc.ServerCredentials | None = None
    tokens: tuple[Token, ...] = ()

    def interceptors(self) -> list[grpc.ServerInterceptor]:
        """What stands before every call."""
        return [BearerTokens(self.tokens)] if self.tokens else []

    def listen(self, server: grpc.Server, address: str) -> int:
        """Open the port; returns its number.

        Raises:
            RuntimeError: nothing can listen there.
        """
        if self.credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.credentials)


OPEN = Access()
"""Everybody may call, in the clear."""


def read_access(
    address: str,
    *,
    cert: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    token_file: Path | None = None,
) -> Access:
    """What a server at `address` asks, from PEM files and a file of tokens.

    Raises:
        OSError, ValueError: a file cannot be used, or they do not go together.
    """
    check_pem(client_ca, cert, key)
    if client_ca is not None and cert is None:
        raise ValueError("client certificates need TLS: give --tls-cert and --tls-key")
    if token_file is not None and cert is None and not is_loopback(address):
        raise ValueError(f"tokens would reach {address} in the clear: give --tls-cert and --tls-key, or use localhost")
    credentials = None
    if cert is not None and key is not None:
        root = client_ca.read_bytes() if client_ca else None
        pair = (key.read_bytes(), cert.read_bytes())
        credentials = grpc.ssl_server_credentials([pair], root, require_client_auth=client_ca is not None)
    return Access(credentials, tuple(read_tokens(token_file)) if token_file else ())


class BearerTokens(grpc.ServerInterceptor):
    """Ends every call without a valid token, before a byte of its request is read."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = {_hash(token.value): token.expires for token in tokens}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Let the call through, or answer in its place, whether there is such a method or not."""
        given = str(dict(handler_call_details.invocation_metadata).get(HEADER, ""))
        problem = self.problem(given.removeprefix(SCHEME) if given.startswith(SCHEME) else "")
        return _refusal(problem) if problem else continuation(handler_call_details)

    def problem(self, given: str) -> str:
        """What is wrong with a token; "" if nothing is. Takes as long for a wrong token as for a right one."""
        found = [expires for known, expires in self.tokens.items() if hmac.compare_digest(known, _hash(given))]
        if not found:
            return "a valid token is needed"
        expired = found[0] is not None and found[0] <= dt.datetime.now(dt.UTC)
        return "the token has expired" if expired else ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _refusal(problem: str) -> Handler:
    def answer(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, problem)

    return grpc.stream_stream_rpc_method_handler(answer)
