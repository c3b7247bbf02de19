"""What is told where the API server does not take an object, or did not say: steadily, since each
write of the status wakes the deployment at once, however long the pause after a failure is.

Reports ask it for `Accepted`, the reconciler for the event.
"""

from __future__ import annotations

from typing import Final

from distserve.api.conditions import AcceptedReason, Condition
from distserve.operator.conditions import Fact, find
from distserve.operator.errors import ClusterError, Refused, WebhookDown
from distserve.operator.model import Answers, Event, Observed

NOT_TAKEN: Final = (Refused, WebhookDown)
"""Told to users: they, or who runs the cluster, can cure it."""
SUPPORTED: Final = Fact(
    True, AcceptedReason.SUPPORTED, "the engine build and the cluster can run it"
)
_STAND: Final = (AcceptedReason.REFUSED_BY_API_SERVER, AcceptedReason.NAME_TAKEN)
"""What nobody can tell the end of before all writes are done."""
_COMPARED: Final = 1000
"""Characters of a message without its numbers, of twice as many with them: conditions cut long
ones, and what a tenant wrote into a podTemplate may be all of it."""


def accepted(observed: Observed, answers: Answers) -> Fact:
    """Of a deployment that is acted on."""
    if isinstance(answers.failed, NOT_TAKEN):
        words = f"{answers.failed}. What runs goes on, and it is tried again"
        return not_taken(observed, answers, words)
    if answers.failed is not None and (told := _told(observed)) is not None:
        return told
    if not answers.foreign:
        return SUPPORTED
    names = ", ".join(f"{ref.kind} {ref.name}" for ref in sorted(answers.foreign))
    return Fact(
        False,
        AcceptedReason.NAME_TAKEN,
        f"{names}: made by somebody else and left alone; delete it, or give the deployment "
        "another name",
    )


def not_taken(observed: Observed, answers: Answers, words: str) -> Fact:
    """What was told already stays while it is the same but for numbers and times, and while the
    API server was only late."""
    told, new = _told(observed), Fact(False, AcceptedReason.REFUSED_BY_API_SERVER, words)
    late = answers.failed is not None and not isinstance(answers.failed, NOT_TAKEN)
    return told if told is not None and (late or _gist(told) == _gist(new)) else new


def refusal_event(error: ClusterError) -> Event:
    message = f"the API server refused an object: {error}"
    return Event("Warning", "ApplyRefused", message, of=_call(str(error)))


def _told(observed: Observed) -> Fact | None:
    """Of this generation."""
    status, metadata = observed.document.get("status") or {}, observed.document["metadata"]
    found = find(status.get("conditions") or (), Condition.ACCEPTED)
    if found is None or found["reason"] not in _STAND:
        return None
    if found.get("observedGeneration") != metadata.get("generation", 0):
        return None
    return Fact(False, AcceptedReason(found["reason"]), found["message"])


def _gist(fact: Fact) -> tuple[str, str, str]:
    """Without ports, times, counts: they differ each time. Not so in the name of the object."""
    call = _call(fact.message)
    words = fact.message[len(call) :][: 2 * _COMPARED].split()
    said = " ".join(word for word in words if not any(map(str.isdecimal, word)))
    return fact.reason, call, said[:_COMPARED]


def _call(words: str) -> str:
    """Which call it was of: errors begin with it."""
    return words.partition(": ")[0]
