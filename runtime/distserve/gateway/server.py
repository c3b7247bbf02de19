"""The gateway's process: a socket, a server, and an end that lets streams finish."""

import math
import signal
import socket
from types import FrameType

import uvicorn

from distserve.gateway.app import make_app
from distserve.gateway.service import Gateway
from distserve.gateway.settings import Settings
from distserve.wire.heads import BoundedHeads
from distserve.wire.tracing import Tracing

BACKLOG = 2048
UNREAD_SECONDS = 60
"""How much longer than a request a client may take nothing that was sent to it."""
FAIL_SECONDS = 1
"""For the error events of what did not end in time."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients and load balancers keep idle connections, so that they close them first."""


class _Server(uvicorn.Server):
    """Tells the gateway of the signal that ends it. Uvicorn's own would raise it again at the end;
    a process that ended as it was asked to has exit code 0."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        if not self.should_exit and self.started:
            self._gateway.begin_shutdown()
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def serve(settings: Settings, bound: socket.socket, tracing: Tracing) -> None:
    """Until SIGTERM or SIGINT."""
    # Connections have it from the socket that accepts them. Closing alone waits for the client to
    # read what was sent: with one that stopped, for ever.
    unread_ms = int((settings.request_timeout_seconds + UNREAD_SECONDS) * 1000)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    # A connection whose request was answered before all of its body came has no other timer.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
    gateway = Gateway(settings)
    config = uvicorn.Config(
        make_app(gateway, tracing),
        loop="uvloop",
        http=BoundedHeads,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + FAIL_SECONDS,
    )
    _Server(config, gateway).run(sockets=[bound])
