"""`distserve engine`: flags of one instance of the model (docs/processes.md)."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distserve.cli.log_level import add_log_level
from distserve.cli.usage import INTERRUPTED, UsageError, end_on_sigterm

if TYPE_CHECKING:
    from distserve.api.strategies import StrategySpec

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.api.strategies import Role, StrategyName

    add = parser.add_argument
    add("--model", required=True, help="builtin:NAME, or a checkpoint's folder")
    add("--served-name", required=True, help="name that clients use")
    add("--role", choices=[*map(str, Role)], default=str(Role.HYBRID))
    add("--strategy", choices=[*map(str, StrategyName)], default=str(StrategyName.COLOCATED))
    add("--strategy-options", default="{}", help="the strategy's own, as JSON")
    add("--instance", required=True, help="name of this instance")
    add("--unit", default="", help="the unit that it is of: routes stay in one where they can")
    add("--revision", default="", help="the deployment's revision; also a label of its metrics")
    add("--domain", default="", help="the fabric domain that it is placed in")
    add("--host", required=True, help="address to listen on: the pod's IP")
    add("--port", type=int, default=8100)
    add("--migrator-socket", type=Path, help="its migrator's; absent: it cannot migrate")
    add("--dtype", choices=DTYPES, default="auto", help="auto: the checkpoint's own")
    add("--max-model-len", type=_positive, help="longest context in tokens")
    add("--kv-cache", default="64Mi", help="memory of the KV pool, as 64Mi")
    add("--block-tokens", type=_positive, default=16, help="tokens of a KV block")
    add("--max-num-seqs", type=_positive, default=256, help="sequences in a step")
    add("--max-num-batched-tokens", type=_positive, default=8192, help="new tokens of a step")
    add("--prefix-caching", choices=("on", "off"), default="on")
    add("--lease", default="30s", help="how long offered KV waits for its peer, as 30s")
    add("--key-file", type=Path, required=True, help="file with the deployment's key")
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    from distserve.wire.logs import setup_logging
    from distserve.wire.parent import end_with_parent

    end_on_sigterm()  # Until it serves: loading may take minutes.
    end_with_parent()
    setup_logging("engine", args.log_level)
    model = _model(args.model)
    strategy = _strategy(args)

    from distserve.engine.address import bind
    from distserve.engine.errors import EngineError
    from distserve.engine.settings import Settings
    from distserve.wire.tracing import TracingUnavailable, setup_tracing

    settings = _settings(args, model, strategy, Settings)
    tracing = _or_usage(lambda: setup_tracing("engine", os.environ), TracingUnavailable)
    try:
        bound = bind(args.host, args.port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {args.host}:{args.port}: {error}") from error
    try:
        # Torch and transformers take seconds: what can be wrong without them was told by now.
        from distserve.engine import process

        return process.run(settings, bound, tracing)
    except EngineError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        return INTERRUPTED  # while the model was loading
    finally:
        bound.close()


def _settings(
    args: argparse.Namespace, model: Path, strategy: "StrategySpec", make: Callable[..., T]
) -> T:
    from distserve.api.durations import parse_duration
    from distserve.api.kv_transfer import LEASES_BELOW, is_lease
    from distserve.api.quantities import parse_bytes
    from distserve.api.strategies import Role
    from distserve.wire.auth import KeyFileError, read_key

    lease = _or_usage(lambda: parse_duration(args.lease), ValueError, "--lease: ")
    if not is_lease(lease):
        raise UsageError(f"--lease: {args.lease} is not above zero and below {LEASES_BELOW}")
    return make(
        model=model,
        served_name=args.served_name,
        role=Role(args.role),
        strategy=strategy,
        instance=args.instance,
        unit=args.unit,
        revision=args.revision,
        domain=args.domain,
        host=args.host,
        port=args.port,
        migrator_socket=args.migrator_socket,
        key=_or_usage(lambda: read_key(args.key_file), KeyFileError),
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        kv_cache_bytes=_or_usage(lambda: parse_bytes(args.kv_cache), ValueError, "--kv-cache: "),
        block_tokens=args.block_tokens,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        prefix_caching=args.prefix_caching == "on",
        lease_seconds=lease,
    )


def _model(source: str) -> Path:
    from distserve.models.builtin import builtin_path
    from distserve.models.errors import UnknownBuiltinModel

    if source.startswith("builtin:"):
        return _or_usage(lambda: builtin_path(source.removeprefix("builtin:")), UnknownBuiltinModel)
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"model folder {folder} does not exist: give the folder of a checkpoint")
    return folder


def _strategy(args: argparse.Namespace) -> "StrategySpec":
    import json

    from pydantic import ValidationError

    from distserve.api.strategies import StrategySpec

    try:
        options = json.loads(args.strategy_options)
        return StrategySpec.model_validate({"name": args.strategy, "options": options})
    except ValidationError as error:
        raise UsageError(f"--strategy-options: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UsageError(f"--strategy-options is no JSON object: {error}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _or_usage(call: Callable[[], T], wrong: type[Exception], where: str = "") -> T:
    try:
        return call()
    except wrong as error:
        raise UsageError(f"{where}{error}") from error
