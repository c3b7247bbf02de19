"""`simulate search --no-compat`: the reference's configurations judged in the default mode.

Joint attainment, memory and migration time; the bisection and its flags stay the reference's. Only
its upper bound does not: where none is given, it is what the accelerators can do.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace

from distserve.planner.capacity import capacity
from distserve.planner.commands.arguments import load_hardware, load_requests, noted, refuse
from distserve.planner.commands.progress import Progress
from distserve.planner.commands.search import MAX_PER_GPU_RATE
from distserve.planner.compat.search import (
    Configuration,
    Verdict,
    colocated_configurations,
    disaggregated_configurations,
)
from distserve.planner.errors import InvalidRequest, PlannerError
from distserve.planner.fleets import fleet_of
from distserve.planner.goodput import HEADROOM, Evaluator
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.models import find_model
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import Slo
from distserve.planner.strategies import Fleet
from distserve.workload import ArrivalProcess


def judge(args: argparse.Namespace) -> tuple[list[Verdict], HardwareProfile]:
    """The verdict on every configuration, and the profile that it rests on."""
    if args.prefill_percentage != args.decode_percentage:
        raise InvalidRequest(
            "--no-compat judges both targets together: give --prefill-percentage and "
            "--decode-percentage the same value"
        )
    if args.backend == "vllm":
        refuse(args, "with backend vllm", "network")
    model = noted(find_model(args.model_type))
    profile = load_hardware(args, model, args.backend)
    population = load_requests(args)
    evaluator = Evaluator(
        "Colocated" if args.backend == "vllm" else "Disaggregated",
        population.sample(args.N, args.seed),
        population,
        ArrivalProcess(seed=args.seed),
        Slo(args.prefill_target, args.decode_target, args.prefill_percentage),
    )
    if args.backend == "vllm":
        tried = list(colocated_configurations(model, args.num_node * args.ngpu_per_node))
    else:
        tried = list(
            disaggregated_configurations(
                model, args.num_node, args.ngpu_per_node, args.is_high_affinity
            )
        )
    # Step times are those of ranks in one node, which tensor parallelism does not leave.
    tried = [c for c in tried if max(c.tp_prefill, c.tp_decode) <= args.ngpu_per_node]
    fleets, verdicts = {}, {}
    for configuration in tried:
        try:
            fleets[configuration] = fleet_of(
                configuration, model, profile, args.ngpu_per_node, args.network or DEFAULT_NETWORK
            )
        except PlannerError as error:
            verdicts[configuration] = Verdict(configuration, None, str(error))
    limits = {
        configuration: HEADROOM * capacity(fleet, evaluator.mean) / configuration.accelerators
        for configuration, fleet in fleets.items()
    }
    asked: float | None = args.max_per_gpu_rate
    highest = asked or _bound(limits.values())
    progress = Progress("configurations", len(fleets))
    for configuration, fleet in fleets.items():
        limit = limits[configuration]
        verdict = _judge(configuration, fleet, limit, highest, args.esp, evaluator)
        # Without a bound that was asked for it is its capacity that ends it.
        verdicts[configuration] = replace(verdict, unlimited=verdict.unlimited and bool(asked))
        progress.advance()
    progress.close()
    return [verdicts[configuration] for configuration in tried], profile


def _bound(limits: Collection[float]) -> float:
    """At least all `limits`, and the reference's bound doubled: so all probe its grid of rates."""
    bound = MAX_PER_GPU_RATE
    while bound < max(limits, default=0.0):
        bound *= 2
    return bound


def _judge(
    configuration: Configuration,
    fleet: Fleet,
    limit: float,
    highest: float,
    precision: float,
    evaluator: Evaluator,
) -> Verdict:
    """Bisect up to `highest` per accelerator. What is above `limit` is not simulated: a run of few
    requests passes there, and no longer one does."""
    low, high, best, miss = 0.0, highest, 0.0, None
    try:
        while high - low > precision:
            rate = (low + high) / 2
            total = rate * configuration.accelerators
            probe = evaluator.probe(fleet, total) if rate <= limit else None
            if probe and probe.passes:
                low = best = rate
            else:
                high, miss = rate, probe
    except PlannerError as error:
        return Verdict(configuration, None, str(error))
    if best:
        return Verdict(configuration, best, unlimited=high == highest)
    if miss is None:
        return Verdict(
            configuration,
            0.0,
            f"no rate probed: it can do {limit:.3g} requests/s per accelerator, and --esp "
            f"{precision:g} tells no rates apart below; give a smaller one",
        )
    reason = (
        f"at {high:g} requests/s per accelerator fewer than {evaluator.slo.ttft_percent:g} % meet "
        f"both targets, {miss.missed} is missed more often"
    )
    late = (miss.late_first + miss.slow_rest) / max(miss.attainment_percent, 1e-9)
    return Verdict(configuration, 0.0, reason, late)
