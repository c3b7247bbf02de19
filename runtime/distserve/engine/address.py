"""Reserves the process's address before the model is loaded: a port in use shows at once."""

import socket

SILENT_SECONDS = 30
"""A peer that says nothing for so long is asked whether it is still there."""
ASK_EVERY_SECONDS = 10
UNREAD_SECONDS = 90
"""A peer that acknowledges nothing for so long, or has no room for more, is gone: its legs give up
their seats and blocks. Gateways read all the time, and one that is stuck for 60 s is restarted."""


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address; uvicorn listens on it once there is something to say.

    Raises OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections have these from the socket that accepts them. A node that is lost closes none.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_SECONDS)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_EVERY_SECONDS)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
