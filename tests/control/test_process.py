"""The watching and acting half on a real API server: replicas, repairs, and a hostile network."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.cluster.cluster import Cluster

UNITS = "test/units"
Start = Callable[..., Any]
Sample = Callable[..., dict[str, Any]]


def accounts(cluster: Cluster, namespace: str, name: str = "opt") -> dict[str, str]:
    """ServiceAccount -> units, of one deployment."""
    found = cluster.get("sa", namespace=namespace, selector=f"distserve.io/deployment={name}")
    marks = {one["metadata"]["name"]: one["metadata"]["annotations"] for one in found["items"]}
    return {name: annotations[UNITS] for name, annotations in marks.items()}


def expect(cluster: Cluster, namespace: str, wanted: dict[str, str], replica: Any) -> None:
    replica.wait_until(
        f"accounts {wanted}", lambda: accounts(cluster, namespace) == wanted, seconds=60.0
    )


def three(units: int) -> dict[str, str]:
    return {f"opt-{number}": str(units) for number in range(3)}


def test_objects_follow_the_deployment_and_edits_are_repaired(
    crd: Cluster, namespace: str, sample: Sample, start_operator: Start
) -> None:
    operator = start_operator()
    crd.apply(sample("opt", units=1), namespace)
    expect(crd, namespace, three(1), operator)

    def counted() -> bool:
        status = crd.get("dsd", "opt", namespace).get("status", {})
        return bool(status.get("replicas") == 3)

    operator.wait_until("a status", counted)
    crd.apply(sample("opt", units=2), namespace)
    expect(crd, namespace, three(2), operator)

    patch = json.dumps({"metadata": {"annotations": {UNITS: "77", "theirs": "stays"}}})
    crd.kubectl("patch", "sa/opt-1", f"-n{namespace}", "--type=merge", f"--patch={patch}")
    expect(crd, namespace, three(2), operator)
    crd.kubectl("delete", "sa/opt-2", f"-n{namespace}")
    expect(crd, namespace, three(2), operator)
    # The watch sees by label: such an object looks as if it were gone.
    crd.kubectl("label", "sa/opt-0", f"-n{namespace}", "distserve.io/deployment-")
    expect(crd, namespace, three(2), operator)

    crd.apply(sample("opt", units=0), namespace)
    expect(crd, namespace, {"opt-0": "0"}, operator)
    managers = crd.kubectl("get", "sa/opt-0", f"-n{namespace}", "--show-managed-fields", "-ojson")
    fields = json.loads(managers)["metadata"]["managedFields"]
    ours = [one["operation"] for one in fields if one["manager"] == "distserve-operator"]
    assert ours == ["Apply"], "one field manager, by server-side apply only"
    events = crd.get("events.events.k8s.io", namespace=namespace)["items"]
    assert {one["reason"] for one in events} == {"Counted"}
    assert operator.end() == 0


def test_an_object_of_our_name_that_is_not_ours_is_left_alone(
    crd: Cluster, namespace: str, sample: Sample, start_operator: Start
) -> None:
    metadata = {"name": "opt-1", "annotations": {UNITS: "mine"}}
    theirs = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    crd.apply(theirs, namespace)
    operator = start_operator()
    crd.apply(sample("opt", units=1), namespace)

    def told() -> bool:
        return bool(crd.get("dsd", "opt", namespace).get("status", {}).get("url") == "opt-1")

    operator.wait_until("the foreign object is reported", told)
    assert accounts(crd, namespace) == {"opt-0": "1", "opt-2": "1"}
    live = crd.get("sa", "opt-1", namespace)["metadata"]
    assert live["annotations"][UNITS] == "mine" and "ownerReferences" not in live


def test_one_of_two_replicas_writes_and_the_other_follows(
    crd: Cluster, namespace: str, sample: Sample, start_operator: Start
) -> None:
    first = start_operator()
    first.wait_until("leads", lambda: first.leads)
    second = start_operator()
    second.wait_until_ready()
    crd.apply(sample("opt", units=1), namespace)
    expect(crd, namespace, three(1), first)
    assert second.metric("distserve_operator_deployments") == 1, "it watches"
    assert not second.leads
    assert second.metric('distserve_operator_api_calls_total{outcome="200",verb="apply"}') == 0

    assert first.end(signal.SIGTERM) == 0
    second.wait_until("leads", lambda: second.leads)
    assert "gave the lease back" in first.tail()
    crd.apply(sample("opt", units=2), namespace)
    expect(crd, namespace, three(2), second)

    third = start_operator()
    third.wait_until_ready()
    second.end(signal.SIGKILL)
    crd.apply(sample("opt", units=3), namespace)
    expect(crd, namespace, three(3), third)
    transitions = crd.get("lease", "distserve-operator", namespace)["spec"]["leaseTransitions"]
    assert transitions == 2


def test_what_is_deleted_while_no_operator_runs_leaves_nothing(
    crd: Cluster, namespace: str, sample: Sample, start_operator: Start
) -> None:
    operator = start_operator()
    crd.apply(sample("opt", units=1), namespace)
    expect(crd, namespace, three(1), operator)
    assert operator.end() == 0
    assert "finalizers" not in crd.get("dsd", "opt", namespace)["metadata"]
    crd.kubectl("delete", "dsd/opt", f"-n{namespace}", "--timeout=20s")
    crd.wait_for("nothing is left", lambda: accounts(crd, namespace) == {})


PATIENT = {"duration_seconds": 60, "renew_deadline_seconds": 55.0}
"""A lease that runs out ends the process, as it should; these tests ask what happens before."""


def test_connections_that_die_in_silence_are_noticed(
    crd: Cluster,
    namespace: str,
    sample: Sample,
    start_operator: Start,
    network: tuple[Any, Path],
) -> None:
    wires, kubeconfig = network
    operator = start_operator(kubeconfig, lease=PATIENT)
    crd.apply(sample("opt", units=1), namespace)
    expect(crd, namespace, three(1), operator)
    wires.fall_silent()
    crd.apply(sample("opt", units=2), namespace)
    expect(crd, namespace, three(2), operator)
    assert operator.process.poll() is None, "the same process recovered"


def test_it_goes_on_after_the_api_server_was_away(
    crd: Cluster,
    namespace: str,
    sample: Sample,
    start_operator: Start,
    network: tuple[Any, Path],
) -> None:
    wires, kubeconfig = network
    operator = start_operator(kubeconfig, lease=PATIENT)
    crd.apply(sample("opt", units=1), namespace)
    expect(crd, namespace, three(1), operator)
    wires.go_away()
    crd.apply(sample("opt", units=2), namespace)
    operator.wait_until("notices", lambda: "not renewed" in operator.tail())
    wires.come_back()
    expect(crd, namespace, three(2), operator)
    assert operator.process.poll() is None, "the same process went on"


def test_a_replica_that_cannot_renew_ends(
    crd: Cluster, namespace: str, start_operator: Start
) -> None:
    operator = start_operator()
    operator.wait_until("leads", lambda: operator.leads)
    usurper = json.dumps({"spec": {"holderIdentity": "another"}})
    lease = ("patch", "lease/distserve-operator", f"-n{namespace}", "--type=merge")
    crd.kubectl(*lease, f"--patch={usurper}")
    assert operator.process.wait(30) != 0
    assert "LeaseLost" in operator.tail()
