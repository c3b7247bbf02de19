"""`distserve bench run`: offer load to an OpenAI server and keep what was seen."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.bench_words import check_url, has_credentials, seconds_of
from distserve.cli.stderr import reader_may_leave
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.bench.plan import Recipe
    from distserve.bench.session import Ran, Session
    from distserve.workload import ArrivalProcess

EXIT_UNTRUSTED = 1
"""A run was invalid, interrupted or without a single completed request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.bench.question import TOKEN_IDS

    add = parser.add_argument
    add("--url", required=True, help="base URL of the server, as http://127.0.0.1:8000")
    add("--model", required=True, help="the name that the server serves")
    add(
        "--dataset", required=True, metavar="FILE|synthetic:...",
        help="requests: csv, .ds, .json or .jsonl; or synthetic:NAME (docs/bench.md)",
    )  # fmt: skip
    add(
        "--num-prompts-req-rates", required=True, metavar="PAIRS",
        help='(count, requests per second) of each run: "[(300,1.5),(300,3)]"; or a paper\'s by '
        "name, times --gpus: sharegpt-opt-13b (docs/bench.md)",
    )  # fmt: skip
    add(
        "--request-distribution", default="poisson", metavar="NAME",
        help="poisson (default), gamma, fixed (uniform), burst, window (Poisson within exactly "
        "count/rate seconds) or recorded (trace)",
    )  # fmt: skip
    add("--cv", type=float, help="of gamma: coefficient of variation of the gaps; default 1")
    add("--burst-size", type=int, metavar="N", help="of burst: requests at one instant; default 10")
    add("--seed", type=int, default=0, help="of requests, prompts and arrivals; default 0")
    add("--slo-ttft", metavar="TIME", help="objective, as 250ms; also sent with each request")
    add("--slo-tpot", metavar="TIME", help="objective, as 100ms; also sent with each request")
    add("--output-dir", type=Path, default=Path("results"), help="default results")
    add(
        "--prefix", default="distserve",
        help="names the system in file names and figures; default distserve",
    )  # fmt: skip
    add("--gpus", type=int, default=1, help="accelerators behind the URL; default 1")
    add(
        "--endpoint", choices=["completions", "chat"], default="completions",
        help="what is asked under /v1; default completions",
    )  # fmt: skip
    add(
        "--prompt-format", choices=["auto", "text", "tokens"], default="auto",
        help="text: the set's own or made-up words; tokens: made-up ids; auto (default): text for "
        "chat and where the set has some, else tokens",
    )  # fmt: skip
    add(
        "--token-ids", metavar="LOW:HIGH",
        help=f"made-up ids are drawn from LOW to HIGH - 1; default {TOKEN_IDS}",
    )  # fmt: skip
    add(
        "--max-model-len", type=int, metavar="TOKENS",
        help="no requests whose prompt and output are longer together; default: all",
    )  # fmt: skip
    add("--no-stream", action="store_true", help="whole answers: latency only, no TTFT")
    add("--no-ignore-eos", action="store_true", help="answers may end early")
    add(
        "--warm-up", type=int, default=5, metavar="N",
        help="requests before, not counted; default 5",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=600.0, metavar="SECONDS",
        help="of one request, after which it has failed; default 600",
    )  # fmt: skip
    add(
        "--max-lag", default="10ms", metavar="TIME",
        help="a run whose client is later than this at p99 is invalid; default 10ms",
    )  # fmt: skip
    add(
        "--exp-format", choices=["distserve", "loongserve"], default="distserve",
        help="whose schema the .exp files have; default distserve",
    )  # fmt: skip
    add("--api-key-env", metavar="NAME", help="environment variable that holds an API key")


@reader_may_leave()
def run(args: argparse.Namespace) -> int:
    from distserve.bench.connections import allow_many_connections
    from distserve.bench.session import run_series

    session = _session(args)
    allow_many_connections()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    done = _until_interrupted(lambda: run_series(session, say))
    from distserve.bench.summary import table

    print(table(session.folder, session.prefix, done))
    whole = len(done) == len(session.pairs) and all(ran.good for ran in done)
    return 0 if whole else EXIT_UNTRUSTED


def _session(args: argparse.Namespace) -> Session:
    from distserve.bench.client import Target
    from distserve.bench.question import parse_pairs
    from distserve.bench.session import Session

    check_url(args.url)
    if not args.prefix or "/" in args.prefix:
        raise UsageError(f"--prefix {args.prefix!r} is no part of a file name; leave out the /")
    for name, least, most in (
        ("gpus", 1, 1_000_000), ("warm_up", 0, 1_000_000), ("timeout", 0.001, 1_000_000),
    ):  # fmt: skip
        if not least <= getattr(args, name) <= most:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: give {least} to {most}"
            )
    pairs = parse_pairs(args.num_prompts_req_rates, args.gpus)
    recipe = _recipe(args, longest=max(pair.requests for pair in pairs))
    slo = {name: seconds_of(args, name) for name in ("slo_ttft", "slo_tpot")}
    headers = [
        (f"x-{name.replace('_', '-')}-ms", f"{seconds * 1000:g}")
        for name, seconds in slo.items()
        if seconds is not None
    ]
    if args.api_key_env is not None:
        headers.append(("authorization", f"Bearer {_key(args)}"))
    target = Target(
        url=args.url, model=args.model, endpoint=args.endpoint, stream=not args.no_stream,
        ignore_eos=not args.no_ignore_eos, headers=tuple(headers), timeout_seconds=args.timeout,
    )  # fmt: skip
    parameters = _parameters(args, recipe) | slo
    return Session(
        target, recipe, pairs, args.output_dir, args.prefix, parameters,
        args.exp_format, args.warm_up, (seconds_of(args, "max_lag") or 0.0) * 1000,
    )  # fmt: skip


def _key(args: argparse.Namespace) -> str:
    name = args.api_key_env
    key = os.environ.get(name)
    if key is None:
        raise UsageError(f"--api-key-env: there is no variable {name}; export it")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"--api-key-env: {name} has characters that no key has; correct it")
    if has_credentials(args.url):
        raise UsageError("--api-key-env beside credentials in --url: a request has one; drop one")
    return key


def _recipe(args: argparse.Namespace, longest: int) -> Recipe:
    from distserve.bench.datasets import is_synthetic, load
    from distserve.bench.plan import Recipe
    from distserve.bench.question import TOKEN_IDS, parse_token_ids

    prompt_format = args.prompt_format
    if args.endpoint == "chat":
        if prompt_format == "tokens":
            raise UsageError("chat takes no token ids; leave out --prompt-format tokens")
        prompt_format = "text"
    token_ids = parse_token_ids(args.token_ids or TOKEN_IDS)
    requests = load(args.dataset, longest, args.seed, args.max_model_len)
    texts = prompt_format == "text" or (prompt_format == "auto" and requests.prompts is not None)
    if texts and args.token_ids is not None:
        raise UsageError("--token-ids has no effect on prompts that are texts; leave it out")
    return Recipe(
        requests, _arrivals(args), args.seed, prompt_format, token_ids, is_synthetic(args.dataset)
    )


def _arrivals(args: argparse.Namespace) -> ArrivalProcess:
    from distserve.workload import ArrivalProcess

    kind = ArrivalProcess(args.request_distribution).kind
    own = {"cv": "gamma", "burst_size": "burst"}
    given = {name: value for name in own if (value := getattr(args, name)) is not None}
    for name in given:
        if own[name] != kind:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} has no effect on {kind} arrivals; leave it out")
    return ArrivalProcess(kind, seed=args.seed, **given)


_DETERMINING = (  # not the URL: a server that came back on another port is the same system
    "model", "dataset", "seed", "gpus", "endpoint", "token_ids", "max_model_len", "no_stream",
    "no_ignore_eos", "exp_format", "request_distribution", "cv", "burst_size",
)  # fmt: skip


def _parameters(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    from distserve.bench.parameters import OF_EACH_RATE, as_they_act

    typed = {name: getattr(args, name) for name in _DETERMINING}
    return as_they_act(
        {
            **typed,
            "prompt_format": recipe.sends,
            "prompts": None if recipe.own_texts else OF_EACH_RATE,
            "shared_prefixes": recipe.shared_prefixes or None,
            "dataset_content": _content(args.dataset),
        }
    )


def _content(dataset: str) -> dict[str, Any] | None:
    """What tells a file from another of its name; None of a set that is drawn, and of one that was
    piped in and is gone."""
    import hashlib

    from distserve.bench.datasets import is_synthetic

    path = Path(dataset)
    if is_synthetic(dataset) or not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _until_interrupted(series: Callable[[], Coroutine[Any, Any, list[Ran]]]) -> list[Ran]:
    """Run on uvloop, whose reads cost a third; Ctrl-C ends the series and keeps what is there."""
    import asyncio

    import uvloop

    async def watched() -> list[Ran]:
        task = asyncio.ensure_future(series())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(watched())
        except asyncio.CancelledError:
            raise UsageError("interrupted before the first run; nothing was measured") from None
