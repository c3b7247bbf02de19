"""`distserve up`: run a deployment's pods as processes of this machine until Ctrl-C."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from distserve.cli.planned import add_planning
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.local.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="manifest")
    parser.add_argument("--name", help="which deployment, where the manifest has several")
    add_planning(parser)
    parser.add_argument(
        "--port", type=int, default=8000, help="of the gateway on 127.0.0.1 (default: 8000)"
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        help="keep the containers' logs here (default: a temporary folder, removed at the end)",
    )
    parser.add_argument(
        "--prometheus-targets",
        type=Path,
        metavar="FILE",
        help="write here what a Prometheus on this machine is to scrape (its file_sd_configs)",
    )


def run(args: argparse.Namespace) -> int:
    from distserve.cli.local_run import load, run_locally
    from distserve.local.targets import prepare_targets, write_targets

    deployment = load(args, args.file)

    if args.prometheus_targets is not None:
        try:
            prepare_targets(args.prometheus_targets)
        except OSError as error:
            raise UsageError(
                f"--prometheus-targets {args.prometheus_targets}: {error.strerror}; "
                "name a file that can be written"
            ) from None

    async def work(session: "Session") -> int:
        if args.prometheus_targets is not None:
            write_targets(args.prometheus_targets, session.supervisor.pods)
        await serve(session)

    return run_locally(deployment, args.port, args.log_dir, work, table=sys.stderr.isatty())


async def serve(session: "Session") -> NoReturn:
    """Nothing is left to do; the pods are looked after until a signal comes, or none can be."""
    await session.supervisor.look_on()
