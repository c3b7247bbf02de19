"""Colocated: prompts first, whole; when none can run, all that decodes."""

from collections.abc import Callable

from distserve.api.strategies import ColocatedOptions
from distserve.engine.scheduler import Scheduler, Step
from distserve.strategies.colocated import grant_whole


def make(options: ColocatedOptions) -> Callable[[Scheduler, Step], None]:
    return compose


def compose(scheduler: Scheduler, step: Step) -> None:
    scheduler.prefill(step, grant_whole, scheduler.limits.max_num_batched_tokens)
    if not step.prefills:
        scheduler.decode(step)
