"""`distserve demo`: serve the tiny model, prefill and decode apart, and show what happened."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distserve.cli.planned import add_planning

if TYPE_CHECKING:
    from distserve.local.session import Session

SAMPLE = "tiny-cpu.yaml"
DEFAULT_PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, help=f"manifest (default: the sample {SAMPLE})")
    parser.add_argument("--name", help="which deployment, where the manifest has several")
    add_planning(parser)
    parser.add_argument(
        "--port",
        type=int,
        help=f"of the gateway on 127.0.0.1 (default: {DEFAULT_PORT}, or a free one)",
    )
    parser.add_argument("--once", action="store_true", help="exit after the table")
    parser.add_argument("--log-dir", type=Path, help="keep the containers' logs here")


def run(args: argparse.Namespace) -> int:
    from distserve.cli.local_run import load, run_locally

    deployment = load(args, args.file or sample(SAMPLE))
    port = _port() if args.port is None else args.port

    async def work(session: "Session") -> int:
        from distserve.cli.up import serve
        from distserve.local.demo import run_demo

        code = await run_demo(session)
        if args.once:
            return code
        print(f"serving at {session.base_url}/v1 until Ctrl-C", file=sys.stderr)
        await serve(session)

    return run_locally(deployment, port, args.log_dir, work, table=False)


def sample(name: str) -> Path:
    """A sample manifest: beside this module in a wheel, in manifests/ in a checkout."""
    here = Path(__file__).resolve()
    places = [here.parent / "samples" / name, here.parents[3] / "manifests" / "samples" / name]
    return next((place for place in places if place.is_file()), places[-1])


def _port() -> int:
    from distserve.local.checks import check_port, free_port
    from distserve.local.errors import Refused

    try:
        check_port(DEFAULT_PORT)
    except Refused:
        port = free_port()
        print(f"port {DEFAULT_PORT} is in use, taking {port}", file=sys.stderr)
        return port
    return DEFAULT_PORT
