"""ChunkedPrefill: every step decodes all running requests and fills up with pieces of prompts.

As SplitFuse and Sarathi do: a step holds at most `chunkTokens` tokens, one for each running
request and the rest for the prompts at the head of the queue, cut where the budget ends.
"""

from __future__ import annotations

from distserve.planner.simulator import Instance, Step
from distserve.planner.strategies.colocated import Colocated
from distserve.strategies.chunked_prefill import grant_chunk, step_tokens


class ChunkedPrefill(Colocated):
    def choose(self, instance: Instance) -> Step | None:
        option = self.fleet.options.get("chunkTokens")
        size = step_tokens(option, instance.spec.max_batched_tokens)
        batch = instance.take_ready()
        room = max(size - (batch.size if batch else 0), 0)
        chunks = instance.take(grant_chunk, room, instance.seats, self.whole_context)
        return Step(chunks, batch) if chunks or batch else None
