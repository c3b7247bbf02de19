"""`distserve drain`: preStop of an engine. Nothing new is taken; waits until it is empty.

Only the standard library: it starts in a container that is busy with its last requests.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from distserve.cli.usage import UsageError

POLL_SECONDS = 0.2
CALL_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="the engine's, as http://10.0.0.5:8100")
    parser.add_argument("--key-file", type=Path, required=True, help="the deployment's key")
    parser.add_argument("--drain-deadline", default="60s", help="longest wait (default 60s)")


def run(args: argparse.Namespace) -> int:
    """0: empty. 1: the deadline passed, or the engine is gone."""
    from distserve.api.durations import parse_duration
    from distserve.wire.auth import KeyFileError, bearer, read_key

    try:
        key = read_key(args.key_file)
        deadline = time.monotonic() + parse_duration(args.drain_deadline)
    except (KeyFileError, ValueError) as error:
        raise UsageError(str(error)) from error
    if not args.url.startswith(("http://", "https://")):
        raise UsageError(f"--url {args.url!r} is no http address")
    url = f"{args.url.rstrip('/')}/drain"
    try:
        report = _call(url, bearer(key), "POST")
        while not report["empty"]:
            if time.monotonic() >= deadline:
                print(f"{report['requests']} requests are left at the deadline", file=sys.stderr)
                return 1
            time.sleep(POLL_SECONDS)
            report = _call(url, bearer(key), "GET")
    except urllib.error.HTTPError as error:
        print(f"{url} answered {error.code}: does --key-file hold its key?", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{url} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _call(url: str, authorization: str, method: str) -> dict[str, Any]:
    request = urllib.request.Request(url, method=method, headers={"Authorization": authorization})
    with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
        report: dict[str, Any] = json.load(answer)
        return report
