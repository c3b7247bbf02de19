"""Durations as users write them (`250ms`, `30s`, `10m`): shared by the types and their readers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
MAX_LENGTH = 32
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds. Units ms, s, m and h, largest first or not, as in `1m30s`. Raises ValueError."""
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is no duration: write a number and ms, s, m or h, as in 250ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def _positive(text: str) -> str:
    if parse_duration(text) <= 0:
        raise ValueError("a duration above zero is needed")
    return text


Duration = Annotated[str, Field(pattern=PATTERN, max_length=MAX_LENGTH), AfterValidator(_positive)]
"""Kept as written, so that what is rendered reads like what was asked."""
