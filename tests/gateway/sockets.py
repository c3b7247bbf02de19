"""What the kernel was asked to do for a connection."""

import socket

import aiohttp

from distserve.gateway.keepalive import KEEPALIVE


def assert_kept_alive(answer: aiohttp.ClientResponse) -> None:
    assert answer.status == 200 and answer.connection is not None
    assert answer.connection.transport is not None
    used = answer.connection.transport.get_extra_info("socket")
    assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for option, value in KEEPALIVE.items():
        assert used.getsockopt(socket.IPPROTO_TCP, option) == value
