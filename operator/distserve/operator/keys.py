"""The deployment's key: a Secret that is made once, and made anew when somebody deleted it.

Secrets are not watched, since that would need the right to read all of them. What is always made
after it tells that it was made; that it is lost shows in pods that do not start:

    pods with a node have no container for LOOK_SECONDS --> look for the Secret --> not there
                                    ^                                                 |
                                    +---- new pods <---- new key <---- all pods end <-+

Pods read the key when they start, and pods of two keys cannot work together. So all of them end
before the new key is made: wherever this is cut off, the pods that wait have it looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distserve.operator.model import Answers, Apply, Delete, Event, KeyQuestion, Observed, Ref
from distserve.operator.wanted import Wanted
from distserve.resources import naming
from distserve.resources.access import key_secret

LOOK_SECONDS = 30.0
"""Nearly all containers are made sooner, and one call a deployment in this time is nothing."""


@dataclass(frozen=True)
class KeyState:
    made: bool
    question: KeyQuestion | None = None
    lost: bool = False
    again_seconds: float | None = None


def key_state(observed: Observed, answers: Answers, wanted: Wanted) -> KeyState:
    account = Ref("v1", "ServiceAccount", naming.engine_name(wanted.deployment))
    if account not in observed.children:
        return KeyState(made=False)
    since = [p.starting_since for p in observed.pods if p.starting_since and not p.terminating]
    if not since:
        return KeyState(made=True)
    waited = observed.now - min(since)
    if waited < LOOK_SECONDS:
        return KeyState(made=True, again_seconds=LOOK_SECONDS - waited)
    question = KeyQuestion(naming.key_secret_name(wanted.deployment))
    return KeyState(True, question, bool(answers.key_lost), LOOK_SECONDS)


def key_writes(
    observed: Observed, wanted: Wanted, state: KeyState, new_key: Callable[[], str]
) -> list[Apply | Delete]:
    if state.made and not state.lost:
        return []
    ended = [
        Delete(Ref("v1", "Pod", pod.name), pod.uid)
        for pod in observed.pods
        if state.lost and not pod.terminating
    ]
    return [*ended, Apply(key_secret(wanted.deployment, new_key()), create_only=True)]


def key_events(wanted: Wanted, state: KeyState) -> tuple[Event, ...]:
    if not state.lost:
        return ()
    name = naming.key_secret_name(wanted.deployment)
    message = (
        f"Secret {name} was deleted: it is made anew with another key, and all pods start anew, "
        "since pods of two keys cannot work together"
    )
    return (Event("Warning", "KeyLost", message),)
