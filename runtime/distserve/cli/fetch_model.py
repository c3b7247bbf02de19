"""`distserve fetch-model`: init container of engines whose model comes from a Hugging Face hub."""

import argparse
import os
import sys
from pathlib import Path

from distserve.cli.usage import UsageError, end_on_sigterm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", required=True, help="as facebook/opt-13b")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default main)")
    parser.add_argument("--cache", type=Path, required=True, help="folder that pods share")
    parser.add_argument(
        "--pin", required=True, help="name under cache/pins by which engines find the folder"
    )


def run(args: argparse.Namespace) -> int:
    """0: the files are there and checked. 1: try again, what is there is kept. 2: it cannot be.

    The token is read from HF_TOKEN, the hub's address from HF_ENDPOINT.
    """
    from distserve.wire.logs import setup_logging
    from distserve.wire.parent import end_with_parent

    if not args.pin.replace("-", "").isalnum():
        raise UsageError(f"--pin {args.pin!r}: letters, digits and hyphens are taken")
    end_on_sigterm()  # What was downloaded is kept, and the lock goes with the process.
    end_with_parent()
    setup_logging("fetch-model")
    # The hub's client reads its settings while it is imported.
    os.environ.pop("HF_HUB_OFFLINE", None)
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    from distserve.models.errors import FetchFailed, FetchRefused
    from distserve.models.fetch import fetch
    from distserve.models.hub import HuggingFaceHub

    hub = HuggingFaceHub(os.environ.get("HF_TOKEN"))
    try:
        print(fetch(hub, args.repository, args.revision, args.cache, args.pin))
    except FetchRefused as error:
        raise UsageError(str(error)) from error
    except FetchFailed as error:
        print(f"distserve fetch-model: {error}", file=sys.stderr)
        return 1
    return 0
