"""The error of a verb whose user made a mistake. Apart from main, which may run as `__main__`."""


class UsageError(Exception):
    """A user's mistake: printed as one line, exit code 2. The message says how to mend it."""
