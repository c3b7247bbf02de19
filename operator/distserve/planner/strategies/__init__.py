"""The planner's half of each strategy: which instances there are, and what runs next where.

One file per strategy, named in `REGISTRY`; a new strategy adds a file and a line.
"""

from __future__ import annotations

from distserve.planner.errors import InvalidRequest
from distserve.planner.strategies.chunked_prefill import ChunkedPrefill
from distserve.planner.strategies.colocated import Colocated
from distserve.planner.strategies.disaggregated import Disaggregated
from distserve.planner.strategies.fleet import Fleet, SimulatedStrategy

REGISTRY: dict[str, type[SimulatedStrategy]] = {
    "Disaggregated": Disaggregated,
    "Colocated": Colocated,
    "ChunkedPrefill": ChunkedPrefill,
}


def strategy_class(name: str) -> type[SimulatedStrategy]:
    try:
        return REGISTRY[name]
    except KeyError:
        raise InvalidRequest(
            f"the planner cannot simulate the strategy {name}; choose one of {', '.join(REGISTRY)}"
        ) from None


__all__ = ["REGISTRY", "Fleet", "SimulatedStrategy", "strategy_class"]
