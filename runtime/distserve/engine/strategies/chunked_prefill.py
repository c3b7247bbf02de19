"""ChunkedPrefill: every step decodes all that runs and fills the rest with pieces of prompts."""

from collections.abc import Callable

from distserve.api.strategies import ChunkedPrefillOptions
from distserve.engine.scheduler import Scheduler, Step
from distserve.strategies.chunked_prefill import grant_chunk, step_tokens


def make(options: ChunkedPrefillOptions) -> Callable[[Scheduler, Step], None]:
    def compose(scheduler: Scheduler, step: Step) -> None:
        tokens = step_tokens(options.chunk_tokens, scheduler.limits.max_num_batched_tokens)
        scheduler.decode(step)
        scheduler.prefill(step, grant_chunk, tokens)

    return compose
