"""The release with its webhook on, as the tests of both kinds of certificates look at it."""

import base64
import copy
import json
from typing import Any

import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed

CONFIGURATION = "ValidatingWebhookConfiguration"
NAME, SYSTEM = "distserve-webhook", "distserve-system"
WRONG = {"parallelism": {"tensor": 2}}
SAID = "spec.prefill.parallelism: this engine cannot run more than one rank yet; set tensor: 1"
AWAY = "failed calling webhook"
DRY = "--dry-run=server"


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
        self.cluster.wait_for("those before to be gone", lambda: len(self.operators()) == 2)

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
