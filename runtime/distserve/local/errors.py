"""Why a deployment cannot run, or stopped running, on this machine.

LocalError
├── Refused      found before anything was started
└── PodFailed    a container does not come up
"""


class LocalError(Exception):
    """The message is one line that says what to do."""


class Refused(LocalError):
    pass


class PodFailed(LocalError):
    """`tail` has the last lines that the container logged; `usage` says that it refused its
    arguments or environment, so that trying again is of no use."""

    def __init__(self, message: str, tail: list[str], usage: bool) -> None:
        super().__init__(message)
        self.tail = tail
        self.usage = usage
