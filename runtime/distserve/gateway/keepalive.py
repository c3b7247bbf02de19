"""Sockets whose lost partner the kernel notices: a machine that is gone, or behind a cut network,
ends no connection. For streams that may be quiet for long: the API server's and the engines'."""

import socket

import aiohttp

KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds and times: it is noticed after half a minute without a word."""


def kept_alive(address: aiohttp.AddrInfoType) -> socket.socket:
    """A connector's `socket_factory`."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
