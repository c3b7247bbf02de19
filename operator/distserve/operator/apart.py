"""A part of the process on a thread and an event loop of its own: run by `process` for the lease.

    the process' loop   decide, place, decide ... | SIGTERM: cancel
    apart               renew . renew . renew ... |                 the end of it is waited for

A pass over all that waits in a large cluster takes seconds in which its loop does nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

END_SECONDS: Final = 5.0
"""A daemon thread that does not end by then does not hold up the process."""


async def apart(part: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Runs it there and ends as it does; cancelled, it is cancelled there as well."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    running = asyncio.run_coroutine_threadsafe(part(), loop)
    try:
        await asyncio.wrap_future(running)
    finally:
        running.cancel()
        await asyncio.to_thread(_end, loop, thread)


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """What was cancelled there closes what it has open."""
    try:
        asyncio.run_coroutine_threadsafe(_ended(), loop).result(END_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_SECONDS)
        if not thread.is_alive():
            loop.close()


async def _ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
