"""The one way to wait here: for a condition, with a bound, and with a message that helps."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.cluster.errors import CommandFailed, DidNotCome
from tools.cluster.search_path import search_path

POLL_SECONDS = 0.05
LOOKING_SHARE, LONGEST_PAUSE_SECONDS = 0.25, 1.0
"""Of the time of a wait, at most: looks that start programs would take a core from others. One that
blocks takes none."""


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log file, or a word that there is none."""
    if not log.exists():
        return f"({log} was never written)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) or f"({log} is empty)"


def wait_for(
    what: str,
    condition: Callable[[], bool],
    seconds: float,
    *,
    explain: Callable[[], str] = str,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Returns once `condition` holds; after `seconds` raises DidNotCome with `explain`'s words."""
    deadline = time.monotonic() + seconds
    while True:
        looked = time.monotonic()
        if condition():
            return
        took = time.monotonic() - looked
        if looked + took > deadline:
            raise DidNotCome(f"waited {seconds:g} s in vain for {what}\n{explain()}".rstrip())
        pause = min(LONGEST_PAUSE_SECONDS, took * (1 / LOOKING_SHARE - 1))
        time.sleep(max(poll_seconds, pause))


def run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    seconds: float = 60.0,
) -> str:
    """Runs a command to its end and returns what it wrote to stdout.

    Raises CommandFailed on a status other than 0, DidNotCome when it takes longer than `seconds`.
    """
    environment = os.environ if env is None else env
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env={**environment, "PATH": search_path(environment)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        # Bytes, also where text was asked for.
        said = [part for part in (expired.stdout, expired.stderr) if part]
        text = "\n".join(s.decode(errors="replace") if isinstance(s, bytes) else s for s in said)
        raise DidNotCome(
            f"{' '.join(command)[:400]} had not ended after {seconds:g} s\n{text[-4000:]}".rstrip()
        ) from None
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stdout, done.stderr)
    return done.stdout
