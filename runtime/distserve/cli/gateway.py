"""`distserve gateway`: the OpenAI gateway as a process."""

import argparse
import os
from collections.abc import Callable
from typing import TypeVar

from distserve.cli.log_level import add_log_level
from distserve.cli.main import UsageError

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.api.gateway import LONGEST_REQUEST, RoutingPolicy
    from distserve.api.strategies import StrategyName

    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8000)
    add("--model", required=True, help="name that clients use")
    add("--strategy", choices=[*map(str, StrategyName)], default=str(StrategyName.DISAGGREGATED))
    add(
        "--discovery",
        required=True,
        help="where the instances are: file:PATH or endpointslices:NAMESPACE/SERVICE[,GATEWAYS]; "
        "GATEWAYS is the Service of those that share --max-waiting-requests",
    )
    add("--key-file", required=True, help="file with the deployment's key")
    add(
        "--routing-policy",
        choices=[*map(str, RoutingPolicy)],
        default=str(RoutingPolicy.LEAST_OUTSTANDING),
    )
    add(
        "--min-remote-prefill-tokens",
        type=int,
        default=0,
        help="prompts with fewer uncached tokens are prefilled by the decode instance",
    )
    add(
        "--max-waiting-requests",
        type=int,
        default=512,
        help="prompts without a first token, in all gateways; beyond it clients get 429",
    )
    add(
        "--request-timeout",
        default="10m",
        help=f"longest time of a request, as 10m; at most {LONGEST_REQUEST}",
    )
    add(
        "--drain-deadline",
        default="25s",
        help="how long requests may go on after SIGTERM (default 25s)",
    )
    add("--slo-ttft", help="objective for the time to first token, as 250ms")
    add("--slo-tpot", help="objective for the time per output token, as 100ms")
    add("--attainment-percent", type=float, default=90.0, help="share that is to meet both")
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    from distserve.gateway.settings import Settings
    from distserve.wire.auth import KeyFileError, read_key
    from distserve.wire.logs import setup_logging
    from distserve.wire.parent import end_with_parent
    from distserve.wire.tracing import TracingUnavailable, setup_tracing

    end_with_parent()
    settings = _settings(args, _or_usage(lambda: read_key(args.key_file), KeyFileError), Settings)
    tracing = _or_usage(lambda: setup_tracing("gateway", os.environ), TracingUnavailable)
    # Heavy: not before the flags are known to be right.
    from distserve.gateway.server import listen, serve

    try:
        bound = listen(args.host, args.port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {args.host}:{args.port}: {error}") from error
    setup_logging("gateway", args.log_level)
    serve(settings, bound, tracing)
    return 0


def _settings(args: argparse.Namespace, key: bytes, make: Callable[..., T]) -> T:
    from distserve.api.gateway import LONGEST_REQUEST, RoutingPolicy
    from distserve.api.strategies import StrategyName
    from distserve.gateway.discovery import make_discovery
    from distserve.wire.dialect import Slo

    strategy = StrategyName(args.strategy)
    _or_usage(lambda: make_discovery(args.discovery), ValueError, "--discovery: ")
    for flag in ("max_waiting_requests", "min_remote_prefill_tokens"):
        if getattr(args, flag) < 0:
            raise UsageError(f"--{flag.replace('_', '-')} must not be negative")
    if args.min_remote_prefill_tokens and strategy is not StrategyName.DISAGGREGATED:
        raise UsageError(
            f"--min-remote-prefill-tokens has no meaning with {strategy}: leave it out"
        )
    if not 0 < args.attainment_percent <= 100:
        raise UsageError("--attainment-percent must be above 0 and at most 100")
    ttft, tpot = _seconds(args, "slo_ttft"), _seconds(args, "slo_tpot")
    return make(
        model=args.model,
        key=key,
        discovery=args.discovery,
        strategy=strategy,
        routing_policy=RoutingPolicy(args.routing_policy),
        min_remote_prefill_tokens=args.min_remote_prefill_tokens,
        max_waiting_requests=args.max_waiting_requests,
        request_timeout_seconds=_seconds(args, "request_timeout", LONGEST_REQUEST),
        drain_seconds=_seconds(args, "drain_deadline"),
        slo=Slo(
            ttft_ms=None if ttft is None else ttft * 1000,
            tpot_ms=None if tpot is None else tpot * 1000,
        ),
        attainment_percent=args.attainment_percent,
    )


def _seconds(args: argparse.Namespace, flag: str, most: str | None = None) -> float | None:
    from distserve.api.durations import parse_duration

    text = getattr(args, flag)
    if text is None:
        return None
    seconds = _or_usage(lambda: parse_duration(text), ValueError, f"--{flag.replace('_', '-')}: ")
    if seconds <= 0:
        raise UsageError(f"--{flag.replace('_', '-')}: a duration above zero is needed")
    if most is not None and seconds > parse_duration(most):
        raise UsageError(f"--{flag.replace('_', '-')}: {text} is more than {most}: lower it")
    return seconds


def _or_usage(call: Callable[[], T], wrong: type[Exception], where: str = "") -> T:
    try:
        return call()
    except wrong as error:
        raise UsageError(f"{where}{error}") from error
