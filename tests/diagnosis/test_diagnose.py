"""One answer from conditions, events, pods and logs: what a user reads first is the cause."""

from collections.abc import Mapping
from typing import Any

import pytest

from distserve.api.conditions import ProgressingReason
from distserve.diagnosis.diagnose import diagnose
from distserve.diagnosis.facts import Facts, containers
from distserve.diagnosis.text import as_document, as_text

Object = dict[str, Any]


def document(generation: int = 1, observed: int | None = 1, **conditions: str) -> Object:
    """Conditions as Type="Status Reason message"."""
    found = []
    for kind, words in conditions.items():
        status, reason, message = words.split(" ", 2)
        found.append({"type": kind, "status": status, "reason": reason, "message": message})
    return {
        "metadata": {"name": "tiny", "namespace": "llm", "generation": generation},
        "spec": {"units": 1},
        "status": {
            **({"observedGeneration": observed} if observed is not None else {}),
            "conditions": found,
            "url": "http://tiny-gateway.llm.svc:8000/v1",
            "replicas": 1,
        },
    }


def pod(name: str = "tiny-u0-decode-0-0", *states: Mapping[str, Any], **status: Any) -> Object:
    names = ["kv-migrator", "engine"][-len(states) :]
    return {
        "metadata": {"name": name, "labels": {"distserve.io/role": name.split("-")[2]}},
        "spec": {"containers": [{"name": one} for one in names]},
        "status": {
            "containerStatuses": [{"name": n, **s} for n, s in zip(names, states, strict=False)],
            **status,
        },
    }


def event(kind: str, name: str, reason: str, message: str, at: str = "12:00:00") -> Object:
    return {
        "metadata": {"name": "e", "creationTimestamp": f"2026-01-01T{at}Z"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
    }


READY = {"Ready": "True Serving all units are ready"}
READY_POD = {"conditions": [{"type": "Ready", "status": "True"}]}
RUNNING = {"ready": False, "restartCount": 0, "state": {"running": {}}}
CRASHED = {
    "ready": False,
    "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
    "lastState": {"terminated": {"exitCode": 2, "reason": "Error"}},
}


def headline(facts: Facts) -> str:
    return diagnose(facts).headline


def test_what_serves_says_where() -> None:
    found = diagnose(Facts(document(**READY)))
    assert found.serves and not found.findings
    assert found.headline == "serves at http://tiny-gateway.llm.svc:8000/v1; ready units: 1"


def test_no_operator_is_the_first_thing_said() -> None:
    found = diagnose(Facts(document(observed=None), operator_pods=()))
    assert found.headline == "does not serve: no operator runs in this cluster"
    assert "helm install" in found.findings[0].cure


def test_an_operator_that_may_not_be_seen_is_asked_for() -> None:
    found = diagnose(Facts(document(observed=None)))
    assert found.headline == "does not serve: no operator has looked at it"
    assert "namespace llm" in found.findings[0].cure


def test_an_operator_that_lags_is_told_by_its_generation() -> None:
    assert "generation 1, the spec is at 2" in headline(Facts(document(generation=2, **READY)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Accepted", "False NotSupportedByEngine spec.prefill.parallelism; set tensor: 1"),
        ("Planned", "False NearestMiss TTFT p90 is 300 ms; raise slo.ttft"),
        ("Placed", "False NoRoom unit u1 needs 3 GPUs; free one"),
        ("Failed", "True RestartBudget 5 restarts within 10m; mend the model's path"),
    ],
)
def test_a_condition_that_holds_all_up_comes_before_pods(kind: str, words: str) -> None:
    facts = Facts(document(**{kind: words}), pods=(pod("tiny-u0-decode-0-0", RUNNING),))
    first = diagnose(facts).findings[0]
    assert first.what.startswith(f"{kind} is ")
    assert first.cure == words.split("; ")[1]


def test_the_scheduler_is_quoted() -> None:
    said = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "message": said}
    found = diagnose(Facts(document(), pods=(pod(conditions=[unscheduled]),)))
    assert found.headline == "does not serve: no node takes the decode pod tiny-u0-decode-0-0"
    assert found.findings[0].evidence == (said,)


def test_a_crash_ends_in_its_last_words() -> None:
    logs = {("tiny-u0-decode-0-0", "engine"): "loading\nno such model: /models/x"}
    facts = Facts(document(), pods=(pod("tiny-u0-decode-0-0", RUNNING, CRASHED),), logs=logs)
    first = diagnose(facts).findings[0]
    assert "container engine of the decode pod" in first.what and "exit code 2" in first.what
    assert first.evidence[-1] == "no such model: /models/x"
    assert "--previous" in first.cure


def test_a_gateway_that_waits_for_engines_is_not_what_is_wrong() -> None:
    gateway = pod("tiny-gateway-abc-1", RUNNING)
    gateway["metadata"]["labels"] = {"app.kubernetes.io/component": "gateway"}
    both = Facts(document(), pods=(gateway, pod("tiny-u0-decode-0-0", RUNNING)))
    assert [one.subject for one in diagnose(both).findings] == ["pod/tiny-u0-decode-0-0"]
    alone = diagnose(Facts(document(), pods=(gateway,)))
    assert [one.subject for one in alone.findings] == ["pod/tiny-gateway-abc-1"]


def test_structured_log_lines_are_read() -> None:
    line = '{"time": "2026-01-01T00:00:00Z", "level": "error", "message": "no such model: /x"}'
    logs = {("tiny-u0-decode-0-0", "engine"): line}
    facts = Facts(document(), pods=(pod("tiny-u0-decode-0-0", RUNNING, CRASHED),), logs=logs)
    assert diagnose(facts).findings[0].evidence == ("error: no such model: /x",)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("ImagePullBackOff", "cannot be pulled"),
        ("CreateContainerConfigError", "cannot be made"),
    ],
)
def test_what_the_kubelet_waits_for(reason: str, said: str) -> None:
    waiting = {"ready": False, "state": {"waiting": {"reason": reason, "message": "not there"}}}
    first = diagnose(Facts(document(), pods=(pod("tiny-u0-decode-0-0", waiting),))).findings[0]
    assert said in first.what and first.evidence == ("not there",)


def test_out_of_memory_names_the_limits() -> None:
    killed = {"exitCode": 137, "reason": "OOMKilled"}
    state = {"ready": False, "restartCount": 1, "lastState": {"terminated": killed}, "state": {}}
    first = diagnose(Facts(document(), pods=(pod("tiny-u0-decode-0-0", state),))).findings[0]
    assert "ran out of memory" in first.what and "kvCache" in first.cure


def test_pods_with_the_same_trouble_are_one_finding() -> None:
    names = ["tiny-u0-prefill-0-0", "tiny-u0-decode-0-0", "tiny-u1-prefill-0-0"]
    events = tuple(event("Pod", n, "FailedMount", f"no secret key for {n}") for n in names)
    found = diagnose(Facts(document(), pods=tuple(pod(n) for n in names), events=events))
    assert len(found.findings) == 1
    assert found.headline.endswith("the prefill pod tiny-u0-prefill-0-0 (and of 2 more pods)")


def test_pods_that_may_not_be_made_are_found_at_their_controller() -> None:
    stateful = {"kind": "StatefulSet", "metadata": {"name": "tiny-u0-decode-0"}}
    said = event("StatefulSet", "tiny-u0-decode-0", "FailedCreate", "exceeded quota: cpu")
    found = diagnose(Facts(document(), children=(stateful,), events=(said,)))
    assert found.findings[0].evidence == ("exceeded quota: cpu",)
    made = Facts(document(), (pod(conditions=[]),), (stateful,), (said,))
    assert all("refuses" not in one.what for one in diagnose(made).findings)


@pytest.mark.parametrize(("pods", "which"), [(0, "the"), (1, "further")])
def test_a_deployment_says_itself_that_its_pods_are_refused(pods: int, which: str) -> None:
    """The events are its ReplicaSet's."""
    said = 'pods "tiny-gateway-abc-1" is forbidden: exceeded quota: small'
    condition = {"type": "ReplicaFailure", "reason": "FailedCreate", "message": said}
    gateway = {"kind": "Deployment", "metadata": {"name": "tiny-gateway"}}
    made = tuple(pod("tiny-gateway-abc-0", **READY_POD) for _ in range(pods))

    def found(status: str) -> Any:
        conditions = {"conditions": [condition | {"status": status}]}
        children = (gateway | {"status": conditions},)
        return diagnose(Facts(document(Ready="False No no"), made, children)).findings

    (finding,) = found("True")
    assert finding.what == f"the cluster refuses {which} pods of tiny-gateway"
    assert finding.evidence == (said,) and "quota" in finding.cure
    assert not found("False")


@pytest.mark.parametrize("reason", list(ProgressingReason))
def test_a_rollout_is_a_worry_only_when_it_is_held_up(reason: ProgressingReason) -> None:
    held = {"Paused", "NoRoomForSurge", "ProgressDeadlineExceeded"}
    found = diagnose(Facts(document(**READY, Progressing=f"False {reason} the words of it")))
    assert found.serves
    assert bool(found.findings) == (reason in held)


def test_the_pods_of_another_instance_are_not_this_ones() -> None:
    stateful = {"kind": "StatefulSet", "metadata": {"name": "tiny-u0-decode-1"}}
    said = event("StatefulSet", "tiny-u0-decode-1", "FailedCreate", "exceeded quota: cpu")
    tenth = pod("tiny-u0-decode-10-0", conditions=[])
    found = diagnose(Facts(document(), (tenth,), (stateful,), (said,)))
    assert found.findings[0].what == "the cluster refuses the pods of tiny-u0-decode-1"


def test_what_serves_may_still_have_a_worry() -> None:
    worry = {"Degraded": "True UnitsMissing 1 of 2 units is ready; see its pods"}
    found = diagnose(Facts(document(**READY, **worry)))
    assert found.serves
    assert found.headline.endswith("but Degraded is True (UnitsMissing): 1 of 2 units is ready")


@pytest.mark.parametrize("status", ["True", "False", "Unknown"])
def test_a_slow_fabric_is_a_worry_of_what_serves(status: str) -> None:
    said = "unit u0: d reads from p over TCP at 20 MB/s, expected: 1 GB/s; look at the path"
    found = diagnose(Facts(document(**READY, FabricVerified=f"{status} SlowFabric {said}")))
    assert found.serves
    if status == "False":
        (finding,) = found.findings
        assert "d reads from p over TCP at 20 MB/s, expected: 1 GB/s" in finding.what
        assert finding.cure == "look at the path"
    else:
        assert not found.findings


def test_the_text_has_cause_cure_conditions_and_warnings() -> None:
    twice = [event("Pod", "tiny-u0-decode-0-0", "Unhealthy", "503", f"12:00:0{i}") for i in (1, 2)]
    facts = Facts(
        document(Ready="False NotReady no"),
        (pod("tiny-u0-decode-0-0", RUNNING),),
        events=tuple(twice),
    )
    text = as_text(facts, diagnose(facts))
    assert text.startswith("llm/tiny does not serve: ")
    assert "   -> " in text and "Ready          False    NotReady: no" in text
    assert text.count("Unhealthy") == 1 and "12:00:02" in text
    read = as_document(facts, diagnose(facts))
    assert read["serves"] is False and read["eventsRead"] is True


def test_native_sidecars_are_containers_too() -> None:
    found = list(
        containers(
            {
                "spec": {
                    "initContainers": [{"name": "kv-migrator", "restartPolicy": "Always"}],
                    "containers": [{"name": "engine"}],
                },
                "status": {"initContainerStatuses": [{"name": "kv-migrator", "ready": True}]},
            }
        )
    )
    assert [(one.name, one.ready) for one in found] == [("kv-migrator", True), ("engine", False)]
