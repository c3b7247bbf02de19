"""Heads of HTTP requests, bounded: uvicorn collects what comes, for as long as it comes.

Of gateway and engine, whose checks of keys and bodies begin when a head is whole.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 << 10
"""Beside what one read brings beyond it. Trailers of a body may be as long."""
HEAD_SECONDS: Final = 10.0
"""From a head's first byte to its last."""
MAX_AHEAD: Final = 100
"""Requests that are sent before those ahead of them are answered."""
_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


class BoundedHeads(HttpToolsProtocol):
    """For uvicorn's `http`. While nothing is answered on a connection, a timer runs: that of a head
    that has begun, else that of idle connections, which uvicorn sets after an answer only."""

    _unused_bytes = 0
    """Since the last that were part of a body, or ended a head or a request."""
    _in_head = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_idle_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._unset_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unused_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._unused_bytes > MAX_HEAD_BYTES or len(self.pipeline) > MAX_AHEAD:
            if self._in_head and not is_answering:
                self.transport.write(_TOO_LONG)
            self.transport.close()
        elif is_answering:
            pass  # it has its own bounds; and what follows may be here, and not read yet
        elif self._in_head:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(
                    HEAD_SECONDS, self.timeout_keep_alive_handler
                )
        else:
            self._set_idle_timer()

    def _set_idle_timer(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # ---- the parser's ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unused_bytes = 0
        self._unset_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused_bytes = 0
        super().on_message_complete()
