"""What can go wrong with a test cluster, and who is to act on it.

ClusterError
 |- Unavailable     this machine cannot run it; the message says what to install (tests skip)
 |- DidNotCome      a wait ran out or a process died; the message ends in the log's tail
 `- CommandFailed   kubectl, helm or a helper of the set-up said no
"""

from collections.abc import Sequence


class ClusterError(Exception):
    """Base of everything raised here."""


class Unavailable(ClusterError):
    """This machine lacks something; retrying does not help, installing does."""


class DidNotCome(ClusterError):
    """What was waited for did not come within its bound."""


class CommandFailed(ClusterError):
    """A command ended with another exit status than 0."""

    def __init__(self, command: Sequence[str], status: int, stdout: str, stderr: str) -> None:
        self.command = tuple(command)
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        said = (stderr.strip() or stdout.strip())[-4000:]
        super().__init__(f"{' '.join(command)[:400]} ended with {status}: {said}")
