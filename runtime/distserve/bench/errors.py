"""The one error of this room: a question that cannot be measured or reported as it was asked."""


class BenchError(Exception):
    """The message is one line and says what to change."""
