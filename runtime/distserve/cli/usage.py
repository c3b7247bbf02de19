"""How a verb ends: errors that are one line, exit codes. Apart from main, which may run as
`__main__`."""

import signal
import sys
from typing import Any

INTERRUPTED = 130
"""By Ctrl-C, as shells say it; verbs that have something to tell or to end say so themselves."""


class UsageError(Exception):
    """A user's mistake: printed as one line, exit code 2. The message says how to mend it."""

    exit_code = 2


class Infeasible(UsageError):
    """What was asked is understood, but nothing meets it; the message has the nearest miss."""

    exit_code = 3


def end_on_sigterm() -> None:
    """At once, with the code that shells give it: for verbs that have nothing to end in order, or
    not yet. A container's first process gets no signal that it does not ask for."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: Any) -> None:
    sys.exit(128 + number)
