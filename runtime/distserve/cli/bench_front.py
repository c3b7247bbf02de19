"""`distserve bench front`: round-robin before several replicas."""

from __future__ import annotations

import argparse

from distserve.cli.bench_words import check_url
from distserve.cli.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", action="append", required=True, help="base URL of a replica; give it for each")
    add("--port", type=int, default=8080, help="on 127.0.0.1; default 8080")


def run(args: argparse.Namespace) -> int:
    import uvloop

    from distserve.bench.front import serve_until_signal

    for url in args.url:
        check_url(url)
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port} is no port; give one from 0 to 65535")
    uvloop.run(serve_until_signal(args.url, args.port))
    return 0
