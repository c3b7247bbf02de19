"""`distserve migrator`: flags of the KV-migration sidecar (docs/processes.md)."""

import argparse
from pathlib import Path

from distserve.cli.log_level import add_log_level

TRANSPORTS = ("Auto", "SharedMemory", "TCP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", required=True, help="name that logs and peers show")
    parser.add_argument("--host", required=True, help="address to listen on: the pod's IP")
    parser.add_argument("--port", type=int, default=8101, help="other migrators (default 8101)")
    parser.add_argument("--metrics-port", type=int, default=8102, help="/metrics (default 8102)")
    run = Path("/run/distserve")
    parser.add_argument(
        "--socket", type=Path, default=run / "migrator.sock", help="Unix socket for the engine"
    )
    parser.add_argument(
        "--peer-socket",
        type=Path,
        default=run / "peer.sock",
        help="Unix socket where memory is shared with migrators that can reach it",
    )
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="Auto",
        help="how KV is read from peers; Auto: SharedMemory where it works, else TCP",
    )
    parser.add_argument("--key-file", type=Path, required=True, help="deployment key")
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    import asyncio

    from distserve.cli.main import UsageError
    from distserve.migrator.migrator import Config
    from distserve.migrator.process import BindError
    from distserve.migrator.process import run as run_migrator
    from distserve.wire.auth import KeyFileError, read_key
    from distserve.wire.logs import setup_logging
    from distserve.wire.parent import end_with_parent

    end_with_parent()
    setup_logging("migrator", args.log_level)
    try:
        config = Config(
            instance=args.instance,
            host=args.host,
            port=args.port,
            socket=args.socket,
            peer_socket=args.peer_socket,
            transport=args.transport,
            key=read_key(args.key_file),
        )
        asyncio.run(run_migrator(config, args.metrics_port))
    except (KeyFileError, BindError) as error:
        raise UsageError(str(error)) from error
    return 0
