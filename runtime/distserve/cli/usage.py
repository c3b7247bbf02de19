"""How a verb ends: errors that are one line, exit codes. Apart from main, which may run as
`__main__`."""

INTERRUPTED = 130
"""By Ctrl-C, as shells say it; verbs that have something to tell or to end say so themselves."""


class UsageError(Exception):
    """A user's mistake: printed as one line, exit code 2. The message says how to mend it."""

    exit_code = 2


class Infeasible(UsageError):
    """What was asked is understood, but nothing meets it; the message has the nearest miss."""

    exit_code = 3
