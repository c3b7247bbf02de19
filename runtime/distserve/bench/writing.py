"""Writes files whole or not at all: a full disk takes no good file away. Called by all writers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from distserve.bench.errors import BenchError


def write_whole(path: Path, content: str | bytes, cure: str) -> None:
    """A reader never sees half a file, and until the new one is there the old one stays.

    A link is followed; a device or a pipe has nothing to keep and is written straight. Raises
    BenchError, which ends with the cure.
    """
    raw = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(raw)
        else:
            _replace(target, raw)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}; {cure}") from error


def _replace(target: Path, raw: bytes) -> None:
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_bytes(raw)
        os.replace(beside, target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
