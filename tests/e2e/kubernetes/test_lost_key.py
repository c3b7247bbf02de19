"""The Secret with the key is deleted under running pods, whose kubelets keep copies of it."""

from typing import Any

import pytest
from tools.cluster.conditions import is_true

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(1500)]

PROMPT = "The wind"
HEALED_SECONDS = 400.0
"""Half a minute until it is missed, then all engines load at once on one small machine."""


def keys(deployment: Any) -> set[str]:
    """Names of the Secrets that its pods have."""
    return {
        volume["secret"]["secretName"]
        for pod in deployment.pods()
        for volume in pod["spec"]["volumes"]
        if volume["name"] == "key"
    }


def wait_until_whole(deployment: Any, *secrets: str) -> None:
    """Three ready pods, with one of these keys each."""

    def whole() -> bool:
        ready = [is_true(pod, "Ready") for pod in deployment.pods()]
        return ready == [True] * 3 and keys(deployment) <= set(secrets)

    deployment.cluster.wait_for(f"pods with {secrets} to be ready", whole, HEALED_SECONDS)
    deployment.wait_for("Ready")


def delete(deployment: Any, *what: str) -> None:
    deployment.cluster.kubectl("delete", *what, f"--namespace={deployment.namespace}")


def test_a_lost_key_is_made_anew_under_another_name(deployment: Any) -> None:
    cluster, where = deployment.cluster, f"--namespace={deployment.namespace}"
    on_node1 = {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}
    deployment.apply(gateway={"replicas": 1, "podTemplate": on_node1})
    deployment.wait_for("Ready", seconds=HEALED_SECONDS)
    before = deployment.ask(PROMPT)

    # Nothing else on node2 has this Secret: its kubelet has to look for it.
    delete(deployment, "secret", "tiny-key")
    delete(deployment, "pod", deployment.pod(role="decode")["metadata"]["name"])
    wait_until_whole(deployment, "tiny-key-2")
    (event,) = deployment.wait_until_told("KeyLost")
    assert "Secret tiny-key was deleted" in event["note"]
    assert deployment.ask(PROMPT) == before

    # On node1 the gateway has it: the kubelet starts the engine with its copy.
    delete(deployment, "secret", "tiny-key-2")
    prefill = deployment.pod(role="prefill")
    delete(deployment, "pod", prefill["metadata"]["name"])

    def another() -> bool:
        (found,) = deployment.pods(role="prefill") or [prefill]
        return bool(found["metadata"]["uid"] != prefill["metadata"]["uid"])

    cluster.wait_for("another prefill pod", another)
    # Or with the next one, should the gateway have been gone for a moment.
    wait_until_whole(deployment, "tiny-key-2", "tiny-key-3")
    assert deployment.ask(PROMPT) == before

    cluster.kubectl("annotate", "dsd", "tiny", where, "distserve.io/key-generation=7")
    wait_until_whole(deployment, "tiny-key-7")
    assert deployment.ask(PROMPT) == before
