"""The nouns of an instance: what it is, and the batches that cross its pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from distserve.planner.batch import DecodeBatch
from distserve.planner.serving import Serving
from distserve.strategies.time_model import TimeModel


@dataclass(frozen=True)
class InstanceSpec:
    """What an instance is: its step times, degrees, memory and scheduling budgets."""

    times: TimeModel
    tp: int = 1
    pp: int = 1
    kv_tokens: int = 1 << 40
    max_batched_tokens: int = 8192
    """Tokens of one prefill step; a longer prompt is cut."""
    max_requests: int = 256
    """Requests of one prefill step of a prefill instance; elsewhere requests that are resident."""
    serving: Serving = field(default_factory=Serving)
    """What a deployment adds; what it adds to each decode step is in `times` already."""

    @property
    def accelerators(self) -> int:
        return self.tp * self.pp


class Chunk(NamedTuple):
    """Part of a prompt: `tokens` from position `start`."""

    request: int
    start: int
    tokens: int

    @property
    def squared_tokens(self) -> int:
        """Its share of the prompt's squared length: it attends to all that came before."""
        return (self.start + self.tokens) ** 2 - self.start**2


@dataclass
class Step:
    """A batch on its way through the pipeline."""

    chunks: list[Chunk] = field(default_factory=list)
    decode: DecodeBatch | None = None
    start_ms: float = 0.0
    first_ms: float = 0.0
    growth_ms: float = 0.0
    rounds: int = 1
    context_tokens: int = 0
    decode_requests: int = 0
    machine_pace: float = 1.0
    """Times as long as it takes on a machine at its mean pace."""
    pace: float = 1.0
    """The same beside the neighbours, who may change it under way."""
    late_ms: float = 0.0
    """By changes of pace under way, and for those who came."""
    end_ms: float = 0.0
    ends_told: int = 0
    """Events that were made of its end; the last one holds."""

    def stage_ms(self, at_round: int) -> float:
        """Of one stage, in a round counted from 1."""
        return self.first_ms + (at_round - 1) * self.growth_ms
