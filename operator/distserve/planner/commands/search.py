"""`distserve simulate search`: the best parallelism for one workload on one machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from distserve.planner.commands import EXIT_INFEASIBLE, EXIT_OK, EXIT_WRONG_INPUT
from distserve.planner.commands.arguments import (
    add_backend,
    add_network,
    add_source,
    integer_from,
    load_hardware,
    load_requests,
    noted,
    number_in,
    refuse,
    refuse_in_compat,
)
from distserve.planner.commands.progress import Progress
from distserve.planner.commands.too_small import too_small
from distserve.planner.compat.parallel import judge_all
from distserve.planner.compat.search import (
    Configuration,
    Search,
    Verdict,
    colocated_configurations,
    disaggregated_configurations,
    nearest_miss,
    winner,
)
from distserve.planner.models import find_model
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import Slo
from distserve.workload import ArrivalProcess

MAX_PER_GPU_RATE = 5.0
"""Requests per second and accelerator: where the reference stops looking unless told otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ngpu-per-node", type=integer_from(1), default=4)
    parser.add_argument("--num-node", type=integer_from(1), default=1)
    parser.add_argument(
        "--is-high-affinity",
        action="store_true",
        help="nodes are joined by a fast network: an instance may span them anyhow",
    )
    add_backend(parser)
    parser.add_argument(
        "--prefill-target", type=number_in(0), default=200.0, help="TTFT in ms (%(default)g)"
    )
    parser.add_argument(
        "--decode-target", type=number_in(0), default=100.0, help="TPOT in ms (%(default)g)"
    )
    parser.add_argument(
        "--prefill-percentage",
        type=number_in(0, 100),
        default=90.0,
        help="share of requests that must meet the TTFT target (%(default)g)",
    )
    parser.add_argument(
        "--decode-percentage",
        type=number_in(0, 100),
        default=90.0,
        help="share of requests that must meet the TPOT target (%(default)g)",
    )
    parser.add_argument(
        "--max-per-gpu-rate",
        type=number_in(0, 1e6),
        help=f"upper bound ({MAX_PER_GPU_RATE:g}; with --no-compat what the accelerators can do)",
    )
    parser.add_argument(
        "--esp",
        type=number_in(1e-6),
        default=0.25,
        help="stop when the bracket is this narrow (%(default)g)",
    )
    parser.add_argument(
        "--N", type=integer_from(1), default=300, help="requests simulated (%(default)d)"
    )
    parser.add_argument("--model-type", default="facebook/opt-13b", help="(%(default)s)")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    add_source(parser)
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    if args.backend == "vllm":
        refuse(args, "with backend vllm", "is_high_affinity")
    if not args.compat:
        from distserve.planner.commands.default_search import judge

        found, hardware = judge(args)
        return report(args, found, hardware)
    refuse_in_compat(args, "network")
    model = noted(find_model(args.model_type))
    profile = load_hardware(args, model, args.backend)
    search = Search(
        model,
        profile,
        load_requests(args).sample(args.N, args.seed),
        ArrivalProcess(seed=args.seed),
        Slo(
            args.prefill_target,
            args.decode_target,
            args.prefill_percentage,
            args.decode_percentage,
        ),
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
    highest = args.max_per_gpu_rate or MAX_PER_GPU_RATE
    verdicts = judge_all(search, tried, highest, args.esp, progress.advance)
    progress.close()
    best = winner(verdicts)
    if best is not None and not best.per_gpu_rate:
        verdicts = [search.measured(verdict) for verdict in verdicts]
    return report(args, verdicts, profile)


def report(args: argparse.Namespace, verdicts: list[Verdict], profile: HardwareProfile) -> int:
    """Print the outcome; exit code 2 when nothing could run, 3 when nothing passed or fits.

    The reference prints a best configuration at rate 0 when nothing passes; compat does as well.
    """
    output, estimated, compat = args.output, profile.estimated, args.compat
    best = winner(verdicts)
    if best is None:
        short = too_small(args, find_model(args.model_type), profile)
        reasons = [verdict.reason for verdict in verdicts if verdict.reason]
        reason = short or min(reasons, key=len, default="the machine holds no configuration")
        print(f"distserve simulate search: {reason}", file=sys.stderr)
        if output == "json":
            document: dict[str, Any] = {"best": None, "configs": [_as_json(v) for v in verdicts]}
            print(json.dumps(document | ({"reason": short} if short else {})))
        return EXIT_INFEASIBLE if short else EXIT_WRONG_INPUT
    feasible = bool(best.per_gpu_rate)
    if feasible and best.unlimited:
        print(
            "distserve simulate search: the best passed at every rate up to --max-per-gpu-rate "
            f"{args.max_per_gpu_rate or MAX_PER_GPU_RATE:g}, where all that do count as equal; "
            "give a higher one to know which does most",
            file=sys.stderr,
        )
    if output == "json":
        document = {
            "best": _as_json(best) | {"feasible": feasible},
            "configs": [_as_json(verdict) for verdict in verdicts],
        }
        if estimated:
            document["estimated"] = True
        print(json.dumps(document, indent=1))
    elif feasible or compat:
        print(f"Best per GPU rate: {best.per_gpu_rate:.2f}")
        print(f"Best config: {_in_words(best.configuration)}")
        if estimated:
            print("Step times are estimates from data sheets, not measurements.")
    if feasible:
        return EXIT_OK
    miss = nearest_miss(verdicts)
    assert miss is not None, "a winner at rate 0 is a miss"
    print(
        "no configuration meets the SLO at any probed rate; nearest: "
        f"{_in_words(miss.configuration).strip()}: {miss.reason}",
        file=sys.stderr,
    )
    return EXIT_INFEASIBLE


def _in_words(configuration: Configuration) -> str:
    if configuration.colocated:
        # The reference prints two spaces here.
        return f" tp={configuration.tp_prefill}, pp={configuration.pp_prefill}"
    return ", ".join(f"{name}={value}" for name, value in configuration._asdict().items())


def _as_json(verdict: Verdict) -> dict[str, Any]:
    configuration = verdict.configuration
    described: dict[str, Any] = configuration._asdict()
    if configuration.colocated:
        described |= {"tp": configuration.tp_prefill, "pp": configuration.pp_prefill}
    return described | {
        "gpus": configuration.accelerators,
        "per_gpu_rate": verdict.per_gpu_rate,
        "reason": verdict.reason,
    }
