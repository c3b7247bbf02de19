"""`simulate search --no-compat`: the reference's configurations judged in the default mode.

Joint attainment, memory and migration time; the bisection and its flags stay the reference's.
"""

from __future__ import annotations

import argparse

from distserve.planner.commands.arguments import load_hardware, load_requests
from distserve.planner.commands.progress import Progress
from distserve.planner.compat.search import (
    Configuration,
    Verdict,
    colocated_configurations,
    disaggregated_configurations,
)
from distserve.planner.errors import InvalidRequest, PlannerError
from distserve.planner.fleets import fleet_of
from distserve.planner.goodput import Evaluator
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.models import ModelShape, find_model
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import Slo
from distserve.workload import ArrivalProcess


def judge(args: argparse.Namespace) -> tuple[list[Verdict], HardwareProfile]:
    """The verdict on every configuration, and the profile that it rests on."""
    if args.prefill_percentage != args.decode_percentage:
        raise InvalidRequest(
            "--no-compat judges both targets together: give --prefill-percentage and "
            "--decode-percentage the same value"
        )
    model = find_model(args.model_type)
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
    progress = Progress("configurations", len(tried))
    verdicts = []
    for configuration in tried:
        verdicts.append(_judge(configuration, args, model, profile, evaluator))
        progress.advance()
    progress.close()
    return verdicts, profile


def _judge(
    configuration: Configuration,
    args: argparse.Namespace,
    model: ModelShape,
    profile: HardwareProfile,
    evaluator: Evaluator,
) -> Verdict:
    low, high, best, miss = 0.0, args.max_per_gpu_rate, 0.0, None
    try:
        fleet = fleet_of(
            configuration, model, profile, args.ngpu_per_node, args.network or DEFAULT_NETWORK
        )
        while high - low > args.esp:
            rate = (low + high) / 2
            probe = evaluator.probe(fleet, rate * configuration.accelerators)
            if probe.passes:
                low = best = rate
            else:
                high, miss = rate, probe
    except PlannerError as error:
        return Verdict(configuration, None, str(error))
    if best:
        return Verdict(configuration, best)
    if miss is None:
        return Verdict(configuration, 0.0, "no rate probed")
    reason = (
        f"at {high:g} requests/s per accelerator fewer than {args.prefill_percentage:g} % meet "
        f"both targets, {miss.missed} is missed more often"
    )
    late = (miss.late_first + miss.slow_rest) / max(miss.attainment_percent, 1e-9)
    return Verdict(configuration, 0.0, reason, late)
