"""Disaggregated: a prefill instance batches prompts, a decode instance decodes all it has pulled.

Pulling is the scheduler's, since it happens between steps. A decode instance prefills as well:
short prompts that are not worth a transfer, replays, and what it preempted; these go first, as in
Colocated, and a prefill instance may decode for the same reasons.
"""

from collections.abc import Callable

from distserve.api.strategies import DisaggregatedOptions
from distserve.engine.scheduler import Scheduler, Step
from distserve.strategies.disaggregated import grant_whole


def make(options: DisaggregatedOptions) -> Callable[[Scheduler, Step], None]:
    return compose


def compose(scheduler: Scheduler, step: Step) -> None:
    scheduler.prefill(step, grant_whole, scheduler.limits.max_num_batched_tokens)
    if not step.prefills:
        scheduler.decode(step)
