"""A run's parameters as they act, however they were typed or kept. Called by `bench run` for what
it keeps, on resuming and by the report for what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distserve.bench.question import TOKEN_IDS
from distserve.workload import ArrivalProcess

OF_EACH_RATE = "of each rate"
"""The parameter `prompts` of a run whose prompts are made up. Runs without it were made when all
rates began with the same ones."""


def as_they_act(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Each meaning by one name, without what has no effect; what is not told stays so.

    Raises ValueError, TypeError or AttributeError where these are no parameters.
    """
    acting = dict(parameters.items())
    if "request_distribution" in acting:
        acting |= _arrivals(acting)
    if "prompt_format" in acting:
        acting |= _prompts(acting)
    if acting.get("rate") == math.inf:
        acting["rate"] = "inf"  # JSON has no such number
    return acting


def _arrivals(parameters: Mapping[str, Any]) -> dict[str, Any]:
    own = ("cv", "burst_size")
    given = {name: parameters[name] for name in own if parameters.get(name) is not None}
    arrivals = ArrivalProcess(parameters["request_distribution"], **given)
    return {
        "request_distribution": arrivals.kind,
        "cv": arrivals.cv if arrivals.kind == "gamma" else None,
        "burst_size": arrivals.burst_size if arrivals.kind == "burst" else None,
    }


def _prompts(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Runs keep now what `auto` came to. Of earlier ones the set tells: of all files only a .ds has
    texts."""
    kind = parameters["prompt_format"]
    if parameters.get("endpoint") == "chat":
        kind = "text"
    elif kind == "auto":
        dataset = str(parameters.get("dataset")).removesuffix(".gz")
        kind = "text" if Path(dataset).suffix == ".ds" else "tokens"
    ids = None if kind == "text" else parameters.get("token_ids") or TOKEN_IDS
    shared = parameters.get("shared_prefixes")  # earlier runs had none, whatever the set says
    return {"prompt_format": kind, "token_ids": ids, "shared_prefixes": shared}
