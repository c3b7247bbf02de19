"""`distserve profile`: measure the engine's step times, fit a hardware profile to them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.bench_words import check_url
from distserve.cli.usage import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from distserve.profile.database import Loaded, Served
    from distserve.profile.session import Profiled

_SHARED = ("model", "db", "dtype")
"""Flags of measuring that its verbs take as well; there the default is what stands before."""
_DATASET_REQUESTS, _DATASET_SEED = 4096, 0
"""Of a set that is drawn."""
_SERVING_SHARE = 0.93
"""Of an accelerator's memory for weights and KV, as in the planner's data sheets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _measure_arguments(parser)
    verbs = parser.add_subparsers(dest="profiling", metavar="fit|serving")
    for name, add, summary in (
        ("fit", _fit_arguments, "fit a hardware profile for plans, and say how far off it is"),
        ("serving", _serving_arguments, "measure what a running deployment adds to the steps"),
    ):
        add(verbs.add_parser(name, help=summary, description=summary))


def run(args: argparse.Namespace) -> int:
    if args.db is None:
        raise UsageError("the profile database is missing; give --db profile.sqlite")
    _refuse_without_effect(args)
    return {None: _measure, "fit": _fit, "serving": _serving}[args.profiling](args)


def _refuse_without_effect(args: argparse.Namespace) -> None:
    """argparse takes the flags of measuring before a verb, too."""
    if args.profiling is None:
        return
    measuring = argparse.ArgumentParser()
    _measure_arguments(measuring)
    for name, default in vars(measuring.parse_args([])).items():
        if name not in _SHARED and getattr(args, name) != default:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} has no effect on {args.profiling}; leave it out")


# ---- measure -------------------------------------------------------------------------------------


def _measure_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.cli.engine import DTYPES

    add = parser.add_argument
    add("--model", help="builtin:NAME, or a checkpoint's folder")
    add("--served-name", help="what plans call the model (default: its id or folder's name)")
    add("--db", type=Path, metavar="FILE", help="profile database; goes on where it was left")
    add("--tp", type=_positive, default=1, help="tensor parallel degree; this engine has 1")
    add("--pp", type=_positive, default=1, help="pipeline parallel degree; this engine has 1")
    add(
        "--grid", default="paper", metavar="NAME|BATCHES:LENGTHS",
        help="paper, quick, or as 1,2,4:16,64,256 (default: %(default)s)",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, help="default: auto, the checkpoint's own")

    def size(flag: str, default: int, words: str, parse: Any = _positive) -> None:
        add(flag, type=parse, default=default, metavar="N", help=f"{words} (default: %(default)s)")

    size("--cpus-per-rank", 1, "threads, as the deployment's")
    add("--kv-cache", default="256Mi", help="memory of the KV pool (default: %(default)s)")
    size("--max-num-seqs", 256, "largest batch, as the deployment's")
    size("--max-num-batched-tokens", 8192, "largest prefill step, as the deployment's")
    size("--output-tokens", 16, "of each prompt; the first is prefill's")
    size("--warm-ups", 1, "of each batch, not counted", _from_zero)
    size("--repeats", 3, "rounds over the grid; medians are kept")


def _measure(args: argparse.Namespace) -> int:
    from distserve.profile.errors import ProfileError
    from distserve.profile.grid import parse_grid

    _refuse_parallelism(args)
    if args.model is None:
        raise UsageError("--model is missing; give builtin:tiny or a checkpoint's folder")
    if args.output_tokens < 2:
        raise UsageError("--output-tokens 1 has no decode step; give at least 2")
    try:
        points = parse_grid(args.grid)
        # Set before torch is there: its own pool of threads is made once.
        os.environ["OMP_NUM_THREADS"] = str(args.cpus_per_rank)
        from distserve.engine.errors import EngineError
        from distserve.profile.session import profile
    except ProfileError as error:
        raise UsageError(str(error)) from error
    try:
        found = profile(_asked(args), points, args.db)
    except ProfileError as error:
        raise UsageError(str(error)) from error
    except EngineError as error:  # speaks of a deployment's fields
        said = str(error).removesuffix(" or lower blockTokens").replace("kvCache", "--kv-cache")
        raise UsageError(said.replace("maxNumBatchedTokens", "--max-num-batched-tokens")) from error
    return _say(found, args.db)


def _asked(args: argparse.Namespace) -> Any:
    from distserve.api.quantities import parse_bytes
    from distserve.profile.subject import Asked

    try:
        kv_cache_bytes = parse_bytes(args.kv_cache)
    except ValueError as error:
        raise UsageError(f"--kv-cache: {error}") from error
    folder = _folder(args.model)
    return Asked(
        model=folder,
        served_name=args.served_name or folder.resolve().name,
        dtype=args.dtype or "auto",
        cpus_per_rank=args.cpus_per_rank,
        kv_cache_bytes=kv_cache_bytes,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        output_tokens=args.output_tokens,
        warm_ups=args.warm_ups,
        repeats=args.repeats,
    )


def _folder(source: str) -> Path:
    from distserve.models.builtin import builtin_path
    from distserve.models.errors import UnknownBuiltinModel

    try:
        builtin = source.startswith("builtin:")
        folder = builtin_path(source.removeprefix("builtin:")) if builtin else Path(source)
    except UnknownBuiltinModel as error:
        raise UsageError(str(error)) from error
    if not folder.is_dir():
        raise UsageError(f"--model {source}: no such folder; give builtin:NAME or a checkpoint's")
    return folder


def _refuse_parallelism(args: argparse.Namespace) -> None:
    if args.tp * args.pp > 1:
        flag = "--tp" if args.tp > 1 else "--pp"
        raise UsageError(
            f"NotSupportedByEngine: {flag}: this engine runs one rank an instance; measure with "
            "--tp 1 --pp 1"
        )


def _say(found: Profiled, database: Path) -> int:
    subject = found.subject
    kept = f", {found.kept} of them by an earlier call" if found.kept else ""
    left = f"; {found.left_out} are more than the engine holds" if found.left_out else ""
    rounds = f"; rounds to finish: {found.rounds_left}" if found.rounds_left else ""
    print(
        f"{found.kept + found.measured} of {found.wanted} batches of {subject.model} "
        f"({subject.dtype}, {subject.device}) are in {database}{kept}{left}{rounds}"
    )
    if not found.rounds_left:
        return 0
    print("interrupted; the same command goes on from there", file=sys.stderr)
    return INTERRUPTED


# ---- fit -----------------------------------------------------------------------------------------


def _fit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _shared(add, "--db", "profile database: ours or another profiler's", Path, "FILE")
    _shared(add, "--model", "only this one; names the model where the database does not")
    _origin_arguments(parser)
    add("--tag", help="of the model, where another profiler's database has several")
    add(
        "--large-batch", type=_positive, metavar="N",
        help="decode is fitted apart from so many requests on, once (default: where it helps)",
    )  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="the profile, for --hardware-profile FILE")
    add(
        "--memory", metavar="BYTES",
        help="of the accelerator, as 24Gi; needed where another profiler's database is fitted",
    )  # fmt: skip
    add("--plot", type=Path, metavar="FILE", help="measured beside fitted times, PNG and SVG")
    add("--format", choices=("table", "json"), default="table", help="of what is printed")


def _origin_arguments(parser: argparse.ArgumentParser) -> None:
    words = "where the database has several"
    _shared(parser.add_argument, "--dtype", words)
    for flag in ("--device", "--engine-version"):
        parser.add_argument(flag, help=words)


def _shared(
    add: Callable[..., Any], flag: str, words: str, parse: Any = None, metavar: str | None = None
) -> None:
    """The same flag before the verb counts where it is not given again: no default hides it."""
    add(flag, type=parse, metavar=metavar, default=argparse.SUPPRESS, help=words)


def _wanted(args: argparse.Namespace) -> dict[str, str]:
    names = ("dtype", "device", "engine_version", "tag")
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _fit(args: argparse.Namespace) -> int:
    import json

    from distserve.bench.errors import BenchError
    from distserve.bench.writing import write_whole
    from distserve.planner.errors import PlannerError
    from distserve.planner.fitting import fit_database, profile_text
    from distserve.planner.records import left_out
    from distserve.profile.errors import ProfileError
    from distserve.profile.report import document, draw, table

    try:
        memory_bytes = _memory_bytes(args)
        if unread := left_out(args.db):
            print(f"{args.db}: {unread}", file=sys.stderr)
        fits = fit_database(args.db, args.model, _wanted(args), args.large_batch)
        if args.output is not None:
            text = profile_text(fits, _accelerator(fits, memory_bytes))
            write_whole(args.output, text, "give another --output, or make room")
        files = draw(fits, args.plot) if args.plot is not None else []
    except (BenchError, PlannerError, ProfileError) as error:
        raise UsageError(str(error)) from error
    if args.format == "json":
        print(json.dumps(document(fits), indent=1))
        return 0
    for line in table(fits):
        print(line)
    for file in (*([args.output] if args.output else []), *files):
        print(f"wrote {file}")
    return 0


def _memory_bytes(args: argparse.Namespace) -> int | None:
    from distserve.api.quantities import parse_bytes

    if args.memory is None:
        return None
    if args.output is None:
        raise UsageError("--memory has no effect without --output; leave it out")
    try:
        memory_bytes = parse_bytes(args.memory)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
    if memory_bytes < 1:
        raise UsageError(f"--memory {args.memory} holds nothing; give the accelerator's, as 24Gi")
    return memory_bytes


def _accelerator(fits: Any, memory_bytes: int | None) -> dict[str, Any]:
    """Says where the times stem from; the planner reads what it knows of it.

    Raises UsageError where nothing says how much memory was there: plans would take an A100's.
    """
    origin = next(iter(fits.values())).origin
    told = {key: value for key, value in vars(origin).items() if value and key != "model"}
    if memory_bytes is not None:
        return told | {
            "memory_bytes": memory_bytes,
            "kv_budget_bytes": round(memory_bytes * _SERVING_SHARE),
        }
    if not origin.device:  # our own engine's is a processor, whose plans go by `kvCache`
        raise UsageError(
            "this database does not say what it was measured on, and plans would take an A100's "
            "80 GiB; give the accelerator's memory, as --memory 24Gi"
        )
    return told


# ---- serving -------------------------------------------------------------------------------------


def _serving_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _shared(add, "--db", "profile database that has the model's steps", Path, "FILE")
    add("--url", required=True, help="base URL of an idle deployment, as http://127.0.0.1:8000")
    _shared(add, "--model", "the name that it serves, and of the database's records")
    add(
        "--dataset", metavar="FILE|synthetic:...",
        help="send requests as long as these, which plans are for (docs/bench.md); by default "
        "prompts of 32 to 512 tokens and answers of 16 to 96",
    )  # fmt: skip
    _origin_arguments(parser)


def _serving(args: argparse.Namespace) -> int:
    import asyncio

    import uvloop

    from distserve.bench.errors import BenchError
    from distserve.planner.errors import PlannerError
    from distserve.profile.database import open_database
    from distserve.profile.errors import ProfileError
    from distserve.workload import WorkloadError

    check_url(args.url)
    if args.model is None:
        raise UsageError("--model is missing; give the name that the deployment serves")
    try:
        with (
            open_database(args.db, _subject_of(args)) as database,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            rows = runner.run(_measure_serving(args))
            database.replace_deployment(rows)
    except (BenchError, PlannerError, ProfileError, WorkloadError) as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        print(f"interrupted; {args.db} is as it was", file=sys.stderr)
        return INTERRUPTED
    print(f"what the deployment adds is in {args.db}, for `distserve profile fit`")
    return 0


async def _measure_serving(args: argparse.Namespace) -> list[Loaded | Served]:
    from distserve.bench.client import Target
    from distserve.bench.datasets import load
    from distserve.planner.loads import decoded
    from distserve.profile import loads, serving
    from distserve.profile.asking import TIMEOUT_SECONDS, asking

    rows: list[Loaded | Served] = []

    def loaded(row: Loaded) -> None:
        rows.append(row)
        requests = decoded(row.requests)
        seconds = max(request.last_ms for request in requests) / 1000
        print(
            f"round {row.round + 1} of {loads.ROUNDS}, {row.clients:2} clients: {len(requests)} "
            f"requests in {seconds:.0f} s",
            flush=True,
        )

    def served(row: Served) -> None:
        rows.append(row)
        print(
            f"{row.streams:2} x {row.input_len} tokens: TTFT {row.ttft:.1f} ms, second token "
            f"{row.handover:.1f} ms, then {row.step:.2f} ms a step",
            flush=True,
        )

    target = Target(args.url, args.model, timeout_seconds=TIMEOUT_SECONDS)
    async with asking(target) as asker:
        most = await asker.longest()
        lengths = loads.usual(most)
        if args.dataset is not None:
            named = load(args.dataset, _DATASET_REQUESTS, _DATASET_SEED, most)
            lengths = loads.as_in(named)
        elif most is not None and most < max(loads.LONGEST, serving.LONGEST):
            print(f"the server takes {most} tokens a request: longer ones are shortened to these")
        if not await loads.measure(asker, loaded, lengths=lengths):
            if args.dataset is not None:
                raise UsageError(
                    "the server does not tell its requests' stages, and is measured idle with "
                    "requests of set lengths; leave out --dataset"
                )
            print("the server does not tell its requests' stages: it is measured idle")
            await serving.measure(asker, served, most=most)
    return rows


def _subject_of(args: argparse.Namespace) -> Any:
    """The one that the database's steps of the model were measured on."""
    from distserve.planner.records import of_one_origin, read_records
    from distserve.profile.database import Subject

    origins = [record.origin for record in read_records(args.db)]
    (origin,) = of_one_origin(origins, _wanted(args) | {"model": args.model})
    return Subject(origin.model, origin.dtype, origin.device, origin.engine_version)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _from_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)
