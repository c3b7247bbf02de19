"""The deployment key: read from its file, checked in HTTP headers, proved on migrators' sockets.

Two migrators prove to each other that they hold the key without showing it (fixed sizes, so that
a stranger learns nothing, not even the length of a message)::

    dialer                                            listener
      | MAGIC, purpose, dialer's nonce ------------------> |
      | <----------------------------- listener's nonce    |
      | HMAC(key, "dialer", purpose, both nonces) -------> |  wrong: closes without a word
      | <--- HMAC(key, "listener", purpose, both nonces)   |

A proof names its direction and what the connection is for, so it can neither be reflected nor be
used on another kind of connection; both nonces are new each time, so it cannot be replayed.
"""

import asyncio
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final, Protocol

MINIMUM_KEY_BYTES: Final = 32
MAGIC: Final = b"DSKV\x01"
PURPOSE_BYTES: Final = 8
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = hashlib.sha256().digest_size


class KeyFileError(Exception):
    """The key file is missing, unreadable, too short, or no header can carry it."""


class AuthError(Exception):
    """The other side did not prove that it holds this deployment's key."""


class ByteStream(Protocol):
    """What a proof travels on."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises IncompleteReadError or OSError."""
        ...


class AsyncioStream:
    """A ByteStream over asyncio's pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, count: int) -> bytes:
        return await self._reader.readexactly(count)


def read_key(path: str | Path) -> bytes:
    """The key without surrounding whitespace (editors and `echo` add a newline).

    Raises KeyFileError.
    """
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise KeyFileError(
            f"cannot read the deployment key from {path}: {error.strerror}; "
            "--key-file names the file that holds it"
        ) from error
    if len(key) < MINIMUM_KEY_BYTES:
        raise KeyFileError(
            f"the deployment key in {path} has {len(key)} bytes, at least {MINIMUM_KEY_BYTES} are "
            "needed; `openssl rand -hex 32` makes one"
        )
    if not all(0x20 <= byte < 0x7F for byte in key):
        raise KeyFileError(
            f"the deployment key in {path} has other bytes than printable ASCII, which no HTTP "
            "header carries; `openssl rand -hex 32` makes one that it does"
        )
    return key


def bearer(key: bytes) -> str:
    """Value of the Authorization header that carries the key."""
    return "Bearer " + key.decode("latin-1")


def has_key(authorization: str | None, key: bytes) -> bool:
    """Whether an Authorization header carries the key, compared in constant time."""
    scheme, _, token = (authorization or "").partition(" ")
    given = token.strip().encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, key) and scheme.lower() == "bearer"


async def prove_as_dialer(stream: ByteStream, key: bytes, purpose: str) -> None:
    """Raises AuthError when the listener does not hold the key or closes. Bound it in time."""
    label = _label(purpose)
    nonce = secrets.token_bytes(NONCE_BYTES)
    try:
        await stream.send(MAGIC + label + nonce)
        nonces = nonce + await stream.receive(NONCE_BYTES)
        await stream.send(_proof(key, b"dialer", label, nonces))
        answer = await stream.receive(PROOF_BYTES)
    except asyncio.IncompleteReadError as error:
        raise AuthError(
            "the peer closed the connection: it belongs to another deployment (its key differs), "
            "or it is shutting down"
        ) from error
    if not hmac.compare_digest(answer, _proof(key, b"listener", label, nonces)):
        raise AuthError("the peer does not hold this deployment's key")


async def prove_as_listener(stream: ByteStream, key: bytes, purposes: frozenset[str]) -> str:
    """The purpose that the dialer named. Raises AuthError; the caller then closes at once."""
    try:
        opening = await stream.receive(len(MAGIC) + PURPOSE_BYTES + NONCE_BYTES)
        label = opening[len(MAGIC) : len(MAGIC) + PURPOSE_BYTES]
        purpose = label.rstrip(b"\0").decode("ascii", "replace")
        if not opening.startswith(MAGIC) or purpose not in purposes:
            raise AuthError("a connection that does not speak this protocol")
        nonce = secrets.token_bytes(NONCE_BYTES)
        await stream.send(nonce)
        nonces = opening[len(MAGIC) + PURPOSE_BYTES :] + nonce
        answer = await stream.receive(PROOF_BYTES)
        if not hmac.compare_digest(answer, _proof(key, b"dialer", label, nonces)):
            raise AuthError("a peer without this deployment's key")
        await stream.send(_proof(key, b"listener", label, nonces))
    except asyncio.IncompleteReadError as error:
        raise AuthError("a connection that ended before it had proved its key") from error
    return purpose


def _label(purpose: str) -> bytes:
    return purpose.encode("ascii").ljust(PURPOSE_BYTES, b"\0")


def _proof(key: bytes, direction: bytes, label: bytes, nonces: bytes) -> bytes:
    return hmac.new(key, direction + b"\0" + label + nonces, hashlib.sha256).digest()
