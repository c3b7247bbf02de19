"""`distserve drain`: preStop of an engine. Nothing new is taken; waits until it is empty.

Only the standard library: it starts in a container that is busy with its last requests.
"""

import argparse
import contextlib
import http.client
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
"""Then it is asked again, until the deadline."""


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
        return _wait_until_empty(url, bearer(key), deadline)
    except urllib.error.HTTPError as error:
        print(f"{url} answered {error.code}: does --key-file hold its key?", file=sys.stderr)
        return 1
    except (OSError, http.client.HTTPException) as error:
        print(f"{url} does not answer: {error}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, TypeError):
        print(f"{url} answers, but not as an engine: correct --url", file=sys.stderr)
        return 1


def _wait_until_empty(url: str, authorization: str, deadline: float) -> int:
    report: dict[str, Any] | None = None
    while True:
        # An engine that is busy with its last requests may take its time to answer.
        with contextlib.suppress(TimeoutError):
            seconds = min(CALL_SECONDS, max(POLL_SECONDS, deadline - time.monotonic()))
            report = _call(url, authorization, "GET" if report else "POST", seconds)
            if report["empty"]:
                return 0
        if time.monotonic() >= deadline:
            said = f"{report['requests']} requests are left" if report else f"{url} was silent"
            print(f"{said} at the deadline", file=sys.stderr)
            return 1
        time.sleep(POLL_SECONDS)


def _call(url: str, authorization: str, method: str, seconds: float) -> dict[str, Any]:
    """Raises TimeoutError where there is no answer in time, and OSError."""
    request = urllib.request.Request(url, method=method, headers={"Authorization": authorization})
    # The engine is in this very pod: whatever proxies the environment names know nothing of it.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=seconds) as answer:
            report: dict[str, Any] = json.load(answer)
            return report
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from None
        raise
