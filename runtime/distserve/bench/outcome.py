"""The nouns of a measurement: a request to be sent, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distserve.workload import NO_OBJECTIVES, Objectives

CONNECTION_FAILURES = ("cannot connect", "connection lost", "truncated")
"""How failures begin of requests whose connection was not to be had, or broke: the server or the
way to it was gone."""


@dataclass(frozen=True)
class Planned:
    """One request and its instant, in seconds from the start of the run."""

    index: int
    at_seconds: float
    prompt: str | Sequence[int]
    prompt_tokens: int
    output_tokens: int
    own: Objectives = NO_OBJECTIVES
    """Comes before the run's objectives, for this request alone."""


@dataclass
class Outcome:
    """What the client saw of one request; times are seconds of one monotonic clock."""

    index: int
    prompt_tokens: int
    """As planned; of a text as the server counted it, where it told."""
    output_tokens: int
    """As asked; `tokens` is what came."""
    planned: float
    sent: float
    ended: float
    """Of a streamed text its last token or finish reason, whichever is later; else the answer's."""
    token_times: Sequence[float] = ()
    tokens: int = 0
    own: Objectives = NO_OBJECTIVES
    lifecycle: Mapping[str, float] | None = None
    """Instants in seconds since the server had the request, where it told."""
    prompt_tokens_off: int = 0
    """The server's count of the prompt less the planned one; 0 where it did not tell."""
    failure: str | None = None
    """Why it counts as failed, short enough to be counted; None for a complete answer."""

    @property
    def complete(self) -> bool:
        return self.failure is None

    @property
    def lag_seconds(self) -> float:
        """How late the client was; a fault of the client, never of the server."""
        return self.sent - self.planned

    @property
    def latency(self) -> float:
        return self.ended - self.sent

    @property
    def ttft(self) -> float | None:
        return self.token_times[0] - self.sent if self.token_times else None

    @property
    def tpot(self) -> float | None:
        """Mean time between tokens after the first; 0 for a single token, as DistServe has it."""
        if not self.token_times:
            return None
        if len(self.token_times) == 1:
            return 0.0
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)
