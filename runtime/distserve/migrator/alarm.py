"""One timer for many deadlines: rings when the earliest may have passed."""

import asyncio
from collections.abc import Callable


class Alarm:
    """`ring()` looks at all deadlines and returns the next one, None when there is none."""

    def __init__(self, ring: Callable[[], float | None]) -> None:
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def at(self, deadline: float) -> None:
        """Ring at this loop time, or earlier if that was asked before."""
        if self._handle is not None:
            if self._handle.when() <= deadline:
                return
            self._handle.cancel()
        self._handle = asyncio.get_running_loop().call_at(deadline, self._go)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _go(self) -> None:
        self._handle = None
        following = self._ring()
        if following is not None:
            self.at(following)
