"""How long what came to nothing is not tried again."""

from typing import Final

FIRST_SECONDS: Final = 60.0


def pause_seconds(attempts: int, longest: float) -> float:
    """After so many, at least one: doubled each time, up to `longest`."""
    return min(longest, FIRST_SECONDS * 2.0 ** min(attempts - 1, 10))
