"""What the API server may answer; whether trying again helps is the type.

ClusterError
 |- Refused        it will not take this: the message is the API server's (400, 403, 422...)
 |- NotFound       no such object, or no such kind (404)
 |- Conflict       another object or another version is there (409); look again, then decide anew
 `- Unavailable    no answer, or none now (429, 5xx, connection, timeout); try again, no sooner than
     |             `retry_after_seconds`
     `- WebhookDown   a webhook that the API server has to ask does not answer (500)

LeaseLost          this replica may not write any more: the process ends
Tripped            deciding about one deployment ended in a fault of ours; the others go on
"""


class ClusterError(Exception):
    """A call to the API server failed; the message names the call."""

    again_seconds: float | None = None
    """Until something runs out that the deployment waits for besides."""


class Refused(ClusterError):
    """The object or the right is at fault: trying again without a change is of no use."""


class NotFound(ClusterError):
    """There is none of that name."""


class Conflict(ClusterError):
    """What was seen is not what is there."""


class Unavailable(ClusterError):
    """The API server did not answer in time or asked to come later."""

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class WebhookDown(Unavailable):
    """Somebody else's webhook, of this kind of object: other writes may be done meanwhile."""


class LeaseLost(Exception):
    """Another replica may lead now; writing on would undo what it does."""


class Tripped(Exception):
    """What deciding about a deployment tripped over is its cause; what could be done is done."""

    def __init__(self, again_seconds: float | None) -> None:
        super().__init__("deciding tripped over a fault of the operator")
        self.again_seconds = again_seconds
        """Until something runs out that healing waits for."""
