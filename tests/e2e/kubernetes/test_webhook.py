"""The webhook as the chart makes it: API server, Service and the pods of two real nodes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.kubernetes.hook import (
    AWAY,
    CONFIGURATION,
    DRY,
    NAME,
    SAID,
    SYSTEM,
    Hook,
    tiny,
    wrong,
)
from tools.cluster.conditions import conditions

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DENIED = 'distserve_operator_admission_reviews_total{outcome="denied"}'

# As an API server does that knows the Service by its name and address alone.
REVIEW = """
import json, ssl, sys, urllib.request
url, authorities, review = sys.argv[1:]
trust = ssl.create_default_context(cadata=authorities)
asked = urllib.request.Request(url, review.encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(asked, timeout=10, context=trust).read().decode())
"""


@pytest.fixture(scope="module")
def hook(place: Any) -> Iterator[Hook]:
    found = Hook(place)
    found.upgrade("webhook.enabled=true", "webhook.failurePolicy=Fail")
    yield found
    found.upgrade("webhook.enabled=false", "webhook.failurePolicy=Ignore")
    assert NAME not in found.cluster.kubectl("get", CONFIGURATION, "--output=name")


def test_it_refuses_in_the_operators_words(hook: Hook) -> None:
    """The chart's own configuration: its Service, its certificate, its rights."""
    hook.wait_for_words()
    service = hook.configuration["clientConfig"]["service"]
    assert (service["name"], service["namespace"]) == (NAME, SYSTEM)
    assert hook.configuration["failurePolicy"] == "Fail"
    said = hook.refused(wrong())
    assert "denied the request" in said and SAID in said
    assert hook.refused(tiny("good")) == ""
    assert SAID in hook.refused(wrong("good"))
    found = hook.cluster.get("dsd", namespace=hook.namespace)["items"]
    assert [one["metadata"]["name"] for one in found] == ["good"]


def test_every_replica_answers_behind_the_services_address(hook: Hook) -> None:
    """From a pod: its DNS, its node's kube-proxy, and the name in the certificate."""
    hook.wait_for_words()
    metadata = {**wrong()["metadata"], "namespace": hook.namespace, "uid": "u"}
    request = {
        "uid": "r1",
        "operation": "CREATE",
        "namespace": hook.namespace,
        "resource": {"group": "distserve.io", "resource": "distservedeployments"},
        "object": {**wrong(), "metadata": metadata},
    }
    url = f"https://{NAME}.{SYSTEM}.svc/validate"
    review = json.dumps({"request": request})
    replicas = hook.operators()
    assert len(replicas) == 2

    def refusals() -> list[float]:
        return [hook.place.metrics(pod, 8080)[DENIED] for pod in replicas]

    before, asked = refusals(), 0
    while not all(now > then for now, then in zip(refusals(), before, strict=True)):
        answer = json.loads(hook.place.python(REVIEW, url, hook.authorities, review))["response"]
        assert not answer["allowed"] and SAID in answer["status"]["message"]
        asked += 1
        assert asked < 20, f"{before} -> {refusals()}: one replica is never asked"


def test_a_restart_of_the_operator_holds_up_nobody(hook: Hook) -> None:
    """As `helm upgrade` restarts it: one pod after the other."""
    hook.wait_for_words()
    where, name = f"--namespace={SYSTEM}", "deployment/distserve-operator"
    hook.cluster.kubectl("rollout", "restart", name, where)
    answers = []

    def over() -> bool:
        answers.append(hook.refused(wrong(), DRY))
        found = hook.cluster.get("deployment", "distserve-operator", SYSTEM)
        status, wanted = found["status"], found["spec"]["replicas"]
        told = status["observedGeneration"] == found["metadata"]["generation"]
        counts = [status.get(name) for name in ("replicas", "updatedReplicas", "readyReplicas")]
        return told and counts == [wanted] * 3 and len(hook.operators()) == wanted

    hook.cluster.wait_for("the new replicas", over)
    assert [one for one in answers if SAID not in one] == []


@pytest.mark.soak
def test_a_lost_certificate_is_made_anew(hook: Hook) -> None:
    """As docs/operate.md says. Replicas look each minute."""
    hook.wait_for_words()
    before, where = hook.authorities, f"--namespace={SYSTEM}"
    hook.cluster.kubectl("patch", "secret", NAME, where, "--type=merge", '--patch={"data":null}')
    hook.cluster.wait_for("other authorities", lambda: hook.authorities not in ("", before))
    hook.wait_for_words()


def test_nobody_else_is_held_up_while_no_operator_runs(hook: Hook) -> None:
    hook.wait_for_words()
    cluster, where = hook.cluster, f"--namespace={hook.namespace}"
    cluster.apply(tiny("there"), hook.namespace)
    hook.scale(0)
    try:
        assert AWAY in hook.refused(tiny("new"), DRY)
        assert AWAY in hook.refused(tiny("there", gateway={"replicas": 1}), DRY)
        for kind in ("configmap", "serviceaccount"):
            cluster.kubectl("create", kind, "other", where)
        cluster.kubectl("annotate", "dsd", "there", "note=1", where)
        cluster.kubectl("delete", "dsd", "there", where, "--timeout=30s")
        # What the chart has unless it is told otherwise.
        hook.be("Ignore")
        cluster.wait_for("all to pass", lambda: hook.refused(tiny("new"), DRY) == "")
        assert hook.refused(wrong("stored")) == ""
    finally:
        hook.scale(2)
    hook.wait_for_words()

    def reported() -> bool:
        said = conditions(cluster.get("dsd", "stored", hook.namespace)).get("Accepted", {})
        return said.get("status") == "False" and SAID in said["message"]

    cluster.wait_for("the condition Accepted to say the same", reported)
