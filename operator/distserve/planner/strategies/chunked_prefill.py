"""ChunkedPrefill: every step decodes all running requests and fills up with pieces of prompts.

As SplitFuse and Sarathi do: a step holds at most `chunkTokens` tokens, one for each running
request and the rest for the prompts at the head of the queue, cut where the budget ends.
"""

from __future__ import annotations

from distserve.planner.simulator import Instance, Step
from distserve.planner.strategies.colocated import Colocated

DEFAULT_CHUNK_TOKENS = 512


class ChunkedPrefill(Colocated):
    def choose(self, instance: Instance) -> Step | None:
        budget = int(self.fleet.options.get("chunkTokens", DEFAULT_CHUNK_TOKENS))
        batch = instance.take_ready()
        chunks = instance.take_chunks(
            max(budget - (batch.size if batch else 0), 1), self.whole_context
        )
        return Step(chunks, batch) if chunks or batch else None
