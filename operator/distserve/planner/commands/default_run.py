"""`simulate run --no-compat`: one run in the default mode, any strategy, several instances."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

from distserve.planner.commands import EXIT_OK
from distserve.planner.commands.arguments import load_hardware, noted, refuse
from distserve.planner.commands.run import (
    configuration_of,
    requests_of,
    write_csv,
    write_results,
)
from distserve.planner.fleets import fleet_of
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.models import find_model
from distserve.planner.simulator import Simulation, StepRecord
from distserve.planner.strategies import strategy_class
from distserve.workload import ArrivalProcess

DEFAULT_NODE = 8
EVENTS = (
    ("init", "arrival_ms"),
    ("do_prefill", "prefill_ms"),
    ("first_token", "first_token_ms"),
    ("do_migration", "migration_ms"),
    ("wait_decode", "migrated_ms"),
    ("do_decode", "decode_ms"),
    ("exit_system", "finish_ms"),
)


def run(args: argparse.Namespace, arrivals: ArrivalProcess) -> int:
    if args.backend == "vllm":
        refuse(args, "with backend vllm", "decode_instances", "ngpu_per_node", "network")
    else:
        refuse(args, "with backend distserve", "colocated_strategy")
    configuration = configuration_of(args)
    model = noted(find_model(args.model))
    profile = load_hardware(args, model, args.backend)
    fleet = fleet_of(
        configuration,
        model,
        profile,
        args.ngpu_per_node or DEFAULT_NODE,
        args.network or DEFAULT_NETWORK,
        args.prefill_instances or 1,
        args.decode_instances or 1,
    )
    trace = arrivals.trace(requests_of(args, arrivals, args.N), args.rate)
    logged = args.output_worker is not None
    simulation = Simulation(trace, step_by_step=logged, log=[] if logged else None)
    name = (
        "Disaggregated" if args.backend == "distserve" else args.colocated_strategy or "Colocated"
    )
    result = simulation.run(strategy_class(name)(simulation, fleet))
    if args.output_worker:
        write_csv(args.output_worker, StepRecord._fields, simulation.log or [])
    if args.output_request_event:
        write_csv(
            args.output_request_event,
            ("start_time", "event_type", "req_id"),
            _request_events(simulation),
        )
    write_results(args, model.name, configuration, result, profile.estimated)
    return EXIT_OK


def _request_events(simulation: Simulation) -> Iterator[tuple[Any, ...]]:
    """Each request's stages in order; those that it did not pass are left out."""
    for request in range(len(simulation.trace)):
        for event, name in EVENTS:
            source = simulation.trace if name == "arrival_ms" else simulation.life
            time_ms = getattr(source, name)[request]
            if not math.isnan(time_ms):
                yield time_ms, event, request
