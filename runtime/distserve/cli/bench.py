"""`distserve bench`: offer load to an OpenAI server, report on what was measured."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.bench.session import Ran, Session

EXIT_UNTRUSTED = 1
"""A run was invalid, interrupted or without a single completed request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="measure", metavar="VERB", required=True)
    _run_arguments(verbs.add_parser("run", help="offer load and keep what was seen"))
    _report_arguments(verbs.add_parser("report", help="attainment, crossings, figures, a page"))
    _prepare_arguments(verbs.add_parser("prepare", help="make a .ds file from published raw files"))
    _front_arguments(verbs.add_parser("front", help="round-robin before several replicas"))


def run(args: argparse.Namespace) -> int:
    from distserve.bench.errors import BenchError
    from distserve.workload import WorkloadError

    verb = {"run": _run, "report": _report, "prepare": _prepare, "front": _front}[args.measure]
    try:
        return verb(args)
    except (BenchError, WorkloadError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(
            f"{error.filename}: {error.strerror}; give a folder that can be written"
        ) from error


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", required=True, help="base URL of the server, as http://127.0.0.1:8000")
    add("--model", required=True, help="the name that the server serves")
    add(
        "--dataset", required=True, metavar="FILE|synthetic:...",
        help="requests: csv, .ds, .json or .jsonl; or synthetic:NAME (docs/bench.md)",
    )  # fmt: skip
    add(
        "--num-prompts-req-rates", required=True, metavar="PAIRS",
        help='(count, requests per second) of each run: "[(300,1.5),(300,3)]"',
    )  # fmt: skip
    add(
        "--request-distribution", default="poisson", metavar="NAME",
        help="poisson, gamma, fixed (uniform), burst or recorded (trace); default poisson",
    )  # fmt: skip
    add("--cv", type=float, default=1.0, help="coefficient of variation of gamma gaps")
    add("--seed", type=int, default=0, help="of requests, prompts and arrivals")
    add("--slo-ttft", metavar="TIME", help="objective, as 250ms; also sent with each request")
    add("--slo-tpot", metavar="TIME", help="objective, as 100ms; also sent with each request")
    add("--output-dir", type=Path, default=Path("results"), help="default: results")
    add("--prefix", default="distserve", help="names the system in file names and figures")
    add("--gpus", type=int, default=1, help="accelerators behind the URL, for rates per GPU")
    add("--endpoint", choices=["completions", "chat"], default="completions")
    add("--prompt-format", choices=["auto", "text", "tokens"], default="auto")
    add(
        "--token-ids", default="10:1000", metavar="LOW:HIGH", help="made-up prompts draw from these"
    )
    add("--max-model-len", type=int, help="leave out requests that are longer together")
    add("--no-stream", action="store_true", help="whole answers: latency only, no TTFT")
    add("--no-ignore-eos", action="store_true", help="answers may end early")
    add("--warm-up", type=int, default=5, metavar="N", help="requests before, not counted")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="of one request")
    add("--max-lag", default="10ms", metavar="TIME", help="beyond it a run is invalid (p99)")
    add("--exp-format", choices=["distserve", "loongserve"], default="distserve")
    add("--api-key-env", metavar="NAME", help="environment variable that holds an API key")


def _run(args: argparse.Namespace) -> int:
    from distserve.bench.session import run_series

    session = _session(args)
    _allow_many_connections()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    done = _until_interrupted(run_series(session, say))
    from distserve.bench.summary import table

    print(table(session.folder, session.prefix, done))
    whole = len(done) == len(session.pairs) and all(ran.good for ran in done)
    return 0 if whole else EXIT_UNTRUSTED


def _session(args: argparse.Namespace) -> Session:
    from distserve.bench.client import Target
    from distserve.bench.datasets import load
    from distserve.bench.plan import Recipe
    from distserve.bench.question import parse_pairs, parse_token_ids
    from distserve.bench.session import Session
    from distserve.workload import ArrivalProcess

    _check_url(args.url)
    if not args.prefix or "/" in args.prefix:
        raise UsageError(f"--prefix {args.prefix!r} is no part of a file name; leave out the /")
    for name, least in (("gpus", 1), ("warm_up", 0), ("timeout", 0.001)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}")
    pairs = parse_pairs(args.num_prompts_req_rates)
    longest = max(pair.requests for pair in pairs)
    requests = load(args.dataset, longest, args.seed)
    if args.max_model_len is not None:
        requests = requests.within(args.max_model_len)
    slo = {name: _seconds(args, name) for name in ("slo_ttft", "slo_tpot")}
    headers = [
        (f"x-{name.replace('_', '-')}-ms", f"{seconds * 1000:g}")
        for name, seconds in slo.items()
        if seconds is not None
    ]
    if args.api_key_env is not None:
        if args.api_key_env not in os.environ:
            raise UsageError(f"--api-key-env: there is no variable {args.api_key_env}; export it")
        headers.append(("authorization", f"Bearer {os.environ[args.api_key_env]}"))
    target = Target(
        url=args.url, model=args.model, endpoint=args.endpoint, stream=not args.no_stream,
        ignore_eos=not args.no_ignore_eos, headers=tuple(headers), timeout_seconds=args.timeout,
    )  # fmt: skip
    recipe = Recipe(
        requests, ArrivalProcess(args.request_distribution, args.cv, args.seed), args.seed,
        args.prompt_format, parse_token_ids(args.token_ids),
    )  # fmt: skip
    return Session(
        target, recipe, pairs, args.output_dir, args.prefix, _parameters(args, slo),
        args.exp_format, args.warm_up, (_seconds(args, "max_lag") or 0.0) * 1000,
    )  # fmt: skip


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="with .exp files, subfolders included")
    add("--slo", metavar="NAME", help="a paper's objectives, as sharegpt-opt-13b (docs/bench.md)")
    add("--slo-ttft", metavar="TIME", help="objective, as 250ms; default: that of the runs")
    add("--slo-tpot", metavar="TIME", help="objective, as 100ms; default: that of the runs")
    add("--normalised-slo", metavar="NAME", help="LoongServe's limits per token, as sharegpt")
    add("--slo-scales", metavar="LIST", help="factors of both objectives, as 1.6,1.4,1.2,1,0.8")
    add(
        "--gpus", action="append", default=[], metavar="SYSTEM=N",
        help="accelerators of a system; default: what its runs say, else 1",
    )  # fmt: skip
    add("--output-dir", type=Path, help="default: DIR/report")
    add("--no-figures", action="store_true", help="tables and page only, without matplotlib")
    add("--output", choices=["table", "json"], default="table", help="what is printed")


def _report(args: argparse.Namespace) -> int:
    from distserve.bench.report import Asked, question_of, write_report
    from distserve.bench.slos import normalised_slo
    from distserve.bench.summary import crossings_table
    from distserve.bench.tables import json_text

    asked = Asked(args.slo, _seconds(args, "slo_ttft"), _seconds(args, "slo_tpot"), _scales(args))
    question = question_of(args.folder, asked, _gpus(args.gpus))
    output = args.output_dir or args.folder / "report"
    limits = normalised_slo(args.normalised_slo) if args.normalised_slo else None
    tables = write_report(
        question, output, not args.no_figures, lambda line: print(line, file=sys.stderr), limits
    )
    if args.output == "json":
        print(json_text(**tables), end="")
    else:
        print(crossings_table(tables["crossings"]))
        print(f"figures and tables: {output / 'report.html'}")
    return 0


def _scales(args: argparse.Namespace) -> tuple[float, ...] | None:
    if args.slo_scales is None:
        return None
    try:
        scales = tuple(float(scale) for scale in args.slo_scales.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise UsageError(f"--slo-scales {args.slo_scales!r}: give numbers above 0, as 1.2,1,0.8")
    return scales


def _gpus(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        system, separator, count = word.rpartition("=")
        if not (separator and system and count.isdecimal() and int(count) > 0):
            raise UsageError(f"--gpus {word!r}: give SYSTEM=N, as vllm=1")
        found[system] = int(count)
    return found


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.bench.datasets.builders import BUILDERS
    from distserve.bench.datasets.prepare import MIXES

    add = parser.add_argument
    add("name", choices=[*BUILDERS, *MIXES], metavar="NAME", help=", ".join([*BUILDERS, *MIXES]))
    add("sources", type=Path, nargs="+", metavar="RAW", help="raw file or folder; .ds for mixes")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of the measured model")
    add("--ds", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--seed", type=int, default=0)
    add("--count", type=int, metavar="N", help="requests (mixed: of each set)")
    add("--alpha", type=float, default=1.0, help="of zipf: 1.0, 1.2 and 1.4 in LoongServe")
    add(
        "--class-slo-tpot", metavar="TIMES",
        help="of adaserve: each set's own objective, as 36ms,50ms,150ms",
    )  # fmt: skip


def _prepare(args: argparse.Namespace) -> int:
    from statistics import fmean

    from distserve.bench.datasets.prepare import Order, prepare, write_ds

    if args.count is not None and args.count < 1:
        raise UsageError("--count must be at least 1")
    if args.class_slo_tpot is not None and args.name != "adaserve":
        raise UsageError("--class-slo-tpot belongs to adaserve; leave it out")
    made = prepare(
        Order(
            args.name, args.sources, args.tokenizer, args.seed, args.count, args.alpha,
            _class_objectives(args.class_slo_tpot),
        )
    )  # fmt: skip
    write_ds(args.ds, args.name, made)
    print(
        f"{args.ds}: {len(made)} requests, mean {fmean(r.prompt_tokens for r in made):.1f} in, "
        f"{fmean(r.output_tokens for r in made):.1f} out"
    )
    return 0


def _front_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", action="append", required=True, help="base URL of a replica; give it for each")
    add("--port", type=int, default=8080, help="on 127.0.0.1; default 8080")


def _front(args: argparse.Namespace) -> int:
    import uvloop

    from distserve.bench.front import serve_until_signal

    for url in args.url:
        _check_url(url)
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port} is no port; give one from 0 to 65535")
    uvloop.run(serve_until_signal(args.url, args.port))
    return 0


def _class_objectives(text: str | None) -> list[float] | None:
    from distserve.api.durations import parse_duration

    try:
        return (
            None if text is None else [round(parse_duration(t) * 1000, 6) for t in text.split(",")]
        )
    except ValueError as error:
        raise UsageError(f"--class-slo-tpot {text!r}: {error}") from error


def _check_url(url: str) -> None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of brackets
        known = False
    if not known:
        raise UsageError(f"--url {url!r} is no URL; give one as http://127.0.0.1:8000")


_DETERMINING = (  # not the URL: a server that came back on another port is the same system
    "model", "dataset", "request_distribution", "cv", "seed", "gpus", "endpoint",
    "prompt_format", "token_ids", "max_model_len", "no_stream", "no_ignore_eos", "exp_format",
)  # fmt: skip


def _parameters(args: argparse.Namespace, slo: dict[str, float | None]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _DETERMINING} | slo


def _seconds(args: argparse.Namespace, name: str) -> float | None:
    from distserve.api.durations import parse_duration

    text = getattr(args, name)
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')} {text!r}: {error}") from error


def _allow_many_connections() -> None:
    """A stream takes a file descriptor, and shells often start with 1024."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _until_interrupted(series: Any) -> list[Ran]:
    """Run on uvloop, whose reads cost a third; Ctrl-C ends the series and keeps what is there."""
    import asyncio

    import uvloop

    async def watched() -> list[Ran]:
        task = asyncio.ensure_future(series)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        done: list[Ran] = await task
        return done

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(watched())
        except asyncio.CancelledError:
            raise UsageError("interrupted before the first run; nothing was measured") from None
