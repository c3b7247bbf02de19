"""Facts -> the one thing to look at first, what else is wrong, and what to do.

Causes are looked for in the order in which a deployment comes to life: what is wrong early explains
what is missing later.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from distserve.api import labels
from distserve.api.conditions import Condition, ProgressingReason
from distserve.diagnosis.facts import (
    Container,
    Facts,
    Object,
    containers,
    event_text,
    is_ready,
    pod_role,
    refused_pods,
    unschedulable,
)

IMAGE_REASONS: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName"})
CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError"})
LOG_LINES: Final = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is not as asked for."""

    what: str
    cure: str
    subject: str = ""
    """pod/NAME, statefulset/NAME...; empty: the deployment itself."""
    evidence: tuple[str, ...] = ()
    """Lines of logs, words of the API server."""
    kind: str = ""
    """What pods with the same trouble share."""


@dataclass(frozen=True)
class Diagnosis:
    serves: bool
    headline: str
    findings: tuple[Finding, ...]
    """Most likely cause first."""


def diagnose(facts: Facts) -> Diagnosis:
    """Never fails for what the API server may serve: absent fields count as not yet there."""
    findings = tuple(_findings(facts))
    ready = facts.condition(Condition.READY)
    serves = ready is not None and ready["status"] == "True"
    return Diagnosis(serves, _headline(facts, serves, findings), findings)


def _findings(facts: Facts) -> Iterator[Finding]:
    yield from _life(facts)
    yield from _operator(facts)
    yield from _refusals(facts)
    for child in facts.children:
        yield from _refused_pods(facts, child)
    yield from _together(_pods(facts))
    yield from _what_remains(facts)


def _pods(facts: Facts) -> Iterator[Finding]:
    """Engines first; a gateway that only waits for them is no finding of its own."""
    gateways = [pod for pod in facts.pods if pod_role(pod) == labels.COMPONENT_GATEWAY]
    found = [one for pod in facts.pods if pod not in gateways for one in _pod(facts, pod)]
    yield from found
    for finding in (one for pod in gateways for one in _pod(facts, pod)):
        if finding.kind != "slow" or not found:
            yield finding


def _together(findings: Iterable[Finding]) -> Iterator[Finding]:
    """One for all pods that have the same trouble."""
    by_trouble: dict[tuple[str, tuple[str, ...]], list[Finding]] = {}
    for finding in findings:
        own = finding.subject.removeprefix("pod/")
        trouble = tuple(line.replace(own, "") for line in finding.evidence)
        by_trouble.setdefault((finding.kind, trouble), []).append(finding)
    for same in by_trouble.values():
        others = f" (and of {len(same) - 1} more pods)" if len(same) > 1 else ""
        yield replace(same[0], what=f"{same[0].what}{others}")


def _headline(facts: Facts, serves: bool, findings: tuple[Finding, ...]) -> str:
    status, units = facts.status, facts.document.get("spec", {}).get("units", 1)
    if serves and not findings:
        return f"serves at {status.get('url')}; ready units: {status.get('replicas', 0)}"
    if serves:
        return f"serves at {status.get('url')}, but {_lower(findings[0].what)}"
    if findings:
        return f"does not serve: {_lower(findings[0].what)}"
    if not units:
        return "does not serve: spec.units is 0"
    return "does not serve yet; nothing that was found is wrong: ask again in some seconds"


def _life(facts: Facts) -> Iterator[Finding]:
    if facts.document["metadata"].get("deletionTimestamp"):
        yield Finding("it is being deleted", "wait: its objects go with it; apply it again after")


def _operator(facts: Facts) -> Iterator[Finding]:
    asked = facts.document["metadata"].get("generation", 0)
    seen = facts.status.get("observedGeneration", 0)
    if seen >= asked:
        return
    look = "kubectl get pods --all-namespaces --selector app.kubernetes.io/name=distserve-operator"
    if facts.operator_pods == ():
        cure = "install one: helm install distserve charts/distserve --namespace distserve-system"
        yield Finding("no operator runs in this cluster", f"{cure} --create-namespace")
    elif facts.operator_pods and not any(map(is_ready, facts.operator_pods)):
        yield Finding("no operator pod is ready", f"look at the operator: {look}")
    elif seen == 0:
        yield Finding(
            "no operator has looked at it",
            f"is one installed that watches namespace {facts.namespace}? {look}",
        )
    else:
        yield Finding(
            f"the operator acted on generation {seen}, the spec is at {asked}",
            f"ask again in some seconds; if it stays, read the operator's log: {look}",
        )


REFUSING: Final = (Condition.ACCEPTED, Condition.PLANNED, Condition.PLACED)


def _refusals(facts: Facts) -> Iterator[Finding]:
    """Conditions that hold up all that comes later; their messages are written for users."""
    for kind in REFUSING:
        condition = facts.condition(kind)
        if condition is not None and condition["status"] != "True":
            yield _said_by(condition)
    failed = facts.condition(Condition.FAILED)
    if failed is not None and failed["status"] == "True":
        yield _said_by(failed)


def _refused_pods(facts: Facts, child: Object) -> Iterator[Finding]:
    """A controller that may not make its pods: quota, pod security, a webhook. Events are old news
    once a pod is there; what a Deployment says of itself is so now."""
    kind, name = child["kind"], child["metadata"]["name"]
    failures = [e for e in facts.events_of(kind, name) if e.get("reason") == "FailedCreate"]
    made = any(pod["metadata"]["name"].startswith(f"{name}-") for pod in facts.pods)
    said = refused_pods(child)
    if failures and not made:
        said = said or event_text(failures[-1])
    if said:
        yield Finding(
            f"the cluster refuses {'further' if made else 'the'} pods of {name}",
            "change what it names: podTemplate, the namespace's quota or its pod security",
            f"{kind.lower()}/{name}",
            (said,),
        )


def _pod(facts: Facts, pod: Object) -> Iterator[Finding]:
    if is_ready(pod) or pod["metadata"].get("deletionTimestamp"):
        return
    name = pod["metadata"]["name"]
    subject = f"pod/{name}"
    if said := unschedulable(pod):
        yield Finding(
            f"no node takes {_named(pod)}",
            "free or add what is short, or lower what the deployment asks for",
            subject,
            (said,),
            "unschedulable",
        )
        return
    stuck = [one for one in containers(pod) if not one.ready]
    for container in stuck:
        if (finding := _ended(facts, pod, container)) is not None:
            yield finding
            return
    if not any(one.running for one in containers(pod)) and (said := _mount_failure(facts, name)):
        yield Finding(
            f"a volume cannot be mounted for {_named(pod)}",
            "make what it names: a Secret, a ConfigMap, a claim",
            subject,
            (said,),
            "mount",
        )
    elif stuck:
        yield _slow(facts, pod, stuck[0])


def _named(pod: Object) -> str:
    return f"the {pod_role(pod)} pod {pod['metadata']['name']}"


def _mount_failure(facts: Facts, pod: str) -> str:
    events = [e for e in facts.events_of("Pod", pod) if e.get("reason") == "FailedMount"]
    return event_text(events[-1]) if events else ""


def _ended(facts: Facts, pod: Object, container: Container) -> Finding | None:
    """What ended it, or what the kubelet has against it; None while nothing is wrong."""
    name = pod["metadata"]["name"]
    subject, which = f"pod/{name}", f"container {container.name} of {_named(pod)}"
    said = (container.message,) if container.message else ()
    if container.waiting in IMAGE_REASONS:
        cure = "name an image that the nodes can pull (spec.images), or give imagePullSecrets"
        return Finding(f"the image for {which} cannot be pulled", cure, subject, said, "image")
    if container.waiting in CONFIG_REASONS:
        cure = "make what it names: a Secret, a ConfigMap, a claim"
        return Finding(f"{which} cannot be made", cure, subject, said, "config")
    if container.end_reason == "OOMKilled":
        cure = "raise its memory limit (podTemplate), or lower accelerator.kvCache or maxModelLen"
        return Finding(f"{which} ran out of memory", cure, subject, kind="memory")
    failed = container.exit_code not in (None, 0)
    if failed and (container.restarts or not container.running):
        log = facts.log(name, container.name)[-LOG_LINES:]
        return Finding(
            f"{which} ended with exit code {container.exit_code} ({container.restarts} restarts)",
            f"mend what its last lines say; all of them: kubectl logs --namespace "
            f"{facts.namespace} {name} --container {container.name} --previous",
            subject,
            tuple(log) or said,
            "exit",
        )
    return None


def _slow(facts: Facts, pod: Object, container: Container) -> Finding:
    """It runs, or is about to, and nothing is wrong with it so far."""
    name = pod["metadata"]["name"]
    warnings = [e for e in facts.events_of("Pod", name) if e.get("type") == "Warning"]
    log = facts.log(name, container.name)[-1:]
    return Finding(
        f"container {container.name} of {_named(pod)} is not ready yet",
        "loading a model takes its time; follow it: kubectl logs --namespace "
        f"{facts.namespace} {name} --container {container.name} --follow",
        f"pod/{name}",
        (*(event_text(e) for e in warnings[-1:]), *log),
        "slow",
    )


HELD_UP: Final = frozenset(
    {
        ProgressingReason.PAUSED,
        ProgressingReason.NO_ROOM_FOR_SURGE,
        ProgressingReason.DEADLINE_EXCEEDED,
    }
)
"""Why a rollout stands still before its end."""


def _what_remains(facts: Facts) -> Iterator[Finding]:
    """Conditions that tell of something bad while the deployment may serve."""
    degraded = facts.condition(Condition.DEGRADED)
    if degraded is not None and degraded["status"] == "True":
        yield _said_by(degraded)
    fabric = facts.condition(Condition.FABRIC_VERIFIED)
    if fabric is not None and fabric["status"] == "False":
        yield _said_by(fabric)
    progressing = facts.condition(Condition.PROGRESSING)
    if progressing is not None and progressing["reason"] in HELD_UP:
        yield _said_by(progressing)


def _said_by(condition: Object) -> Finding:
    """Its message says what is, and after a semicolon or the first sentence what to do."""
    message = str(condition.get("message", ""))
    what, found, cure = message.partition("; ")
    if not found:
        what, found, cure = message.partition(". ")
    return Finding(
        f"{condition['type']} is {condition['status']} ({condition['reason']}): {what}",
        cure or "see the message",
    )


def _lower(text: str) -> str:
    first = text.split(" ", 1)[0]
    kept = first.lower() != first[:1].lower() + first[1:]
    return text if kept or first in set(Condition) else text[:1].lower() + text[1:]
