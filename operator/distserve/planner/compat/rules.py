"""The reference's constants and the time of one stage step, shared by both of its simulations."""

from __future__ import annotations

from dataclasses import dataclass

from distserve.strategies.time_model import TimeModel

DECODE_STEP_TOKENS = 50_000
"""Context tokens, new ones included, that one decode step may hold whatever the memory."""

BACK_PRESSURE_TOKENS = 9_000_000
"""A colocated worker with more waiting decode context than this decodes before it prefills."""

ENTRY_MS = 2.0
ENTRY_MS_PER_TOKEN = 0.0001
"""What the first stage of a pipeline adds to each step (the reference's Ray overhead)."""


@dataclass(frozen=True)
class Chain:
    """A pipeline of `pp` stages; each is one worker of the tensor parallel degree of its times."""

    times: TimeModel
    pp: int
    prefill_tokens: int
    """Prompt tokens that one prefill step may hold (the reference's max-token table)."""

    def prefill_stage_ms(self, tokens: int, squared_tokens: int) -> float:
        return self.times.prefill_ms(tokens, squared_tokens, self.pp) + self.pp

    def decode_stage_ms(self, size: int, context_tokens: int) -> float:
        """Each request's context counts one more: the token that this step generates."""
        return self.times.decode_ms(size, context_tokens + size, self.pp)

    @staticmethod
    def entry_ms(context_tokens: int) -> float:
        return ENTRY_MS + context_tokens * ENTRY_MS_PER_TOKEN
