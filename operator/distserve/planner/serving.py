"""What a deployment adds to the steps of its engines: constants that were measured on one.

A profile's step times are the engine's own, alone on its machine. A client's times also hold the
gateway, HTTP and the hand-over between instances, and what instances that share a machine take from
each other. `distserve profile serving` measures a deployment from outside, `serving_fit` takes the
steps' own times off what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distserve.strategies.time_model import Coefficients, TimeModel


@dataclass(frozen=True, kw_only=True)
class Serving:
    """All 0 where nothing was measured: then a deployment costs what its steps do."""

    request_ms: float = 0.0
    """From the client to the engine's queue and from its first token back, together."""
    busy_request_ms: float = 0.0
    """That these take longer while others decode."""
    prompt_ms: float = 0.0
    """That a prefill step takes longer for each prompt in it."""
    prefill_longer: float = 0.0
    """Share by which it takes longer than in the engine alone, whatever is in it."""
    handover_ms: float = 0.0
    """Between a prefill's end and the moment when its KV can be decoded from elsewhere."""
    step_ms: float = 0.0
    """That each decode step takes longer than the engine alone needs for it."""
    stream_ms: float = 0.0
    """That it takes longer for each request in it, whose token has to be told."""
    padding_ms: float = 0.0
    """That it takes longer for each token that a context is shorter than the longest of the batch:
    of engines that compute them at one length."""
    busy_handover_ms: float = 0.0
    """That a hand-over takes longer while the instance that it leads to decodes."""
    joining_ms: float = 0.0
    """That a request which joins those that decode costs them, whatever its length."""
    decode_slowed: float = 0.0
    """Share by which a decode step takes longer while a neighbour prefills."""
    prefill_slowed: float = 0.0
    """Share by which a prefill takes longer while a neighbour decodes."""

    def __bool__(self) -> bool:
        return self != Serving()

    def way_ms(self, busy: bool) -> float:
        """Of a request, to its queue and back; `busy`: while others decode."""
        return self.request_ms + (self.busy_request_ms if busy else 0.0)

    def between_ms(self, busy: bool) -> float:
        """Of a hand-over besides its transfer; `busy`: while the target decodes."""
        return self.handover_ms + (self.busy_handover_ms if busy else 0.0)

    def as_entry(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Serving:
        """Raises TypeError and ValueError for what is none."""
        return cls(**{name: float(value) for name, value in entry.items()})

    def applied(self, times: TimeModel) -> TimeModel:
        """Step times as they pass in a deployment, beside nobody."""
        if not (self.step_ms or self.stream_ms or self.prefill_longer):
            return times

        def served(decode: Coefficients) -> Coefficients:
            return Coefficients(decode.a + self.step_ms, decode.b, decode.c + self.stream_ms)

        return TimeModel(
            Coefficients(*((1 + self.prefill_longer) * value for value in times.prefill)),
            served(times.decode_small),
            served(times.decode_large),
            times.large_batch,
        )
