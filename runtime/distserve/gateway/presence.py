"""Whether a client is still there: what is done for it before its request runs ends with it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from distserve.gateway.errors import ClientGone, DeadlineExceeded

Made = TypeVar("Made")


async def while_waited_for(
    making: Coroutine[Any, Any, Made], receive: Receive, seconds: float
) -> Made:
    """What is made, in so much time. The request's body must have been read. Raises what it raises,
    ClientGone, DeadlineExceeded."""
    made = asyncio.create_task(making)
    gone = asyncio.create_task(until_gone(receive))
    try:
        await asyncio.wait(
            {made, gone}, timeout=max(seconds, 0.0), return_when=asyncio.FIRST_COMPLETED
        )
        if made.done():
            return made.result()
        if gone.done():
            raise ClientGone("the client left before its text was tokenised")
        raise DeadlineExceeded("the request took longer than --request-timeout allows")
    finally:
        made.cancel()
        gone.cancel()
        await asyncio.gather(made, gone, return_exceptions=True)


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
