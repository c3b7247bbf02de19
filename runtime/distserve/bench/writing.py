"""Writes files whole or not at all: a full disk takes no good file away. Called by all writers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from distserve.bench.errors import BenchError


def write_whole(path: Path, content: str | bytes, cure: str) -> None:
    """A reader never sees half a file, and until the new one is there the old one stays.

    A link is followed; a device or a pipe has nothing to keep and is written straight. Raises
    BenchError, which ends with the cure.
    """
    write_together({path: content}, (), cure)


def write_together(contents: Mapping[Path, str | bytes], stale: Iterable[Path], cure: str) -> None:
    """All of the files, in this order, once there is room for them all; else none.

    The `stale` ones go before the first is changed. Else as `write_whole`.
    """
    parts: dict[Path, Path] = {}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            # Asked of the path as it is given: that of an open pipe leads to no path of its own.
            if path.exists() and not path.is_file():
                path.write_bytes(_raw(content))
                continue
            target = Path(os.path.realpath(path))
            part = target.with_name(f".{target.name}.part")
            parts[part] = target
            part.write_bytes(_raw(content))
        for path in stale:
            Path(os.path.realpath(path)).unlink(missing_ok=True)
        for part, path in parts.items():
            os.replace(part, path)
    except OSError as error:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink()
        raise _refusal(path, error, cure) from error


def _raw(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _refusal(path: Path, error: OSError, cure: str) -> BenchError:
    return BenchError(f"{path} cannot be written: {error.strerror or error}; {cure}")
