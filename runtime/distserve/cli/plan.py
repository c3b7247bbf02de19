"""`distserve plan`: parallelism, instances and units for a deployment, and what they will give."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distserve.planner.commands import EXIT_INFEASIBLE, EXIT_OK, EXIT_WRONG_INPUT
from distserve.planner.commands.arguments import add_hardware, add_network, integer_from
from distserve.planner.errors import InvalidRequest, PlannerError
from distserve.workload import WorkloadError, read_requests

KIND = "DistServeDeployment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="the deployment's YAML")
    parser.add_argument("--name", help="which deployment, where the file holds several")
    parser.add_argument("--nodes", type=Path, help="output of `kubectl get nodes -o yaml`")
    parser.add_argument(
        "--ngpu-per-node",
        type=integer_from(1),
        default=8,
        help="node size where --nodes is not given (%(default)d)",
    )
    parser.add_argument(
        "--is-high-affinity",
        action="store_true",
        help="nodes are joined by a fast network: prefill and decode may lie on different ones",
    )
    parser.add_argument("--requests", type=Path, help="request set instead of workload.lengths")
    parser.add_argument("--prefill-tp", type=integer_from(1), help="fix prefill's tensor degree")
    parser.add_argument("--decode-tp", type=integer_from(1), help="fix decode's tensor degree")
    parser.add_argument("--output", choices=("table", "json", "yaml"), default="table")
    parser.add_argument("--figure", type=Path, help="draw attainment over rate")
    add_hardware(parser)
    add_network(parser)
    parser.set_defaults(hardware_profile=None)


def run(args: argparse.Namespace) -> int:
    try:
        return _plan(args)
    except (PlannerError, WorkloadError) as error:
        print(f"distserve plan: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT


def _plan(args: argparse.Namespace) -> int:
    from distserve.planner.commands.arguments import load_hardware
    from distserve.planner.commands.progress import Progress
    from distserve.planner.deployment import (
        machine_of,
        model_of,
        nodes_of,
        plan_document,
        plan_request,
    )
    from distserve.planner.links import DEFAULT_NETWORK
    from distserve.planner.plan import make_plan
    from distserve.planner.profiles import DEFAULT_PROFILE

    deployment = _deployment(args.file, args.name)
    spec = deployment.get("spec") or {}
    planning = spec.get("planning") or {}
    accelerator = spec.get("accelerator") or {}
    named = args.hardware_profile or planning.get("hardwareProfile")
    if accelerator.get("type") == "CPU" and not named:
        raise InvalidRequest(
            "no step times are shipped for CPUs; measure them and give --hardware-profile FILE"
        )
    args.hardware_profile = named or DEFAULT_PROFILE
    resource = accelerator.get("resourceName", "nvidia.com/gpu")
    nodes = nodes_of(_first_document(args.nodes), resource) if args.nodes else None
    fixed = {"prefill": args.prefill_tp, "decode": args.decode_tp, "hybrid": args.prefill_tp}
    request = plan_request(
        deployment,
        load_hardware(args, model_of(spec), "distserve"),
        machine_of(
            spec, nodes, args.ngpu_per_node, args.is_high_affinity, args.network or DEFAULT_NETWORK
        ),
        read_requests(args.requests) if args.requests else None,
        {role: tp for role, tp in fixed.items() if tp is not None},
    )
    progress = Progress("configurations simulated")
    plan = make_plan(request, progress.advance)
    progress.close()
    document = plan_document(plan) | {"hardwareProfile": request.profile.name}
    if args.figure:
        from distserve.planner.commands.plan_figure import draw_attainment

        draw_attainment(args.figure, request, plan)
    _print(document, args.output)
    if plan.feasible:
        return EXIT_OK
    print(f"distserve plan: {plan.reason}", file=sys.stderr)
    return EXIT_INFEASIBLE


def _deployment(path: Path, name: str | None) -> Mapping[str, Any]:
    found = [d for d in _documents(path) if isinstance(d, dict) and d.get("kind") == KIND]
    if name is not None:
        found = [d for d in found if (d.get("metadata") or {}).get("name") == name]
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise InvalidRequest(f"{path} holds {what} {KIND}; name one with --name")
    return found[0]


def _first_document(path: Path) -> Mapping[str, Any]:
    documents = [d for d in _documents(path) if isinstance(d, dict)]
    if not documents:
        raise InvalidRequest(f"{path} is empty; give the output of `kubectl get nodes -o yaml`")
    return documents[0]


def _documents(path: Path) -> list[Any]:
    try:
        import yaml
    except ImportError as error:
        raise InvalidRequest("plan reads YAML: pip install distserve[api]") from error
    try:
        return list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="distserve plan", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
