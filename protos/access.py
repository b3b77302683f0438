"""What both sides agree on about who may call: bearer tokens, and the files of TLS."""

import datetime as dt
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

HEADER = "authorization"
"""Key of the metadata that carries the token."""
SCHEME = "Bearer "
"""What stands before the token (RFC 6750)."""


@dataclass(frozen=True)
class Token:
    """A bearer token and when it expires; None is never."""

    value: str = field(repr=False)
    expires: dt.datetime | None = None


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file, one a line: `TOKEN`, or `TOKEN EXPIRY` with an ISO 8601 time that has a zone.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is wrong, or there is none; the message holds nothing of the file.
    """
    lines = path.read_bytes().decode("ascii", "replace").splitlines()
    tokens = [_token(line.split(), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not tokens:
        raise ValueError(f"{path}: holds no token")
    return tokens


def _token(words: list[str], where: str) -> Token:
    value, *rest = words
    if len(rest) > 1 or not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,4096}", value):
        raise ValueError(f"{where}: a line is TOKEN [EXPIRY]; a token has 16 or more letters, digits and ._~+/=-")
    return Token(value, _expiry(rest[0], where) if rest else None)


def _expiry(text: str, where: str) -> dt.datetime:
    try:
        expires = dt.datetime.fromisoformat(text)
    except ValueError:
        expires = None
    if expires is None or expires.tzinfo is None:
        raise ValueError(f"{where}: an expiry is a time with its zone, such as 2030-01-31T12:00:00Z")
    return expires


def is_loopback(address: str) -> bool:
    """Whether `host:port` names this machine alone, so that what is sent there stays on it."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_pem(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Refuse files that TLS could not use: authorities, and a certificate with its unencrypted key.

    Raises:
        OSError: a file cannot be read.
        ValueError: one without the other, not in PEM form, or a key that is not the certificate's.
    """
    if (cert is None) != (key is None):
        raise ValueError("a certificate and its key belong together: give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for path in (ca, cert, key):
        if path is not None:
            path.read_bytes()  # its error names the file, that of `ssl` does not
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ValueError(f"{ca}: holds no certificate in PEM form") from error
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # else an encrypted key asks the terminal
    except ssl.SSLError as error:
        raise ValueError(f"{cert}: not a PEM certificate whose unencrypted key is {key}") from error
