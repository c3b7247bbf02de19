"""Whether a search found nothing because the machine is too small for the model."""

from __future__ import annotations

import argparse

from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile


def too_small(args: argparse.Namespace, model: ModelShape, profile: HardwareProfile) -> str | None:
    """One line with what the smallest unit needs and what is there; None where one would fit, or
    where step times are what is missing."""
    from distserve.planner.errors import NoProfile
    from distserve.planner.goodput import Evaluator
    from distserve.planner.machine import Machine
    from distserve.planner.placement_search import PlacementSearch
    from distserve.planner.result import Slo
    from distserve.planner.role_rates import INSTANT
    from distserve.planner.shortage import shortage_of
    from distserve.planner.simulator import InstanceSpec
    from distserve.workload import ArrivalProcess, RequestSet

    colocated, nothing = args.backend == "vllm", RequestSet([1], [1])
    search = PlacementSearch(
        model,
        profile,
        Machine([args.ngpu_per_node] * args.num_node, high_affinity=args.is_high_affinity),
        Evaluator(
            "Colocated" if colocated else "Disaggregated",
            nothing,
            nothing,
            ArrivalProcess("fixed"),
            Slo(args.prefill_target, args.decode_target),
        ),
        {},
        InstanceSpec(INSTANT),
        {},
        1,
    )
    fitting = search.colocated() if colocated else search.pairs()
    if fitting:
        return None
    try:
        return shortage_of(search).reason
    except NoProfile:
        return None
