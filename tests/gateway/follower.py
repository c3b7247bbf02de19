"""Somebody who follows a discovery by EndpointSlices, and notes what it says."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from distserve.gateway.discovery import Endpoint
from distserve.gateway.slice_discovery import Pace, SliceDiscovery

WAIT_SECONDS = 20.0
QUICK = Pace(first_pause_seconds=0.01, max_pause_seconds=0.05, quick_seconds=0.0)


@dataclass(eq=False)
class Follower:
    discovery: SliceDiscovery
    seen: list[list[Endpoint]] = field(default_factory=list)

    async def follow(self) -> None:
        async for endpoints in self.discovery.watch():
            self.seen.append(endpoints)

    @property
    def ready(self) -> list[str]:
        """Who may get work by the last word."""
        last = self.seen[-1] if self.seen else []
        return [e.name for e in last if e.ready and not e.terminating]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_ready(self, *names: str) -> None:
        await self.until(lambda: bool(self.seen) and self.ready == list(names))
