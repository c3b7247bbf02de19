"""`distserve plan`: parallelism, instances and units for a deployment, and what they will give."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli import plan_ahead, surroundings
from distserve.cli.cluster_objects import aligned
from distserve.cli.planned import texts_of
from distserve.cli.usage import Infeasible, UsageError
from distserve.planner.commands.arguments import (
    add_hardware,
    add_network,
    integer_from,
    noted,
    picture,
)
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment
    from distserve.cli.surroundings import Around
    from distserve.planner.plan import Plan, PlanRequest
    from distserve.resources.planning import Texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="the deployment's YAML")
    parser.add_argument("--name", help="which deployment, where the file holds several")
    surroundings.add_arguments(parser)
    parser.add_argument(
        "--ngpu-per-node",
        type=integer_from(1),
        help="node size where neither --nodes nor --cluster is given (8)",
    )
    parser.add_argument(
        "--is-high-affinity",
        action="store_true",
        help="nodes are joined by a fast network: prefill and decode may lie on different ones",
    )
    parser.add_argument(
        "--requests",
        "--trace",
        type=Path,
        metavar="FILE",
        help="request set instead of the spec's workload",
    )
    parser.add_argument(
        "--any-ranks",
        action="store_true",
        help="plan instances of more ranks than this build's engine runs, for one that will",
    )
    parser.add_argument("--prefill-tp", type=integer_from(1), help="fix prefill's tensor degree")
    parser.add_argument("--decode-tp", type=integer_from(1), help="fix decode's tensor degree")
    parser.add_argument("--output", choices=("table", "json", "yaml"), default="table")
    parser.add_argument(
        "--figure", type=picture, metavar="FILE", help="draw attainment over rate: PNG, SVG or PDF"
    )
    words = f"the spec's, else {DEFAULT_PROFILE}; CPUs have none shipped"
    add_hardware(parser, default=None, words=words)
    add_network(parser, words=DEFAULT_NETWORK)


def run(args: argparse.Namespace) -> int:
    from distserve.api.loading import ManifestError, read_manifest
    from distserve.planner.errors import PlannerError
    from distserve.resources.errors import RenderError
    from distserve.workload import WorkloadError

    try:
        manifest = read_manifest(args.file)
        deployment = manifest.deployment(args.name)
        return _plan(args, deployment, texts_of(deployment.spec, manifest))
    except (ManifestError, PlannerError, RenderError, WorkloadError) as error:
        raise UsageError(str(error)) from None


def _plan(args: argparse.Namespace, deployment: DistServeDeployment, texts: Texts) -> int:
    from distserve.planner.errors import PlannerError

    _refuse_without_effect(args, deployment)
    around = surroundings.look_around(args, deployment)
    if around is not None and not deployment.spec.planning.automatic:
        plan_ahead.refuse_planning_flags(args)
        return _placed(args, deployment, around, {})
    request = _request(args, deployment, around, texts)
    plan = _made(deployment, request)
    try:
        _told(args, deployment, around, plan)
    except Infeasible as nearest:
        try:
            _draw(args, request, plan)
        except PlannerError as error:
            raise Infeasible(f"{nearest}; {error}") from None
        raise
    _draw(args, request, plan)  # After the plan, which may have taken minutes, is told.
    return 0


def _draw(args: argparse.Namespace, request: PlanRequest, plan: Plan) -> None:
    if not args.figure:
        return
    if not plan.total_goodput or plan.unit is None:
        print(f"distserve plan: nothing to draw into {args.figure}", file=sys.stderr)
        return
    from distserve.planner.commands.plan_figure import draw_attainment

    draw_attainment(args.figure, request, plan)


def _refuse_without_effect(args: argparse.Namespace, deployment: DistServeDeployment) -> None:
    spec = deployment.spec
    if args.ngpu_per_node and (args.nodes or args.cluster):
        raise UsageError("--ngpu-per-node has no effect on nodes that are given; leave it out")
    if args.decode_tp and "decode" not in spec.roles:
        raise UsageError(
            f"--decode-tp has no effect with {spec.strategy.name}, whose instances do both: "
            "give --prefill-tp"
        )
    if args.network and "decode" not in spec.roles:
        raise UsageError(
            f"--network has no effect with {spec.strategy.name}, which moves no KV cache; "
            "leave it out"
        )


def _made(deployment: DistServeDeployment, request: PlanRequest) -> Plan:
    """The plan, with what it gives in as many units as there are to be."""
    from distserve.planner.commands.progress import Progress
    from distserve.planner.plan import in_units, make_plan
    from distserve.resources.planned import plan_status

    progress = Progress("configurations simulated")
    plan = make_plan(request, progress.advance)
    progress.close()
    return in_units(request, plan, plan_status(deployment, plan).units)


def _told(
    args: argparse.Namespace, deployment: DistServeDeployment, around: Around | None, plan: Plan
) -> None:
    """Prints it. Raises Infeasible after that, also where the nodes have no room for its units."""
    from distserve.resources.errors import NoPlan
    from distserve.resources.planned import plan_document, with_plan

    document = plan_document(deployment, plan)
    try:
        planned = with_plan(deployment, plan)
    except NoPlan as error:
        _print(document, args.output)
        raise Infeasible(str(error)) from None
    if around is None:
        _print(document, args.output)
    else:
        _placed(args, planned, around, document)


def _placed(
    args: argparse.Namespace,
    deployment: DistServeDeployment,
    around: Around,
    document: dict[str, Any],
) -> int:
    """Where the numbers go on the nodes that are there. Raises Infeasible, after printing."""
    ahead = plan_ahead.look_ahead(deployment, around, time.time())
    if args.output == "table":
        _print_table(document, "")
        for row in aligned(plan_ahead.ahead_rows(ahead)):
            print(row)
        for note in around.notes:
            print(f"note: {note}", file=sys.stderr)
    else:
        placement = plan_ahead.ahead_document(ahead, around)
        _print({**document, "placement": placement}, args.output)
    if not ahead.course.fits:
        raise Infeasible(ahead.shortage)
    return 0


def _request(
    args: argparse.Namespace, deployment: DistServeDeployment, around: Around | None, texts: Texts
) -> PlanRequest:
    """The deployment's question, as far as no flag says otherwise."""
    from distserve.resources.planning import (
        NODE_ACCELERATORS,
        machine_of,
        model_of,
        plan_request,
        profile_of,
    )
    from distserve.workload import read_requests

    spec = deployment.spec
    model = noted(model_of(spec, files_at_hand=True))
    nodes = plan_ahead.node_sizes(deployment, around.inventory) if around else None
    within = around is not None and spec.topology.pack_within is not None
    counted = around if nodes and within else None
    domains = plan_ahead.domain_sizes(deployment, counted.inventory) if counted else ()
    network = args.network or DEFAULT_NETWORK
    per_node = args.ngpu_per_node or NODE_ACCELERATORS
    fixed = {"prefill": args.prefill_tp, "decode": args.decode_tp, "hybrid": args.prefill_tp}
    return plan_request(
        spec,
        machine_of(spec, nodes, per_node, args.is_high_affinity, network, domains),
        profile_of(spec, model, args.hardware_profile, args.estimate, texts),
        read_requests(args.requests) if args.requests else None,
        {role: tp for role, tp in fixed.items() if tp is not None},
        texts,
        args.any_ranks,
        model,
    )


def _print(document: dict[str, Any], output: str) -> None:
    if output == "json":
        print(json.dumps(document, indent=1))
    elif output == "yaml":
        import yaml

        print(yaml.safe_dump(document, sort_keys=False), end="")
    else:
        _print_table(document, "")


def _print_table(document: Mapping[str, Any], prefix: str) -> None:
    for key, value in document.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            _print_table(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            print(f"{prefix + key:32}" + "  ".join(f"{k} {v}" for k, v in value.items()))
        else:
            print(f"{prefix + key:32}{value}")
