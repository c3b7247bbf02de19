"""Judges many configurations on the processors that there are.

Configurations with one prefill chain stay together: its simulations are shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from distserve.planner.compat.search import Configuration, Search, Verdict
from distserve.planner.errors import PlannerError

WORTH_PROCESSES = 64
"""Below so many configurations starting processes costs more than it saves."""


def judge_all(
    search: Search,
    tried: Sequence[Configuration],
    highest: float,
    precision: float,
    progress: Callable[[], None],
) -> list[Verdict]:
    """A verdict on every configuration, in their order."""
    processors = _processors()
    if len(tried) < WORTH_PROCESSES or processors < 2:
        verdicts = []
        for configuration in tried:
            verdicts.append(search.best_rate(configuration, highest, precision))
            progress()
        return verdicts

    # Imported here: they take longer than a small search.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    groups: dict[tuple[int, int], list[Configuration]] = {}
    for configuration in tried:
        chain = configuration.tp_prefill, configuration.pp_cross * configuration.pp_prefill
        groups.setdefault(chain, []).append(configuration)
    found: dict[Configuration, Verdict] = {}
    context = multiprocessing.get_context("fork")  # what is imported need not be imported again
    with ProcessPoolExecutor(processors, mp_context=context) as pool:
        futures = [
            pool.submit(_judge_group, search, group, highest, precision)
            for group in sorted(groups.values(), key=len, reverse=True)
        ]
        try:
            for future in as_completed(futures):
                for verdict in future.result():
                    found[verdict.configuration] = verdict
                    progress()
        except BrokenProcessPool as error:
            raise PlannerError(
                "a search process was killed, perhaps for memory; give it more or search less"
            ) from error
    return [found[configuration] for configuration in tried]


def _processors() -> int:
    """Those that this process may use; all where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _judge_group(
    search: Search, group: Sequence[Configuration], highest: float, precision: float
) -> list[Verdict]:
    return [search.best_rate(configuration, highest, precision) for configuration in group]
