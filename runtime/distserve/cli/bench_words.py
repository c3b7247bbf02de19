"""What several verbs of `distserve bench` understand alike: durations and addresses."""

from __future__ import annotations

import argparse

from distserve.cli.usage import UsageError


def seconds_of(args: argparse.Namespace, name: str) -> float | None:
    from distserve.api.durations import parse_duration

    text = getattr(args, name)
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')} {text!r}: {error}") from error


def check_url(url: str) -> None:
    import re
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of brackets
        known = False
    if not known:
        # Without a user and password, also where the scheme was forgotten.
        shown = re.sub(r"(?s)^([^:/@]*:/+)?.*@", r"\1", url)
        raise UsageError(f"--url {shown!r} is no URL; give one as http://127.0.0.1:8000")


def has_credentials(url: str) -> bool:
    """As `http://user:password@host`; such a URL sends them as a header of its own."""
    from urllib.parse import urlsplit

    return urlsplit(url).username is not None
