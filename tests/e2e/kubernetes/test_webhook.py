"""The webhook as the chart makes it: API server, Service and the pods of two real nodes."""

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CONFIGURATION = "ValidatingWebhookConfiguration"
NAME, SYSTEM = "distserve-webhook", "distserve-system"
WRONG = {"parallelism": {"tensor": 2}}
SAID = "spec.prefill.parallelism: this engine cannot run more than one rank yet; set tensor: 1"
DENIED = 'distserve_operator_admission_reviews_total{outcome="denied"}'
AWAY = "failed calling webhook"
DRY = "--dry-run=server"

# As an API server does that knows the Service by its name and address alone.
REVIEW = """
import json, ssl, sys, urllib.request
url, authorities, review = sys.argv[1:]
trust = ssl.create_default_context(cadata=authorities)
asked = urllib.request.Request(url, review.encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(asked, timeout=10, context=trust).read().decode())
"""


def tiny(name: str, **spec: Any) -> dict[str, Any]:
    """No unit of it: what is asked here is whether it is stored."""
    text = (CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    found["metadata"]["name"] = name
    found["spec"] |= {"units": 0, **copy.deepcopy(spec)}
    return found


def wrong(name: str = "wrong") -> dict[str, Any]:
    return tiny(name, prefill={"instancesPerUnit": 1, **WRONG})


class Hook:
    """The release with its webhook on."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.cluster: Cluster = place.cluster
        self.namespace: str = place.namespace

    def upgrade(self, *values: str) -> None:
        settings = [f"--set={value}" for value in values]
        chart = str(CHECKOUT / "charts" / "distserve")
        # Fields that kubectl wrote since are helm's again.
        flags = ("--reuse-values", "--force-conflicts", "--wait", "--timeout=120s")
        where = f"--namespace={SYSTEM}"
        self.cluster.helm("upgrade", "distserve", chart, where, *flags, *settings, seconds=150)

    def be(self, policy: str) -> None:
        patch = [{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": policy}]
        words = f"--patch={json.dumps(patch)}"
        self.cluster.kubectl("patch", CONFIGURATION, NAME, "--type=json", words)

    def refused(self, document: dict[str, Any], *flags: str) -> str:
        """Why it was, empty when it was taken."""
        try:
            self.cluster.apply(document, self.namespace, *flags)
        except CommandFailed as failed:
            return failed.stderr
        return ""

    def wait_for_words(self, words: str = SAID) -> None:
        self.cluster.wait_for(f"the answer {words!r}", lambda: words in self.refused(wrong(), DRY))

    @property
    def configuration(self) -> Any:
        (found,) = self.cluster.get(CONFIGURATION, NAME)["webhooks"]
        return found

    @property
    def authorities(self) -> str:
        """Whom API servers are told to trust, PEM."""
        return base64.b64decode(self.configuration["clientConfig"].get("caBundle", "")).decode()

    def operators(self) -> list[Any]:
        """The pods, those included that end."""
        labels = "app.kubernetes.io/name=distserve-operator"
        return list(self.cluster.get("pods", namespace=SYSTEM, selector=labels)["items"])

    def scale(self, replicas: int) -> None:
        where, name = f"--namespace={SYSTEM}", "deployment/distserve-operator"
        self.cluster.kubectl("scale", name, where, f"--replicas={replicas}")
        rolled = ("rollout", "status", name, where, "--timeout=90s")
        self.cluster.kubectl(*rolled, seconds=100)
        if not replicas:
            labels = "--selector=app.kubernetes.io/name=distserve-operator"
            gone = ("wait", "pods", labels, where, "--for=delete", "--timeout=60s")
            self.cluster.kubectl(*gone, seconds=70)


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
        status = cluster.get("dsd", "stored", hook.namespace).get("status", {})
        return any(
            one["type"] == "Accepted" and one["status"] == "False" and SAID in one["message"]
            for one in status.get("conditions", [])
        )

    cluster.wait_for("the condition Accepted to say the same", reported)
