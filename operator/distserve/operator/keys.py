"""The deployment's key: a Secret that is made once, and another one when somebody deleted it.

Secrets are not watched, since that would need the right to read all of them. What is always made
after it tells that it was made; that it is lost shows in pods that do not start:

    pods with a node have no container for LOOK_SECONDS --> look for the Secret --> not there
                                                                                       |
    pods of the former one end <-- templates name the next one <-- KEY-2 is made <-----+

The next Secret has a name of its own: a kubelet starts pods from its copy of the former one as long
as any pod of its node names that, and pods of two keys cannot work together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.operator.model import (
    Answers,
    Apply,
    Delete,
    Event,
    KeyQuestion,
    Object,
    Observed,
    Ref,
)
from distserve.resources import naming
from distserve.resources.access import key_secret

GENERATION: Final = f"{labels.GROUP}/key-generation"
"""Annotation of what makes pods: which of the deployment's keys they have. None: the first.
On the deployment itself: ask for another one."""
VOLUME: Final = "key"
LOOK_SECONDS = 30.0
"""Nearly all containers are made sooner, and one call a deployment in this time is nothing."""


@dataclass(frozen=True)
class KeyState:
    made: bool
    """Templates name the Secret only when it is there."""
    generation: int = 1
    """That all pods are to have."""
    question: KeyQuestion | None = None
    lost: bool = False
    """The one before is, just now."""
    again_seconds: float | None = None


def key_state(observed: Observed, answers: Answers, deployment: DistServeDeployment) -> KeyState:
    account = Ref("v1", "ServiceAccount", naming.engine_name(deployment))
    known = max(map(generation_of, observed.children.values()), default=1)
    generation = max(known, generation_of(observed.document))
    if account not in observed.children or generation > known:
        return KeyState(False, generation)
    since = [p.starting_since for p in observed.pods if p.starting_since and not p.terminating]
    if not since:
        return KeyState(True, generation)
    waited = observed.now - min(since)
    if waited < LOOK_SECONDS:
        return KeyState(True, generation, again_seconds=LOOK_SECONDS - waited)
    question = KeyQuestion(naming.key_secret_name(deployment, generation))
    lost = bool(answers.key_lost)
    return KeyState(True, generation + lost, question, lost, LOOK_SECONDS)


def generation_of(found: Object) -> int:
    text = (found["metadata"].get("annotations") or {}).get(GENERATION, "")
    return int(text) if text.isdecimal() else 1


def keyed(found: Object, deployment: DistServeDeployment, generation: int) -> Object:
    """With the Secret of this generation, where its pods have one: stored templates name the
    first."""
    if generation == 1 or found["kind"] not in ("StatefulSet", "Deployment"):
        return found
    metadata, spec, template = found["metadata"], found["spec"], found["spec"]["template"]
    name = naming.key_secret_name(deployment, generation)
    volumes = [
        {**one, "secret": {**one["secret"], "secretName": name}} if one["name"] == VOLUME else one
        for one in template["spec"]["volumes"]
    ]
    template = {**template, "spec": {**template["spec"], "volumes": volumes}}
    notes = {**metadata.get("annotations", {}), GENERATION: str(generation)}
    return {
        **found,
        "metadata": {**metadata, "annotations": notes},
        "spec": {**spec, "template": template},
    }


def key_writes(
    observed: Observed,
    deployment: DistServeDeployment,
    state: KeyState,
    new_key: Callable[[], str],
) -> list[Apply | Delete]:
    if not state.made or state.lost:
        return [Apply(key_secret(deployment, new_key(), state.generation), create_only=True)]
    return _ended(observed, naming.key_secret_name(deployment, state.generation))


def _ended(observed: Observed, secret: str) -> list[Apply | Delete]:
    """Engines of another key whose next pods will have this one. Gateways are rolled as ever."""
    found: list[Apply | Delete] = []
    for pod in observed.pods:
        if not pod.instance or pod.terminating or pod.key in ("", secret):
            continue
        maker = observed.children.get(Ref("apps/v1", "StatefulSet", pod.instance))
        if maker is not None and _named(maker) == secret:
            found.append(Delete(Ref("v1", "Pod", pod.name), pod.uid))
    return found


def _named(maker: Object) -> str:
    return key_of(maker["spec"]["template"]["spec"])


def key_of(pod_spec: Object) -> str:
    """Name of the Secret with the pod's key, empty where it has none."""
    for one in pod_spec.get("volumes") or ():
        if one["name"] == VOLUME:
            return str((one.get("secret") or {}).get("secretName", ""))
    return ""


def key_events(
    deployment: DistServeDeployment, state: KeyState, foreign: Collection[Ref]
) -> tuple[Event, ...]:
    """None where the next one cannot be made: that is told as a name that is taken."""
    name = naming.key_secret_name(deployment, state.generation)
    if not state.lost or Ref("v1", "Secret", name) in foreign:
        return ()
    lost = naming.key_secret_name(deployment, state.generation - 1)
    message = (
        f"Secret {lost} was deleted: {name} is made with another key, and all pods start anew, "
        "since pods of two keys cannot work together"
    )
    return (Event("Warning", "KeyLost", message),)
