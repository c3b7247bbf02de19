"""The errors of a verb that end as one line. Apart from main, which may run as `__main__`."""


class UsageError(Exception):
    """A user's mistake: printed as one line, exit code 2. The message says how to mend it."""

    exit_code = 2


class Infeasible(UsageError):
    """What was asked is understood, but nothing meets it; the message has the nearest miss."""

    exit_code = 3
