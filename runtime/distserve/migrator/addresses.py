"""host:port as it is written in hand-offs and flags."""

import asyncio
import errno
import socket

from distserve.migrator.errors import TransportError


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Raises TransportError for anything but host:port."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise TransportError(f"unreachable: {address!r} is no host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def dial(address: str, timeout_seconds: float) -> socket.socket:
    """A connected non-blocking TCP socket. Raises TransportError."""
    host, port = split(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_seconds):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, target = found[0]
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                await loop.sock_connect(sock, target)
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        raise TransportError(f"unreachable: {address} does not answer") from None
    except OSError as error:
        raise TransportError(f"unreachable: {address}: {error.strerror or error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OverflowError as error:
        listener.close()
        raise OSError(errno.EINVAL, str(error)) from None  # A port beyond 65535.
    except OSError:
        listener.close()
        raise
    return listener
