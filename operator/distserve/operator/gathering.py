"""When units that come together are decided together: read by `placing` before each pass.

    alone     come ---------> decided at once
    several   come, come, come, come, quiet ----> decided together, no later than `longest`
                    '- the window opens

A unit that was placed stays there, so those that come in one apply pack better as one pass than
one after another; the first of them cannot be told from one that comes alone, and does not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_SECONDS = 0.3
"""Units that come no further apart than this come together."""
LONGEST_SECONDS = 2.0
"""Where they do not stop coming, what has come is decided."""


@dataclass
class Gathering:
    quiet_seconds: float = QUIET_SECONDS
    longest_seconds: float = LONGEST_SECONDS
    opened: float | None = None
    """When the second of them came; None while nothing is waited for."""
    _last: float | None = None

    def come(self, now: float) -> None:
        """A unit came that was not asked for before."""
        last, self._last = self._last, now
        if self.opened is None and last is not None and 0 <= now - last <= self.quiet_seconds:
            self.opened = now

    def left_seconds(self, now: float) -> float:
        """Until those that came may be decided."""
        if self.opened is None or self._last is None:
            return 0.0
        if now < self.opened:
            return 0.0  # The clock was put back: nobody can tell how long they have waited.
        end = min(self._last + self.quiet_seconds, self.opened + self.longest_seconds)
        return max(0.0, end - now)

    def done(self) -> None:
        """They were decided."""
        self.opened = None
